//! What of the state is durable: the records of the journal, the snapshot that replaces old ones, and
//! the row of a job that ended.
//!
//! Not here: where they are written, which is the store's. Their JSON is read by later releases, so a
//! field is only ever added, with a default.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::{
    BlobHash, BlobRef, Fetched, JobId, JobState, Lease, LockfileHash, OutputFile, PeerId, Phase, RunError,
    RunId, SlotId, WorkflowName, WorkflowVersion,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::view::{DeployedWorkflow, FailedRun, FarmEventKind, JobView, RunView};

/// One durable change. Applying all of them in their order gives the durable part of the state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// A version was deployed and is current. What it is lies in the table of workflows.
    Deployed(WorkflowVersion),
    /// An older version is current again.
    Restored(WorkflowVersion),
    /// A job was submitted.
    Submitted(Box<NewJob>),
    /// A run ended without success, and the job waits for another.
    RunFailed {
        /// The job.
        job: JobId,
        /// The run and its error.
        failed: FailedRun,
    },
    /// A job ended. How lies in the table of jobs.
    Ended {
        /// The job.
        job: JobId,
        /// Its final state.
        state: JobState,
    },
    /// A node is to drain, or to take runs again.
    Draining {
        /// The node.
        node: PeerId,
        /// Whether it drains.
        draining: bool,
    },
    /// What the parts of a lockfile came to, as far as nodes reported it.
    Resolved {
        /// Of which lockfile.
        lockfile: LockfileHash,
        /// The signed resolution.
        resolution: BlobRef,
        /// The node that reported the latest part.
        node: PeerId,
    },
}

impl Record {
    /// What people are told of it.
    pub fn to_event(&self) -> FarmEventKind {
        match self {
            Self::Deployed(id) | Self::Restored(id) => FarmEventKind::Deployed(id.clone()),
            Self::Submitted(job) => FarmEventKind::Submitted { job: job.id, workflow: job.workflow.clone() },
            Self::RunFailed { job, failed } => {
                let reason = format!("a run on {} failed: {}", failed.node.fmt_short(), failed.error.detail);
                FarmEventKind::Requeued { job: *job, reason }
            }
            Self::Ended { job, state } => FarmEventKind::Ended { job: *job, state: *state },
            Self::Draining { node, .. } | Self::Resolved { node, .. } => FarmEventKind::NodeChanged(*node),
        }
    }
}

/// A record with the time at which it was made, as the journal keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What.
    pub record: Record,
}

/// A job as it was submitted. Graph and parameters are blobs, so that a queued one stays small.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewJob {
    /// Its id.
    pub id: JobId,
    /// What it runs.
    pub workflow: WorkflowVersion,
    /// 0 to 100.
    pub priority: u8,
    /// Its parameters, as canonical JSON.
    pub parameters: BlobRef,
    /// The files among its parameters.
    pub inputs: Vec<BlobHash>,
    /// When it was submitted.
    #[serde(with = "time::serde::rfc3339")]
    pub submitted: OffsetDateTime,
    /// When it expires if it waits then. Also while the coordinator is away the time goes on.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub expires: Option<OffsetDateTime>,
}

/// A job that ended, as the table of jobs keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndedJob {
    /// The job as it was submitted.
    pub job: NewJob,
    /// Its final state.
    pub state: JobState,
    /// When its latest run was leased.
    #[serde(with = "time::serde::rfc3339::option")]
    pub started: Option<OffsetDateTime>,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339")]
    pub ended: OffsetDateTime,
    /// Its latest run: the one that ended it, or that was at work as it ended.
    pub run: Option<EndedRun>,
    /// Runs that ended without success, oldest first.
    pub failures: Vec<FailedRun>,
    /// What it made.
    pub outputs: Vec<OutputFile>,
    /// Why it failed.
    pub error: Option<RunError>,
    /// What the run that was taken fetched, and from whom.
    pub fetched: Vec<Fetched>,
}

/// The latest run of a job that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedRun {
    /// Its id.
    pub id: RunId,
    /// The node.
    pub node: PeerId,
    /// The slot on it.
    pub slot: SlotId,
    /// How far it came.
    pub phase: Phase,
}

impl EndedRun {
    fn into_view(self) -> RunView {
        RunView { id: self.id, node: self.node, slot: self.slot, phase: self.phase, progress: None }
    }
}

impl EndedJob {
    /// The job as people see it.
    pub fn into_view(self) -> JobView {
        JobView {
            id: self.job.id,
            workflow: self.job.workflow,
            state: self.state,
            priority: self.job.priority,
            parameters: self.job.parameters,
            submitted: self.job.submitted,
            expires: self.job.expires,
            started: self.started,
            ended: Some(self.ended),
            queue_position: None,
            waits: Vec::new(),
            run: self.run.map(EndedRun::into_view),
            failures: self.failures,
            outputs: self.outputs,
            error: self.error,
            fetched: self.fetched,
        }
    }
}

/// A lease that was granted before the coordinator restarted. It is a hint and no truth: a job that
/// has one is not granted again before its node had time to come back with the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownLease {
    /// The lease.
    pub lease: Lease,
    /// The node that was granted it.
    pub node: PeerId,
    /// The slot there.
    pub slot: SlotId,
}

/// An unfinished job in a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptJob {
    /// The job as it was submitted.
    pub job: NewJob,
    /// Its place in the order of submission.
    pub order: u64,
    /// Runs that ended without success.
    pub failures: Vec<FailedRun>,
}

/// The durable part of the state as a whole, except for the workflows themselves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The order that the next job gets.
    pub next_order: u64,
    /// All unfinished jobs.
    pub jobs: Vec<KeptJob>,
    /// The current version of each name.
    pub current: BTreeMap<WorkflowName, u32>,
    /// The nodes that were told to drain, or to take runs again, with which of both.
    pub draining: Vec<(PeerId, bool)>,
    /// What lockfiles came to.
    #[serde(default)]
    pub resolutions: Vec<(LockfileHash, BlobRef)>,
}

/// All that a start finds in the store.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// All versions of all workflows.
    pub workflows: Vec<Arc<DeployedWorkflow>>,
    /// The newest snapshot.
    pub snapshot: Snapshot,
    /// The records after it, oldest first.
    pub entries: Vec<Entry>,
    /// The leases that were out.
    pub leases: Vec<KnownLease>,
}
