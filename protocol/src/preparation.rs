//! Which workspaces a node is to have, and how far it is with each.
//!
//! The coordinator sends the whole list whenever it changes; a node answers for each lockfile with reports of
//! which only the latest counts, and tells in which of them its processes could work at once. Not here: how a workspace is built, which is the node's, and what is
//! granted on the strength of a report, which is the planner's.

mod notes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::blob::BlobRef;
use crate::id::{SlotId, WorkflowVersion};
use crate::lockfile::{LockfileHash, PublisherKey};
use crate::message::Provider;
use crate::transfer::shorten;

pub use notes::{MAX_NOTE, MAX_NOTES, Notes};

/// The most workspaces that a node is asked to have.
pub const MAX_WORKSPACES: usize = 64;
/// The most classes, and the most models, that one must have.
pub const MAX_PROVEN: usize = 1024;
/// The longest reason that a report gives, in bytes.
pub const MAX_REASON: usize = 4096;

/// All workspaces that a node is to have. It replaces what was asked before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantWorkspaces {
    /// The key with which this farm signs what is deployed in it.
    pub publisher: PublisherKey,
    /// At most [`MAX_WORKSPACES`], the most wanted first.
    pub wanted: Vec<WantedWorkspace>,
}

/// A workspace that a node is to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedWorkspace {
    /// For which workflow, for people.
    pub workflow: WorkflowVersion,
    /// What its lockfile is called by, whoever signed it.
    pub lockfile: LockfileHash,
    /// The signed lockfile.
    pub document: BlobRef,
    /// What it came to where it was rebuilt before, signed; `None` until then.
    pub resolution: Option<BlobRef>,
    /// The classes of op that ComfyUI must have there; at most [`MAX_PROVEN`].
    pub classes: BTreeSet<String>,
    /// The model files that it must list, as `folder/name`; at most [`MAX_PROVEN`].
    pub models: BTreeSet<String>,
    /// Who holds these documents, and what they name.
    pub providers: Vec<Provider>,
}

/// How far a node is with a workspace. Only the latest of each lockfile counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceReport {
    /// Of which.
    pub lockfile: LockfileHash,
    /// How far.
    pub state: WorkspaceState,
    /// Whether it is equivalent to the author's and not identical: torch is another build of the recorded version.
    pub equivalent: bool,
    /// What people should know of it, once it is loaded: the custom nodes that it is without, say.
    pub notes: Notes,
}

/// What the parts of a lockfile came to on a node that has built it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceResolved {
    /// Of which.
    pub lockfile: LockfileHash,
    /// A [`Resolution`](crate::Resolution), not signed, which the node serves with all that it names.
    pub resolution: BlobRef,
}

/// In which workspaces each slot can work with the ComfyUI that it has. It replaces what was told before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmSlots {
    /// Of each slot that has a process, at most [`MAX_WORKSPACES`]; for any other one it would have to make way.
    pub slots: BTreeMap<SlotId, BTreeSet<LockfileHash>>,
}

/// How far a workspace is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkspaceState {
    /// It waits for its turn.
    Waiting,
    /// It is being built.
    Preparing(Preparing),
    /// ComfyUI came up in it with all that it must have; one run may try it.
    Loaded,
    /// A run has succeeded in it.
    Proven,
    /// It could not be built; the node tries again later.
    Failed {
        /// At which step.
        step: PrepareStep,
        /// Why, and what to do; at most [`MAX_REASON`] bytes.
        reason: String,
    },
    /// The node's owner does not let it be built.
    Refused {
        /// Why, and what to do; at most [`MAX_REASON`] bytes.
        reason: String,
    },
}

/// A workspace at work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preparing {
    /// At which step.
    pub step: PrepareStep,
    /// What of the step is done, in bytes; for a step that moves none, 0.
    pub done: u64,
    /// How much that is in all, as far as it is known; 0 where it is not.
    pub total: u64,
}

impl fmt::Display for Preparing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (step, done, total) = (self.step, self.done >> 20, self.total >> 20);
        match (self.done, self.total) {
            (0, 0) => write!(f, "{step}"),
            (_, 0) => write!(f, "{step}, {done} MiB so far"),
            _ => write!(f, "{step}, {done} of {total} MiB"),
        }
    }
}

/// The steps of building a workspace, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrepareStep {
    /// Its lockfile is fetched and checked against the owner's policy.
    Lockfile,
    /// ComfyUI and the custom nodes at their commits.
    Code,
    /// Python and its packages.
    Python,
    /// The models.
    Models,
    /// ComfyUI is started, and shows what it has.
    Proof,
}

impl PrepareStep {
    /// All, in order.
    pub const ALL: [Self; 5] = [Self::Lockfile, Self::Code, Self::Python, Self::Models, Self::Proof];

    /// The word that people see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lockfile => "lockfile",
            Self::Code => "code",
            Self::Python => "python",
            Self::Models => "models",
            Self::Proof => "proof",
        }
    }
}

impl fmt::Display for PrepareStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl WorkspaceState {
    /// The word that people see.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Preparing(_) => "preparing",
            Self::Loaded => "loaded",
            Self::Proven => "proven",
            Self::Failed { .. } => "failed",
            Self::Refused { .. } => "refused",
        }
    }

    /// The state with no more in it than may be.
    pub fn bounded(mut self) -> Self {
        if let Self::Failed { reason, .. } | Self::Refused { reason } = &mut self {
            shorten(reason, MAX_REASON);
        }
        self
    }
}

impl fmt::Display for WorkspaceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("its workspace waits for its turn there"),
            Self::Preparing(preparing) => write!(f, "its workspace is being prepared: {preparing}"),
            Self::Loaded => f.write_str("its workspace is loaded, and its first run there is not done yet"),
            Self::Proven => f.write_str("its workspace is proven"),
            Self::Failed { step, reason } => write!(f, "its workspace failed at {step}: {reason}"),
            Self::Refused { reason } => write!(f, "its owner's policy refuses the workspace: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_cut_and_states_are_told_in_words() {
        let long = WorkspaceState::Refused { reason: "ü".repeat(MAX_REASON) }.bounded();
        let WorkspaceState::Refused { reason } = &long else { panic!("{long:?}") };
        assert_eq!(reason.len(), MAX_REASON);
        let preparing = Preparing { step: PrepareStep::Models, done: 3 << 20, total: 9 << 20 };
        let told = WorkspaceState::Preparing(preparing).to_string();
        assert_eq!(told, "its workspace is being prepared: models, 3 of 9 MiB");
        let open = Preparing { step: PrepareStep::Code, done: 3 << 20, total: 0 };
        assert_eq!(open.to_string(), "code, 3 MiB so far");
    }
}
