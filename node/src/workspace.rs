//! The locked workspace of a bundle: any node becomes the machine on which the workflow was made.
//!
//! Not here: which workspaces are wanted; that is the coordinator's.

use std::collections::BTreeSet;
use std::path::PathBuf;

use protocol::{BlobHash, CodeHash, EnvironmentKey, LockfileHash};

pub mod plan;
pub mod lock;
pub mod git;
mod carried;
mod system;
mod registry;
pub mod code;
pub mod python;
pub mod log;
pub mod assemble;
pub mod prepare;
pub mod progress;
pub mod shelf;
pub mod record;
pub mod care;

pub use registry::{COMFY_REGISTRY, Registry};

/// A workspace that is whole and on disk. Nothing of it was started yet.
///
/// Read-only for whoever uses it: a process works on its slot's own copy of the code tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    /// The lockfile that it is made from.
    pub lockfile: LockfileHash,
    /// The environment that it shares with others of the same pins.
    pub environment: EnvironmentKey,
    /// The code tree that it shares with others of the same commits.
    pub code: CodeHash,
    /// The Python of the environment.
    pub python: PathBuf,
    /// The code tree: the folder with `main.py`.
    pub comfyui: PathBuf,
    /// The models of the lockfile, at their recorded paths below the folder of ComfyUI.
    pub files: PathBuf,
    /// The classes of op that a process of it must have.
    pub classes: BTreeSet<String>,
    /// The model files that a process of it must list, as `folder/name`.
    pub model_names: BTreeSet<String>,
    /// Whether its torch is another build of the recorded version: equivalent, and not identical.
    pub equivalent: bool,
    /// What of the lockfile it is without, because nobody can give it or this machine lacks it; in words.
    pub left_out: Vec<String>,
}

impl Workspace {
    /// Whether a process of the one is as good for the other, but for their models.
    pub fn shares_a_process_with(&self, other: &Self) -> bool {
        (self.code, self.environment) == (other.code, other.environment)
    }

    /// Whether this custom node has an install script that was not run. They are run in a copy of the code tree, within
    /// the environment.
    pub(crate) fn skipped_install_script(&self, node: &str) -> bool {
        let environment = self.python.ancestors().nth(2);
        let has_run = environment.is_some_and(|environment| self.comfyui.starts_with(environment));
        !has_run && self.comfyui.join("custom_nodes").join(node).join(python::INSTALL_SCRIPT).is_file()
    }

    /// What all workspaces of its code and environment, and no others, are called by.
    pub fn program(&self) -> String {
        program(self.code, self.environment)
    }
}

/// What the workspaces of this code in this environment are called by.
pub(crate) fn program(code: CodeHash, environment: EnvironmentKey) -> String {
    BlobHash::of(format!("{code} {environment}").as_bytes()).to_string()
}
