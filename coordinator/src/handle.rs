//! How the rest of the process speaks to the coordinator: commands with an answer each, over one
//! bounded channel. The API sees nothing else of it.

use std::sync::Arc;
use std::time::Duration;

use mesh::store::BlobStore;
use protocol::ticket::Ticket;
use protocol::{
    BlobName, BlobRef, Bundle, Interface, JobId, JobState, Parameters, PeerId, WorkflowName,
    WorkflowSelector, WorkflowVersion,
};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::view::{BlobView, DeployedWorkflow, FarmEvent, FarmView, JobView, KeyView, NodeView, PreviewView};

/// The coordinator is stopping, or its store has failed; nothing can be asked of it any more.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the coordinator is stopping")]
pub struct Stopping;

/// A workflow to deploy as the next version of a name. Its blobs are in the store already.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// The name.
    pub name: WorkflowName,
    /// The bundle, read and checked.
    pub bundle: Bundle,
    /// The typed interface.
    pub interface: Interface,
    /// Whether an attached ComfyUI may run it.
    pub accept_attached: bool,
    /// Whether the lockfile keeps the signature that it bears, so that nodes judge its publisher and not the farm.
    pub keep_signature: bool,
    /// Remarks for whoever deploys.
    pub notes: Vec<String>,
}

/// A job to submit. Its parameters are checked and their blobs are in the store already.
#[derive(Debug, Clone)]
pub struct Submission {
    /// What to run.
    pub workflow: WorkflowVersion,
    /// The checked parameters.
    pub parameters: Parameters,
    /// 0 to 100, within the share of whoever submits.
    pub priority: u8,
    /// How long it may wait for a node before it expires; `None` for no limit.
    pub time_to_live: Option<Duration>,
}

/// Why a command could not be carried out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommandError {
    /// No such version, or none of that name.
    #[error("no workflow `{0}` is deployed")]
    UnknownWorkflow(String),
    /// The queue is at its limit.
    #[error("{0} jobs are queued, which is the most that this coordinator keeps; try again later")]
    QueueFull(usize),
    /// The parameters are larger than a grant may carry.
    #[error(
        "the parameters are {0} bytes of JSON, where at most 262144 are taken; send large values as files"
    )]
    ParametersTooLarge(usize),
    /// The store did not take it.
    #[error("the coordinator's store has failed: {0}")]
    Store(String),
    /// See [`Stopping`].
    #[error(transparent)]
    Stopping(#[from] Stopping),
}

/// Which jobs to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct JobsFilter {
    /// Only those in this state.
    pub state: Option<JobState>,
    /// Only those of this workflow.
    pub workflow: Option<WorkflowName>,
    /// Only those submitted before this one: the last of the previous page.
    pub before: Option<JobId>,
    /// At most this many.
    pub limit: u32,
}

/// An invitation to make a ticket for.
#[derive(Debug, Clone)]
pub struct Invitation {
    /// How many machines may use it.
    pub uses: u32,
    /// For how long.
    pub lifetime: Duration,
}

/// That so many nodes fetch and pin a blob. It lasts a minute, and is made again by whoever waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepWish {
    /// The blob.
    pub blob: BlobRef,
    /// How many nodes.
    pub copies: usize,
    /// Who brought it: its own copy does not count.
    pub author: Option<PeerId>,
}

/// Events from a place in the journal on, and live ones after them.
#[derive(Debug)]
pub struct EventFeed {
    /// Durable events after the number that was asked for; `None` where they are gone, so that the
    /// caller must begin from a snapshot.
    pub missed: Option<Vec<FarmEvent>>,
    /// The journal's newest number as the feed begins.
    pub newest: u64,
    /// What happens from then on. A receiver that lags must begin from a snapshot again.
    pub live: broadcast::Receiver<FarmEvent>,
}

/// One question to the service's loop; each carries the way back for its answer.
#[derive(Debug)]
pub enum Command {
    /// Deploy.
    Deploy(Box<Deployment>, oneshot::Sender<Result<Arc<DeployedWorkflow>, CommandError>>),
    /// Make an older version of a name the current one.
    Restore(WorkflowVersion, oneshot::Sender<Result<Arc<DeployedWorkflow>, CommandError>>),
    /// All versions of all workflows, the current of each name first.
    Workflows(oneshot::Sender<Vec<Arc<DeployedWorkflow>>>),
    /// One version.
    Workflow(WorkflowSelector, oneshot::Sender<Option<Arc<DeployedWorkflow>>>),
    /// Submit; answered once the job is durable.
    Submit(Box<Submission>, oneshot::Sender<Result<JobId, CommandError>>),
    /// One job, also an ended one.
    Job(JobId, oneshot::Sender<Result<Option<JobView>, CommandError>>),
    /// Many.
    Jobs(JobsFilter, oneshot::Sender<Result<Vec<JobView>, CommandError>>),
    /// Cancel; does nothing to an ended job. `None` for an unknown one.
    Cancel(JobId, oneshot::Sender<Result<Option<JobView>, CommandError>>),
    /// All nodes that this coordinator knows.
    Nodes(oneshot::Sender<Vec<NodeView>>),
    /// All that is known of a blob.
    Blob(BlobName, oneshot::Sender<BlobView>),
    /// Have nodes keep a blob, beside the one that brought it.
    Keep(KeepWish, oneshot::Sender<BlobView>),
    /// Drain or undrain. `None` for an unknown node.
    SetDraining(PeerId, bool, oneshot::Sender<Result<Option<NodeView>, CommandError>>),
    /// A ticket.
    Invite(Invitation, oneshot::Sender<Result<Ticket, CommandError>>),
    /// The farm as a whole.
    Farm(oneshot::Sender<FarmView>),
    /// Whose key this is; `None` for nobody's.
    Authenticate(String, oneshot::Sender<Option<KeyView>>),
    /// Events after this number; `None` for live ones only.
    Events(Option<u64>, oneshot::Sender<Result<EventFeed, CommandError>>),
    /// Has previews of a job's run sent for a while; all previews of the farm come out there.
    Previews(JobId, oneshot::Sender<broadcast::Receiver<Arc<PreviewView>>>),
}

/// The coordinator, for whoever runs in its process. Cheap to clone.
#[derive(Clone)]
pub struct CoordinatorHandle {
    commands: mpsc::Sender<Command>,
    blobs: BlobStore,
}

impl CoordinatorHandle {
    /// A handle to the service that reads these commands.
    pub fn new(commands: mpsc::Sender<Command>, blobs: BlobStore) -> Self {
        Self { commands, blobs }
    }

    /// The coordinator's blobs: assets, graphs, outputs.
    pub fn blobs(&self) -> &BlobStore {
        &self.blobs
    }

    /// Deploys the next version of a name.
    pub async fn deploy(&self, deployment: Deployment) -> Result<Arc<DeployedWorkflow>, CommandError> {
        self.ask(|answer| Command::Deploy(Box::new(deployment), answer)).await?
    }

    /// Makes an older version of a name the current one.
    pub async fn restore(&self, version: WorkflowVersion) -> Result<Arc<DeployedWorkflow>, CommandError> {
        self.ask(|answer| Command::Restore(version, answer)).await?
    }

    /// All versions of all workflows, by name, the current version of each first.
    pub async fn workflows(&self) -> Result<Vec<Arc<DeployedWorkflow>>, Stopping> {
        self.ask(Command::Workflows).await
    }

    /// One version; the current one where the selector names none.
    pub async fn workflow(
        &self,
        selector: WorkflowSelector,
    ) -> Result<Option<Arc<DeployedWorkflow>>, Stopping> {
        self.ask(|answer| Command::Workflow(selector, answer)).await
    }

    /// Submits a job and waits until it is durable.
    pub async fn submit(&self, submission: Submission) -> Result<JobId, CommandError> {
        self.ask(|answer| Command::Submit(Box::new(submission), answer)).await?
    }

    /// One job, also an ended one.
    pub async fn job(&self, job: JobId) -> Result<Option<JobView>, CommandError> {
        self.ask(|answer| Command::Job(job, answer)).await?
    }

    /// Jobs, newest first.
    pub async fn jobs(&self, filter: JobsFilter) -> Result<Vec<JobView>, CommandError> {
        self.ask(|answer| Command::Jobs(filter, answer)).await?
    }

    /// Cancels a job; an ended one stays as it is. `None` for an unknown one.
    pub async fn cancel(&self, job: JobId) -> Result<Option<JobView>, CommandError> {
        self.ask(|answer| Command::Cancel(job, answer)).await?
    }

    /// All nodes that this coordinator knows.
    pub async fn nodes(&self) -> Result<Vec<NodeView>, Stopping> {
        self.ask(Command::Nodes).await
    }

    /// All that is known of a blob.
    pub async fn blob(&self, name: BlobName) -> Result<BlobView, Stopping> {
        self.ask(|answer| Command::Blob(name, answer)).await
    }

    /// Has nodes keep a blob, and gives how that stands.
    pub async fn keep(&self, wish: KeepWish) -> Result<BlobView, Stopping> {
        self.ask(|answer| Command::Keep(wish, answer)).await
    }

    /// Drains or undrains a node. `None` for an unknown one.
    pub async fn set_draining(&self, node: PeerId, draining: bool) -> Result<Option<NodeView>, CommandError> {
        self.ask(|answer| Command::SetDraining(node, draining, answer)).await?
    }

    /// Makes a ticket.
    pub async fn invite(&self, invitation: Invitation) -> Result<Ticket, CommandError> {
        self.ask(|answer| Command::Invite(invitation, answer)).await?
    }

    /// The farm as a whole.
    pub async fn farm(&self) -> Result<FarmView, Stopping> {
        self.ask(Command::Farm).await
    }

    /// Whose key this is; `None` for nobody's. Takes the same time for every wrong key.
    pub async fn authenticate(&self, key: &str) -> Result<Option<KeyView>, Stopping> {
        self.ask(|answer| Command::Authenticate(key.to_owned(), answer)).await
    }

    /// Events after a number of the journal, and what happens from now on.
    pub async fn events(&self, after: Option<u64>) -> Result<EventFeed, CommandError> {
        self.ask(|answer| Command::Events(after, answer)).await?
    }

    /// Has previews of a job's run sent for [`WATCH`](protocol::message::WATCH), and gives where those of all jobs
    /// come out.
    pub async fn previews(&self, job: JobId) -> Result<broadcast::Receiver<Arc<PreviewView>>, Stopping> {
        self.ask(|answer| Command::Previews(job, answer)).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Stopping> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| Stopping)?;
        answered.await.map_err(|_| Stopping)
    }
}
