//! The truth about live jobs: a pure machine, `apply(event, now) -> actions`.
//!
//! It never awaits and reads no clock, socket or file. The service hands it what happened and the
//! time, and carries out what it answers, in this order: all [`Action::Record`]s (and what belongs to
//! them) of a batch are committed in one transaction, and only then the rest of its actions is
//! released. So nobody outside ever learns of something that a restart would undo.
//!
//! **A job** is in exactly one place (`jobs`): *queued*; *held*, which people see as queued, while a
//! node that was at work on it before a restart may still come back; or *running*, with the one lease
//! that is current for it. When it ends it leaves memory, and its row lies in the store.
//!
//! **A run** is known by its lease (`runs`). Besides the current run of a job there may be others that
//! nobody waits for any more: a node whose lease expired works on, and comes back with a finished run.
//! What they can do is not symmetric:
//! - the *first valid success* of any run of an unfinished job is taken: its outputs are collected, and
//!   when they are verified in the coordinator's store the job has succeeded, and other runs of it are
//!   cancelled;
//! - a *failure* is heard only from the current run. A superseded run can never fail a job.
//!
//! **At-least-once execution, exactly-once recording.** Submissions, counted failures, ends and
//! policies are recorded. Grants, heartbeats and progress are not: after a restart every unfinished job
//! is queued, and the nodes tell what they still work on and are adopted. In between, the *known
//! leases* keep the coordinator from starting such a job a second time. They are hints, written with
//! the batch that grants (so before the node can have seen the grant): a job that has one is held until
//! its node registers with it or without it, at most for the grace. Jobs without one go out at once.
//!
//! **Slots** (`nodes`) are taken until the node says otherwise: it ends the run, no longer names its
//! lease, or registers anew. A cancelled or expired run therefore blocks its slot until it has stopped.
//!
//! **Time.** Leases live in monotonic time that begins with the process, so time the coordinator was
//! away never counts against one; a loop that stood still is made up for in the same way. The wall
//! clock is only written down.
//!
//! Not here: what the records look like on disk (`store`), who may connect (`admission`), and which
//! node is best (`schedule`).

mod aliases;
mod aside;
mod catalog;
mod claims;
mod finding;
mod grants;
mod jobs;
mod keeps;
mod nodes;
mod origins;
pub mod record;
mod recovery;
mod runs;
mod sessions;
mod stock;
mod timers;
mod views;
mod workspaces;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use protocol::message::{
    CoordinatorMessage, Grant, Located, NodeMessage, Provider, Register, RunEnded, SetDraining,
};
use protocol::{
    BlobHash, BlobName, BlobRef, JobId, JobState, Lease, LeaseId, LockfileHash, PeerId, PublisherKey, RunId,
    WorkflowName, WorkflowSelector, WorkflowVersion, WorkspaceResolved,
};
use time::OffsetDateTime;

use self::aliases::Aliases;
use self::catalog::Catalog;
use self::jobs::{Jobs, Place};
use self::keeps::Keeps;
use self::nodes::Nodes;
use self::origins::Origins;
use self::record::{EndedJob, KnownLease, NewJob, Record};
use self::runs::{Outcome, Run};
use crate::view::{DeployedWorkflow, FarmEventKind};

/// The time at which something happened, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Since the coordinator started; leases are measured in it.
    pub monotonic: Duration,
    /// For records.
    pub wall: OffsetDateTime,
}

/// What the machine is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a lease lives without a renewal.
    pub lease_duration: Duration,
    /// How often nodes renew.
    pub heartbeat: Duration,
    /// How long a job waits, after a restart, for the node that was at work on it.
    pub reattach_grace: Duration,
    /// The coordinator itself as the last provider of every graph and input.
    pub provider: Provider,
    /// The key with which it signs what is deployed in it.
    pub publisher: PublisherKey,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A version of a workflow is to be deployed; its blobs are stored.
    Deploy(Arc<DeployedWorkflow>),
    /// An older version is to be current again.
    Restore(WorkflowVersion),
    /// A job is to be taken; its blobs are stored.
    Submit(Box<NewJob>),
    /// A job is no longer wanted.
    Cancel(JobId),
    /// A node is to drain, or to take runs again.
    SetDraining(PeerId, bool),
    /// So many nodes are to keep a blob, beside the one that brought it. To be wished again as long as
    /// somebody waits for it.
    Keep {
        /// The blob.
        blob: BlobRef,
        /// How many nodes.
        copies: usize,
        /// Who brought it.
        author: Option<PeerId>,
    },
    /// A node opened a session and registered on it.
    Registered(Box<Registered>),
    /// A node said something on a session.
    Said {
        /// The node.
        node: PeerId,
        /// The session's number.
        session: u64,
        /// What it said; a second `Register` is ignored.
        message: Box<NodeMessage>,
    },
    /// A session is gone.
    Disconnected {
        /// The node.
        node: PeerId,
        /// The session's number.
        session: u64,
    },
    /// The outputs of a run are verified in the coordinator's store.
    OutputsStored {
        /// The node that made them.
        node: PeerId,
        /// The end of the run.
        ended: Box<RunEnded>,
    },
    /// The outputs of a run could not be fetched from its node.
    CollectFailed {
        /// The run's lease.
        lease: LeaseId,
        /// Why.
        reason: String,
    },
    /// What a node reported of a lockfile is joined to what was known, signed, and stored.
    Resolved {
        /// Of which lockfile.
        lockfile: LockfileHash,
        /// The signed resolution.
        resolution: BlobRef,
        /// The node that reported it.
        node: PeerId,
    },
    /// A grant could not be sent, because the job's parameters are not readable.
    GrantFailed {
        /// The grant's lease.
        lease: LeaseId,
        /// Why.
        reason: String,
    },
    /// Time passed.
    Tick,
}

/// A node that opened a session.
#[derive(Clone, Debug)]
pub struct Registered {
    /// The node.
    pub node: PeerId,
    /// The session's number; a later session of the same node replaces it.
    pub session: u64,
    /// The address that it comes from.
    pub address: Option<IpAddr>,
    /// The labels of its certificate.
    pub labels: BTreeMap<String, String>,
    /// What it says of itself.
    pub register: Register,
}

/// Something to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Write into the journal.
    Record(Record),
    /// Write a version of a workflow, with its record.
    Keep(Arc<DeployedWorkflow>),
    /// Write the row of an ended job, with its record; its known leases are forgotten.
    Archive(Box<EndedJob>),
    /// Remember a lease across a restart, with the batch that grants it.
    Leased(KnownLease),
    /// Forget it.
    Unleased(LeaseId),
    /// Tell a node.
    Send(PeerId, CoordinatorMessage),
    /// Read the parameters, put them into the grant, and tell the node.
    Grant(Box<GrantOrder>),
    /// Tell a node who holds a blob: those named, and the coordinator where its own store does.
    Located {
        /// The node.
        node: PeerId,
        /// What it asked for.
        name: BlobName,
        /// The answer, without the coordinator.
        located: Located,
    },
    /// Fetch the outputs of a run from its node, which serves them until the end is recorded.
    Collect {
        /// The node.
        node: PeerId,
        /// The end of the run.
        ended: Box<RunEnded>,
    },
    /// Fetch what a lockfile came to on a node, join it to what is known, and sign that.
    Resolve {
        /// The node.
        node: PeerId,
        /// What it reported.
        resolved: WorkspaceResolved,
        /// The lockfile.
        document: BlobRef,
        /// What is known.
        known: Option<BlobRef>,
    },
    /// Tell people of something that is not durable.
    Notify(FarmEventKind),
}

/// A grant without the job's parameters, which lie in a blob.
#[derive(Clone, Debug)]
pub struct GrantOrder {
    /// The node.
    pub node: PeerId,
    /// The grant, its `parameters` empty.
    pub grant: Grant,
    /// Where they lie.
    pub parameters: BlobRef,
}

/// The machine.
#[derive(Debug)]
pub struct State {
    settings: Settings,
    epoch: u64,
    granted: u64,
    catalog: Catalog,
    jobs: Jobs,
    nodes: Nodes,
    aliases: Aliases,
    /// The blobs that peers may not have, as far as it is known which these are.
    private_blobs: BTreeSet<BlobHash>,
    origins: Origins,
    keeps: Keeps,
    /// Which nodes were told to drain, or to take runs again, by the coordinator.
    draining: BTreeMap<PeerId, bool>,
    /// What lockfiles came to, signed, as far as nodes reported it.
    resolutions: BTreeMap<LockfileHash, BlobRef>,
    /// The workflows of which a self-test succeeded on some node.
    tested: BTreeSet<WorkflowVersion>,
    runs: BTreeMap<LeaseId, Run>,
    /// Runs of unfinished jobs whose lease expired or was given back, or whose outputs could not be
    /// fetched; their nodes may come back with them.
    lost: BTreeMap<LeaseId, KnownLease>,
    last_tick: Duration,
    /// Whether anything happened since the last plan that could let a job go.
    plan_due: bool,
}

/// One event being applied: the time, and what is to be done about it.
#[derive(Debug)]
pub(crate) struct Turn {
    now: Now,
    actions: Vec<Action>,
}

impl Turn {
    fn send(&mut self, node: PeerId, message: CoordinatorMessage) {
        self.actions.push(Action::Send(node, message));
    }

    fn notify(&mut self, kind: FarmEventKind) {
        self.actions.push(Action::Notify(kind));
    }
}

impl State {
    /// Takes in one event and says what is to be done. Grants come from [`State::grant`], which is
    /// called once for a whole batch of events.
    pub fn apply(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut turn = Turn { now, actions: Vec::new() };
        self.take_in(event, &mut turn);
        turn.actions
    }

    /// The version that the next deploy of this name gets.
    pub fn next_version(&self, name: &WorkflowName) -> u32 {
        self.catalog.next_version(name)
    }

    /// The version that a caller means.
    pub fn workflow(&self, selector: &WorkflowSelector) -> Option<&Arc<DeployedWorkflow>> {
        self.catalog.select(selector)
    }

    /// One version.
    pub fn version(&self, id: &WorkflowVersion) -> Option<&Arc<DeployedWorkflow>> {
        self.catalog.get(id)
    }

    /// All versions of all workflows, by name, the current version of each first.
    pub fn workflows(&self) -> Vec<Arc<DeployedWorkflow>> {
        self.catalog.list()
    }

    /// Whether a run is still wanted under this lease.
    pub fn is_at_work(&self, lease: LeaseId) -> bool {
        self.runs.contains_key(&lease)
    }

    /// The job and the run of a lease that this node works on.
    pub fn run_of_lease(&self, node: PeerId, lease: LeaseId) -> Option<(JobId, RunId)> {
        let run = self.runs.get(&lease).filter(|run| run.node == node)?;
        Some((run.lease.job, run.lease.run))
    }

    /// The node and the lease of a job that is at work.
    pub fn lease_of_job(&self, job: JobId) -> Option<(PeerId, LeaseId)> {
        let run = self.runs.values().find(|run| run.lease.job == job && run.collecting.is_none())?;
        Some((run.node, run.lease.id))
    }

    /// How a node's blobs are fetched.
    pub fn provider(&self, peer: PeerId) -> Provider {
        let addresses = self.nodes.get(peer).map(|node| node.data_addresses.clone()).unwrap_or_default();
        Provider { peer, addresses }
    }

    /// How the coordinator's own blobs are fetched.
    pub fn own_provider(&self) -> &Provider {
        &self.settings.provider
    }

    /// How many jobs wait.
    pub fn waiting(&self) -> usize {
        self.jobs.waiting()
    }

    fn take_in(&mut self, event: Event, turn: &mut Turn) {
        match event {
            Event::Deploy(workflow) => self.deploy(workflow, turn),
            Event::Restore(id) => {
                self.record(Record::Restored(id), turn);
                self.want_workspaces(turn);
            }
            Event::Submit(job) => self.record(Record::Submitted(job), turn),
            Event::Cancel(job) => self.end_job(job, Outcome::without_run(JobState::Canceled), turn),
            Event::SetDraining(node, draining) => self.set_draining(node, draining, turn),
            Event::Resolved { lockfile, resolution, node } => {
                self.record(Record::Resolved { lockfile, resolution, node }, turn);
                self.want_workspaces(turn);
            }
            Event::Keep { blob, copies, author } => self.keep(blob, copies, author, turn),
            Event::Registered(registered) => self.register(*registered, turn),
            Event::Said { node, session, message } => self.hear(node, session, *message, turn),
            Event::Disconnected { node, session } => self.disconnect(node, session, turn),
            Event::OutputsStored { node, ended } => self.outputs_stored(node, *ended, turn),
            Event::CollectFailed { lease, reason } => self.collect_failed(lease, &reason, turn),
            Event::GrantFailed { lease, reason } => self.grant_failed(lease, reason, turn),
            Event::Tick => self.tick(turn),
        }
    }

    fn deploy(&mut self, workflow: Arc<DeployedWorkflow>, turn: &mut Turn) {
        let id = workflow.id.clone();
        self.catalog.insert(workflow.clone());
        self.note_private_blobs();
        let nodes: Vec<PeerId> =
            self.nodes.iter().filter(|(_, node)| node.session.is_some()).map(|(peer, _)| peer).collect();
        self.keep_private(&nodes, &workflow.private.iter().copied().collect(), turn);
        turn.actions.push(Action::Keep(workflow));
        self.record(Record::Deployed(id), turn);
        self.want_workspaces(turn);
    }

    fn set_draining(&mut self, node: PeerId, draining: bool, turn: &mut Turn) {
        self.record(Record::Draining { node, draining }, turn);
        if self.nodes.get(node).is_some_and(|node| node.session.is_some()) {
            turn.send(node, CoordinatorMessage::SetDraining(SetDraining { draining }));
        }
    }

    /// Applies a durable change and has it written.
    fn record(&mut self, record: Record, turn: &mut Turn) {
        self.replay(&record);
        self.plan_due = true;
        turn.actions.push(Action::Record(record));
    }

    /// Applies a durable change, which is new or was read from the journal.
    fn replay(&mut self, record: &Record) {
        match record {
            Record::Deployed(id) | Record::Restored(id) => self.catalog.make_current(id),
            Record::Submitted(job) => self.jobs.submit(NewJob::clone(job)),
            Record::RunFailed { job, failed } => {
                if let Some(job) = self.jobs.get_mut(*job) {
                    job.history_mut().failures.push(failed.clone());
                }
            }
            Record::Ended { job, .. } => {
                self.jobs.remove(*job);
            }
            Record::Draining { node, draining } => {
                self.draining.insert(*node, *draining);
            }
            Record::Resolved { lockfile, resolution, .. } => {
                self.resolutions.insert(*lockfile, *resolution);
            }
        }
    }

    /// Takes a running job back into the queue, where it keeps its place.
    fn queue_again(&mut self, job: JobId, lease: LeaseId, reason: String, turn: &mut Turn) {
        self.jobs.put(job, Place::Queued);
        self.plan_due = true;
        turn.actions.push(Action::Unleased(lease));
        turn.notify(FarmEventKind::Requeued { job, reason });
    }

    /// Whether this lease is the one on its job.
    fn is_current(&self, lease: &Lease) -> bool {
        match self.jobs.get(lease.job).map(jobs::Job::place) {
            Some(Place::Running(current)) => current == lease.id,
            Some(Place::Held { known, .. }) => known.lease.id == lease.id,
            Some(Place::Queued) | None => false,
        }
    }
}

#[cfg(test)]
mod cards;
#[cfg(test)]
mod invariants;
#[cfg(test)]
mod made_farm;
#[cfg(test)]
mod restarts;
#[cfg(test)]
mod stories;
