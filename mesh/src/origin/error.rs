//! Why a URL does not give a file, in words that say what to do.
//!
//! Not here: which of these are tried again; that is `reading`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use protocol::error_chain;
use reqwest::Url;

/// Why nothing can be read from the internet at all.
#[derive(Debug, thiserror::Error)]
pub enum OriginSetupError {
    /// A certificate of the config is none.
    #[error("an extra root certificate is not one in PEM")]
    Certificate(#[source] reqwest::Error),
    /// TLS cannot be set up.
    #[error("connections to the internet cannot be set up: are the system's root certificates installed?")]
    Client(#[source] reqwest::Error),
}

/// Why one URL did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// It is no URL.
    #[error("it is no URL")]
    NoUrl,
    /// It is one that is not taken from strangers.
    #[error("only https URLs without a user name are taken, and `{0}` is another")]
    Scheme(String),
    /// Its host is not one of those that may be asked.
    #[error("`{0}` is not among the hosts that may be asked")]
    Host(String),
    /// It leads into this machine or its network.
    #[error("`{host}` leads to {address}, which is no address on the internet")]
    Private {
        /// The host.
        host: String,
        /// Its address.
        address: IpAddr,
    },
    /// No connection was made.
    #[error("no connection to `{host}` could be made")]
    Connect {
        /// The host.
        host: String,
        /// What went wrong.
        source: reqwest::Error,
    },
    /// A connection broke.
    #[error("the connection to `{host}` broke")]
    Broken {
        /// The host.
        host: String,
        /// What went wrong.
        source: reqwest::Error,
    },
    /// Nothing came.
    #[error("`{host}` sent nothing for {} s", waited.as_secs_f32())]
    Silent {
        /// The host.
        host: String,
        /// For how long.
        waited: Duration,
    },
    /// A document did not come in time.
    #[error("`{host}` did not send its answer within {} s", waited.as_secs_f32())]
    Slow {
        /// The host.
        host: String,
        /// How long it had.
        waited: Duration,
    },
    /// A document is larger than any that is read.
    #[error("`{host}` answers with more than {limit} bytes, which is more than is read")]
    Large {
        /// The host.
        host: String,
        /// How many are.
        limit: usize,
    },
    /// The host does not give it to us.
    #[error("`{host}` answered {status}: {advice}")]
    Denied {
        /// The host.
        host: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent, and what to do.
        advice: Advice,
    },
    /// There is no such file.
    #[error("`{host}` answered {status}: the file is not there, or not any more")]
    NotFound {
        /// The host.
        host: String,
        /// 404 or 410.
        status: u16,
    },
    /// The host has too much to do.
    #[error("`{host}` answered {status}: it is busy{}", until(.wait))]
    Busy {
        /// The host.
        host: String,
        /// 429, or one of 500 and more.
        status: u16,
        /// How long it asks to wait.
        wait: Option<Duration>,
    },
    /// The host answered what cannot be used.
    #[error("`{host}` answered {status}, which is of no use here")]
    Status {
        /// The host.
        host: String,
        /// Which.
        status: u16,
    },
    /// A redirect leads nowhere, or from https to http.
    #[error("`{host}` redirects to no https URL")]
    Redirect {
        /// The host.
        host: String,
    },
    /// Redirects do not end.
    #[error("it redirects more than {0} times")]
    Redirects(usize),
    /// The file there is another one.
    #[error("`{host}` has a file of {found} bytes, and the one that is wanted has {expected}")]
    Size {
        /// The host.
        host: String,
        /// What the one has.
        expected: u64,
        /// What the other has.
        found: u64,
    },
    /// What was sent is not what was asked for.
    #[error("`{host}` sent {sent} when it was asked for a range")]
    Range {
        /// The host.
        host: String,
        /// What it sent.
        sent: &'static str,
    },
    /// The body ended early.
    #[error("`{host}` ended its answer {lacking} bytes early")]
    Short {
        /// The host.
        host: String,
        /// How many bytes are missing.
        lacking: u64,
    },
    /// The file keeps changing.
    #[error("`{host}` changes the file while it is read")]
    Changing {
        /// The host.
        host: String,
    },
    /// All of it was read, and it is another file.
    #[error("the file there has another SHA-256")]
    WrongSha256,
}

fn until(wait: &Option<Duration>) -> String {
    wait.map_or_else(String::new, |wait| format!(", and asks to wait {} s", wait.as_secs()))
}

/// What to do about a host that does not give a file to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// The token of this variable was sent.
    Sent(&'static str),
    /// The token of this variable was not there to be sent.
    Set(&'static str),
    /// No token is known for this host.
    NoToken,
}

impl std::fmt::Display for Advice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sent(variable) => write!(
                f,
                "the token of `{variable}` was sent and is not enough: accept the model's licence on its page, or renew the token"
            ),
            Self::Set(variable) => {
                write!(f, "no token was sent: set `{variable}`, and accept the model's licence on its page")
            }
            Self::NoToken => f.write_str("no token was sent, because none is known for this host"),
        }
    }
}

/// No URL of a file gave what was asked for.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", list(failures))]
pub struct OriginFailed {
    /// Each URL, without what may be secret in it, and why it did not help.
    pub failures: Vec<(String, Arc<OriginError>)>,
}

fn list(failures: &[(String, Arc<OriginError>)]) -> String {
    if failures.is_empty() {
        return "no URL is known".to_owned();
    }
    let text = |(url, error): &(String, Arc<OriginError>)| format!("{url}: {}", error_chain(&**error));
    failures.iter().map(text).collect::<Vec<_>>().join("; ")
}

/// A URL as it may be shown: a user name and what follows `?` may be secrets.
pub(super) fn shown(text: &str) -> String {
    let bare = text.split(['?', '#']).next().unwrap_or_default();
    match (bare.split_once("://"), bare.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://{rest}"),
        _ => bare.to_owned(),
    }
}

/// The host of a URL, as it is shown.
pub(super) fn host(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do_and_no_secret() {
        let denied = OriginError::Denied {
            host: "huggingface.co".to_owned(),
            status: 401,
            advice: Advice::Set("HF_TOKEN"),
        };
        let failures = vec![(shown("https://huggingface.co/a/b.bin?token=secret#x"), Arc::new(denied))];
        let text = OriginFailed { failures }.to_string();
        assert!(text.starts_with("https://huggingface.co/a/b.bin: `huggingface.co` answered 401"), "{text}");
        assert!(text.contains("set `HF_TOKEN`") && text.contains("licence"), "{text}");
        assert!(!text.contains("secret"), "{text}");
        assert_eq!(shown("https://me:secret@example.org/a?b"), "https://example.org/a");
    }
}
