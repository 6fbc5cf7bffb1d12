//! What the owner of a machine sees of its workspaces, and does with them: list, remove, verify.
//!
//! A running node answers for itself; where none runs, a command takes the data folder and does the same. Not here:
//! building workspaces, which goes on meanwhile but for a removal.

mod inventory;
mod removal;
mod sweep;
mod verify;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use mesh::control::{FailureKind, RoleError, RoleHandler};
use mesh::store::BlobStore;
use protocol::{LockfileHash, WantWorkspaces, error_chain};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use super::shelf::Shelf;

pub(crate) use removal::clear_drafts;

/// What is asked of whoever looks after the workspaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "workspaces", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CareRequest {
    /// All that are here or are to be.
    List,
    /// To remove one, or those that are not wanted.
    Remove {
        /// The beginning of a lockfile's hash; `None` for all that are not wanted.
        lockfile: Option<String>,
    },
    /// To compare files with what they are to be.
    Verify {
        /// The beginning of a lockfile's hash; `None` for all.
        lockfile: Option<String>,
    },
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CareReply {
    /// For `List`.
    Listed(Vec<WorkspaceEntry>),
    /// For `Remove`.
    Removed(Removed),
    /// For `Verify`.
    Verified(Vec<VerifiedWorkspace>),
}

/// A workspace as its owner sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceEntry {
    /// The hash of its lockfile.
    pub lockfile: LockfileHash,
    /// For which workflows it is, or was, wanted.
    pub workflows: BTreeSet<String>,
    /// What the node says of one that is wanted; else `proven`, `whole` or `incomplete`, as it is on disk.
    pub state: String,
    /// At which step it is, or why it failed.
    pub detail: Option<String>,
    /// The log of its last preparation that failed, until one succeeds.
    pub log: Option<PathBuf>,
    /// Whether its torch is another build of the recorded version: equivalent to the author's, and not identical.
    pub equivalent: bool,
    /// Whether the farm wants it here; `None` where that is not known.
    pub wanted: Option<bool>,
    /// Whether a run or a ComfyUI is in it.
    pub at_work: bool,
    /// How many bytes its code has.
    pub code_bytes: u64,
    /// How many its environment has.
    pub python_bytes: u64,
    /// How many its models have, which are blobs of the node's store.
    pub model_bytes: u64,
    /// How many bytes a removal would free: those of its parts that no other workspace uses.
    pub own_bytes: u64,
    /// When it was last used, in seconds since 1970.
    pub used: Option<u64>,
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Removed {
    /// The workspaces.
    pub workspaces: Vec<LockfileHash>,
    /// Those that are not wanted and stay, because something is at work in them.
    pub at_work: Vec<LockfileHash>,
    /// How many bytes went with them and with parts that none uses any more.
    pub bytes: u64,
}

/// What of a workspace is not as it is to be; nothing, if all lists are empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifiedWorkspace {
    /// The hash of its lockfile.
    pub lockfile: LockfileHash,
    /// For which workflows it is.
    pub workflows: BTreeSet<String>,
    /// Files of its code that are not as their commits have them.
    pub code: Vec<String>,
    /// Files of its environment that are not as they were installed.
    pub python: Vec<String>,
    /// Models that are missing, or not what their names say. The store has forgotten the latter.
    pub models: Vec<String>,
}

impl VerifiedWorkspace {
    /// Whether all is as it is to be.
    pub fn is_good(&self) -> bool {
        self.code.is_empty() && self.python.is_empty() && self.models.is_empty()
    }
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum CareError {
    /// Nothing of that name is here.
    #[error("no workspace here has a lockfile that begins with `{0}`")]
    Unknown(String),
    /// The name is not one workspace's alone.
    #[error("`{prefix}` is the beginning of {count} lockfiles: give more of it")]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// How many begin with it.
        count: usize,
    },
    /// Something would break.
    #[error(
        "workspace `{0}` is at work: a run or an idle ComfyUI is in it; try again when the run has ended and `--comfyui-idle` has passed"
    )]
    AtWork(LockfileHash),
    /// A build may be using what would go.
    #[error("a workspace is being built at the moment: try again when that is done")]
    Building,
    /// Only a node that hears its coordinator knows.
    #[error(
        "which workspaces are wanted is known only to a node that runs with `--engine managed` and reached its coordinator: name one by its lockfile"
    )]
    WantedUnknown,
    /// The operating system refuses.
    #[error("{attempt} `{}` did not succeed", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// With which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The work broke off.
    #[error("the work broke off by a bug")]
    Panic(#[source] tokio::task::JoinError),
    /// The other end asked for something else.
    #[error("no request of workspaces that is known here")]
    Request(#[source] serde_json::Error),
}

impl CareError {
    fn io(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { attempt, path: path.to_owned(), source }
    }

    /// Whose matter it is.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Unknown(_) => FailureKind::NotFound,
            Self::Ambiguous { .. } | Self::AtWork(_) | Self::WantedUnknown | Self::Request(_) => {
                FailureKind::Input
            }
            Self::Building | Self::Io { .. } | Self::Panic(_) => FailureKind::Other,
        }
    }
}

/// Whoever looks after the workspaces below a folder. A clone does the same.
#[derive(Clone)]
pub struct Caretaker {
    /// Where everything of workspaces is kept.
    root: PathBuf,
    store: BlobStore,
    running: Option<Running>,
}

/// The node that builds them.
#[derive(Clone)]
struct Running {
    shelf: Shelf,
    wanted: watch::Receiver<Option<WantWorkspaces>>,
}

impl Caretaker {
    /// For workspaces that nobody builds at the moment; their models are in this store.
    pub fn new(root: PathBuf, store: BlobStore) -> Self {
        Self { root, store, running: None }
    }

    /// For those that this node builds, and which it is to have.
    pub(crate) fn with_node(mut self, shelf: Shelf, wanted: watch::Receiver<Option<WantWorkspaces>>) -> Self {
        self.running = Some(Running { shelf, wanted });
        self
    }

    /// Does what is asked.
    pub async fn perform(&self, request: CareRequest) -> Result<CareReply, CareError> {
        match request {
            CareRequest::List => self.blocking(|care| care.list()).await.map(CareReply::Listed),
            CareRequest::Remove { lockfile } => {
                self.blocking(move |care| care.remove(lockfile.as_deref())).await.map(CareReply::Removed)
            }
            CareRequest::Verify { lockfile } => {
                self.verify(lockfile.as_deref()).await.map(CareReply::Verified)
            }
        }
    }

    /// Does something on a thread that may wait for the disk.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, CareError> + Send + 'static,
    ) -> Result<T, CareError> {
        let care = self.clone();
        tokio::task::spawn_blocking(move || work(&care)).await.map_err(CareError::Panic)?
    }

    /// The lockfiles that the farm wants here, if that is known.
    fn wanted(&self) -> Option<BTreeSet<LockfileHash>> {
        let want = self.running.as_ref()?.wanted.borrow();
        Some(want.as_ref()?.wanted.iter().map(|wanted| wanted.lockfile).collect())
    }
}

#[async_trait]
impl RoleHandler for Caretaker {
    async fn answer(&self, request: Value) -> Result<Value, RoleError> {
        let answer = async {
            let request = serde_json::from_value(request).map_err(CareError::Request)?;
            let reply = self.perform(request).await?;
            Ok(serde_json::to_value(reply).expect("a reply has only text keys"))
        };
        answer.await.map_err(|error: CareError| RoleError { kind: error.kind(), words: error_chain(&error) })
    }
}

#[cfg(test)]
mod tests;
