//! What nodes say: registering with the leases that they still hold, heartbeats, phases, going away.
//!
//! Not here: ends of runs (`runs`), and what time alone brings (`timers`).

use std::collections::BTreeSet;

use protocol::message::{
    CancelRun, CoordinatorMessage, Heartbeat, HeldLease, NodeMessage, PhaseChanged, Refusal, Refused,
    Register, RunProgress, Welcome,
};
use protocol::{LeaseClock, LeaseId, PeerId, Phase, Transfers};

use super::claims::{bounded_detail, bounded_offer};
use super::jobs::{Job, Place};
use super::nodes::{Node, Slot, data_addresses};
use super::runs::Run;
use super::{Action, Registered, State, Turn};
use crate::view::FarmEventKind;

impl State {
    /// A node registers: its slots are what it says, the leases that it holds are adopted where their
    /// jobs still want them, and jobs that were waited for and are not there go on at once.
    pub(super) fn register(&mut self, registered: Registered, turn: &mut Turn) {
        let Registered { node: peer, session, address, labels, register } = registered;
        let Register { offer, data_addresses: named, leases, ended, draining } = register;
        let (offer, now) = (bounded_offer(offer), turn.now.monotonic);
        let slots = offer.slots.iter().map(|slot| (slot.id, Slot::free(now))).collect();
        let node = Node {
            session: Some(session),
            offer,
            labels,
            address,
            data_addresses: data_addresses(&named, address),
            owner_drains: draining,
            leaving: false,
            slots,
            ran: BTreeSet::new(),
            blobs: Default::default(),
            room: 0,
            pinned: BTreeSet::new(),
            workspaces: Default::default(),
            equivalent: Default::default(),
            notes: Default::default(),
            warm: Default::default(),
            aside: Default::default(),
            transfers: Transfers::default(),
            seen: turn.now.wall,
            heard: now,
        };
        self.nodes.insert(peer, node);
        self.origins.leave(peer);

        let unwanted: Vec<LeaseId> =
            leases.iter().filter(|held| !self.adopt(peer, held, turn)).map(|held| held.lease.id).collect();
        let welcome = Welcome {
            epoch: self.epoch,
            heartbeat: self.settings.heartbeat,
            lease_duration: self.settings.lease_duration,
            data_addresses: self.settings.provider.addresses.clone(),
            unwanted,
            draining: self.is_draining(peer),
        };
        turn.send(peer, CoordinatorMessage::Welcome(welcome));
        self.keep_private(&[peer], self.catalog.private(), turn);
        self.want_workspaces_of(peer, turn);

        let told: BTreeSet<LeaseId> =
            leases.iter().map(|held| held.lease.id).chain(ended.iter().map(|ended| ended.lease.id)).collect();
        for ended in ended {
            self.run_ended(peer, ended, turn);
        }
        self.lose_untold(peer, &told, turn);
        self.plan_due = true;
        turn.notify(FarmEventKind::NodeChanged(peer));
    }

    /// Takes a lease back that a node holds, and says whether its run is still wanted.
    fn adopt(&mut self, peer: PeerId, held: &HeldLease, turn: &mut Turn) -> bool {
        let (lease, now) = (held.lease, turn.now);
        let clock = LeaseClock::renewed(now.monotonic, self.settings.lease_duration);
        let slot = self.nodes.get(peer).and_then(|node| node.slots.get(&held.slot)).copied();
        // A node that names two leases for one slot, or a slot that it has not, is wrong about itself.
        let Some(Slot { lease: None, .. }) = slot else { return false };
        if let Some(node) = self.nodes.get_mut(peer) {
            node.take(held.slot, lease.id, now.monotonic);
        }
        if !self.is_own(peer, &lease) {
            return false;
        }
        match self.jobs.get(lease.job).map(Job::place) {
            Some(Place::Queued | Place::Held { .. }) => {}
            Some(Place::Running(current)) if current == lease.id => {
                if self.runs.get(&lease.id).is_some_and(|run| run.collecting.is_some()) {
                    return false;
                }
            }
            Some(Place::Running(_)) | None => return false,
        }
        self.lost.remove(&lease.id);
        self.jobs.put(lease.job, Place::Running(lease.id));
        if let Some(job) = self.jobs.get_mut(lease.job) {
            job.history_mut().started.get_or_insert(now.wall);
        }
        let (slot, phase) = (held.slot, held.phase);
        let run = Run { lease, node: peer, slot, phase, progress: None, clock, collecting: None };
        turn.actions.push(Action::Leased(run.to_known()));
        turn.notify(FarmEventKind::Started { job: lease.job, run: run.to_view() });
        self.runs.insert(lease.id, run);
        true
    }

    /// The node has registered without these runs, so nothing is to be waited for.
    fn lose_untold(&mut self, peer: PeerId, told: &BTreeSet<LeaseId>, turn: &mut Turn) {
        let is_untold =
            |run: &&Run| run.node == peer && run.collecting.is_none() && !told.contains(&run.lease.id);
        let untold: Vec<LeaseId> = self.runs.values().filter(is_untold).map(|run| run.lease.id).collect();
        for lease in untold {
            self.lose_run(lease, &format!("{} came back without its run", peer.fmt_short()), turn);
        }
        for (job, known, _) in self.jobs.held() {
            if known.node == peer && !told.contains(&known.lease.id) {
                let reason = format!("{} came back without its run", peer.fmt_short());
                self.queue_again(job, known.lease.id, reason, turn);
            }
        }
    }

    /// A node says something on its open session; what an older session still says is ignored.
    pub(super) fn hear(&mut self, peer: PeerId, session: u64, message: NodeMessage, turn: &mut Turn) {
        let Some(node) = self.nodes.on_session(peer, session) else { return };
        (node.seen, node.heard) = (turn.now.wall, turn.now.monotonic);
        match message {
            NodeMessage::Register(_) => {}
            NodeMessage::Heartbeat(heartbeat) => self.renew(peer, &heartbeat, turn),
            NodeMessage::OfferChanged(offer) => {
                node.set_offer(bounded_offer(offer), turn.now.monotonic);
                self.plan_due = true;
                turn.notify(FarmEventKind::NodeChanged(peer));
            }
            NodeMessage::Refused(refused) => self.refused(peer, refused, turn),
            NodeMessage::PhaseChanged(changed) => self.phase_changed(peer, changed, turn),
            NodeMessage::RunProgress(progress) => self.progressed(peer, progress, turn),
            NodeMessage::RunEnded(ended) => self.run_ended(peer, ended, turn),
            NodeMessage::Inventory(inventory) => self.nodes.apply_inventory(peer, &inventory),
            NodeMessage::Locate(locate) => self.locate(peer, &locate, turn),
            NodeMessage::ReadOrigin(asked) => self.read_origin(peer, &asked, turn),
            NodeMessage::Aliases(told) => self.aliases_told(peer, &told.aliases),
            NodeMessage::Storage(_) | NodeMessage::Transfers(_) | NodeMessage::KeepRefused(_) => {
                self.hear_of_stock(peer, message, turn);
            }
            // Passed on beside the state, which keeps none.
            NodeMessage::RunPreview(_) => {}
            NodeMessage::WorkspaceReport(report) => self.workspace_told(peer, report, turn),
            NodeMessage::WarmSlots(warm) => self.warmth_told(peer, warm),
            NodeMessage::SelfTested(tested) => self.self_tested(peer, tested, turn),
            NodeMessage::WorkspaceResolved(resolved) => self.workspace_resolved(peer, resolved, turn),
            NodeMessage::Leave(_) => self.leave(peer, turn),
        }
    }

    /// Renews leases. A lease that expired meanwhile is taken up again if its job still waits;
    /// otherwise its run is no longer wanted.
    fn renew(&mut self, peer: PeerId, heartbeat: &Heartbeat, turn: &mut Turn) {
        let (now, duration) = (turn.now.monotonic, self.settings.lease_duration);
        for id in &heartbeat.leases {
            if let Some(run) = self.runs.get_mut(id).filter(|run| run.node == peer) {
                run.clock.renew(now, duration);
                continue;
            }
            let lost = self.lost.get(id).filter(|known| known.node == peer).copied();
            let is_wanted = lost.is_some_and(|known| {
                let held = HeldLease { lease: known.lease, slot: known.slot, phase: Phase::Leased };
                self.release_slot(peer, known.lease.id, turn);
                self.adopt(peer, &held, turn)
            });
            if !is_wanted {
                turn.send(peer, CoordinatorMessage::CancelRun(CancelRun { lease: *id }));
            }
        }
        // A slot is free once its node stops to name the lease of a run that nobody wants.
        let (runs, patience) = (&self.runs, self.settings.heartbeat);
        let Some(node) = self.nodes.get_mut(peer) else { return };
        for slot in node.slots.values_mut() {
            let is_over = |lease| !runs.contains_key(&lease) && !heartbeat.leases.contains(&lease);
            if slot.lease.is_some_and(is_over) && now.saturating_sub(slot.since) >= patience {
                *slot = Slot::free(now);
                self.plan_due = true;
            }
        }
    }

    fn phase_changed(&mut self, peer: PeerId, changed: PhaseChanged, turn: &mut Turn) {
        let (now, duration) = (turn.now.monotonic, self.settings.lease_duration);
        let Some(run) = self.runs.get_mut(&changed.lease).filter(|run| run.node == peer) else { return };
        run.clock.renew(now, duration);
        if run.phase != changed.phase && run.collecting.is_none() {
            (run.phase, run.progress) = (changed.phase, None);
            turn.notify(FarmEventKind::Progress { job: run.lease.job, run: run.to_view() });
        }
    }

    fn progressed(&mut self, peer: PeerId, progress: RunProgress, turn: &mut Turn) {
        let Some(run) = self.runs.get_mut(&progress.lease).filter(|run| run.node == peer) else { return };
        let mut progress = progress.progress;
        // A number that is none would not survive JSON.
        progress.fraction = if progress.fraction.is_nan() { 0.0 } else { progress.fraction.clamp(0.0, 1.0) };
        progress.detail = progress.detail.map(bounded_detail);
        if run.collecting.is_none() {
            run.progress = Some(progress);
            turn.notify(FarmEventKind::Progress { job: run.lease.job, run: run.to_view() });
        }
    }

    /// A node did not take a grant: the job waits again, and the slot rests.
    fn refused(&mut self, peer: PeerId, refused: Refused, turn: &mut Turn) {
        let (lease, now) = (refused.lease, turn.now.monotonic);
        let Some(node) = self.nodes.get_mut(peer) else { return };
        match refused.refusal {
            Refusal::SlotBusy(_) => {}
            Refusal::Draining => node.owner_drains = true,
            Refusal::Stopping => node.leaving = true,
        }
        if let Some((&id, slot)) = node.slots.iter_mut().find(|(_, slot)| slot.lease == Some(lease.id)) {
            *slot = Slot::free(now);
            self.rest_slot(peer, id, turn);
        }
        let is_refused = |run: &Run| run.node == peer && run.lease == lease && run.collecting.is_none();
        if !self.runs.get(&lease.id).is_some_and(is_refused) {
            return;
        }
        self.runs.remove(&lease.id);
        if self.is_current(&lease) {
            let reason = format!("{} did not take it: {}", peer.fmt_short(), refused.refusal);
            self.queue_again(lease.job, lease.id, reason, turn);
        }
    }

    /// A node goes away in good order: its runs are given back and count as nothing.
    fn leave(&mut self, peer: PeerId, turn: &mut Turn) {
        if let Some(node) = self.nodes.get_mut(peer) {
            node.leaving = true;
        }
        let is_at_work = |run: &Run| run.node == peer && run.collecting.is_none();
        let given_back: Vec<Run> =
            self.runs.extract_if(.., |_, run| is_at_work(run)).map(|(_, run)| run).collect();
        for run in given_back {
            self.await_slot(&run, turn.now.monotonic);
            self.lost.insert(run.lease.id, run.to_known());
            if self.is_current(&run.lease) {
                self.queue_again(run.lease.job, run.lease.id, format!("{} left", peer.fmt_short()), turn);
            }
        }
        turn.notify(FarmEventKind::NodeChanged(peer));
    }

    /// A session is gone. Leases go on until they expire, for the node may be back any moment.
    pub(super) fn disconnect(&mut self, peer: PeerId, session: u64, turn: &mut Turn) {
        let Some(node) = self.nodes.on_session(peer, session) else { return };
        node.session = None;
        node.transfers = Transfers::default();
        self.origins.leave(peer);
        self.keeps.leave(peer);
        let (now, duration) = (turn.now.monotonic, self.settings.lease_duration);
        for run in self.runs.values_mut().filter(|run| run.node == peer && run.collecting.is_some()) {
            run.clock.renew(now, duration);
        }
        turn.notify(FarmEventKind::NodeChanged(peer));
    }

    /// Whether a node takes no more runs: as the coordinator was told, else as its owner told it.
    pub(super) fn is_draining(&self, peer: PeerId) -> bool {
        let owner_drains = || self.nodes.get(peer).is_some_and(|node| node.owner_drains);
        self.draining.get(&peer).copied().unwrap_or_else(owner_drains)
    }
}
