//! From the planner's placements to leases: the picture that it sees, and the grants that follow.
//!
//! Not here: the choice itself, which is `schedule`'s.

use std::collections::BTreeSet;
use std::sync::Arc;

use protocol::message::{BlobProviders, Grant};
use protocol::{BlobHash, JobId, Lease, LeaseClock, LeaseId, LockfileHash, PeerId, Phase, RunId, SlotId};
use uuid::Builder;

use super::jobs::{Job, Jobs, Place};
use super::nodes::{Node, Slot};
use super::runs::Run;
use super::{Action, GrantOrder, Now, State, Turn};
use crate::schedule::{Class, FreeSlot, NodePicture, Picture, Placement, RanOut, Waiting, plan};
use crate::view::{DeployedWorkflow, FarmEventKind};

/// How many jobs of a class the planner sees beyond one for each free slot: those that wait for
/// another node than the free ones must not hide the next.
const MARGIN: usize = 32;

impl State {
    /// Grants leases on queued jobs wherever a slot fits; called once for each batch of events.
    pub fn grant(&mut self, now: Now) -> Vec<Action> {
        let mut turn = Turn { now, actions: Vec::new() };
        if std::mem::take(&mut self.plan_due) {
            for placement in plan(&self.picture(now)) {
                self.place(placement, &mut turn);
            }
        }
        turn.actions
    }

    fn picture(&self, now: Now) -> Picture<'_> {
        let nodes = self.node_pictures(now);
        let free: usize = nodes.iter().map(|node| node.free.len()).sum();
        if free == 0 {
            return Picture::default();
        }
        let class = |(workflow, jobs)| {
            let requirements = &self.catalog.get(workflow)?.requirements;
            let jobs = Iterator::map(jobs, waiting).take(free + MARGIN).collect();
            Some(Class { workflow, requirements, jobs })
        };
        Picture { classes: self.jobs.queues().filter_map(class).collect(), nodes }
    }

    /// The nodes as the planner sees them.
    pub(super) fn node_pictures(&self, now: Now) -> Vec<NodePicture<'_>> {
        let wanted = Arc::new(self.wanted_lockfiles());
        self.nodes.iter().map(|(peer, node)| self.node_picture(peer, node, wanted.clone(), now)).collect()
    }

    fn node_picture<'a>(
        &self,
        peer: PeerId,
        node: &'a Node,
        wanted: Arc<BTreeSet<LockfileHash>>,
        now: Now,
    ) -> NodePicture<'a> {
        let connected = node.session.is_some() && !node.leaving;
        let draining = self.is_draining(peer);
        let usable = node.slots.iter().filter(|(_, slot)| {
            connected && !draining && slot.lease.is_none() && now.monotonic >= slot.not_before
        });
        let slot = |(&id, slot): (&SlotId, &Slot)| FreeSlot {
            id,
            since: slot.since,
            serves: node.warm.get(&id),
            memory: node.memory(id).unwrap_or_default(),
        };
        let free = usable.map(slot).collect();
        NodePicture {
            peer,
            connected,
            draining,
            offer: &node.offer,
            free,
            ran: &node.ran,
            holds: &node.blobs,
            workspaces: &node.workspaces,
            wanted,
            aside: self.counting_asides(node),
            at_work: self.at_work_on(node),
        }
    }

    fn place(&mut self, placement: Placement, turn: &mut Turn) {
        let Placement { job: id, node: peer, slot } = placement;
        let Some(job) = self.jobs.get(id) else { return };
        let Some(workflow) = self.catalog.get(&job.new.workflow).cloned() else { return };
        let parameters = job.new.parameters;
        let providers = needed(job, &workflow).into_iter().map(|hash| self.providers(hash, peer)).collect();

        self.granted += 1;
        let lease_id = LeaseId { epoch: self.epoch, counter: self.granted };
        let lease = Lease { id: lease_id, job: id, run: run_id(lease_id, turn.now) };
        let clock = LeaseClock::renewed(turn.now.monotonic, self.settings.lease_duration);
        let run =
            Run { lease, node: peer, slot, phase: Phase::Leased, progress: None, clock, collecting: None };

        self.jobs.put(id, Place::Running(lease.id));
        if let Some(job) = self.jobs.get_mut(id) {
            job.history_mut().started = Some(turn.now.wall);
        }
        if let Some(node) = self.nodes.get_mut(peer) {
            node.take(slot, lease.id, turn.now.monotonic);
        }
        turn.actions.push(Action::Leased(run.to_known()));
        turn.notify(FarmEventKind::Started { job: id, run: run.to_view() });
        self.runs.insert(lease.id, run);

        let (graph, interface) = (workflow.graph, workflow.interface_blob);
        let grant = Grant {
            lease,
            slot,
            workflow: workflow.id.clone(),
            lockfile: workflow.lockfile,
            graph,
            interface,
            inputs: workflow.inputs.clone(),
            parameters: Vec::new(),
            providers,
        };
        turn.actions.push(Action::Grant(Box::new(GrantOrder { node: peer, grant, parameters })));
    }

    /// What a node fetches for a job; nothing where the job has ended.
    pub fn needed(&self, job: JobId) -> BTreeSet<BlobHash> {
        let job = self.jobs.get(job);
        let workflow = job.and_then(|job| self.catalog.get(&job.new.workflow));
        job.zip(workflow).map(|(job, workflow)| needed(job, workflow)).unwrap_or_default()
    }

    /// Whether a node other than this one is there and holds a blob.
    pub fn is_held(&self, hash: BlobHash, besides: PeerId) -> bool {
        self.nodes.blob(hash).is_some_and(|blob| !self.nodes.providers(blob, besides).is_empty())
    }

    /// Who holds a blob: other nodes first, and the coordinator, through which everything came, last.
    pub(super) fn providers(&self, hash: BlobHash, asking: PeerId) -> BlobProviders {
        let blob = self.nodes.blob(hash).filter(|blob| !self.is_private(&blob.hash.into()));
        let mut providers = blob.map(|blob| self.nodes.providers(blob, asking)).unwrap_or_default();
        providers.push(self.settings.provider.clone());
        BlobProviders { hash, providers }
    }
}

fn needed(job: &Job, workflow: &DeployedWorkflow) -> BTreeSet<BlobHash> {
    let documents = [workflow.graph.hash, workflow.interface_blob.hash].into_iter();
    let bundled = workflow.inputs.values().map(|blob| blob.hash);
    documents.chain(bundled).chain(job.new.inputs.iter().copied()).collect()
}

/// A job as the planner sees it.
pub(super) fn waiting(job: &Job) -> Waiting<'_> {
    Waiting {
        job: job.new.id,
        priority: job.new.priority,
        order: job.order,
        inputs: &job.new.inputs,
        avoid: Jobs::failed_on(job),
        ran_out: RanOut::of(job.failures()),
    }
}

/// A UUIDv7 whose random part is the lease's name, which no other grant has.
fn run_id(lease: LeaseId, now: Now) -> RunId {
    let millis = u64::try_from(now.wall.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
    let mut unique = [0; 10];
    // The first two bytes and the top of the third are overwritten by the format's own bits.
    unique[3..6].copy_from_slice(&lease.epoch.to_be_bytes()[5..]);
    unique[6..].copy_from_slice(&lease.counter.to_be_bytes()[4..]);
    RunId(Builder::from_unix_timestamp_millis(millis, &unique).into_uuid())
}
