//! The data plane on TLS over TCP: the fastest where TCP gets through.
//!
//! TCP carries one stream, a link many channels; so each channel is a connection of its own. The first
//! connection of a link is its *control*: it carries heartbeats, and the requests of the side that was
//! dialled for channels of its own, which the dialling side then opens. Every connection begins with a
//! [`Preface`] that ties it to its link; it counts only from the peer that made the link.
//!
//! What a stranger can make this process hold: one connection at its handshake, of a bounded number, and
//! after it one channel for its Hello. Not here: the gate itself.

mod control;
mod link;
mod pacing;
pub(super) mod preface;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use protocol::PeerId;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use self::link::{AcceptedLink, DialledLink};
use self::pacing::Pacing;
use self::preface::{LinkId, Preface, Purpose};
use super::certificate::{Tls, peer_of};
use super::{BindError, DialError, Link, Plane};
use crate::identity::Identity;
use crate::interfaces::expand;

const NAME: &str = "TLS";
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How many connections may be at their handshake at once.
const MAX_HANDSHAKES: usize = 64;
/// How many links may wait to be taken.
const LINK_QUEUE: usize = 64;
/// How much is taken from the system at once; TLS by itself asks for 4 KiB at a time.
const READ_BUFFER: usize = 128 << 10;
/// How much may be encrypted before it is given to the system.
const WRITE_BUFFER: usize = 512 << 10;

/// How much may wait in the system that is not on its way: on a slow link whatever is said next, news of
/// pieces above all, comes after that.
const UNSENT: u32 = 256 << 10;

/// A connection once its handshake is through.
type Connection = TlsStream<BufReader<TcpStream>>;

/// Links over TLS on one TCP port.
pub struct TlsPlane {
    tls: Tls,
    links: tokio::sync::Mutex<mpsc::Receiver<Arc<dyn Link>>>,
    listening: SocketAddr,
    /// Ends every link that this plane made or took.
    stop: CancellationToken,
    _guard: DropGuard,
}

impl TlsPlane {
    /// Listens on this TCP port; port 0 lets the system choose.
    pub async fn bind(identity: &Identity, address: SocketAddr) -> Result<Self, BindError> {
        let tls = Tls::new(identity).map_err(BindError::Tls)?;
        let server = tls.server().map_err(|error| BindError::Tls(error.into()))?;
        let failure = |source| BindError::Socket { address, protocol: "TCP", source };
        // tokio's listener sets SO_REUSEADDR, so a restart finds its port free at once.
        let listener = TcpListener::bind(address).await.map_err(failure)?;
        let listening = listener.local_addr().map_err(failure)?;
        let (found, links) = mpsc::channel(LINK_QUEUE);
        let stop = CancellationToken::new();
        let door = Door { found, known: Known::default(), stop: stop.clone() };
        tokio::spawn(accept(listener, TlsAcceptor::from(Arc::new(server)), door));
        let (links, guard) = (tokio::sync::Mutex::new(links), stop.clone().drop_guard());
        Ok(Self { tls, links, listening, stop, _guard: guard })
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.listening.port()
    }
}

#[async_trait]
impl Plane for TlsPlane {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn dial(&self, peer: PeerId, address: SocketAddr) -> Result<Arc<dyn Link>, DialError> {
        let failure = |source| DialError::NoAnswer { address, plane: NAME, source };
        let tls = self.tls.client(peer).map_err(|error| failure(io::Error::other(error)))?;
        let dialler = Dialler { connector: TlsConnector::from(Arc::new(tls)), address };
        let mut id = LinkId::default();
        getrandom::fill(&mut id).map_err(|error| failure(io::Error::other(error)))?;
        match dialler.begin(id).await {
            Ok(control) => Ok(DialledLink::start(peer, id, dialler, control, self.stop.child_token())),
            Err(error) if is_wrong_peer(&error) => Err(DialError::WrongPeer { address, plane: NAME }),
            Err(error) => Err(failure(error)),
        }
    }

    async fn accept(&self) -> Option<Arc<dyn Link>> {
        self.links.lock().await.recv().await
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        expand(self.listening)
    }

    async fn close(&self) {
        self.stop.cancel();
    }
}

/// The verifier of our own side has turned another peer away.
fn is_wrong_peer(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    let wrong = rustls::CertificateError::ApplicationVerificationFailure;
    matches!(cause, Some(rustls::Error::InvalidCertificate(error)) if *error == wrong)
}

/// Makes the connections of one link.
struct Dialler {
    connector: TlsConnector,
    address: SocketAddr,
}

impl Dialler {
    /// Begins a link: the control connection, once the other side has answered on it.
    async fn begin(&self, id: LinkId) -> io::Result<Connection> {
        let mut control = self.connect(Preface { purpose: Purpose::Control, link: id }).await?;
        timeout(HANDSHAKE_TIMEOUT, control::first_beat(&mut control)).await??;
        Ok(control)
    }

    async fn connect(&self, preface: Preface) -> io::Result<Connection> {
        let connecting = async {
            let stream = buffered(pacing::connect(self.address).await?)?;
            // The name goes unused: peers are known by their key.
            let name = ServerName::try_from("peer.invalid").expect("it is a name");
            let mut stream = self.connector.connect(name, stream).await?;
            stream.get_mut().1.set_buffer_limit(Some(WRITE_BUFFER));
            let mut stream = TlsStream::from(stream);
            preface.write(&mut stream).await?;
            Ok(stream)
        };
        timeout(HANDSHAKE_TIMEOUT, connecting).await?
    }
}

fn buffered(stream: TcpStream) -> io::Result<BufReader<TcpStream>> {
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT)?;
    Ok(BufReader::with_capacity(READ_BUFFER, stream))
}

/// The links that were taken and may get more connections.
#[derive(Clone, Default)]
struct Known(Arc<Mutex<HashMap<(PeerId, LinkId), KnownLink>>>);

/// A link is kept by whoever uses it.
type KnownLink = Weak<AcceptedLink>;

impl Known {
    fn get(&self, peer: PeerId, id: LinkId) -> Option<Arc<AcceptedLink>> {
        self.0.lock().expect("nothing panics while it holds them").get(&(peer, id))?.upgrade()
    }

    /// Adds a link; `false` where the peer has one of that id already.
    fn add(&self, peer: PeerId, id: LinkId, link: &Arc<AcceptedLink>) -> bool {
        let mut known = self.0.lock().expect("nothing panics while it holds them");
        known.retain(|_, link| link.upgrade().is_some_and(|link| !link.is_closed()));
        if known.contains_key(&(peer, id)) {
            return false;
        }
        known.insert((peer, id), Arc::downgrade(link));
        true
    }
}

/// Where accepted connections go.
#[derive(Clone)]
struct Door {
    found: mpsc::Sender<Arc<dyn Link>>,
    known: Known,
    stop: CancellationToken,
}

/// Takes connections and hands each, once its handshake proved a peer, to the link that it is for.
async fn accept(listener: TcpListener, acceptor: TlsAcceptor, door: Door) {
    let pacing = Pacing::put_off(&listener);
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    while let Some(accepted) = door.stop.run_until_cancelled(listener.accept()).await {
        let Ok((stream, remote)) = accepted else {
            // Out of descriptors, say: the next moment may be better.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else { continue };
        pacing.settle(&stream);
        let (acceptor, door) = (acceptor.clone(), door.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE_TIMEOUT, handshake(stream, acceptor)).await {
                Ok(Ok((stream, peer, preface))) => door.take(stream, peer, remote, preface),
                _ => debug!("handshake on the data plane did not succeed"),
            }
            drop(permit);
        });
    }
}

async fn handshake(stream: TcpStream, acceptor: TlsAcceptor) -> io::Result<(Connection, PeerId, Preface)> {
    let mut stream = acceptor.accept(buffered(stream)?).await?;
    stream.get_mut().1.set_buffer_limit(Some(WRITE_BUFFER));
    let mut stream = TlsStream::from(stream);
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = certificates.first().and_then(peer_of).ok_or(io::ErrorKind::PermissionDenied)?;
    let preface = Preface::read(&mut stream).await?;
    Ok((stream, peer, preface))
}

impl Door {
    fn take(&self, stream: Connection, peer: PeerId, remote: SocketAddr, preface: Preface) {
        let Preface { purpose, link: id } = preface;
        match purpose {
            Purpose::Control => {
                let (link, control) = AcceptedLink::new(peer, remote, self.stop.child_token());
                // A queue that stays full drops the link; its peer dials again.
                if self.known.add(peer, id, &link) && self.found.try_send(link).is_ok() {
                    // Its first heartbeat tells the peer that further connections will find their link.
                    tokio::spawn(control.run(stream));
                }
            }
            Purpose::Asked | Purpose::Lent => match self.known.get(peer, id) {
                Some(link) => link.take(stream, purpose),
                None => debug!(peer = %peer.fmt_short(), "connection for no link"),
            },
        }
    }
}
