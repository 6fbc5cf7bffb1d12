//! What the coordinator shows of its state: plain values, made when somebody asks.
//!
//! Not here: their JSON, which is the API's, and the state itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use protocol::membership::Role;
use protocol::{
    BlobName, BlobRef, BundleHash, FarmId, Fetched, Interface, JobId, JobState, LockedModel, LockfileHash,
    Notes, Offer, OutputFile, PeerId, Phase, PreviewFrame, Progress, RunError, RunId, Sha256, SlotId,
    Transfers, WorkflowVersion, WorkspaceState,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// One deployed version of a workflow. It never changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeployedWorkflow {
    /// Its name and version.
    pub id: WorkflowVersion,
    /// The hash of its bundle's manifest.
    pub bundle: BundleHash,
    /// The hash of its lockfile.
    pub lockfile: LockfileHash,
    /// The lockfile with its publisher's signature, where it can be rebuilt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<BlobRef>,
    /// The graph in ComfyUI's API format.
    pub graph: BlobRef,
    /// The interface as JSON, for nodes.
    pub interface_blob: BlobRef,
    /// The files that came with the bundle, by the name under which the graph knows them.
    pub inputs: BTreeMap<String, BlobRef>,
    /// The typed interface.
    pub interface: Arc<Interface>,
    /// What a node must have for it.
    pub requirements: Requirements,
    /// The models of its lockfile that its graph names.
    #[serde(default)]
    pub models: Vec<LockedModel>,
    /// The names of all models of its lockfile that no peer may have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub private: Vec<BlobName>,
    /// The repairs and warnings of its deploy, in words.
    pub notes: Vec<String>,
    /// When it was deployed.
    #[serde(with = "time::serde::rfc3339")]
    pub deployed: OffsetDateTime,
}

/// What a workflow needs of a node; hard constraints of the planner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirements {
    /// The classes of op in the filled graph.
    pub classes: BTreeSet<String>,
    /// The model files, as `folder/name`.
    pub models: BTreeSet<String>,
    /// Whether an attached ComfyUI, which proves no lock, may run it.
    pub accept_attached: bool,
    /// The lockfile in whose workspace a managed node runs it; `None` where it cannot be rebuilt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lockfile: Option<LockfileHash>,
}

/// A job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// What it runs.
    pub workflow: WorkflowVersion,
    /// Its state.
    pub state: JobState,
    /// 0 to 100.
    pub priority: u8,
    /// Its parameters, as canonical JSON.
    pub parameters: BlobRef,
    /// When it was submitted.
    pub submitted: OffsetDateTime,
    /// When it expires if it waits then; `None` for never.
    pub expires: Option<OffsetDateTime>,
    /// When its latest run was leased.
    pub started: Option<OffsetDateTime>,
    /// When it ended.
    pub ended: Option<OffsetDateTime>,
    /// How many jobs stand before it in the queue; `None` unless queued.
    pub queue_position: Option<u64>,
    /// Why it waits, node by node; empty unless queued.
    pub waits: Vec<WaitReason>,
    /// The latest run: the one at work or, once the job has ended, the one that ended it or was at work
    /// as it ended. `None` while the job waits.
    pub run: Option<RunView>,
    /// Runs that ended without success, oldest first.
    pub failures: Vec<FailedRun>,
    /// What it made, in the order of the interface's outputs.
    pub outputs: Vec<OutputFile>,
    /// Why it failed.
    pub error: Option<RunError>,
    /// What its last run fetched, and from whom.
    pub fetched: Vec<Fetched>,
}

/// Why a queued job is not on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitReason {
    /// The node; `None` for a reason about the farm, such as that it has no nodes.
    pub node: Option<PeerId>,
    /// In words.
    pub reason: String,
}

/// A run: at work, or as it was when its job ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RunView {
    /// Its id.
    pub id: RunId,
    /// The node.
    pub node: PeerId,
    /// The slot on it.
    pub slot: SlotId,
    /// What it is doing.
    pub phase: Phase,
    /// How far it is, if the node has told.
    pub progress: Option<Progress>,
}

/// A run that ended without success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedRun {
    /// Its id.
    pub id: RunId,
    /// The node that did it.
    pub node: PeerId,
    /// Why.
    pub error: RunError,
    /// Where it ran out of a card's memory: how much that has, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran_out_of: Option<u64>,
}

/// A node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    /// Who.
    pub peer: PeerId,
    /// Whether a session is open.
    pub connected: bool,
    /// Whether it takes no more runs.
    pub draining: bool,
    /// What it offers.
    pub offer: Offer,
    /// The labels of its certificate.
    pub labels: BTreeMap<String, String>,
    /// The address that its session comes from.
    pub address: Option<IpAddr>,
    /// The runs at work on it.
    pub runs: Vec<(JobId, RunView)>,
    /// How far it is with the workspaces that it is to have.
    pub workspaces: Vec<WorkspaceView>,
    /// The workflows that failed there and not elsewhere, or in a self-test.
    pub aside: Vec<AsideView>,
    /// How many blobs it is known to hold.
    pub blobs: u64,
    /// What it fetches at the moment, and who sent it wrong bytes.
    pub transfers: Transfers,
    /// When it was last heard of.
    pub seen: OffsetDateTime,
}

/// A workflow that failed on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsideView {
    /// The workflow.
    pub workflow: WorkflowVersion,
    /// What went wrong.
    pub reason: String,
    /// Whether other nodes go first because of it.
    pub others_first: bool,
}

/// A workspace on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceView {
    /// Of which lockfile.
    pub lockfile: LockfileHash,
    /// The workflows that run in it.
    pub workflows: Vec<WorkflowVersion>,
    /// How far it is.
    pub state: WorkspaceState,
    /// Whether its torch is another build than the author's.
    pub equivalent: bool,
    /// What people should know of it.
    pub notes: Notes,
}

/// A blob, as the farm knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlobView {
    /// Its hash and size, where anybody told.
    pub blob: Option<BlobRef>,
    /// Its SHA-256, where it is known.
    pub sha256: Option<Sha256>,
    /// The nodes that hold it whole.
    pub holders: Vec<BlobHolder>,
    /// The nodes that are fetching it.
    pub parts: Vec<BlobPart>,
    /// Whether the coordinator itself holds it.
    pub in_coordinator: bool,
    /// The deployed workflows that use it.
    pub used_by: Vec<BlobUse>,
    /// How the wish stands that nodes keep it, if there is one.
    pub keep: Option<KeepView>,
}

/// A node that holds a blob whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobHolder {
    /// Which.
    pub peer: PeerId,
    /// The machine's name.
    pub host_name: String,
    /// Whether its session is open.
    pub connected: bool,
    /// Whether it never evicts it.
    pub pinned: bool,
}

/// A node that holds a part of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobPart {
    /// Which.
    pub peer: PeerId,
    /// The machine's name.
    pub host_name: String,
    /// How many bytes it holds.
    pub here: u64,
    /// Of how many.
    pub size: u64,
}

/// A workflow that uses a blob as a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobUse {
    /// Which.
    pub workflow: WorkflowVersion,
    /// Where it lies in the ComfyUI folder.
    pub path: String,
}

/// How a wish stands that nodes keep a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepView {
    /// How many nodes are to keep it.
    pub copies: u64,
    /// Who does not, and why.
    pub refused: Vec<(PeerId, String)>,
}

/// The farm as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct FarmView {
    /// The farm.
    pub farm: FarmId,
    /// This coordinator.
    pub coordinator: PeerId,
    /// Which start of it this is.
    pub epoch: u64,
    /// Jobs that wait.
    pub queued: u64,
    /// Jobs at work.
    pub running: u64,
    /// Nodes with an open session.
    pub nodes: u64,
    /// Slots of those nodes.
    pub slots: u64,
}

/// A process that was admitted to the farm.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberView {
    /// Who.
    pub peer: PeerId,
    /// Its role.
    pub role: Role,
}

/// A key of the API, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyView {
    /// The name that it was given.
    pub name: String,
    /// What it opens.
    pub scope: KeyScope,
}

/// What a key opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyScope {
    /// Everything.
    Admin,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct FarmEvent {
    /// The journal's number, for an event that is durable; progress has none.
    pub number: Option<u64>,
    /// When.
    pub at: OffsetDateTime,
    /// What.
    pub kind: FarmEventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum FarmEventKind {
    /// A version of a workflow was deployed. Durable.
    Deployed(WorkflowVersion),
    /// A job was submitted. Durable.
    Submitted {
        /// The job.
        job: JobId,
        /// What it runs.
        workflow: WorkflowVersion,
    },
    /// A job went to a node.
    Started {
        /// The job.
        job: JobId,
        /// The run.
        run: RunView,
    },
    /// A run entered a phase or moved on.
    Progress {
        /// The job.
        job: JobId,
        /// The run.
        run: RunView,
    },
    /// A run was lost or failed, and the job waits again.
    Requeued {
        /// The job.
        job: JobId,
        /// Why, in words.
        reason: String,
    },
    /// A job ended. Durable.
    Ended {
        /// The job.
        job: JobId,
        /// How.
        state: JobState,
    },
    /// A node came, went, or changed what it takes.
    NodeChanged(PeerId),
}

/// A picture that a run is making; nothing keeps it.
#[derive(Clone, Debug)]
pub struct PreviewView {
    /// The job.
    pub job: JobId,
    /// The run.
    pub run: RunId,
    /// The picture.
    pub frame: PreviewFrame,
    /// When it came.
    pub at: OffsetDateTime,
}

impl FarmEventKind {
    /// The job that it is about.
    pub fn job(&self) -> Option<JobId> {
        match self {
            Self::Submitted { job, .. }
            | Self::Started { job, .. }
            | Self::Progress { job, .. }
            | Self::Requeued { job, .. }
            | Self::Ended { job, .. } => Some(*job),
            Self::Deployed(_) | Self::NodeChanged(_) => None,
        }
    }
}
