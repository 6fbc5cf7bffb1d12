//! The nodes, their slots, and who holds which blob.
//!
//! Not here: which run goes where. A slot counts as taken until its node says that it is free, so that
//! a run which is being stopped never shares it with the next.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use protocol::message::{Inventory, MAX_PROVIDERS, Provider};
use protocol::{
    BlobHash, BlobRef, Device, LeaseId, LockfileHash, Notes, Offer, PeerId, SlotId, Transfers,
    WorkflowVersion, WorkspaceState,
};
use time::OffsetDateTime;

use super::aliases::most_named;
use super::aside::Aside;

/// The most blobs that are remembered of one node.
const MAX_BLOBS: usize = 65_536;
/// The most workflows that a node is remembered to have run.
const MAX_RAN: usize = 64;
/// The most data addresses that are kept of one node.
const MAX_ADDRESSES: usize = 16;

/// A node that has registered since the coordinator started.
#[derive(Debug)]
pub(crate) struct Node {
    /// The session that is open, by the number that the network gave it.
    pub(crate) session: Option<u64>,
    /// What it offers.
    pub(crate) offer: Offer,
    /// The labels of its certificate.
    pub(crate) labels: BTreeMap<String, String>,
    /// The address that its session comes from.
    pub(crate) address: Option<IpAddr>,
    /// Where its data plane listens.
    pub(crate) data_addresses: Vec<SocketAddr>,
    /// Its owner told it to drain.
    pub(crate) owner_drains: bool,
    /// It is going away: nothing more is granted on this session.
    pub(crate) leaving: bool,
    /// Its slots.
    pub(crate) slots: BTreeMap<SlotId, Slot>,
    /// The workflows that it ran.
    pub(crate) ran: BTreeSet<WorkflowVersion>,
    /// The blobs that it holds.
    pub(crate) blobs: HashSet<BlobHash>,
    /// How many bytes its store can still take.
    pub(crate) room: u64,
    /// Blobs that it never evicts.
    pub(crate) pinned: BTreeSet<BlobHash>,
    /// How far it is with the workspaces that it was told to have.
    pub(crate) workspaces: BTreeMap<LockfileHash, WorkspaceState>,
    /// Those of them whose torch is another build than the author's.
    pub(crate) equivalent: BTreeSet<LockfileHash>,
    /// What people should know of some of these.
    pub(crate) notes: BTreeMap<LockfileHash, Notes>,
    /// In which of them each slot can work with the ComfyUI that it has.
    pub(crate) warm: BTreeMap<SlotId, BTreeSet<LockfileHash>>,
    /// The workflows for which it is set aside.
    pub(crate) aside: BTreeMap<WorkflowVersion, Aside>,
    /// What it fetches at the moment.
    pub(crate) transfers: Transfers,
    /// When it was last heard of.
    pub(crate) seen: OffsetDateTime,
    /// The same, in monotonic time.
    pub(crate) heard: Duration,
}

/// One slot of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// The lease of the run that is, or may still be, at work there.
    pub(crate) lease: Option<LeaseId>,
    /// Since when it is free, or taken.
    pub(crate) since: Duration,
    /// Nothing is granted before; set when the node refused.
    pub(crate) not_before: Duration,
}

impl Slot {
    /// A slot that became free at `now`.
    pub(crate) fn free(now: Duration) -> Self {
        Self { lease: None, since: now, not_before: Duration::ZERO }
    }
}

impl Node {
    /// Takes a slot for a lease.
    pub(crate) fn take(&mut self, slot: SlotId, lease: LeaseId, now: Duration) {
        if let Some(slot) = self.slots.get_mut(&slot) {
            *slot = Slot { lease: Some(lease), since: now, not_before: Duration::ZERO };
        }
    }

    /// Frees the slot that this lease is on.
    pub(crate) fn release(&mut self, lease: LeaseId, now: Duration) {
        if let Some(slot) = self.slots.values_mut().find(|slot| slot.lease == Some(lease)) {
            *slot = Slot::free(now);
        }
    }

    /// The memory of a slot's device.
    pub(crate) fn memory(&self, slot: SlotId) -> Option<u64> {
        self.device(slot).map(Device::memory)
    }

    /// The memory of a slot's card; `None` where it computes on the processor.
    pub(crate) fn card_memory(&self, slot: SlotId) -> Option<u64> {
        match self.device(slot)? {
            Device::Gpu { memory, .. } => Some(*memory),
            Device::Cpu { .. } => None,
        }
    }

    fn device(&self, slot: SlotId) -> Option<&Device> {
        self.offer.slots.iter().find(|offered| offered.id == slot).map(|offered| &offered.device)
    }

    /// Notes that it ran a workflow.
    pub(crate) fn note_ran(&mut self, workflow: &WorkflowVersion) {
        if self.ran.len() >= MAX_RAN && !self.ran.contains(workflow) {
            self.ran.pop_first();
        }
        self.ran.insert(workflow.clone());
    }

    /// Takes over a new list of slots, keeping what is known of those that stay.
    pub(crate) fn set_offer(&mut self, offer: Offer, now: Duration) {
        let old = std::mem::take(&mut self.slots);
        let slot = |id: SlotId| (id, old.get(&id).copied().unwrap_or(Slot::free(now)));
        self.slots = offer.slots.iter().map(|offered| slot(offered.id)).collect();
        self.offer = offer;
    }
}

/// The addresses of a node's data plane: those that it names, and its ports at the address from which
/// its session comes, which is often the only one that others can reach.
pub(crate) fn data_addresses(named: &[SocketAddr], observed: Option<IpAddr>) -> Vec<SocketAddr> {
    let seen = named.iter().filter_map(|address| Some(SocketAddr::new(observed?, address.port())));
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in seen.chain(named.iter().copied()) {
        let usable = !address.ip().is_unspecified() && address.port() != 0;
        if usable && !addresses.contains(&address) && addresses.len() < MAX_ADDRESSES {
            addresses.push(address);
        }
    }
    addresses
}

/// All nodes, and the index of what they hold.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    all: BTreeMap<PeerId, Node>,
    /// Who holds a blob, and how large each says that it is.
    holders: HashMap<BlobHash, BTreeMap<PeerId, u64>>,
}

impl Nodes {
    /// A node.
    pub(crate) fn get(&self, node: PeerId) -> Option<&Node> {
        self.all.get(&node)
    }

    /// A node, to change it.
    pub(crate) fn get_mut(&mut self, node: PeerId) -> Option<&mut Node> {
        self.all.get_mut(&node)
    }

    /// A node whose open session is this one; `None` for what an older session still says.
    pub(crate) fn on_session(&mut self, node: PeerId, session: u64) -> Option<&mut Node> {
        self.all.get_mut(&node).filter(|node| node.session == Some(session))
    }

    /// Takes in a node that registered; what it holds is kept from before.
    pub(crate) fn insert(&mut self, peer: PeerId, mut node: Node) {
        if let Some(old) = self.all.remove(&peer) {
            node.blobs = old.blobs;
            node.ran = old.ran;
            node.aside = old.aside;
            node.aside.values_mut().for_each(Aside::ask_again);
            (node.room, node.pinned) = (old.room, old.pinned);
        }
        self.all.insert(peer, node);
    }

    /// All nodes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PeerId, &Node)> {
        self.all.iter().map(|(peer, node)| (*peer, node))
    }

    /// All nodes, to change them.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (PeerId, &mut Node)> {
        self.all.iter_mut().map(|(peer, node)| (*peer, node))
    }

    /// Forgets nodes that were not heard of for so long, and says which.
    pub(crate) fn forget_silent(&mut self, now: Duration, after: Duration) -> Vec<PeerId> {
        let silent = |node: &Node| node.session.is_none() && now.saturating_sub(node.heard) > after;
        let gone: Vec<PeerId> = self.iter().filter(|(_, node)| silent(node)).map(|(peer, _)| peer).collect();
        for &peer in &gone {
            self.drop_blobs(peer);
            self.all.remove(&peer);
        }
        gone
    }

    /// Applies a change of what a node holds.
    pub(crate) fn apply_inventory(&mut self, peer: PeerId, inventory: &Inventory) {
        if inventory.complete {
            self.drop_blobs(peer);
        }
        for hash in &inventory.removed {
            self.drop_blob(peer, *hash);
        }
        self.note_held(peer, inventory.added.iter().copied());
    }

    /// Notes that a node holds these blobs.
    pub(crate) fn note_held(&mut self, peer: PeerId, blobs: impl IntoIterator<Item = BlobRef>) {
        let Some(node) = self.all.get_mut(&peer) else { return };
        for BlobRef { hash, size } in blobs {
            if node.blobs.len() < MAX_BLOBS && node.blobs.insert(hash) {
                self.holders.entry(hash).or_default().insert(peer, size);
            }
        }
    }

    /// The blob with this hash, of the size that most of its holders tell.
    pub(crate) fn blob(&self, hash: BlobHash) -> Option<BlobRef> {
        let size = most_named(self.holders.get(&hash)?.values().copied())?;
        Some(BlobRef { hash, size })
    }

    /// The nodes that hold a blob and can be asked for it, other than `asking`.
    pub(crate) fn providers(&self, blob: BlobRef, asking: PeerId) -> Vec<Provider> {
        let holders = self.holders.get(&blob.hash).into_iter().flatten();
        let holders = holders.filter(|(peer, size)| **size == blob.size && **peer != asking);
        let provider = |(peer, _): (&PeerId, &u64)| {
            let node = self.all.get(peer).filter(|node| node.session.is_some())?;
            Some(Provider { peer: *peer, addresses: node.data_addresses.clone() })
        };
        // One place is left for the coordinator.
        holders.filter_map(provider).take(MAX_PROVIDERS - 1).collect()
    }

    /// Whether a node that is there holds a blob.
    pub(crate) fn is_served(&self, blob: BlobRef) -> bool {
        let is_there = |peer: &PeerId| self.all.get(peer).is_some_and(|node| node.session.is_some());
        let holders = self.holders.get(&blob.hash).into_iter().flatten();
        holders.into_iter().any(|(peer, size)| *size == blob.size && is_there(peer))
    }

    fn drop_blobs(&mut self, peer: PeerId) {
        let held = self.all.get_mut(&peer).map(|node| std::mem::take(&mut node.blobs)).unwrap_or_default();
        for hash in held {
            self.drop_holder(peer, hash);
        }
    }

    fn drop_blob(&mut self, peer: PeerId, hash: BlobHash) {
        if let Some(node) = self.all.get_mut(&peer) {
            node.blobs.remove(&hash);
            self.drop_holder(peer, hash);
        }
    }

    fn drop_holder(&mut self, peer: PeerId, hash: BlobHash) {
        if let Some(holders) = self.holders.get_mut(&hash) {
            holders.remove(&peer);
            if holders.is_empty() {
                self.holders.remove(&hash);
            }
        }
    }
}
