//! Who is met, and what is asked of Kademlia: the part of the loop that finds peers by itself.
//!
//! Addresses come from mDNS, from members' contacts and from Kademlia; whoever is dialled is greeted, and a
//! member only after its Hello. Not here: the swarm itself, which the loop owns and hands in.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libp2p::core::transport::ListenerId;
use libp2p::kad::store::RecordStore;
use libp2p::kad::{self, GetProvidersOk, QueryId, QueryResult, RecordKey};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::DialError;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId, Swarm, mdns};
use protocol::contact::Contact;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use crate::gate::Side;
use crate::swarm::address;
use crate::swarm::attempt::without_peer;
use crate::swarm::behaviour::Behaviour;
use crate::swarm::records::MAX_PROVIDED;

/// The most peers on the LAN that are remembered, and the most addresses of each.
const MAX_NEIGHBOURS: usize = 512;
const MAX_ADDRESSES: usize = 8;
/// How many entries mDNS may collect before it is turned off: it keeps what anybody on the LAN says.
const MAX_DISCOVERED: usize = 8 * MAX_NEIGHBOURS;
/// The most callers that wait to meet somebody, and the most questions to Kademlia at once.
const MAX_WAITING: usize = 1024;
const MAX_SEARCHES: usize = 64;
/// The most providers that one question finds.
pub(super) const MAX_FOUND: usize = protocol::message::MAX_PROVIDERS;
/// The most relays that are asked for a circuit, and the most at which we can be reached.
const MAX_RELAYS: usize = 4;
const MAX_RESERVATIONS: usize = 2;
/// How many blobs are announced at once.
const MAX_ANNOUNCING: usize = 8;

/// What the loop knows of other members.
pub(super) struct Discovery {
    ourselves: PeerId,
    /// Our own addresses, to be told once somebody reached one.
    addresses: Vec<Multiaddr>,
    /// Whether somebody did; read by whoever says our contact.
    reached: Arc<AtomicBool>,
    greetings: mpsc::Sender<PeerId>,
    /// Peers whose greeting is under way.
    greeting: HashSet<PeerId>,
    neighbours: HashMap<PeerId, Vec<Multiaddr>>,
    contacts: HashMap<PeerId, Contact>,
    waiting: HashMap<PeerId, Vec<oneshot::Sender<Contact>>>,
    /// Those among them that are being dialled through relays.
    through_relays: HashSet<PeerId>,
    /// Whether we are to be reached through relays, and at which we are.
    wants_relays: bool,
    reservations: HashMap<ListenerId, PeerId>,
    opening: HashMap<PeerId, Vec<oneshot::Sender<()>>>,
    searches: HashMap<QueryId, Search>,
    to_announce: VecDeque<RecordKey>,
    announcing: HashSet<QueryId>,
}

/// A question for the providers of a blob. Dropped, it is answered in full.
struct Search {
    found: mpsc::Sender<PeerId>,
    seen: HashSet<PeerId>,
}

impl Discovery {
    pub(super) fn new(
        ourselves: PeerId,
        greetings: mpsc::Sender<PeerId>,
        reached: Arc<AtomicBool>,
        wants_relays: bool,
    ) -> Self {
        Self {
            ourselves,
            addresses: Vec::new(),
            reached,
            greetings,
            greeting: HashSet::new(),
            neighbours: HashMap::new(),
            contacts: HashMap::new(),
            waiting: HashMap::new(),
            through_relays: HashSet::new(),
            wants_relays,
            reservations: HashMap::new(),
            opening: HashMap::new(),
            searches: HashMap::new(),
            to_announce: VecDeque::new(),
            announcing: HashSet::new(),
        }
    }

    /// Sets where we listen.
    pub(super) fn listen_on(&mut self, addresses: Vec<Multiaddr>) {
        self.addresses = addresses;
    }

    /// Where the peer listens, as the LAN says.
    pub(super) fn neighbour(&self, peer: &PeerId) -> &[Multiaddr] {
        self.neighbours.get(peer).map_or(&[], Vec::as_slice)
    }

    /// Takes what mDNS heard, and dials who is new.
    pub(super) fn on_mdns(&mut self, swarm: &mut Swarm<Behaviour>, event: mdns::Event) {
        let heard = match event {
            mdns::Event::Discovered(heard) => heard,
            mdns::Event::Expired(gone) => return self.forget(&gone),
        };
        let is_flooded = |mdns: &mdns::tokio::Behaviour| mdns.discovered_nodes().len() > MAX_DISCOVERED;
        if swarm.behaviour().mdns.as_ref().is_some_and(is_flooded) {
            warn!("somebody floods the LAN with peers, mDNS is turned off");
            swarm.behaviour_mut().mdns = Toggle::from(None);
        }
        let mut new = HashSet::new();
        for (peer, address) in heard {
            let address = without_peer(&address);
            if peer == self.ourselves || !address::is_dialable(&address) {
                continue;
            }
            let is_room = self.neighbours.len() < MAX_NEIGHBOURS || self.neighbours.contains_key(&peer);
            if !is_room {
                continue;
            }
            let known = self.neighbours.entry(peer).or_default();
            if known.len() < MAX_ADDRESSES && !known.contains(&address) {
                known.push(address);
                new.insert(peer);
            }
        }
        new.into_iter().for_each(|peer| self.approach(swarm, peer, Vec::new()));
    }

    fn forget(&mut self, gone: &[(PeerId, Multiaddr)]) {
        for (peer, address) in gone {
            let Some(known) = self.neighbours.get_mut(peer) else { continue };
            known.retain(|other| *other != without_peer(address));
            if known.is_empty() {
                self.neighbours.remove(peer);
            }
        }
    }

    /// Dials everybody on the LAN who is not connected: we are a member from now on.
    pub(super) fn approach_neighbours(&mut self, swarm: &mut Swarm<Behaviour>) {
        let peers: Vec<PeerId> = self.neighbours.keys().copied().collect();
        peers.into_iter().for_each(|peer| self.approach(swarm, peer, Vec::new()));
    }

    /// Meets a peer: the answer is its contact; dropped, it was not met.
    pub(super) fn meet(
        &mut self,
        swarm: &mut Swarm<Behaviour>,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        answer: oneshot::Sender<Contact>,
    ) {
        if let Some(contact) = self.contacts.get(&peer).filter(|_| swarm.behaviour().members.answers(peer)) {
            // Whoever asked may have given up.
            let _ = answer.send(contact.clone());
            return;
        }
        if self.waiting.values().map(Vec::len).sum::<usize>() < MAX_WAITING {
            self.waiting.entry(peer).or_default().push(answer);
            self.approach(swarm, peer, addresses);
        }
    }

    /// Greets the peer, over a new connection where there is none.
    fn approach(&mut self, swarm: &mut Swarm<Behaviour>, peer: PeerId, mut addresses: Vec<Multiaddr>) {
        if swarm.is_connected(&peer) {
            if !swarm.behaviour().members.is_member(&peer) {
                self.greet(peer);
            }
            return;
        }
        addresses.extend_from_slice(self.neighbour(&peer));
        let options = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing);
        let options = options.addresses(addresses).extend_addresses_through_behaviour().build();
        match swarm.dial(options) {
            // One that is under way will do.
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(error) => {
                debug!(%peer, %error, "peer cannot be dialled");
                self.on_unreachable(swarm, peer);
            }
        }
    }

    /// Has the greeter say Hello, once at a time.
    pub(super) fn greet(&mut self, peer: PeerId) {
        if self.greeting.insert(peer) && self.greetings.try_send(peer).is_err() {
            debug!(%peer, "too many peers to greet, left for later");
            self.on_not_met(peer);
        }
    }

    /// A greeting did not end well.
    pub(super) fn on_not_met(&mut self, peer: PeerId) {
        self.greeting.remove(&peer);
        self.give_up(peer);
    }

    /// A dial failed and there is no other connection to the peer: whoever waits for it gets a circuit, if
    /// one can be had.
    pub(super) fn on_unreachable(&mut self, swarm: &mut Swarm<Behaviour>, peer: PeerId) {
        if self.waiting.contains_key(&peer) && self.through_relays.insert(peer) {
            let relays = self.contacts.iter().filter(|(relay, contact)| contact.relays && **relay != peer);
            let circuits = relays.filter_map(|(relay, contact)| circuit(swarm, *relay, contact));
            let circuits: Vec<_> = circuits.take(MAX_RELAYS).collect();
            let options = DialOpts::peer_id(peer).addresses(circuits).build();
            if swarm.dial(options).is_ok() {
                return;
            }
        }
        self.give_up(peer);
    }

    fn give_up(&mut self, peer: PeerId) {
        self.waiting.remove(&peer);
        self.through_relays.remove(&peer);
    }

    /// A circuit's listener is gone; the next relay that is met takes its place.
    pub(super) fn on_listener_closed(&mut self, id: ListenerId) {
        self.reservations.remove(&id);
    }

    /// Asks a relay to pass circuits on to us.
    fn reserve(&mut self, swarm: &mut Swarm<Behaviour>, relay: PeerId, contact: &Contact) {
        let is_wanted = self.wants_relays
            && contact.relays
            && self.reservations.len() < MAX_RESERVATIONS
            && !self.reservations.values().any(|other| *other == relay);
        if !is_wanted {
            return;
        }
        let Some(address) = circuit(swarm, relay, contact) else { return };
        match swarm.listen_on(address) {
            Ok(id) => drop(self.reservations.insert(id, relay)),
            Err(error) => debug!(%relay, %error, "relay cannot be used"),
        }
    }

    /// The last connection of a peer is gone.
    pub(super) fn on_gone(&mut self, peer: PeerId) {
        self.contacts.remove(&peer);
        self.opening.remove(&peer);
    }

    /// A peer passed the gate and said where it is reached: those inside may speak with it.
    pub(super) fn on_hello(
        &mut self,
        swarm: &mut Swarm<Behaviour>,
        peer: PeerId,
        contact: Contact,
        side: Side,
        opened: oneshot::Sender<()>,
    ) {
        let behaviour = swarm.behaviour_mut();
        if !behaviour.members.admit(peer) {
            // It is gone already.
            return;
        }
        let endpoints: Vec<_> = behaviour.members.endpoints(peer).cloned().collect();
        let is_local = endpoints
            .iter()
            .any(|endpoint| address::ip_of(endpoint.get_remote_address()).is_some_and(|ip| ip.is_loopback()));
        let dialled = endpoints.iter().filter(|endpoint| endpoint.is_dialer() && !endpoint.is_relayed());
        let dialled = dialled.map(|endpoint| without_peer(endpoint.get_remote_address()));
        let said = contact.control.iter().filter(|_| contact.reachable).filter_map(|text| text.parse().ok());
        let is_of_use = |address: &Multiaddr| {
            let is_loopback = address::ip_of(address).is_some_and(|ip| ip.is_loopback());
            address::is_dialable(address) && (is_local || !is_loopback)
        };
        for address in dialled.chain(said.filter(is_of_use)) {
            behaviour.kad().add_address(&peer, address);
        }
        let answers = behaviour.members.answers(peer);
        self.through_relays.remove(&peer);
        self.reserve(swarm, peer, &contact);
        self.contacts.insert(peer, contact);
        self.opening.entry(peer).or_default().push(opened);
        let was_reached = endpoints.iter().any(|endpoint| endpoint.is_listener() && !endpoint.is_relayed());
        if side == Side::Accepted && was_reached {
            self.on_reached(swarm);
        }
        if answers {
            self.on_open(peer);
        }
        self.announce_next(swarm);
    }

    /// Those inside answer the peer from now on.
    pub(super) fn on_open(&mut self, peer: PeerId) {
        for opened in self.opening.remove(&peer).into_iter().flatten() {
            let _ = opened.send(());
        }
        self.greeting.remove(&peer);
        let Some(contact) = self.contacts.get(&peer) else { return };
        for answer in self.waiting.remove(&peer).into_iter().flatten() {
            let _ = answer.send(contact.clone());
        }
    }

    /// A member dialled us: others can, too, so we answer questions, and say so to whom we know.
    fn on_reached(&mut self, swarm: &mut Swarm<Behaviour>) {
        if self.reached.swap(true, Ordering::Relaxed) {
            return;
        }
        info!("a member reached this process, it answers questions of others from now on");
        for address in &self.addresses {
            swarm.add_external_address(address.clone());
        }
        swarm.behaviour_mut().kad().set_mode(Some(kad::Mode::Server));
        let members: Vec<PeerId> = swarm.behaviour().members.members().collect();
        members.into_iter().for_each(|peer| self.greet(peer));
    }

    /// Says that we provide this, as soon as there is somebody to tell.
    pub(super) fn provide(&mut self, swarm: &mut Swarm<Behaviour>, key: RecordKey) {
        let record = kad::ProviderRecord::new(key.clone(), self.ourselves, Vec::new());
        let added = swarm.behaviour_mut().kad().store_mut().add_provider(record);
        if added.is_err() || self.to_announce.len() >= MAX_PROVIDED {
            return debug!("too many blobs to announce, this one is left out");
        }
        self.to_announce.push_back(key);
        self.announce_next(swarm);
    }

    /// Says so no longer. What others know of it runs out with time.
    pub(super) fn withdraw(&mut self, swarm: &mut Swarm<Behaviour>, key: &RecordKey) {
        self.to_announce.retain(|other| other != key);
        swarm.behaviour_mut().kad().stop_providing(key);
    }

    fn announce_next(&mut self, swarm: &mut Swarm<Behaviour>) {
        let kad = swarm.behaviour_mut().kad();
        if self.to_announce.is_empty() || kad.kbuckets().next().is_none() {
            return;
        }
        while self.announcing.len() < MAX_ANNOUNCING {
            let Some(key) = self.to_announce.pop_front() else { return };
            if let Ok(query) = kad.start_providing(key) {
                self.announcing.insert(query);
            }
        }
    }

    /// Asks for the providers of a blob; they come one by one.
    pub(super) fn search(
        &mut self,
        swarm: &mut Swarm<Behaviour>,
        key: RecordKey,
        found: mpsc::Sender<PeerId>,
    ) {
        self.searches.retain(|_, search| !search.found.is_closed());
        if self.searches.len() < MAX_SEARCHES {
            let query = swarm.behaviour_mut().kad().get_providers(key);
            self.searches.insert(query, Search { found, seen: HashSet::new() });
        }
    }

    pub(super) fn on_kad(&mut self, swarm: &mut Swarm<Behaviour>, event: kad::Event) {
        let kad::Event::OutboundQueryProgressed { id, result, step, .. } = event else { return };
        match result {
            QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { key, providers })) => {
                self.on_providers(swarm, id, &key, providers);
            }
            QueryResult::StartProviding(result) => {
                if let Err(error) = result {
                    debug!(%error, "announcing a blob took too long");
                }
                self.announcing.remove(&id);
                self.announce_next(swarm);
            }
            _ => {}
        }
        if step.last {
            self.searches.remove(&id);
        }
    }

    fn on_providers(
        &mut self,
        swarm: &mut Swarm<Behaviour>,
        query: QueryId,
        key: &RecordKey,
        providers: HashSet<PeerId>,
    ) {
        let Some(search) = self.searches.get_mut(&query) else { return };
        let mut new = Vec::new();
        for provider in providers {
            let is_new = provider != self.ourselves && search.seen.len() < MAX_FOUND;
            if is_new && search.seen.insert(provider) {
                // There is room for as many as are ever found.
                let _ = search.found.try_send(provider);
                new.push(provider);
            }
        }
        // At once: Kademlia forgets where they listen when the question is answered.
        let records = swarm.behaviour_mut().kad().store_mut().providers(key);
        for provider in new {
            let ours = records.iter().filter(|record| record.provider == provider);
            let addresses = ours.flat_map(|record| record.addresses.iter().cloned()).collect();
            self.approach(swarm, provider, addresses);
        }
    }

    /// Lets go of callers that gave up.
    pub(super) fn tidy(&mut self) {
        self.waiting.retain(|_, answers| {
            answers.retain(|answer| !answer.is_closed());
            !answers.is_empty()
        });
        self.through_relays.retain(|peer| self.waiting.contains_key(peer));
        self.searches.retain(|_, search| !search.found.is_closed());
    }
}

/// The address of a circuit through a relay that is connected.
fn circuit(swarm: &Swarm<Behaviour>, relay: PeerId, contact: &Contact) -> Option<Multiaddr> {
    let mut endpoints = swarm.behaviour().members.endpoints(relay);
    let dialled = endpoints.find(|endpoint| endpoint.is_dialer() && !endpoint.is_relayed());
    let address = match dialled {
        Some(endpoint) => without_peer(endpoint.get_remote_address()),
        None => contact.control.first()?.parse().ok().filter(address::is_dialable)?,
    };
    Some(address.with(Protocol::P2p(relay)).with(Protocol::P2pCircuit))
}
