//! A job as all roles see it: its states, the phases of a run, progress, outputs, and the kinds of
//! failure with what each means for a retry.
//!
//! Not here: who decides. The coordinator's state machine moves a job between these states.

use serde::{Deserialize, Serialize};

use crate::blob::BlobRef;
use crate::id::PeerId;

/// The state of a job. It is in exactly one, and the last four are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for a slot.
    Queued,
    /// A node holds a lease on a run of it.
    Running,
    /// Its outputs are verified in the coordinator's store.
    Succeeded,
    /// It failed, and no retry is left or none could help.
    Failed,
    /// Somebody cancelled it.
    Canceled,
    /// It waited longer than its time to live.
    Expired,
}

impl JobState {
    /// Whether nothing can change it any more.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// The word that the API and the terminal use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Expired => "expired",
        }
    }
}

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The node holds the lease and has not begun.
    Leased,
    /// It fetches the blobs that it lacks.
    Fetching,
    /// It prepares the workspace and hands the inputs to the engine.
    Preparing,
    /// The engine executes the workflow.
    Executing,
    /// The outputs move into the coordinator's store.
    Collecting,
}

impl Phase {
    /// The word that the API and the terminal use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leased => "leased",
            Self::Fetching => "fetching",
            Self::Preparing => "preparing",
            Self::Executing => "executing",
            Self::Collecting => "collecting",
        }
    }
}

/// How far a phase is. Only the latest counts; it is never stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// The phase that it is about.
    pub phase: Phase,
    /// The part that is done, from 0.0 to 1.0, over the whole phase.
    pub fraction: f32,
    /// What is being done: the class of the op that executes, or the blob that is fetched.
    pub detail: Option<String>,
}

/// One file that a run made, as the workflow's interface names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputFile {
    /// The output's name in the workflow's interface.
    pub output: String,
    /// Its place among the files of that output, from 0.
    pub index: u32,
    /// A file name for people, without folders.
    pub file_name: String,
    /// Its media type, such as `image/png`.
    pub media_type: String,
    /// The bytes.
    pub blob: BlobRef,
}

/// How much of a blob a run took from which peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    /// The blob.
    pub blob: BlobRef,
    /// Who sent it.
    pub from: PeerId,
    /// How many of its bytes came from there.
    pub bytes: u64,
}

/// Why a run did not succeed. The coordinator retries by `kind`; people read `detail`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail}")]
pub struct RunError {
    /// What went wrong.
    pub kind: RunErrorKind,
    /// What happened, where, and what to do, in words.
    pub detail: String,
    /// The op of the graph that failed, where one did.
    pub op: Option<FailedOp>,
    /// The address of the file that was wanted and is not declared, as far as it was to be seen.
    #[serde(default)]
    pub url: Option<Box<str>>,
}

impl RunError {
    /// An error that no op of the graph is to blame for.
    pub fn new(kind: RunErrorKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), op: None, url: None }
    }

    /// An error of an op of the graph.
    pub fn of_op(kind: RunErrorKind, detail: impl Into<String>, op: FailedOp) -> Self {
        Self { op: Some(op), ..Self::new(kind, detail) }
    }
}

/// The op of a workflow at which a run failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedOp {
    /// Its id in the graph.
    pub id: String,
    /// Its class.
    pub class: String,
    /// The exception's type and traceback, where the engine gave them.
    pub traceback: Option<String>,
}

/// The closed list of what can go wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunErrorKind {
    /// The engine refused the filled workflow. A retry elsewhere does not help: it is the job's fault.
    InvalidInput,
    /// An op raised an exception. One retry on another node tells whose fault it is.
    OpFailed,
    /// The device's memory did not suffice. A retry on a larger device can help.
    OutOfMemory,
    /// The engine lacks a class of op that the workflow uses. A retry elsewhere helps.
    MissingOp,
    /// The engine lacks a model that the workflow uses. A retry elsewhere helps.
    MissingModel,
    /// No provider had a blob, or all sent bytes that did not match. A retry elsewhere can help.
    MissingBlob,
    /// The engine does not answer, or died. A retry elsewhere helps.
    EngineUnavailable,
    /// The engine made no progress for too long. A retry elsewhere helps.
    Stalled,
    /// It ended without the outputs that the workflow declares. One retry elsewhere can help.
    NoOutput,
    /// The node is going away or its owner takes it back. A retry elsewhere helps, and it counts as no attempt.
    NodeStopping,
    /// The node's disk or system failed. A retry elsewhere helps.
    NodeFault,
    /// The run was cancelled as asked.
    Canceled,
    /// An op wanted to download a file at run time, which the lockfile does not name. It is the bundle's fault: no
    /// retry helps, until the file is added.
    UndeclaredFile,
    /// The coordinator, which gives what nobody else has, has lost a blob of the job. It says nothing of the node, and a
    /// retry helps where another one holds the blob. Only the coordinator says so.
    LostBlob,
}

impl RunErrorKind {
    /// Whether another node may succeed where this one did not.
    pub fn retry_elsewhere(self) -> bool {
        !matches!(self, Self::InvalidInput | Self::Canceled | Self::UndeclaredFile)
    }

    /// Whether the run counts as an attempt at the job: not when the node only went away.
    pub fn counts_as_attempt(self) -> bool {
        !matches!(self, Self::NodeStopping)
    }

    /// The word that the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid_input",
            Self::OpFailed => "op_failed",
            Self::OutOfMemory => "out_of_memory",
            Self::MissingOp => "missing_op",
            Self::MissingModel => "missing_model",
            Self::MissingBlob => "missing_blob",
            Self::EngineUnavailable => "engine_unavailable",
            Self::Stalled => "stalled",
            Self::NoOutput => "no_output",
            Self::NodeStopping => "node_stopping",
            Self::NodeFault => "node_fault",
            Self::Canceled => "canceled",
            Self::UndeclaredFile => "undeclared_file",
            Self::LostBlob => "lost_blob",
        }
    }
}
