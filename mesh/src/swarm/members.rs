//! Keeps behaviours that speak by themselves (Kademlia, relay) to members: a connection exists for them
//! from the moment its peer passed the gate, and not before.
//!
//! A stranger's connection is invisible to what is inside: it is not told of it, its handler is not made,
//! and no stream of its protocols is negotiated. Not here: the gate itself, which runs on a stream of its
//! own, outside.

use std::collections::{HashMap, HashSet, VecDeque};
use std::task::{Context, Poll, ready};

use libp2p::core::transport::PortUse;
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::swarm::behaviour::{AddressChange, ConnectionClosed, ConnectionEstablished};
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

use crate::swarm::gated::{FromGated, Gated, ToGated};

/// Behaviours behind the gate.
pub(super) struct MembersOnly<B: NetworkBehaviour> {
    inside: B,
    connections: HashMap<ConnectionId, Known>,
    /// Peers that passed the gate on one of their connections. Forgotten with the last of them.
    members: HashSet<PeerId>,
    queue: VecDeque<Action<B>>,
}

type Action<B> = ToSwarm<MembersEvent<<B as NetworkBehaviour>::ToSwarm>, ToGated<THandler<B>>>;

/// A connection, as the swarm knows it.
struct Known {
    peer: PeerId,
    endpoint: ConnectedPoint,
    failed: Vec<Multiaddr>,
    /// Whether those inside know of it.
    is_open: bool,
    /// Whether its handler said that it answers.
    answers: bool,
}

/// What comes of it.
#[derive(Debug)]
pub(super) enum MembersEvent<E> {
    /// A connection of a member is open to the behaviours inside, on our side.
    Opened(PeerId),
    /// One of those inside says something.
    Inside(E),
}

impl<B: NetworkBehaviour> MembersOnly<B> {
    pub(super) fn new(inside: B) -> Self {
        Self { inside, connections: HashMap::new(), members: HashSet::new(), queue: VecDeque::new() }
    }

    pub(super) fn inside(&mut self) -> &mut B {
        &mut self.inside
    }

    /// Opens every connection of the peer, which passed the gate, now and later. `false` where there is
    /// none.
    pub(super) fn admit(&mut self, peer: PeerId) -> bool {
        let theirs = self.connections.iter().filter(|(_, known)| known.peer == peer);
        let theirs: Vec<ConnectionId> = theirs.map(|(id, _)| *id).collect();
        if theirs.is_empty() {
            return false;
        }
        self.members.insert(peer);
        theirs.into_iter().for_each(|id| self.open(id));
        true
    }

    /// Whether the peer passed the gate and is still connected.
    pub(super) fn is_member(&self, peer: &PeerId) -> bool {
        self.members.contains(peer)
    }

    /// Whether those inside answer the peer, on at least one connection.
    pub(super) fn answers(&self, peer: PeerId) -> bool {
        self.connections.values().any(|known| known.peer == peer && known.answers)
    }

    /// Every member that is connected.
    pub(super) fn members(&self) -> impl Iterator<Item = PeerId> {
        self.members.iter().copied()
    }

    /// How the connections of a peer were made.
    pub(super) fn endpoints(&self, peer: PeerId) -> impl Iterator<Item = &ConnectedPoint> {
        self.connections.values().filter(move |known| known.peer == peer).map(|known| &known.endpoint)
    }

    fn open(&mut self, id: ConnectionId) {
        let Some(known) = self.connections.get(&id).filter(|known| !known.is_open) else { return };
        let peer = known.peer;
        let handler = match &known.endpoint {
            ConnectedPoint::Listener { local_addr, send_back_addr } => {
                self.inside.handle_established_inbound_connection(id, peer, local_addr, send_back_addr)
            }
            ConnectedPoint::Dialer { address, role_override, port_use } => self
                .inside
                .handle_established_outbound_connection(id, peer, address, *role_override, *port_use),
        };
        let handler_of = NotifyHandler::One(id);
        let action = match handler {
            Ok(handler) => {
                let event = ToGated::Open(Box::new(handler));
                ToSwarm::NotifyHandler { peer_id: peer, handler: handler_of, event }
            }
            // Those inside want no such connection.
            Err(_) => {
                let connection = CloseConnection::One(id);
                return self.queue.push_back(ToSwarm::CloseConnection { peer_id: peer, connection });
            }
        };
        // Before anything that those inside say about it.
        self.queue.push_back(action);
        let other_established = self.count_open(peer);
        let known = self.connections.get_mut(&id).expect("it was found above");
        known.is_open = true;
        self.inside.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
            peer_id: peer,
            connection_id: id,
            endpoint: &known.endpoint,
            failed_addresses: &known.failed,
            other_established,
        }));
    }

    fn count_open(&self, peer: PeerId) -> usize {
        self.connections.values().filter(|known| known.peer == peer && known.is_open).count()
    }

    fn on_established(&mut self, established: ConnectionEstablished<'_>) {
        let ConnectionEstablished { peer_id: peer, connection_id, endpoint, failed_addresses, .. } =
            established;
        let (endpoint, failed) = (endpoint.clone(), failed_addresses.to_vec());
        let known = Known { peer, endpoint, failed, is_open: false, answers: false };
        self.connections.insert(connection_id, known);
        if self.members.contains(&peer) {
            self.open(connection_id);
        }
    }

    fn on_closed(&mut self, closed: ConnectionClosed<'_>) {
        let Some(known) = self.connections.remove(&closed.connection_id) else { return };
        if known.is_open {
            let remaining_established = self.count_open(known.peer);
            let closed = ConnectionClosed { remaining_established, ..closed };
            self.inside.on_swarm_event(FromSwarm::ConnectionClosed(closed));
        }
        if !self.connections.values().any(|other| other.peer == known.peer) {
            self.members.remove(&known.peer);
        }
    }

    fn on_address_change(&mut self, change: AddressChange<'_>) {
        let Some(known) = self.connections.get_mut(&change.connection_id) else { return };
        known.endpoint = change.new.clone();
        if known.is_open {
            self.inside.on_swarm_event(FromSwarm::AddressChange(change));
        }
    }

    /// An open connection for what is said to a peer; nothing is said where it has none. A connection that
    /// is named is the one, as for the swarm: the relay names that of one peer beside the other peer.
    fn addressee(&self, peer: PeerId, handler: &NotifyHandler) -> Option<ConnectionId> {
        match handler {
            NotifyHandler::One(id) => self.connections.get(id).filter(|known| known.is_open).map(|_| *id),
            NotifyHandler::Any => {
                let mut connections = self.connections.iter();
                connections.find(|(_, known)| known.peer == peer && known.is_open).map(|(id, _)| *id)
            }
        }
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for MembersOnly<B> {
    type ConnectionHandler = Gated<THandler<B>>;
    type ToSwarm = MembersEvent<B::ToSwarm>;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Gated::shut())
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inside.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Gated::shut())
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(established) => self.on_established(established),
            FromSwarm::ConnectionClosed(closed) => self.on_closed(closed),
            FromSwarm::AddressChange(change) => self.on_address_change(change),
            // A connection that was never established here, of whomever: nothing to tell those inside.
            FromSwarm::ListenFailure(_) => {}
            // Where we listen is told to members once one of them has reached us there; and what is heard of
            // peers outside stays outside.
            FromSwarm::NewListenAddr(_) | FromSwarm::NewExternalAddrOfPeer(_) => {}
            event => self.inside.on_swarm_event(event),
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {
            FromGated::Inside(event) => self.inside.on_connection_handler_event(peer, id, event),
            FromGated::Opened => {
                if let Some(known) = self.connections.get_mut(&id) {
                    known.answers = true;
                    self.queue.push_back(ToSwarm::GenerateEvent(MembersEvent::Opened(peer)));
                }
            }
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            if let Some(action) = self.queue.pop_front() {
                return Poll::Ready(action);
            }
            let action = ready!(self.inside.poll(context));
            if let ToSwarm::NotifyHandler { peer_id, handler, event } = action {
                if let Some(id) = self.addressee(peer_id, &handler) {
                    let (handler, event) = (NotifyHandler::One(id), ToGated::Inside(event));
                    return Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler, event });
                }
                continue;
            }
            return Poll::Ready(action.map_out(MembersEvent::Inside).map_in(ToGated::Inside));
        }
    }
}
