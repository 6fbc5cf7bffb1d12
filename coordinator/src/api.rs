//! The HTTP face of the coordinator: `/v1`, its documentation, the mesh page, and who may speak to it.
//!
//! It sees nothing of the coordinator but its [`CoordinatorHandle`]. The order of reading: `v1` for what
//! is there, `guard` for who may ask, `error` for what a refusal looks like. Not here: any decision
//! about jobs; the handle's other end makes those.

mod blob_body;
mod error;
mod extract;
mod form;
mod guard;
mod openapi;
mod page;
#[cfg(test)]
mod testing;
mod upload;
mod v1;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use protocol::PeerId;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

use crate::api::error::ApiError;
use crate::api::guard::Guard;
use crate::handle::{CoordinatorHandle, Stopping};

/// How long requests may go on once the server stops.
const GRACE: Duration = Duration::from_secs(5);
/// The longest that a caller may take to send the head of a request; also how long a connection idles.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How the API is served.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Where to listen. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Names, beside loopback and the address itself, under which the farm is called.
    pub allowed_hosts: Vec<String>,
    /// Origins of web pages elsewhere that may speak to the farm, such as `https://studio.example`.
    pub allowed_origins: Vec<String>,
    /// The certificate and key to serve HTTPS with.
    pub tls: Option<TlsFiles>,
    /// Whether plain HTTP may be served off loopback.
    pub insecure_http: bool,
    /// The most bytes of one upload: a bundle, an asset, or all files of a job.
    pub upload_limit: u64,
}

impl Default for ApiConfig {
    /// On loopback, at the port that tools look at first; uploads of up to 4 GiB.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8288)),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            tls: None,
            insecure_http: false,
            upload_limit: 4 << 30,
        }
    }
}

/// Where the certificate for HTTPS is.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The chain of certificates, as PEM.
    pub certificate: PathBuf,
    /// The private key, as PEM.
    pub key: PathBuf,
}

/// Why the API is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Keys would cross the network in the clear.
    #[error(
        "`{0}` can be reached from other machines, and keys would cross the network in the clear: pass \
         `--tls-cert` and `--tls-key`, or `--insecure-http` if another layer protects it"
    )]
    Insecure(SocketAddr),
    /// The address cannot be listened at.
    #[error("listening at `{address}` (TCP, HTTP) did not succeed")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("reading the certificate `{}` with the key `{}` did not succeed", files.certificate.display(), files.key.display())]
    Tls {
        /// The files.
        files: TlsFiles,
        /// Why not.
        source: io::Error,
    },
    /// The coordinator is not there.
    #[error(transparent)]
    Stopping(#[from] Stopping),
}

/// The running server.
#[derive(Debug)]
pub struct ApiServer {
    /// Where it listens.
    pub address: SocketAddr,
    /// How it is called from its own machine, without a slash at the end.
    pub url: String,
    task: JoinHandle<()>,
}

impl ApiServer {
    /// Waits until it has stopped, after its token was cancelled.
    pub async fn stopped(self) {
        if let Err(error) = self.task.await {
            tracing::error!(error = &error as &dyn std::error::Error, "http server ended abnormally");
        }
    }
}

/// What the routes share.
#[derive(Clone)]
pub(crate) struct Api {
    coordinator: CoordinatorHandle,
    /// The coordinator's own name.
    peer: PeerId,
    upload_limit: u64,
    /// The farm's OpenAPI document.
    openapi: Arc<serde_json::Value>,
    /// Cancelled when the server stops, for the answers that would never end.
    stopping: CancellationToken,
}

/// A listening socket, and what will be served on it.
pub struct Bound {
    config: ApiConfig,
    listener: TcpListener,
    certificate: Option<RustlsConfig>,
    address: SocketAddr,
}

/// Takes the socket and reads the certificate, so that what is wrong with either is found before
/// anything else is started.
pub async fn bind(config: ApiConfig) -> Result<Bound, ServeError> {
    if !config.listen.ip().is_loopback() && config.tls.is_none() && !config.insecure_http {
        return Err(ServeError::Insecure(config.listen));
    }
    let certificate = match &config.tls {
        None => None,
        Some(files) => {
            mesh::plane::install_ciphers();
            let certificate = RustlsConfig::from_pem_file(&files.certificate, &files.key).await;
            Some(certificate.map_err(|source| ServeError::Tls { files: files.clone(), source })?)
        }
    };
    let error = |source| ServeError::Bind { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).map_err(error)?;
    listener.set_nonblocking(true).map_err(error)?;
    let address = listener.local_addr().map_err(error)?;
    Ok(Bound { config, listener, certificate, address })
}

impl Bound {
    /// Serves until `stopping`.
    pub async fn serve(
        self,
        coordinator: CoordinatorHandle,
        stopping: CancellationToken,
    ) -> Result<ApiServer, ServeError> {
        let Self { config, listener, certificate, address } = self;
        let error = |source| ServeError::Bind { address, source };
        let peer = coordinator.farm().await?.coordinator;
        let guard = Guard::new(address, &config.allowed_hosts, &config.allowed_origins);
        let service =
            router(guard, coordinator, peer, config.upload_limit, stopping.clone()).into_make_service();

        let scheme = if certificate.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", reachable(address));
        let handle = Handle::new();
        let stop = handle.clone();
        let server: JoinHandle<io::Result<()>> = match certificate {
            None => {
                let mut server = axum_server::from_tcp(listener).map_err(error)?;
                server.http_builder().http1().header_read_timeout(HEAD_TIMEOUT);
                tokio::spawn(server.handle(handle).serve(service))
            }
            Some(certificate) => {
                let mut server = axum_server::from_tcp_rustls(listener, certificate).map_err(error)?;
                server.http_builder().http1().header_read_timeout(HEAD_TIMEOUT);
                tokio::spawn(server.handle(handle).serve(service))
            }
        };
        let task = tokio::spawn(async move {
            stopping.cancelled().await;
            stop.graceful_shutdown(Some(GRACE));
            match server.await {
                Ok(Ok(())) => tracing::debug!("http server stopped"),
                Ok(Err(error)) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "http server failed")
                }
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "http server panicked")
                }
            }
        });
        tracing::info!(%address, %url, "http api listens");
        Ok(ApiServer { address, url, task })
    }
}

/// An address to call, for one that may stand for all addresses.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => ([127, 0, 0, 1], v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => ([0, 0, 0, 0, 0, 0, 0, 1], v6.port()).into(),
        address => address,
    }
}

fn router(
    guard: Guard,
    coordinator: CoordinatorHandle,
    peer: PeerId,
    upload_limit: u64,
    stopping: CancellationToken,
) -> Router {
    let (v1, document) = v1::routes().split_for_parts();
    let document = Arc::new(openapi::complete(document));
    let api =
        Api { coordinator: coordinator.clone(), peer, upload_limit, openapi: document.clone(), stopping };
    Router::new()
        .merge(v1.route_layer(from_fn_with_state(coordinator, guard::require_key)))
        .merge(page::routes(document))
        .fallback(|| async { ApiError::NotFound("there is nothing at this path".to_owned()) })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        // Every handler counts what it reads against a limit of its own.
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(|_| ApiError::Panic.into_response()))
        .layer(from_fn_with_state(Arc::new(guard), guard::check_source))
        .with_state(api)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::api::testing::{KEY, TestFarm};

    async fn serve_at(
        listen: &str,
        farm: &TestFarm,
        stopping: &CancellationToken,
    ) -> Result<ApiServer, ServeError> {
        let config = ApiConfig { listen: listen.parse().unwrap(), ..ApiConfig::default() };
        bind(config).await?.serve(farm.handle.clone(), stopping.clone()).await
    }

    #[tokio::test]
    async fn address_that_others_reach_needs_encryption_or_the_word_for_it() {
        let farm = TestFarm::start().await;
        let stopping = CancellationToken::new();
        let refused = serve_at("0.0.0.0:0", &farm, &stopping).await.unwrap_err();
        assert!(matches!(refused, ServeError::Insecure(_)));
        assert!(refused.to_string().contains("--insecure-http"));
        let listen = "0.0.0.0:0".parse().unwrap();
        let config = ApiConfig { listen, insecure_http: true, ..ApiConfig::default() };
        let server = bind(config).await.unwrap().serve(farm.handle.clone(), stopping.clone()).await.unwrap();
        assert_eq!(server.url, format!("http://127.0.0.1:{}", server.address.port()));
        stopping.cancel();
        server.stopped().await;
    }

    #[tokio::test]
    async fn taken_port_is_named() {
        let farm = TestFarm::start().await;
        let stopping = CancellationToken::new();
        let first = serve_at("127.0.0.1:0", &farm, &stopping).await.unwrap();
        let refused = serve_at(&first.address.to_string(), &farm, &stopping).await.unwrap_err();
        assert!(refused.to_string().contains(&first.address.to_string()));
        stopping.cancel();
        first.stopped().await;
    }

    #[tokio::test]
    async fn stopping_server_ends_its_event_streams() {
        let farm = TestFarm::start().await;
        let stopping = CancellationToken::new();
        let server = serve_at("127.0.0.1:0", &farm, &stopping).await.unwrap();
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let request = format!(
            "GET /v1/events HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {KEY}\r\n\r\n",
            server.address
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains("event: snapshot") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "it ended too early");
        }
        stopping.cancel();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
        server.stopped().await;
    }
}
