//! The locked workspace of a bundle: any node becomes the machine on which the workflow was made.
//!
//! Not here: which workspaces are wanted; that is the coordinator's.

use std::collections::BTreeSet;
use std::path::PathBuf;

use protocol::{CodeHash, EnvironmentHash, LockfileHash};

pub mod plan;
pub mod lock;
pub mod git;
mod carried;
pub mod code;
pub mod python;
pub mod log;
pub mod assemble;
pub mod prepare;
pub mod shelf;
pub mod record;
pub mod care;

/// A workspace that is whole and on disk. Nothing of it was started yet.
///
/// Read-only for whoever uses it: a process works on its slot's own copy of the code tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    /// The lockfile that it is made from.
    pub lockfile: LockfileHash,
    /// The environment that it shares with others of the same pins.
    pub environment: EnvironmentHash,
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
}
