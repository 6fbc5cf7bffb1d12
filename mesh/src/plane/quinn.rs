//! The data plane on QUIC, tuned by measurement: MTU, windows, acknowledgements and the control of congestion.
//!
//! What a stranger can make this process hold is small until it passed the gate, and bounded by how many
//! handshakes run at once.

mod congestion;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protocol::PeerId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    AckFrequencyConfig, Connection, ConnectionError, Endpoint, EndpointConfig, Incoming, MtuDiscoveryConfig,
    TokioRuntime, TransportConfig, VarInt,
};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use self::congestion::ByDistance;
use super::certificate::{Tls, peer_of};
use super::{BindError, Channel, DialError, Link, Plane};
use crate::identity::Identity;
use crate::interfaces::expand;

const NAME: &str = "QUIC";
/// The largest packet. A batch of the kernel holds ten and at most 64 KiB: beyond 6,400 bytes it breaks.
const MAX_PACKET: u16 = 6400;
const STREAM_WINDOW: u32 = 32 << 20;
const LINK_WINDOW: u32 = 64 << 20;
/// The window of a link whose peer has not passed the gate.
const STRANGER_WINDOW: u32 = 64 << 10;
const MAX_CHANNELS: u32 = 64;
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// When a peer that is gone is noticed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_HANDSHAKES: usize = 64;
/// How many links may wait to be taken.
const LINK_QUEUE: usize = 64;

/// Links over QUIC on one UDP port.
pub struct QuinnPlane {
    endpoint: Endpoint,
    /// The endpoint's socket.
    socket: UdpSocket,
    tls: Tls,
    transport: Arc<TransportConfig>,
    links: Mutex<mpsc::Receiver<Arc<dyn Link>>>,
    listening: SocketAddr,
    _guard: DropGuard,
}

impl QuinnPlane {
    /// Listens on this UDP port; port 0 lets the system choose.
    pub async fn bind(identity: &Identity, address: SocketAddr) -> Result<Self, BindError> {
        let tls = Tls::new(identity).map_err(BindError::Tls)?;
        let transport = Arc::new(transport());
        let server = tls.server().map_err(|error| BindError::Tls(error.into()))?;
        let server = QuicServerConfig::try_from(server).map_err(|_| BindError::Ciphers)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
        server.transport_config(Arc::clone(&transport));
        server.max_incoming(MAX_HANDSHAKES).migration(false);
        let mut config = EndpointConfig::default();
        config.max_udp_payload_size(MAX_PACKET).expect("it is above the least of 1,200");
        let failure = |source| BindError::Socket { address, protocol: "UDP", source };
        let socket = UdpSocket::bind(address).map_err(failure)?;
        let listening = socket.local_addr().map_err(failure)?;
        let of_endpoint = socket.try_clone().map_err(failure)?;
        let endpoint =
            Endpoint::new(config, Some(server), of_endpoint, Arc::new(TokioRuntime)).map_err(failure)?;
        let (found, links) = mpsc::channel(LINK_QUEUE);
        let stop = CancellationToken::new();
        tokio::spawn(accept(endpoint.clone(), found, stop.clone()));
        let links = Mutex::new(links);
        Ok(Self { endpoint, socket, tls, transport, links, listening, _guard: stop.drop_guard() })
    }
}

#[async_trait]
impl Plane for QuinnPlane {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn dial(&self, peer: PeerId, address: SocketAddr) -> Result<Arc<dyn Link>, DialError> {
        let failure = |source| DialError::NoAnswer { address, plane: NAME, source };
        let tls = self.tls.client(peer).map_err(|error| failure(io::Error::other(error)))?;
        let tls = QuicClientConfig::try_from(tls).map_err(|error| failure(io::Error::other(error)))?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::clone(&self.transport));
        // The name goes unused: peers are known by their key.
        let connecting = self.endpoint.connect_with(config, address, "peer.invalid");
        let connecting = connecting.map_err(|error| failure(io::Error::other(error)))?;
        match timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => Ok(Arc::new(QuinnLink { connection, peer })),
            Ok(Err(ConnectionError::TransportError(error)))
                if error.code == rustls_alert(rustls::AlertDescription::AccessDenied) =>
            {
                Err(DialError::WrongPeer { address, plane: NAME })
            }
            Ok(Err(error)) => Err(failure(error.into())),
            Err(_) => Err(failure(io::ErrorKind::TimedOut.into())),
        }
    }

    async fn dial_udp(&self, peer: PeerId, address: SocketAddr) -> Result<Arc<dyn Link>, DialError> {
        self.dial(peer, address).await
    }

    fn knock(&self, address: SocketAddr) {
        // QUIC passes over what begins so. Lost or not sent is the same: it is tried again.
        let _ = self.socket.send_to(&[0], address);
    }

    async fn accept(&self) -> Option<Arc<dyn Link>> {
        self.links.lock().await.recv().await
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        expand(self.listening)
    }

    async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"stopping");
        self.endpoint.wait_idle().await;
    }
}

/// The code by which QUIC carries an alert of TLS.
fn rustls_alert(alert: rustls::AlertDescription) -> quinn::TransportErrorCode {
    quinn::TransportErrorCode::crypto(alert.into())
}

fn transport() -> TransportConfig {
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements
        .ack_eliciting_threshold(VarInt::from_u32(10))
        .max_ack_delay(Some(Duration::from_millis(5)));
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MAX_PACKET);
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(STRANGER_WINDOW))
        .send_window(u64::from(LINK_WINDOW))
        .send_fairness(false)
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_CHANNELS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().expect("ten seconds fit")))
        .ack_frequency_config(Some(acknowledgements))
        .congestion_controller_factory(Arc::new(ByDistance))
        .mtu_discovery_config(Some(mtu));
    transport
}

/// Takes connections and hands on those whose handshake proves a peer.
async fn accept(endpoint: Endpoint, found: mpsc::Sender<Arc<dyn Link>>, stop: CancellationToken) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    while let Some(Some(incoming)) = stop.run_until_cancelled(endpoint.accept()).await {
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let found = found.clone();
        tokio::spawn(async move {
            match timeout(HANDSHAKE_TIMEOUT, handshake(incoming)).await {
                // A queue that stays full drops the link; its peer dials again.
                Ok(Some(link)) => drop(found.try_send(Arc::new(link))),
                _ => debug!("handshake on the data plane did not succeed"),
            }
            drop(permit);
        });
    }
}

async fn handshake(incoming: Incoming) -> Option<QuinnLink> {
    let connection = incoming.await.ok()?;
    let certificates = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let peer = peer_of(certificates.first()?)?;
    Some(QuinnLink { connection, peer })
}

struct QuinnLink {
    connection: Connection,
    peer: PeerId,
}

#[async_trait]
impl Link for QuinnLink {
    fn plane(&self) -> &'static str {
        NAME
    }

    fn peer(&self) -> PeerId {
        self.peer
    }

    fn remote(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    fn seen_at(&self) -> Option<SocketAddr> {
        let remote = self.remote();
        Some(SocketAddr::new(remote.ip().to_canonical(), remote.port()))
    }

    fn admit(&self) {
        self.connection.set_receive_window(VarInt::from_u32(LINK_WINDOW));
    }

    async fn open(&self) -> Result<Channel, io::Error> {
        let (writer, reader) = self.connection.open_bi().await?;
        Ok(Channel { reader: Box::new(reader), writer: Box::new(writer) })
    }

    async fn accept(&self) -> Option<Channel> {
        let (writer, reader) = self.connection.accept_bi().await.ok()?;
        Some(Channel { reader: Box::new(reader), writer: Box::new(writer) })
    }

    fn close(&self, reason: &'static str) {
        self.connection.close(VarInt::from_u32(0), reason.as_bytes());
    }

    fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    async fn closed(&self) {
        self.connection.closed().await;
    }
}
