//! The one task that owns the swarm: it dials, counts connections, and closes those of strangers that
//! neither join nor pass the gate in time.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures::StreamExt;
use libp2p::core::ConnectedPoint;
use libp2p::core::transport::ListenerId;
use libp2p::kad::RecordKey;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, TransportError, ping};
use libp2p_stream::Control;
use protocol::contact::Contact;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span, trace};

use crate::gate::{Credentials, Side};
use crate::identity::from_libp2p;
use crate::swarm::attempt::{Attempt, AttemptFailure, without_peer, wrong_peer};
use crate::swarm::behaviour::{self, Behaviour, BehaviourEvent, InsideEvent};
use crate::swarm::discovery::Discovery;
use crate::swarm::listeners::{Listener, Listeners, Transport};
use crate::swarm::members::MembersEvent;
use crate::swarm::{MeshConfig, MeshError, address};

/// How long a stranger's connection may do neither a join nor pass the gate.
const PROBATION: Duration = Duration::from_secs(10);
/// The most connections on probation; beyond, new ones are closed at once.
const MAX_ON_PROBATION: usize = 256;
/// How long before the end of a membership its member is asked for a renewed one.
const RENEWAL: Duration = Duration::from_secs(60);
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// A peer said Hello and where it is reached: the behaviours behind the gate may speak with it until
    /// then. The answer comes once they answer the peer.
    Open { peer: PeerId, contact: Contact, side: Side, until: Instant, opened: oneshot::Sender<()> },
    /// A peer did not pass, or did not let us.
    NotMet { peer: PeerId },
    /// Say Hello to a peer that is connected.
    Greet { peer: PeerId },
    /// Connect to a member and exchange contacts with it; dropped, it was not met.
    Meet { peer: PeerId, addresses: Vec<Multiaddr>, answer: oneshot::Sender<Contact> },
    /// We are a member from now on: whoever is on the LAN can be met.
    MeetNeighbours,
    /// Say that we provide a blob, or no longer.
    Provide { key: RecordKey, is_here: bool },
    /// Ask who provides a blob; they come one by one, until the sender is dropped.
    Search { key: RecordKey, found: mpsc::Sender<PeerId> },
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
    /// How long what members showed at the gate is valid.
    admitted: HashMap<PeerId, Instant>,
    discovery: Discovery,
    credentials: Arc<RwLock<Option<Credentials>>>,
    stop: CancellationToken,
}

/// What the loop shares with the handle.
pub(super) struct LoopParts {
    pub(super) commands: mpsc::Receiver<Command>,
    /// Peers to say Hello to.
    pub(super) greetings: mpsc::Sender<PeerId>,
    pub(super) reached: Arc<AtomicBool>,
    pub(super) credentials: Arc<RwLock<Option<Credentials>>>,
    pub(super) stop: CancellationToken,
}

impl EventLoop {
    pub(super) fn new(config: &MeshConfig, parts: LoopParts) -> Result<(Self, Control), MeshError> {
        let (swarm, control) = behaviour::swarm(config)?;
        let LoopParts { commands, greetings, reached, credentials, stop } = parts;
        // Whoever takes sessions is dialled anyway.
        let discovery = Discovery::new(*swarm.local_peer_id(), greetings, reached, !config.accept);
        let (connections, dials, admitted) = (HashMap::new(), HashMap::new(), HashMap::new());
        let event_loop = Self { swarm, commands, connections, dials, admitted, discovery, credentials, stop };
        Ok((event_loop, control))
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
        let listeners = Listeners(listeners);
        self.discovery.listen_on(listeners.addresses());
        let span = info_span!("swarm", peer = %self.swarm.local_peer_id());
        tokio::spawn(self.run().instrument(span));
        Ok(listeners)
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
                now = probation.tick() => self.tick(now),
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
            Command::Connect { peer, mut addresses, answer } => {
                let heard = self.discovery.neighbour(&peer).iter();
                let new: Vec<_> = heard.filter(|address| !addresses.contains(address)).cloned().collect();
                addresses.extend(new);
                if addresses.is_empty() {
                    let _ = answer.send(Err(Vec::new()));
                    return;
                }
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
            Command::Open { peer, contact, side, until, opened } => {
                for connection in self.connections.values_mut().filter(|connection| connection.peer == peer) {
                    connection.probation = None;
                }
                self.admitted.insert(peer, until);
                self.discovery.on_hello(&mut self.swarm, peer, contact, side, opened);
            }
            Command::NotMet { peer } => self.discovery.on_not_met(peer),
            Command::Greet { peer } => self.discovery.greet(peer),
            Command::Meet { peer, addresses, answer } => {
                self.discovery.meet(&mut self.swarm, peer, addresses, answer);
            }
            Command::MeetNeighbours => self.discovery.approach_neighbours(&mut self.swarm),
            Command::Provide { key, is_here: true } => self.discovery.provide(&mut self.swarm, key),
            Command::Provide { key, is_here: false } => self.discovery.withdraw(&mut self.swarm, &key),
            Command::Search { key, found } => self.discovery.search(&mut self.swarm, key, found),
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
            SwarmEvent::ConnectionClosed { connection_id, cause, peer_id, num_established, .. } => {
                self.connections.remove(&connection_id);
                if num_established == 0 {
                    self.admitted.remove(&peer_id);
                    self.discovery.on_gone(peer_id);
                }
                trace!(?cause, "connection closed");
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, peer_id, .. } => {
                if let Some(peer) = peer_id.filter(|peer| !self.swarm.is_connected(peer)) {
                    self.discovery.on_unreachable(&mut self.swarm, peer);
                }
                if let Some(dial) = self.dials.remove(&connection_id) {
                    self.on_dial_error(dial, error);
                }
            }
            SwarmEvent::ListenerClosed { listener_id, .. } => self.discovery.on_listener_closed(listener_id),
            SwarmEvent::Behaviour(BehaviourEvent::Mdns(event)) => {
                self.discovery.on_mdns(&mut self.swarm, event);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Members(MembersEvent::Opened(peer))) => {
                self.discovery.on_open(peer);
            }
            SwarmEvent::Behaviour(BehaviourEvent::Members(MembersEvent::Inside(InsideEvent::Kad(event)))) => {
                self.discovery.on_kad(&mut self.swarm, event);
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
        if endpoint.is_dialer() && !self.swarm.behaviour().members.is_member(&peer) {
            self.discovery.greet(peer);
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

    fn tick(&mut self, now: Instant) {
        let ended = |connection: &Connection| connection.probation.is_some_and(|end| end <= now);
        let ended = self.connections.iter().filter(|(_, connection)| ended(connection)).map(|(id, _)| *id);
        for id in ended.collect::<Vec<_>>() {
            debug!("connection neither joined nor passed the gate, closed");
            self.swarm.close_connection(id);
        }
        self.discovery.tidy();
        self.end_memberships(now);
    }

    /// Closes the connections of those whose membership has run out or was revoked. Those whose end is near
    /// are asked to show a renewed one.
    fn end_memberships(&mut self, now: Instant) {
        let credentials = self.credentials.read().expect("nothing panics while it holds them").clone();
        let is_revoked = |peer: &PeerId| {
            let name = from_libp2p(*peer);
            credentials.as_ref().zip(name).is_some_and(|(credentials, name)| credentials.is_revoked(name))
        };
        let is_over = |(peer, until): &(&PeerId, &Instant)| **until <= now || is_revoked(peer);
        for peer in self.admitted.iter().filter(is_over).map(|(peer, _)| *peer).collect::<Vec<_>>() {
            debug!(%peer, "membership has run out, connections closed");
            self.admitted.remove(&peer);
            // It may be gone already.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        for (peer, _) in self.admitted.iter().filter(|(_, until)| **until <= now + RENEWAL) {
            self.discovery.greet(*peer);
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
