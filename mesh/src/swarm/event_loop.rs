//! The one task that owns the swarm: it dials, counts connections, and closes those of strangers that
//! neither join nor pass the gate in time.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::StreamExt;
use libp2p::core::ConnectedPoint;
use libp2p::core::transport::ListenerId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, SwarmBuilder, TransportError, noise, ping, tcp, yamux};
use libp2p_connection_limits::ConnectionLimits;
use libp2p_stream::Control;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, trace};

use crate::interfaces::expand;
use crate::swarm::attempt::{Attempt, AttemptFailure, without_peer, wrong_peer};
use crate::swarm::{MeshConfig, MeshError, address};

/// How long a stranger's connection may do neither a join nor pass the gate.
const PROBATION: Duration = Duration::from_secs(10);
/// The most connections on probation; beyond, new ones are closed at once.
const MAX_ON_PROBATION: usize = 256;
const MAX_PENDING_INCOMING: u32 = 128;
const MAX_INCOMING: u32 = 8192;
const MAX_PER_PEER: u32 = 4;
/// How long a connection without a stream stays open.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a connection is probed, and how long the answer may take: a killed peer is noticed in ten
/// seconds, on TCP as well.
const PING: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(8);
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: libp2p_connection_limits::Behaviour,
    ping: ping::Behaviour,
    streams: libp2p_stream::Behaviour,
}

/// What the handle and the accepting tasks ask of the loop.
pub(super) enum Command {
    /// Connect to a peer unless there is a connection; the answer is where it is seen.
    Connect {
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        answer: oneshot::Sender<Result<Option<IpAddr>, Vec<Attempt>>>,
    },
    /// Close every connection to a peer.
    Disconnect { peer: PeerId },
    /// A peer joined or passed the gate: its connections are no longer on probation.
    Admit { peer: PeerId, answer: oneshot::Sender<Option<IpAddr>> },
}

/// What a process listens on, QUIC before TCP.
#[derive(Debug, Clone)]
pub(super) struct Listeners(Vec<Listener>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Transport {
    Quic,
    Tcp,
}

#[derive(Debug, Clone, Copy)]
struct Listener {
    address: SocketAddr,
    transport: Transport,
}

impl Listeners {
    /// Where they are reached from outside, the loopback last.
    pub(super) fn addresses(&self) -> Vec<String> {
        let expanded = self.0.iter().flat_map(|listener| {
            expand(listener.address).into_iter().map(|address| Listener { address, ..*listener })
        });
        let mut expanded: Vec<_> = expanded.collect();
        expanded.sort_by_key(|listener| (listener.address.ip().is_loopback(), listener.transport));
        expanded.iter().map(|listener| listener.multiaddress().to_string()).collect()
    }
}

impl Listener {
    fn multiaddress(&self) -> Multiaddr {
        match self.transport {
            Transport::Quic => address::quic(self.address),
            Transport::Tcp => address::tcp(self.address),
        }
    }

    fn failure(&self, source: io::Error) -> MeshError {
        let address = address::describe(&self.multiaddress().to_string());
        MeshError::Listen { address, source: words_of_the_system(source) }
    }
}

/// The error of the operating system inside those that libp2p puts around it. They pass its words on,
/// are of types that have no name, and skip it among their causes: so its code is read from its words.
fn words_of_the_system(error: io::Error) -> io::Error {
    let text = error.to_string();
    let code = text.rsplit_once("(os error ").and_then(|(_, rest)| rest.strip_suffix(')')?.parse().ok());
    code.map_or(error, io::Error::from_raw_os_error)
}

struct Connection {
    peer: PeerId,
    remote: Option<IpAddr>,
    /// When it is closed unless the peer is admitted before.
    probation: Option<Instant>,
}

struct Dial {
    peer: PeerId,
    addresses: Vec<Multiaddr>,
    attempts: Vec<Attempt>,
    answer: oneshot::Sender<Result<Option<IpAddr>, Vec<Attempt>>>,
}

pub(super) struct EventLoop {
    swarm: Swarm<Behaviour>,
    commands: mpsc::Receiver<Command>,
    connections: HashMap<ConnectionId, Connection>,
    dials: HashMap<ConnectionId, Dial>,
    stop: CancellationToken,
}

impl EventLoop {
    pub(super) fn new(
        config: &MeshConfig,
        commands: mpsc::Receiver<Command>,
        stop: CancellationToken,
    ) -> Result<(Self, Control), MeshError> {
        let streams = libp2p_stream::Behaviour::new();
        let control = streams.new_control();
        let limits = ConnectionLimits::default()
            .with_max_pending_incoming(Some(MAX_PENDING_INCOMING))
            .with_max_established_incoming(Some(MAX_INCOMING))
            .with_max_established_per_peer(Some(MAX_PER_PEER));
        let behaviour = Behaviour {
            limits: libp2p_connection_limits::Behaviour::new(limits),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(PING).with_timeout(PING)),
            streams,
        };
        let failure = |error: &dyn std::error::Error| MeshError::Transport(error.to_string());
        let swarm = SwarmBuilder::with_existing_identity(config.identity.keypair())
            .with_tokio()
            .with_tcp(tcp::Config::new().nodelay(true), noise::Config::new, yamux::Config::default)
            .map_err(|error| failure(&error))?
            .with_quic()
            .with_behaviour(|_| behaviour)
            .map_err(|error| failure(&error))?
            .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_TIMEOUT))
            .with_connection_timeout(CONNECTION_TIMEOUT)
            .build();
        let connections = HashMap::new();
        Ok((Self { swarm, commands, connections, dials: HashMap::new(), stop }, control))
    }

    /// Listens, waits until each port is known, and runs from then on.
    pub(super) async fn listen(mut self, listen: &[SocketAddr]) -> Result<Listeners, MeshError> {
        let mut waiting: HashMap<ListenerId, Listener> = HashMap::new();
        let mut listeners = Vec::new();
        for address in listen {
            for transport in [Transport::Quic, Transport::Tcp] {
                let listener = Listener { address: *address, transport };
                let id = self.swarm.listen_on(listener.multiaddress()).map_err(|error| match error {
                    TransportError::Other(source) => listener.failure(source),
                    error => listener.failure(io::Error::other(error)),
                })?;
                waiting.insert(id, listener);
            }
        }
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        while let Some(late) = waiting.values().next().copied() {
            let event = timeout_at(deadline, self.swarm.select_next_some()).await;
            match event.map_err(|_| late.failure(io::ErrorKind::TimedOut.into()))? {
                SwarmEvent::NewListenAddr { listener_id, address } => {
                    if let Some(mut listener) = waiting.remove(&listener_id) {
                        listener.address.set_port(address::port_of(&address).unwrap_or_default());
                        listeners.push(listener);
                    }
                }
                SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                    if let Some(listener) = waiting.remove(&listener_id) {
                        let closed = io::Error::from(io::ErrorKind::AddrNotAvailable);
                        return Err(listener.failure(reason.err().unwrap_or(closed)));
                    }
                }
                event => self.on_event(event),
            }
        }
        let span = info_span!("swarm", peer = %self.swarm.local_peer_id());
        tokio::spawn(self.run().instrument(span));
        Ok(Listeners(listeners))
    }

    async fn run(mut self) {
        let mut probation = interval(Duration::from_secs(1));
        probation.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => break,
                },
                event = self.swarm.select_next_some() => self.on_event(event),
                now = probation.tick() => self.end_probations(now),
            }
        }
        for peer in self.swarm.connected_peers().copied().collect::<Vec<_>>() {
            // It is connected, so this cannot fail.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        // The farewells leave while the swarm is polled; a peer that does not hear them notices by itself.
        let farewell = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        if timeout(Duration::from_secs(1), farewell).await.is_err() {
            debug!("connections did not close in time");
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Connect { peer, answer, .. } if self.is_connected(peer) => {
                // Whoever asked may have given up.
                let _ = answer.send(Ok(self.remote(peer)));
            }
            Command::Connect { peer, addresses, answer } => {
                self.dial(Dial { peer, addresses, attempts: Vec::new(), answer });
            }
            Command::Disconnect { peer } => {
                // Forgotten at once, so that whoever connects next gets none that is about to close.
                self.connections.retain(|_, connection| connection.peer != peer);
                // Not being connected is what was wanted.
                let _ = self.swarm.disconnect_peer_id(peer);
            }
            Command::Admit { peer, answer } => {
                for connection in self.connections.values_mut().filter(|connection| connection.peer == peer) {
                    connection.probation = None;
                }
                let _ = answer.send(self.remote(peer));
            }
        }
    }

    fn dial(&mut self, mut dial: Dial) {
        let addresses = dial.addresses.len().clamp(1, usize::from(u8::MAX)) as u8;
        let concurrency = addresses.try_into().expect("it is at least 1");
        let options = DialOpts::peer_id(dial.peer)
            .condition(PeerCondition::Always)
            .addresses(dial.addresses.clone())
            .override_dial_concurrency_factor(concurrency)
            .build();
        let id = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {
                self.dials.insert(id, dial);
            }
            Err(error) => {
                dial.fail_all(&error.to_string());
                let _ = dial.answer.send(Err(dial.attempts));
            }
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_established(connection_id, peer_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { connection_id, cause, .. } => {
                self.connections.remove(&connection_id);
                trace!(?cause, "connection closed");
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                if let Some(dial) = self.dials.remove(&connection_id) {
                    self.on_dial_error(dial, error);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping::Event {
                connection,
                result: Err(failure),
                ..
            })) if !matches!(failure, ping::Failure::Unsupported) => {
                debug!(%failure, "peer does not answer, connection closed");
                self.swarm.close_connection(connection);
            }
            event => trace!(?event, "swarm event"),
        }
    }

    fn on_established(&mut self, id: ConnectionId, peer: PeerId, endpoint: &ConnectedPoint) {
        let remote = address::ip_of(endpoint.get_remote_address());
        let on_probation = self.connections.values().filter(|one| one.probation.is_some()).count();
        if endpoint.is_listener() && on_probation >= MAX_ON_PROBATION {
            debug!("too many connections on probation, a new one is closed");
            self.swarm.close_connection(id);
        }
        let probation = endpoint.is_listener().then(|| Instant::now() + PROBATION);
        self.connections.insert(id, Connection { peer, remote, probation });
        if let Some(dial) = self.dials.remove(&id) {
            let _ = dial.answer.send(Ok(remote));
        }
    }

    fn on_dial_error(&mut self, mut dial: Dial, error: DialError) {
        let wrong = match error {
            DialError::WrongPeerId { obtained, address } => {
                Some((address, wrong_peer(obtained, *self.swarm.local_peer_id())))
            }
            DialError::LocalPeerId { address } => Some((address, AttemptFailure::Ourselves)),
            DialError::Transport(errors) => {
                dial.attempts.extend(errors.iter().map(|(address, error)| Attempt::failed(address, error)));
                None
            }
            error => {
                dial.fail_all(&error.to_string());
                None
            }
        };
        let Some((address, failure)) = wrong else {
            let _ = dial.answer.send(Err(dial.attempts));
            return;
        };
        // Somebody else at one address ended the dial of all: go on with the others.
        dial.attempts.push(Attempt::new(&address, failure));
        let address = without_peer(&address);
        let before = dial.addresses.len();
        dial.addresses.retain(|other| *other != address);
        if dial.addresses.is_empty() || dial.addresses.len() == before {
            let _ = dial.answer.send(Err(dial.attempts));
        } else {
            self.dial(dial);
        }
    }

    fn end_probations(&mut self, now: Instant) {
        let ended = |connection: &Connection| connection.probation.is_some_and(|end| end <= now);
        let ended = self.connections.iter().filter(|(_, connection)| ended(connection)).map(|(id, _)| *id);
        for id in ended.collect::<Vec<_>>() {
            debug!("connection neither joined nor passed the gate, closed");
            self.swarm.close_connection(id);
        }
    }

    fn is_connected(&self, peer: PeerId) -> bool {
        self.connections.values().any(|connection| connection.peer == peer)
    }

    fn remote(&self, peer: PeerId) -> Option<IpAddr> {
        self.connections.values().find(|connection| connection.peer == peer)?.remote
    }
}

impl Dial {
    fn fail_all(&mut self, reason: &str) {
        let failed = |address| Attempt::new(address, AttemptFailure::NoAnswer(reason.to_owned()));
        self.attempts.extend(self.addresses.iter().map(failed));
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::net::{TcpListener, UdpSocket};
    use std::sync::Arc;

    use super::*;
    use crate::identity::Identity;
    use crate::swarm::Mesh;

    #[tokio::test]
    async fn taken_port_is_told_once_and_as_in_use() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        for listen in [tcp.local_addr().unwrap(), udp.local_addr().unwrap()] {
            let identity = Arc::new(Identity::generate().unwrap());
            let config = MeshConfig { identity, listen: vec![listen], accept: true };
            let Err(MeshError::Listen { source, .. }) = Mesh::start(config).await.map(drop) else {
                panic!("a taken port was had");
            };
            assert_eq!(source.kind(), io::ErrorKind::AddrInUse, "{source:?}");
            assert!(source.source().is_none(), "{source:?}");
        }
    }
}
