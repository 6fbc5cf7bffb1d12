//! Files on the internet, read by ranges from any host that a lockfile names.
//!
//! A URL may have been written by a stranger. So only https is spoken, also after a redirect; only public
//! addresses are connected to, and that is checked on the very address; redirects are followed here and
//! not by the library; and a token goes to its own host alone, whoever redirects whereto. What a server
//! sends is checked against the size that is known before a byte of it is taken.
//!
//! ```text
//! OriginReader    the connections of this process, its tokens and limits
//! Origin          one file: its URLs, which of them serve it, and where they lead
//! Reading         one range of it, as pieces of 1 MiB: retried, resumed, and taken to the next URL
//! Document        a small answer of a host's API, whole
//! Saving          a file of which nothing is known but where it is, whole
//! ```
//!
//! Not here: who reads which range, and whether the bytes are right; those are `fetch` and the store.

mod token;
pub(crate) mod address;
mod error;
mod answer;
mod request;
mod mirrors;
mod question;
mod reading;
mod document;
mod saving;

pub use self::address::{Lookup, PrivateAddress, PublicResolver, system_lookup};
pub use self::document::Document;
pub use self::error::{OriginError, OriginFailed, OriginSetupError};
pub use self::mirrors::Origin;
pub use self::reading::{OriginEvent, Reading};
pub use self::saving::SaveError;
pub use self::token::{CIVITAI_API_TOKEN, HF_TOKEN, ParseTokenError, Token, Tokens};

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Url};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::Throttle;
use crate::origin::error::shown;

/// What reading from the internet may do.
#[derive(Clone, Debug)]
pub struct OriginConfig {
    /// The tokens of hosts that ask for one. Defaults to none.
    pub tokens: Tokens,
    /// Whether plain http is taken as well, for an office's own server. Defaults to false.
    pub allow_http: bool,
    /// Whether hosts at private addresses are asked, for an office's own server. Defaults to false.
    pub allow_private: bool,
    /// The only hosts that are asked, also after a redirect; any where it is empty. Defaults to empty.
    pub hosts: BTreeSet<String>,
    /// Certificates that are trusted beside the system's, in PEM. Defaults to none.
    pub extra_roots: Vec<String>,
    /// Where these hosts are, in place of what DNS says; private or not. Defaults to none.
    pub resolve: Vec<(String, SocketAddr)>,
    /// How many connections one host gets at once. Defaults to 8.
    pub connections: usize,
    /// How long a connection may take to be made. Defaults to 10 s.
    pub connect_timeout: Duration,
    /// How long a server may send nothing. Defaults to 30 s.
    pub silence: Duration,
    /// The pause before the first retry; each one is twice as long. Defaults to 500 ms.
    pub retry_pause: Duration,
    /// How often a URL is tried again before it brought a piece. Defaults to 6.
    pub retries: u32,
    /// The longest pause that a busy server is granted. Defaults to 60 s.
    pub longest_pause: Duration,
}

impl Default for OriginConfig {
    fn default() -> Self {
        Self {
            tokens: Tokens::default(),
            allow_http: false,
            allow_private: false,
            hosts: BTreeSet::new(),
            extra_roots: Vec::new(),
            resolve: Vec::new(),
            connections: 8,
            connect_timeout: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            retry_pause: Duration::from_millis(500),
            retries: 6,
            longest_pause: Duration::from_secs(60),
        }
    }
}

/// Reads from the internet. A clone is another handle to the same connections.
#[derive(Clone)]
pub struct OriginReader {
    inner: Arc<Inner>,
    /// The caps of the machine, which what comes from here counts against like what peers give.
    throttle: Option<Arc<Throttle>>,
}

struct Inner {
    config: OriginConfig,
    http: Client,
    hosts: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl OriginReader {
    /// A reader that keeps to this config.
    pub fn new(config: OriginConfig) -> Result<Self, OriginSetupError> {
        let roots = config.extra_roots.iter().map(|pem| Certificate::from_pem(pem.as_bytes()));
        let roots: Vec<_> = roots.collect::<Result<_, _>>().map_err(OriginSetupError::Certificate)?;
        let mut builder = Client::builder()
            .user_agent(concat!("comfy-farm/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .referer(false)
            // A proxy would resolve names out of our sight, and its own address is rarely a public one.
            .no_proxy()
            // One stream a connection: a file is bulk, and a lost connection costs one range.
            .http1_only()
            .connect_timeout(config.connect_timeout)
            .https_only(!config.allow_http);
        if !config.allow_private {
            builder = builder.dns_resolver(PublicResolver::new(system_lookup));
        }
        if !roots.is_empty() {
            builder = builder.tls_certs_merge(roots);
        }
        for (host, address) in &config.resolve {
            builder = builder.resolve(host, *address);
        }
        let http = builder.build().map_err(OriginSetupError::Client)?;
        Ok(Self { inner: Arc::new(Inner { config, http, hosts: Mutex::default() }), throttle: None })
    }

    /// The same, held to these caps.
    pub(crate) fn throttled(self, throttle: Arc<Throttle>) -> Self {
        Self { throttle: Some(throttle), ..self }
    }

    /// How many bytes the file at the first of these URLs that answers has.
    pub async fn size(&self, urls: &[String]) -> Result<u64, OriginFailed> {
        let mut failures = Vec::new();
        for text in urls {
            let size = match Url::parse(text) {
                Ok(url) => self.ask_size(&url).await,
                Err(_) => Err(OriginError::NoUrl),
            };
            match size {
                Ok(size) => return Ok(size),
                Err(error) => failures.push((shown(text), Arc::new(error))),
            }
        }
        Err(OriginFailed { failures })
    }

    /// Waits for one of the connections that the host of this URL may have.
    async fn connection(&self, url: &Url) -> OwnedSemaphorePermit {
        let host = url.authority().to_owned();
        let semaphore = {
            let mut hosts = self.inner.hosts.lock().expect("nothing panics while it holds them");
            hosts.retain(|_, semaphore| semaphore.strong_count() > 0);
            let known = hosts.get(&host).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let semaphore = Arc::new(Semaphore::new(self.inner.config.connections.max(1)));
                hosts.insert(host, Arc::downgrade(&semaphore));
                semaphore
            })
        };
        semaphore.acquire_owned().await.expect("it is never closed")
    }
}
