//! One question to the internet: sent, and followed by hand where it is redirected.
//!
//! Not here: what to do when it fails; that is `reading`.

use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, IF_RANGE, LOCATION, RANGE};
use reqwest::{Response, Url};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::origin::OriginReader;
use crate::origin::address::{PrivateAddress, is_public};
use crate::origin::answer::{Answer, Version, judge};
use crate::origin::error::{Advice, OriginError, host};
use crate::origin::token::TokenFor;

/// How many redirects are followed.
const MAX_REDIRECTS: usize = 10;

/// What is asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    /// The first byte and, where there is one, the end; `None` for the file from its beginning.
    pub(super) bytes: Option<(u64, Option<u64>)>,
    /// What the file was before: if it is no longer that, all of it is sent.
    pub(super) version: Option<Version>,
    /// How many bytes the file has, if that is known.
    pub(super) size: Option<u64>,
}

/// An answer whose body is still to come.
pub(super) struct Opened {
    pub(super) answer: Answer,
    pub(super) response: Response,
    /// Where it came from in the end, if that is not where we asked.
    pub(super) redirected: Option<Url>,
    /// The connection is one of those that its host may have.
    pub(super) connection: OwnedSemaphorePermit,
}

/// Why there is none, and whether a redirect had led to it.
pub(super) struct Refused {
    pub(super) error: OriginError,
    pub(super) was_redirected: bool,
}

impl OriginReader {
    /// Asks a URL for bytes of its file, and goes where it is redirected.
    pub(super) async fn open(&self, start: &Url, wanted: &Wanted) -> Result<Opened, Refused> {
        let mut url = start.clone();
        for _ in 0..=MAX_REDIRECTS {
            let was_redirected = url != *start;
            let refused = |error| Refused { error, was_redirected };
            self.check(&url).map_err(refused)?;
            let connection = self.connection(&url).await;
            let response = self.send(&url, wanted).await.map_err(refused)?;
            if let Some(next) = redirect(&url, &response).map_err(refused)? {
                url = next;
                continue;
            }
            let (status, headers) = (response.status(), response.headers());
            let begin = wanted.bytes.map_or(0, |(begin, _)| begin);
            let answer = judge(&host(&url), (status, headers), begin, wanted.size, self.advice(&url));
            let answer = answer.map_err(refused)?;
            let redirected = was_redirected.then_some(url);
            return Ok(Opened { answer, response, redirected, connection });
        }
        Err(Refused { error: OriginError::Redirects(MAX_REDIRECTS), was_redirected: true })
    }

    /// How many bytes the file at this URL has.
    pub(super) async fn ask_size(&self, url: &Url) -> Result<u64, OriginError> {
        let first_byte = Wanted { bytes: Some((0, Some(1))), ..Wanted::default() };
        let opened = self.open(url, &first_byte).await.map_err(|refused| refused.error)?;
        match opened.answer {
            Answer::Range { size, .. } | Answer::Whole { size: Some(size), .. } => Ok(size),
            Answer::Whole { size: None, .. } => {
                Err(OriginError::Range { host: host(url), sent: "a file without saying how long it is" })
            }
        }
    }

    /// Refuses what no stranger's URL, and no redirect, may name.
    fn check(&self, url: &Url) -> Result<(), OriginError> {
        let config = &self.inner.config;
        let is_allowed = url.scheme() == "https" || (config.allow_http && url.scheme() == "http");
        let names_user = !url.username().is_empty() || url.password().is_some();
        if !is_allowed || names_user || !url.has_host() {
            return Err(OriginError::Scheme(format!("{}://{}", url.scheme(), host(url))));
        }
        if !config.hosts.is_empty() && !config.hosts.contains(&host(url).to_ascii_lowercase()) {
            return Err(OriginError::Host(host(url)));
        }
        // A name is looked at when it is resolved.
        let address = host(url).trim_matches(['[', ']']).parse().ok();
        match address.filter(|address| !config.allow_private && !is_public(*address)) {
            Some(address) => Err(OriginError::Private { host: host(url), address }),
            None => Ok(()),
        }
    }

    async fn send(&self, url: &Url, wanted: &Wanted) -> Result<Response, OriginError> {
        let config = &self.inner.config;
        // Positions count in the file as it is, not in a compressed one.
        let mut request = self.inner.http.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        if let TokenFor::Known(_, token) = config.tokens.of(url) {
            request = request.header(AUTHORIZATION, token.header());
        }
        if let Some((begin, end)) = wanted.bytes {
            let last = end.map_or_else(String::new, |end| end.saturating_sub(1).to_string());
            request = request.header(RANGE, format!("bytes={begin}-{last}"));
            if let Some(Version(version)) = &wanted.version {
                request = request.header(IF_RANGE, version);
            }
        }
        let waited = config.connect_timeout + config.silence;
        let sent = timeout(waited, request.send()).await;
        let sent = sent.map_err(|_| OriginError::Silent { host: host(url), waited })?;
        sent.map_err(|error| {
            if let Some(PrivateAddress { host, address }) = PrivateAddress::behind(&error) {
                return OriginError::Private { host, address };
            }
            let (host, is_connecting, source) = (host(url), error.is_connect(), error.without_url());
            if is_connecting {
                OriginError::Connect { host, source }
            } else {
                OriginError::Broken { host, source }
            }
        })
    }

    fn advice(&self, url: &Url) -> Advice {
        match self.inner.config.tokens.of(url) {
            TokenFor::Known(variable, _) => Advice::Sent(variable),
            TokenFor::Missing(variable) => Advice::Set(variable),
            TokenFor::Nobody => Advice::NoToken,
        }
    }
}

/// Where an answer leads, if it is a redirect: never from https to anything else.
fn redirect(url: &Url, response: &Response) -> Result<Option<Url>, OriginError> {
    if ![301, 302, 303, 307, 308].contains(&response.status().as_u16()) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    let next = location.and_then(|location| url.join(location).ok());
    let next = next.filter(|next| next.scheme() == "https" || url.scheme() == "http");
    next.map(Some).ok_or_else(|| OriginError::Redirect { host: host(url) })
}
