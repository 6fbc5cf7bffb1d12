//! The control plane: joining, and one session between a node and its coordinator, on libp2p over QUIC
//! with TCP as fallback.
//!
//! `Mesh` is a handle; one task owns the swarm and nobody else touches it. Any two members say Hello on
//! a stream of its own ([`protocol::contact`]); behaviours that speak by themselves (Kademlia, relay) see
//! a connection only after that, and a stranger is answered by nothing but joining and ping. Not here:
//! what joins are accepted and what a session says; that is for who gets [`Incoming`].

mod accept;
mod address;
mod attempt;
mod behaviour;
pub(crate) mod bucket;
mod discovery;
mod error;
mod event_loop;
mod find;
mod gated;
mod greet;
mod listeners;
mod members;
mod records;
pub(crate) mod streams;
mod whereabouts;

pub use address::{AnnounceError, announced};
pub use attempt::{Attempt, AttemptFailure};
pub use behaviour::CIRCUIT_RATE;
pub use error::{ConnectError, JoinError, MeshError};
pub use find::MeshFinder;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use libp2p::{Stream, StreamProtocol};
use libp2p_stream::{Control, IncomingStreams, OpenStreamError};
use protocol::PeerId;
use protocol::codec::{MAX_HELLO, Message};
use protocol::contact::Contact;
use protocol::membership::{Membership, Role};
use protocol::message::{
    Accepted, CoordinatorMessage, HELLO_TIMEOUT, JOIN_PROTOCOL, JoinMessage, JoinRequest, NodeMessage,
    SESSION_PROTOCOL,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::compat::FuturesAsyncReadCompatExt;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};

use crate::frames::{FrameError, FrameReceiver, FrameSender, Reader, Writer};
use crate::gate::{Credentials, GateError, Side, exchange_hellos, remaining};
use crate::identity::{Identity, to_libp2p};
use crate::limits::{Limits, Relaying};
use crate::origin::address::is_public;
use crate::store::{BlobStore, ByteSize};
use crate::swarm::error::DialError;
use crate::swarm::event_loop::{Command, EventLoop, LoopParts};
use crate::swarm::listeners::Listeners;

/// The most addresses of one peer that are tried.
const MAX_ADDRESSES: usize = 16;
/// When dialling ends, whatever libp2p still waits for.
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a stream is opened again that the other side closed at once: one that is accepting many
/// at this moment drops some.
const STREAM_ATTEMPTS: usize = 3;
/// How many things that peers want may wait to be taken.
const INCOMING_QUEUE: usize = 64;

/// How a process takes part in the control plane.
#[derive(Clone)]
pub struct MeshConfig {
    /// Its key.
    pub identity: Arc<Identity>,
    /// Where it listens, each on the UDP port by QUIC and on the TCP port of that number; port 0 lets the
    /// system choose. Empty: it only dials.
    pub listen: Vec<SocketAddr>,
    /// Whether it takes joins and sessions, as a coordinator does. Defaults to no.
    pub accept: bool,
    /// Whether peers on the LAN are looked for by mDNS, and told where this process listens. Without effect
    /// where it listens on the loopback only. Defaults to no.
    pub mdns: bool,
    /// Whether it passes circuits on between members that cannot dial each other, as soon as one of them
    /// reached it. It offers that where it accepts sessions or has an address on the internet. Defaults to
    /// no.
    pub relay: bool,
    /// How many bytes it passes on in a second at most. Kept by how many circuits there may be, since the members
    /// at the ends of each keep to [`CIRCUIT_RATE`]: under that, nothing is passed on. Defaults to 128 MiB.
    pub relay_rate: ByteSize,
}

impl MeshConfig {
    /// The defaults for a key.
    pub fn new(identity: Arc<Identity>, listen: Vec<SocketAddr>) -> Self {
        let relay_rate = Relaying::default().passed_on(&Limits::default());
        Self { identity, listen, accept: false, mdns: false, relay: false, relay_rate }
    }
}

/// An open session with a member. It ends when both halves are dropped, when the peer goes away, or when
/// what the peer presented at the gate has run out: whoever dialled then dials anew, with a renewed one.
#[derive(Debug)]
pub struct Session<Out, In> {
    /// Who it is with.
    pub peer: PeerId,
    /// What the peer presented at the gate.
    pub membership: Membership,
    /// The address that it is seen at.
    pub remote: Option<IpAddr>,
    /// What we say.
    pub sender: FrameSender<Out>,
    /// What the peer says.
    pub receiver: FrameReceiver<In>,
}

/// What peers want of a process that accepts.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there are few of them, each moved once")]
pub enum Incoming {
    /// Somebody wants to become a member, or to renew.
    Join {
        /// Who; the transport has proven it.
        peer: PeerId,
        /// What it asks for.
        request: JoinRequest,
        /// `Accepted` or `Refused`; dropped, the peer gets no answer.
        answer: oneshot::Sender<JoinMessage>,
    },
    /// A member opened a session.
    Session(Session<CoordinatorMessage, NodeMessage>),
}

/// A handle to the control plane of this process; it stops with its last clone.
#[derive(Clone)]
pub struct Mesh {
    shared: Arc<Shared>,
    /// Stops the tasks once the last handle is gone.
    _guard: Arc<DropGuard>,
}

/// What the handle and the tasks share.
struct Shared {
    commands: mpsc::Sender<Command>,
    control: Control,
    credentials: Arc<RwLock<Option<Credentials>>>,
    listeners: Listeners,
    /// Where the data plane listens.
    data: RwLock<Vec<SocketAddr>>,
    /// What it serves.
    store: RwLock<Option<BlobStore>>,
    /// Whether another member has dialled us.
    reached: Arc<AtomicBool>,
    relays: bool,
    stop: CancellationToken,
}

impl Mesh {
    /// Starts to listen, and to accept if the config says so.
    pub async fn start(config: MeshConfig) -> Result<(Self, mpsc::Receiver<Incoming>), MeshError> {
        if std::env::var_os("SSLKEYLOGFILE").is_some_and(|value| !value.is_empty()) {
            return Err(MeshError::KeyLog);
        }
        let stop = CancellationToken::new();
        let guard = Arc::new(stop.clone().drop_guard());
        let (commands, command_queue) = mpsc::channel(INCOMING_QUEUE);
        let (greetings, to_greet) = mpsc::channel(INCOMING_QUEUE);
        let (credentials, reached) = (Arc::default(), Arc::default());
        let parts = LoopParts {
            commands: command_queue,
            greetings,
            reached: Arc::clone(&reached),
            credentials: Arc::clone(&credentials),
            stop: stop.clone(),
        };
        let (event_loop, control) = EventLoop::new(&config, parts)?;
        let listeners = event_loop.listen(&config.listen).await?;
        let is_on_internet = || listeners.addresses().iter().filter_map(address::ip_of).any(is_public);
        let passes_on = behaviour::passes_on(&config);
        if config.relay && !passes_on {
            let (rate, least) = (config.relay_rate, ByteSize(CIRCUIT_RATE));
            warn!(%rate, %least, "relay rate or upload limit is under that of one circuit, nothing is passed on");
        }
        let relays = passes_on && (config.accept || is_on_internet());
        let (data, store) = (RwLock::default(), RwLock::default());
        let shared = Shared { commands, control, credentials, listeners, data, store, reached, relays, stop };
        let shared = Arc::new(shared);
        greet::start(&shared, to_greet);
        whereabouts::start(&shared);
        let (incoming, queue) = mpsc::channel(INCOMING_QUEUE);
        if config.accept {
            accept::start(&shared, incoming);
        }
        Ok((Self { shared, _guard: guard }, queue))
    }

    /// What this process shows at the gate from now on, and checks others by.
    pub fn set_credentials(&self, credentials: Credentials) {
        *self.shared.credentials.write().expect("nothing panics while it holds them") = Some(credentials);
        // A loop that is busy meets them when it next hears of them.
        let _ = self.shared.commands.try_send(Command::MeetNeighbours);
    }

    /// What other members are told about where this process serves blobs.
    pub fn set_data_addresses(&self, addresses: Vec<SocketAddr>) {
        *self.shared.data.write().expect("nothing panics while it holds them") = addresses;
    }

    /// What other members are told about when they ask for a blob.
    pub fn set_store(&self, store: BlobStore) {
        *self.shared.store.write().expect("nothing panics while it holds it") = Some(store);
    }

    /// Where this process is reached: multiaddresses without the peer, one for each interface, QUIC
    /// before TCP and the loopback last.
    pub fn addresses(&self) -> Vec<String> {
        self.shared.addresses()
    }

    /// Asks a coordinator for a membership, by ticket or as a renewal.
    pub async fn join(
        &self,
        coordinator: PeerId,
        addresses: &[String],
        request: JoinRequest,
    ) -> Result<Accepted, JoinError> {
        self.connect(coordinator, addresses).await?;
        let request = JoinMessage::Request(request);
        for attempt in 1.. {
            let answer = timeout(HELLO_TIMEOUT * 2, self.ask_to_join(coordinator, &request)).await;
            match answer.unwrap_or(Err(JoinError::Timeout)) {
                Err(JoinError::NoAnswer(FrameError::Io(_) | FrameError::Cut))
                    if attempt < STREAM_ATTEMPTS =>
                {
                    debug!(attempt, "join request got no answer, asking again");
                }
                Ok(accepted) => return Ok(accepted),
                Err(error) => {
                    if !matches!(error, JoinError::Refused(_)) {
                        self.shared.disconnect(coordinator).await;
                    }
                    return Err(error);
                }
            }
        }
        unreachable!("the last attempt returns")
    }

    async fn ask_to_join(&self, coordinator: PeerId, request: &JoinMessage) -> Result<Accepted, JoinError> {
        let stream =
            self.shared.open_stream(coordinator, JOIN_PROTOCOL).await.map_err(|error| match error {
                OpenStreamError::UnsupportedProtocol(_) => JoinError::NoCoordinator,
                error => JoinError::NoAnswer(FrameError::Io(io::Error::other(error))),
            })?;
        let (reader, writer) = split(stream);
        let mut sender = FrameSender::with_limit(writer, MAX_HELLO);
        let mut receiver = FrameReceiver::with_limit(reader, MAX_HELLO);
        sender.send(request).await.map_err(JoinError::NoAnswer)?;
        match receiver.recv().await.map_err(JoinError::NoAnswer)? {
            Some(JoinMessage::Accepted(accepted)) => Ok(*accepted),
            Some(JoinMessage::Refused(refusal)) => Err(JoinError::Refused(refusal)),
            Some(JoinMessage::Request(_)) => Err(JoinError::NoCoordinator),
            None => Err(JoinError::NoAnswer(FrameError::Cut)),
        }
    }

    /// Opens a session with a coordinator of the farm.
    pub async fn open_session(
        &self,
        coordinator: PeerId,
        addresses: &[String],
    ) -> Result<Session<NodeMessage, CoordinatorMessage>, ConnectError> {
        let credentials = self.shared.credentials().ok_or(ConnectError::NoCredentials)?;
        let remote = self.connect(coordinator, addresses).await?;
        for attempt in 1.. {
            match self.knock(coordinator, &credentials).await {
                Err(ConnectError::Gate(GateError::Closed)) if attempt < STREAM_ATTEMPTS => {
                    debug!(attempt, "session was closed before its Hello, knocking again");
                }
                Ok((reader, writer, membership)) => {
                    self.shared.greet(coordinator).await;
                    return Ok(Session::new(coordinator, membership, remote, reader, writer));
                }
                Err(error) => {
                    // The connection may be dead without knowing it: the next try dials anew.
                    self.shared.disconnect(coordinator).await;
                    return Err(error);
                }
            }
        }
        unreachable!("the last attempt returns")
    }

    async fn knock(
        &self,
        coordinator: PeerId,
        credentials: &Credentials,
    ) -> Result<(Reader, Writer, Membership), ConnectError> {
        let opened = timeout(HELLO_TIMEOUT, self.shared.open_stream(coordinator, SESSION_PROTOCOL)).await;
        let stream = match opened {
            Ok(Ok(stream)) => stream,
            Ok(Err(OpenStreamError::UnsupportedProtocol(_))) => return Err(ConnectError::NoCoordinator),
            Ok(Err(error)) => return Err(ConnectError::Broken(io::Error::other(error))),
            Err(_) => return Err(ConnectError::Broken(io::ErrorKind::TimedOut.into())),
        };
        let (reader, writer) = split(stream);
        let passed = exchange_hellos(reader, writer, credentials, coordinator, Side::Dialled)
            .await
            .map_err(ConnectError::Gate)?;
        if passed.2.role() == Role::Coordinator { Ok(passed) } else { Err(ConnectError::NoCoordinator) }
    }

    async fn connect(&self, peer: PeerId, addresses: &[String]) -> Result<Option<IpAddr>, DialError> {
        let (answer, result) = oneshot::channel();
        let (addresses, mut attempts) = address::resolve(addresses, MAX_ADDRESSES).await;
        let target = to_libp2p(peer).ok_or(DialError::NoAddress)?;
        let command = Command::Connect { peer: target, addresses: addresses.clone(), answer };
        self.shared.commands.send(command).await.map_err(|_| DialError::Stopped)?;
        match timeout(DIAL_TIMEOUT, result).await {
            Ok(Ok(Ok(remote))) => return Ok(remote),
            Ok(Ok(Err(failed))) => attempts.extend(failed),
            Ok(Err(_)) => return Err(DialError::Stopped),
            Err(_) => attempts.extend(addresses.iter().map(Attempt::timed_out)),
        }
        Err(if attempts.is_empty() { DialError::NoAddress } else { DialError::Unreachable(attempts) })
    }

    /// Begins to close every connection and stops listening; see [`stopped`](Self::stopped).
    pub fn shutdown(&self) {
        self.shared.stop.cancel();
    }

    /// Waits until every connection is closed after `shutdown`, so that peers know at once.
    pub async fn stopped(&self) {
        self.shared.commands.closed().await;
    }
}

impl Shared {
    fn credentials(&self) -> Option<Credentials> {
        self.credentials.read().expect("nothing panics while it holds them").clone()
    }

    fn store(&self) -> Option<BlobStore> {
        self.store.read().expect("nothing panics while it holds it").clone()
    }

    fn addresses(&self) -> Vec<String> {
        self.listeners.addresses().iter().map(ToString::to_string).collect()
    }

    /// Where we are reached, as other members are told.
    fn contact(&self) -> Contact {
        let data = self.data.read().expect("nothing panics while it holds them").clone();
        let is_reached = self.reached.load(Ordering::Relaxed);
        Contact::new(self.addresses(), data, is_reached, is_reached && self.relays)
    }

    async fn open_stream(&self, peer: PeerId, protocol: &'static str) -> Result<Stream, OpenStreamError> {
        let peer = to_libp2p(peer).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.control.clone().open_stream(peer, StreamProtocol::new(protocol)).await
    }

    /// Exchanges contacts with a peer that is connected.
    async fn greet(&self, peer: PeerId) {
        let Some(peer) = to_libp2p(peer) else { return };
        // A loop that has stopped has no connections.
        let _ = self.commands.send(Command::Greet { peer }).await;
    }

    async fn disconnect(&self, peer: PeerId) {
        let Some(peer) = to_libp2p(peer) else { return };
        // A loop that has stopped has no connections.
        let _ = self.commands.send(Command::Disconnect { peer }).await;
    }
}

impl<Out: Message, In: Message> Session<Out, In> {
    fn new(
        peer: PeerId,
        membership: Membership,
        remote: Option<IpAddr>,
        reader: Reader,
        writer: Writer,
    ) -> Self {
        let sender = FrameSender::new(writer);
        let receiver = FrameReceiver::new(reader).until(Instant::now() + remaining(&membership));
        Self { peer, membership, remote, sender, receiver }
    }
}

/// The streams of one protocol that peers open.
fn accepting(shared: &Shared, protocol: &'static str) -> IncomingStreams {
    let accepting = shared.control.clone().accept(StreamProtocol::new(protocol));
    accepting.expect("each protocol is accepted once for a mesh")
}

fn split(stream: Stream) -> (Reader, Writer) {
    let (reader, writer) = tokio::io::split(stream.compat());
    (Box::new(reader), Box::new(writer))
}
