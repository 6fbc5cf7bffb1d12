//! Web servers of the tests' own: each answers what its test says, and counts what it was asked and sent.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use mesh::origin::{OriginConfig, OriginReader};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::farm::loopback;

/// A question that a server got.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    /// With their names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The range that is asked for, of a file of this size.
    pub(crate) fn range(&self, size: usize) -> Option<Range<usize>> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        let end = last.parse::<usize>().map_or(size, |last| last + 1);
        Some(first.parse().ok()?..end.min(size))
    }
}

/// What a server answers.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
    /// After how many bytes of its body the connection ends, or hangs.
    pub(crate) cut: Option<Cut>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    EndAfter(usize),
    HangAfter(usize),
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new(), cut: None }
    }

    pub(crate) fn redirect(to: impl Into<String>) -> Self {
        Self::status(302).with("location", to)
    }

    /// All of these bytes.
    pub(crate) fn whole(bytes: &Bytes) -> Self {
        Self { body: bytes.clone(), ..Self::status(200) }
    }

    /// The range that is asked for, as a good server gives it; all of it if the version is another one.
    pub(crate) fn range(asked: &Asked, bytes: &Bytes, version: &str) -> Self {
        let version = format!("\"{version}\"");
        let holds = asked.header("if-range").is_none_or(|wanted| wanted == version);
        let reply = match asked.range(bytes.len()).filter(|_| holds) {
            None => Self::whole(bytes),
            Some(range) => {
                let content_range = format!("bytes {}-{}/{}", range.start, range.end - 1, bytes.len());
                let reply = Self { body: bytes.slice(range), ..Self::status(206) };
                reply.with("content-range", content_range)
            }
        };
        reply.with("etag", version)
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    pub(crate) fn cut(mut self, cut: Cut) -> Self {
        self.cut = Some(cut);
        self
    }
}

/// Answers a question.
pub(crate) type Handler = dyn Fn(&Asked) -> Reply + Send + Sync;

/// A certificate authority of the test's own.
pub(crate) struct Authority {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { certificate, key }
    }

    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    fn acceptor(&self, host: &str) -> TlsAcceptor {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![host.to_owned()]).expect("a host");
        let certificate = params.signed_by(&key, &self.certificate, &self.key).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("they are the provider's")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
            )
            .expect("they belong together");
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A server on the loopback, until it is dropped.
pub(crate) struct Web {
    pub(crate) address: SocketAddr,
    counts: Arc<Counts>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Counts {
    asked: Mutex<Vec<Asked>>,
    sent: AtomicU64,
    /// Bytes a second on all connections together; 0 for no cap.
    rate: AtomicU64,
    /// When the link is free again.
    free: Mutex<Option<Instant>>,
}

impl Web {
    /// A server of plain http.
    pub(crate) async fn start(handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::run(None, handler).await
    }

    /// A server of https that is this host.
    pub(crate) async fn start_tls(
        authority: &Authority,
        host: &str,
        handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::run(Some(authority.acceptor(host)), handler).await
    }

    async fn run(
        acceptor: Option<TlsAcceptor>,
        handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(loopback()).await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let counts: Arc<Counts> = Arc::default();
        let (shared, handler): (_, Arc<Handler>) = (Arc::clone(&counts), Arc::new(handler));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, counts, handler) =
                    (acceptor.clone(), Arc::clone(&shared), Arc::clone(&handler));
                connections.spawn(async move {
                    // Askers come and go as they like.
                    let _ = match acceptor {
                        None => answer(stream, &*handler, &counts).await,
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => answer(stream, &*handler, &counts).await,
                            Err(error) => Err(error),
                        },
                    };
                });
            }
        });
        Self { address, counts, _task: AbortOnDropHandle::new(task) }
    }

    /// A URL of this server.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What it was asked, in order.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.counts.asked.lock().expect("no test panics with it").clone()
    }

    /// How many bytes of bodies it sent.
    pub(crate) fn sent(&self) -> u64 {
        self.counts.sent.load(Ordering::Relaxed)
    }

    /// Caps what it sends on all connections together.
    pub(crate) fn set_rate(&self, bytes_per_second: u64) {
        self.counts.rate.store(bytes_per_second, Ordering::Relaxed);
    }
}

impl Counts {
    /// Waits for the link to carry so many bytes.
    async fn cross(&self, bytes: usize) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let until = {
            let mut free = self.free.lock().expect("no test panics with it");
            let now = Instant::now();
            let begin = free.map_or(now, |free| free.max(now));
            *free.insert(begin + Duration::from_secs_f64(bytes as f64 / rate as f64))
        };
        sleep_until(until).await;
    }
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    handler: &Handler,
    counts: &Counts,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
    let headers = lines.iter().skip(1).filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    let asked = Asked { path, headers };
    counts.asked.lock().expect("no test panics with it").push(asked.clone());
    let reply = handler(&asked);
    let mut head = format!("HTTP/1.1 {} Answer\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !reply.headers.iter().any(|(name, _)| *name == "content-length") {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    stream.write_all((head + "\r\n").as_bytes()).await?;
    let end = match reply.cut {
        Some(Cut::EndAfter(end) | Cut::HangAfter(end)) => end.min(reply.body.len()),
        None => reply.body.len(),
    };
    for part in reply.body[..end].chunks(64 << 10) {
        counts.cross(part.len()).await;
        stream.write_all(part).await?;
        counts.sent.fetch_add(part.len() as u64, Ordering::Relaxed);
    }
    stream.flush().await?;
    if let Some(Cut::HangAfter(_)) = reply.cut {
        std::future::pending::<()>().await;
    }
    stream.shutdown().await
}

/// A reader that may ask the servers of a test, and is quick to try again.
pub(crate) fn reader(change: impl FnOnce(&mut OriginConfig)) -> OriginReader {
    let mut config = OriginConfig {
        allow_http: true,
        allow_private: true,
        retry_pause: Duration::from_millis(5),
        ..OriginConfig::default()
    };
    change(&mut config);
    OriginReader::new(config).expect("the system has root certificates")
}
