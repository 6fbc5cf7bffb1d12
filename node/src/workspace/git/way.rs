//! The way to an upstream over http and https: libgit2 says what it asks, and the question goes out and the answer
//! comes in here.
//!
//! libgit2's own way waits in the system for a server, where neither a cancel nor a count of what comes reaches it, and
//! asks whatever address a name leads to. Here each piece is waited for with a limit, and a name is followed as the
//! origins of models are. So a fetch ends by itself, on the thread that it is on, and leaves nothing at work. Not here:
//! how libgit2 comes to it (`conversation`), what is asked for, and which upstreams may be.

mod conversation;
mod meter;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh::origin::{Lookup, PrivateAddress, PublicResolver};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, LOCATION};
use reqwest::redirect::Policy as Redirects;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::meter::Meter;
use super::{GitError, Part};

/// What forges take for git.
const USER_AGENT: &str = concat!("git/2.0 (comfy-farm ", env!("CARGO_PKG_VERSION"), ")");
/// What an upstream is asked for first.
const LIST: &str = "/info/refs?service=git-upload-pack";
/// How often an upstream may have moved.
const MAX_MOVES: usize = 5;

/// How long a server is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    /// How long a connection may take to be made. Defaults to 30 s.
    pub(super) connect: Duration,
    /// How long it may say nothing, at any point; it says that it counts and compresses while it does. Defaults to 60 s.
    pub(super) silence: Duration,
    /// How many bytes it is to send in a second at least, over all of `low_speed_time`, as git's own
    /// `http.lowSpeedLimit`. Defaults to 4 KiB, less than a modem's.
    pub(super) low_speed_limit: u64,
    /// How long it may send fewer, as git's own `http.lowSpeedTime`. Only the time counts in which it is waited for.
    /// Defaults to 3 minutes, in which it may count and compress.
    pub(super) low_speed_time: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            silence: Duration::from_secs(60),
            low_speed_limit: 4 << 10,
            low_speed_time: Duration::from_secs(3 * 60),
        }
    }
}

/// What a way keeps to.
pub(super) struct Terms<'a> {
    pub(super) patience: Patience,
    /// By what only public addresses are found; `None` where any will do.
    pub(super) only_public: Option<Lookup>,
    /// How many bytes are taken.
    pub(super) most: u64,
    pub(super) cancel: &'a CancellationToken,
}

/// The way to one upstream, for one fetch.
pub(super) struct Way {
    /// As it is recorded.
    url: String,
    commit: String,
    patience: Patience,
    most: u64,
    cancel: CancellationToken,
    http: Client,
    runtime: Option<Runtime>,
    travelled: Mutex<Travelled>,
}

/// What became of a way so far.
#[derive(Default)]
struct Travelled {
    meter: Meter,
    /// Where the upstream is, once that is known.
    place: Option<String>,
    /// Why it ended before its time.
    fault: Option<GitError>,
}

impl Way {
    pub(super) fn new(part: &Part, terms: &Terms<'_>) -> Result<Arc<Self>, GitError> {
        let url = part.url.as_str().trim_end_matches('/').to_owned();
        let mut http = Client::builder()
            .user_agent(USER_AGENT)
            // Only within its host: anywhere else, its new address is to be recorded.
            .redirect(Redirects::none())
            .referer(false)
            // A proxy would resolve names out of our sight.
            .no_proxy()
            .http1_only()
            .connect_timeout(terms.patience.connect);
        if let Some(lookup) = terms.only_public {
            http = http.dns_resolver(PublicResolver::new(lookup));
        }
        let http = http.build().map_err(|source| GitError::Connection { url: url.clone(), source })?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| GitError::Setup { url: url.clone(), source })?;
        Ok(Arc::new(Self {
            runtime: Some(runtime),
            commit: part.commit.to_string(),
            patience: terms.patience,
            most: terms.most,
            cancel: terms.cancel.clone(),
            travelled: Mutex::default(),
            http,
            url,
        }))
    }

    /// How many bytes came.
    pub(super) fn received(&self) -> u64 {
        self.travelled().meter.received()
    }

    /// Why it ended before its time.
    pub(super) fn fault(&self) -> Option<GitError> {
        self.travelled().fault.take()
    }

    fn travelled(&self) -> MutexGuard<'_, Travelled> {
        self.travelled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it. What libgit2 is told, it repeats; the reason is kept here.
    fn end(&self, fault: GitError) -> io::Error {
        let told = io::Error::other(fault.to_string().replace('\0', " "));
        self.travelled().fault.get_or_insert(fault);
        told
    }

    /// Waits for something of the server's for so long.
    fn wait<T>(
        &self,
        longest: Duration,
        coming: impl Future<Output = Result<T, reqwest::Error>>,
    ) -> Result<T, GitError> {
        let coming = self.cancel.run_until_cancelled(async { timeout(longest, coming).await });
        let runtime = self.runtime.as_ref().expect("it is there until this is dropped");
        let waited = match runtime.block_on(coming) {
            None => return Err(GitError::Canceled),
            Some(Ok(Ok(came))) => return Ok(came),
            Some(Ok(Err(error))) if !error.is_timeout() => return Err(self.broken(error)),
            // The client itself has a limit for one thing alone.
            Some(Ok(Err(_))) => self.patience.connect,
            Some(Err(_)) => longest,
        };
        let (url, commit) = (self.url.clone(), self.commit.clone());
        Err(GitError::Silent { url, commit, waited, received: self.received() })
    }

    fn broken(&self, error: reqwest::Error) -> GitError {
        let url = self.url.clone();
        match PrivateAddress::behind(&error) {
            Some(source) => GitError::Private { url, source },
            None => GitError::Connection { url, source: error.without_url() },
        }
    }

    /// Asks this, or what there is at all, and has the beginning of the answer. A repository that has moved on its
    /// own host is followed, as git does: its commits have the same names there.
    fn ask(&self, question: Option<Vec<u8>>) -> Result<Response, GitError> {
        let mut place = self.travelled().place.clone().unwrap_or_else(|| self.url.clone());
        if let Some(question) = question {
            let request = self.http.post(format!("{place}/git-upload-pack")).body(question);
            let request = request.header(CONTENT_TYPE, "application/x-git-upload-pack-request");
            return self.hear(request, "application/x-git-upload-pack-result")?.map_err(|refused| refused.1);
        }
        let mut moves = 0;
        loop {
            let request = self.http.get(format!("{place}{LIST}"));
            match self.hear(request, "application/x-git-upload-pack-advertisement")? {
                Ok(answer) => {
                    self.travelled().place = Some(place);
                    return Ok(answer);
                }
                Err((Some(next), _)) if moves < MAX_MOVES => (place, moves) = (next, moves + 1),
                Err((_, refused)) => return Err(refused),
            }
        }
    }

    /// The beginning of an answer of this kind; else where on the same host it may be had, and what to say if not.
    fn hear(
        &self,
        request: RequestBuilder,
        kind: &str,
    ) -> Result<Result<Response, (Option<String>, GitError)>, GitError> {
        let request = request.header(ACCEPT, kind).send();
        let answer = self.wait(self.patience.connect + self.patience.silence, request)?;
        let (status, headers) = (answer.status(), answer.headers());
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let hint = match status {
            StatusCode::OK if text(CONTENT_TYPE) == Some(kind) => return Ok(Ok(answer)),
            StatusCode::OK => "no git repository is there".to_owned(),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                "no repository is there that everybody may read; see its address".to_owned()
            }
            _ if status.is_redirection() => {
                let place = text(LOCATION).unwrap_or_default();
                let place = place.split("/info/refs").next().unwrap_or_default();
                format!("it has moved to `{place}`, which is not followed: record that address")
            }
            _ => "its server has a fault".to_owned(),
        };
        let next = text(LOCATION).filter(|_| status.is_redirection());
        let next = next.and_then(|location| moved_within(answer.url(), location));
        Ok(Err((next, GitError::Answered { url: self.url.clone(), status: status.as_u16(), hint })))
    }

    /// The next piece of an answer, as long as not more than this came in all; none at its end.
    fn next(&self, answer: &mut Response, most: u64) -> Result<Option<Bytes>, GitError> {
        let begun = Instant::now();
        let piece = self.wait(self.patience.silence, answer.chunk())?;
        let bytes = piece.as_ref().map_or(0, |piece| piece.len() as u64);
        let mut travelled = self.travelled();
        let is_slow = travelled.meter.is_slow(bytes, begun.elapsed(), &self.patience);
        let (url, received) = (self.url.clone(), travelled.meter.received());
        if received > most {
            return Err(GitError::TooLarge { url });
        }
        if is_slow && piece.is_some() {
            let (commit, Patience { low_speed_limit, low_speed_time, .. }) =
                (self.commit.clone(), self.patience);
            return Err(GitError::Slow { url, commit, low_speed_limit, low_speed_time, received });
        }
        Ok(piece)
    }
}

/// Where a repository is, if that is on the host on which it was asked for.
fn moved_within(asked: &Url, location: &str) -> Option<String> {
    let moved = asked.join(location).ok()?;
    let is_within = moved.origin() == asked.origin();
    moved.as_str().strip_suffix(LIST).filter(|_| is_within).map(str::to_owned)
}

impl Drop for Way {
    fn drop(&mut self) {
        // A name that is still being asked for is not waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
