//! Why a ComfyUI folder cannot be recorded, and what its owner can do about it.

use std::io;
use std::path::{Path, PathBuf};

use mesh::store::StoreError;
use protocol::{ParseTextError, Sha256, error_chain};

use crate::workspace::git::GitError;

/// Why a folder is not recorded.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It is no ComfyUI.
    #[error("`{}` has no `main.py` and `nodes.py`: name the folder of ComfyUI itself", .0.display())]
    NotComfyUi(PathBuf),
    /// Something in it has no place in a lockfile.
    #[error("`{}` cannot be recorded as it is:{}", folder.display(), listed(faults))]
    Faults {
        /// The folder.
        folder: PathBuf,
        /// All that was found.
        faults: Vec<Fault>,
    },
    /// A file or folder cannot be read.
    #[error("`{}` cannot be read", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Python does not start.
    #[error(
        "Python `{}` cannot be started: name the one that runs ComfyUI with `--python`", program.display()
    )]
    NoPython {
        /// Which.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Python does not tell what is installed in it.
    #[error("Python `{}` does not tell what is installed in it: {reason}", program.display())]
    Python {
        /// Which.
        program: PathBuf,
        /// What it says instead.
        reason: String,
    },
    /// It is not the Python of ComfyUI.
    #[error(
        "Python `{}` has no torch, so ComfyUI does not run in it: name the one that does with `--python`",
        program.display()
    )]
    NoTorch {
        /// Which.
        program: PathBuf,
    },
    /// A model could not be hashed.
    #[error("a model of the workflow could not be hashed")]
    Hash(#[from] StoreError),
    /// A source is for a file that the workflow does not use.
    #[error("a source is given for SHA-256 `{sha256}`, which no model of the workflow has")]
    UnusedSource {
        /// The file.
        sha256: Sha256,
    },
}

impl LockError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// Something that a lockfile has no place for. `what` is `ComfyUI`, or names a custom node.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// ComfyUI is no repository.
    #[error(
        "ComfyUI is no git repository, so its commit is not known: `git clone` it, move `models`, `custom_nodes` and \
         `input` there, and pack that"
    )]
    NoRepository,
    /// A custom node is a bare folder.
    #[error(
        "custom node `{name}` is a folder that neither git nor the registry knows: install it with `git clone`, or \
         rename it to `{name}.disabled` where the workflow does not need it"
    )]
    BareFolder {
        /// Its folder.
        name: String,
    },
    /// A repository has no upstream.
    #[error(
        "{what} has no remote: push it to where others can clone it, and set that with `git remote add origin`"
    )]
    NoRemote {
        /// Whose.
        what: String,
    },
    /// A repository has no commit.
    #[error("{what} has no commit yet: commit its files and push them")]
    NoCommit {
        /// Whose.
        what: String,
    },
    /// A repository's files are not those of its commit.
    #[error(
        "{what} is not as its commit has it, which a lockfile cannot carry ({}): commit and push this, or put it away \
         with `git stash -u`",
        files
    )]
    Changed {
        /// Whose.
        what: String,
        /// Some of the files, and how many more.
        files: String,
    },
    /// A name or address in it is none that a lockfile can have.
    #[error("{what} cannot be recorded: {fault}")]
    Text {
        /// Whose.
        what: String,
        /// What it is, and what it should be.
        fault: ParseTextError,
    },
    /// A repository cannot be read.
    #[error("{what} cannot be read: {}", error_chain(fault))]
    Git {
        /// Whose.
        what: String,
        /// Why.
        fault: GitError,
    },
}

fn listed(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("\n  {fault}")).collect()
}
