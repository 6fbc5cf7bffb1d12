//! An https server with one file, as an office's own mirror is: it gives ranges, at a capped rate, and counts
//! what it sent.
//!
//! Not here: what real servers do wrong; the tests of the mesh have that.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

/// The host that it is.
const HOST: &str = "localhost";
/// How much is sent at a time.
const PART: usize = 64 << 10;

/// The server; gone when it is dropped.
pub struct Origin {
    /// Where the file is.
    pub url: String,
    /// The certificate by which it is known, PEM.
    pub certificate: PathBuf,
    sent: Arc<AtomicU64>,
    _serving: JoinSet<()>,
}

struct Shelf {
    file: Vec<u8>,
    /// How long the link to it takes for a part. Held while one crosses.
    link: Mutex<Duration>,
    sent: Arc<AtomicU64>,
}

impl Origin {
    /// Serves this file, to all who ask together no faster than so many bytes a second. Its certificate is
    /// written into the folder.
    pub async fn start(folder: &Path, file: Vec<u8>, bytes_per_second: u64) -> anyhow::Result<Self> {
        let (acceptor, pem) = acceptor()?;
        let certificate = folder.join("origin.pem");
        std::fs::write(&certificate, pem)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://{HOST}:{}/model.safetensors", listener.local_addr()?.port());
        let sent = Arc::<AtomicU64>::default();
        let link = Mutex::new(Duration::from_secs(1) * PART as u32 / u32::try_from(bytes_per_second)?);
        let shelf = Arc::new(Shelf { file, link, sent: Arc::clone(&sent) });
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, shelf) = (acceptor.clone(), Arc::clone(&shelf));
                connections.spawn(async move { shelf.answer(acceptor.accept(stream).await?).await });
            }
        });
        Ok(Self { url, certificate, sent, _serving: serving })
    }

    /// How many bytes of the file it has sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Shelf {
    async fn answer(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut wanted = None;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            wanted = wanted.or_else(|| self.range(line.strip_prefix("range: bytes=")?));
        }
        let size = self.file.len();
        let (status, range) = match wanted {
            Some(range) => ("206 Partial Content", range),
            None => ("200 OK", 0..size),
        };
        let (first, last, length) = (range.start, range.end - 1, range.len());
        let head = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\netag: \"1\"\r\naccept-ranges: bytes\r\n\
             content-range: bytes {first}-{last}/{size}\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        for part in self.file[range].chunks(PART) {
            let link = self.link.lock().await;
            sleep(*link).await;
            drop(link);
            stream.write_all(part).await?;
            self.sent.fetch_add(part.len() as u64, Ordering::Relaxed);
        }
        stream.shutdown().await
    }

    fn range(&self, text: &str) -> Option<Range<usize>> {
        let (first, last) = text.split_once('-')?;
        let end = last.parse::<usize>().map_or(self.file.len(), |last| last + 1);
        let range = first.parse().ok()?..end.min(self.file.len());
        (!range.is_empty()).then_some(range)
    }
}

/// What makes TLS of a connection, and the certificate of the authority that vouches for it.
fn acceptor() -> anyhow::Result<(TlsAcceptor, String)> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate()?;
    let authority = params.self_signed(&authority_key)?;
    let key = KeyPair::generate()?;
    let certificate =
        CertificateParams::new(vec![HOST.to_owned()])?.signed_by(&key, &authority, &authority_key)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    Ok((TlsAcceptor::from(Arc::new(config)), authority.pem()))
}
