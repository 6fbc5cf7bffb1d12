//! Why a ComfyUI folder cannot be recorded, and what its owner can do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use mesh::store::StoreError;
use protocol::{ParseTextError, Sha256, error_chain};

use super::carried::CarryError;
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
    /// A program of the system is not on this machine.
    #[error("program `{name}` is said to be called, and `PATH` has none of that name on this machine")]
    NoProgram {
        /// Which.
        name: String,
    },
    /// A custom node is to travel that is not there.
    #[error(
        "custom node `{name}` is to travel with the bundle, and `custom_nodes` has none of that name that is switched on \
         and not of ComfyUI's own commit"
    )]
    UnusedCarry {
        /// The custom node.
        name: String,
    },
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

/// What a fault is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// ComfyUI itself.
    ComfyUi,
    /// A custom node, by its name in `custom_nodes`.
    CustomNode(String),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ComfyUi => f.write_str("ComfyUI"),
            Self::CustomNode(name) => write!(f, "custom node `{name}`"),
        }
    }
}

impl What {
    /// The other way, which only custom nodes have.
    fn or_carry(&self) -> String {
        match self {
            Self::ComfyUi => String::new(),
            Self::CustomNode(name) => format!("; or take its files along with `--carry {name}`"),
        }
    }

    fn or_carry_dirty(&self) -> &'static str {
        match self {
            Self::ComfyUi => "",
            Self::CustomNode(_) => "; or take all its files along with `--dirty carry`",
        }
    }
}

/// Something that a lockfile has no place for.
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
        "custom node `{name}` is a folder that neither git nor the registry knows: take its files along with \
         `--carry {name}`, install it with `git clone`, or rename it to `{name}.disabled` where the workflow does not \
         need it"
    )]
    BareFolder {
        /// Its folder.
        name: String,
    },
    /// A repository has no upstream.
    #[error(
        "{what} has no remote: push it to where others can clone it, and set that with `git remote add origin`{}",
        what.or_carry()
    )]
    NoRemote {
        /// Whose.
        what: What,
    },
    /// A repository has no commit.
    #[error("{what} has no commit yet: commit its files and push them{}", what.or_carry())]
    NoCommit {
        /// Whose.
        what: What,
    },
    /// A custom node is at a commit that others do not have.
    #[error(
        "{what} is at a commit that no branch or tag of `{url}` is known to have here: push it, or `git fetch` where it \
         is pushed{}",
        what.or_carry()
    )]
    Unpublished {
        /// Whose.
        what: What,
        /// The remote.
        url: String,
    },
    /// A repository's files are not those of its commit.
    #[error(
        "{what} is not as its commit has it, which a lockfile cannot carry ({files}): commit and push this, or put it \
         away with `git stash -u`{}",
        what.or_carry_dirty()
    )]
    Changed {
        /// Whose.
        what: What,
        /// Some of the files, and how many more.
        files: String,
    },
    /// The files that run are not in a repository's commit.
    #[error(
        "{what} has files that git-lfs keeps apart from its commit ({files}), and nodes would have pointers in their \
         place: commit the files themselves and push them{}",
        what.or_carry()
    )]
    Pointers {
        /// Whose.
        what: What,
        /// Some of the files, and how many more.
        files: String,
    },
    /// A name or address in it is none that a lockfile can have.
    #[error("{what} cannot be recorded: {fault}{}", what.or_carry())]
    Text {
        /// Whose.
        what: What,
        /// What it is, and what it should be.
        fault: ParseTextError,
    },
    /// The files of a custom node cannot travel.
    #[error("{what} cannot travel with the bundle: {}", error_chain(fault))]
    Carry {
        /// Whose.
        what: What,
        /// Why.
        fault: CarryError,
    },
    /// A repository cannot be read.
    #[error("{what} cannot be read: {}", error_chain(fault))]
    Git {
        /// Whose.
        what: What,
        /// Why.
        fault: GitError,
    },
}

fn listed(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("\n  {fault}")).collect()
}
