//! A custom node that travels with the bundle: which files of its folder are taken, and the archive of them.
//!
//! Not here: whether it is to travel, and how an archive is made of bytes (`protocol`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use mesh::store::ByteSize;
use protocol::{
    BlobRef, CarriedFile, CustomNode, FileName, MAX_CARRIED, MAX_CARRIED_FILES, RegistryPin,
    WriteBundleError, is_code, write_carried,
};

use super::error::What;
use super::repositories::kept;
use super::{Fault, Findings, some_of};
use crate::workspace::git::{GitError, LocalRepository};

/// What no custom node needs: the past of a repository, and what Python makes anew.
const NEVER: [&str; 2] = [".git", "__pycache__"];
/// How many files are named that are not taken.
const NAMED: usize = 3;

/// A custom node that travels with the bundle.
#[derive(Debug)]
pub struct CarriedNode {
    /// Its name in `custom_nodes`.
    pub name: FileName,
    /// The archive of its files.
    pub archive: File,
}

/// Why the files of a custom node cannot travel.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// A file of it is none that can.
    #[error("`{path}` {fault}")]
    Entry {
        /// The file.
        path: String,
        /// Why.
        fault: &'static str,
    },
    /// There are too many files.
    #[error("it has more than {MAX_CARRIED_FILES} files: move away what it does not need to run")]
    TooMany,
    /// They are too large.
    #[error(
        "its files come to more than {}: move away what it does not need to run, such as models",
        ByteSize(MAX_CARRIED)
    )]
    TooLarge,
    /// A file or folder cannot be read.
    #[error("`{}` cannot be read", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its repository cannot be read.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The archive cannot be written.
    #[error("the archive of its files cannot be written")]
    Write(#[source] WriteBundleError),
    /// The archive cannot be kept.
    #[error("the archive of its files cannot be kept in a temporary file")]
    Temporary(#[source] io::Error),
}

/// Which files of a folder are taken.
pub(super) enum Taken<'a> {
    All,
    /// Those that git is not told to pass over.
    Repository(&'a LocalRepository),
    /// Those of a list, and code.
    Listed(BTreeSet<String>),
}

impl Taken<'_> {
    /// Those of a list with one path a line, which is called `name`.
    pub(super) fn listed(name: &str, list: &str) -> Self {
        let path = |line: &str| line.trim().replace('\\', "/").trim_start_matches("./").to_owned();
        Self::Listed(list.lines().chain([name]).map(path).collect())
    }
}

/// Records a custom node as one that travels, with the archive of its files.
pub(super) fn carry(
    name: &str,
    path: &Path,
    taken: &Taken<'_>,
    registry: Option<RegistryPin>,
    findings: &mut Findings,
) -> Option<CustomNode> {
    let what = What::CustomNode(name.to_owned());
    let file_name: FileName = kept(&what, name.parse(), findings)?;
    match pack(name, path, taken) {
        Ok(Packed { archive, files, count, left_out }) => {
            let left_out = match left_out.is_empty() {
                true => String::new(),
                false => format!("; left out: {}", some_of(left_out, NAMED)),
            };
            let count = if count == 1 { "1 file".to_owned() } else { format!("{count} files") };
            findings
                .notes
                .push(format!("{what} travels with the bundle: {count}, {}{left_out}", ByteSize(files.size)));
            findings.carried.push(CarriedNode { name: file_name.clone(), archive });
            Some(CustomNode::Carried { name: file_name, files, registry })
        }
        Err(fault) => {
            findings.faults.push(Fault::Carry { what, fault });
            None
        }
    }
}

/// An archive that was made.
struct Packed {
    archive: File,
    files: BlobRef,
    count: usize,
    left_out: Vec<String>,
}

fn pack(name: &str, path: &Path, taken: &Taken<'_>) -> Result<Packed, CarryError> {
    let mut walk = Walk::new(path, taken)?;
    walk.enter(name, path)?;
    let Walk { files, mut left_out, .. } = walk;
    left_out.sort();
    let mut archive = tempfile::tempfile().map_err(CarryError::Temporary)?;
    let count = files.len();
    if count == 0 {
        return Err(CarryError::Entry { path: name.to_owned(), fault: "has no file that could" });
    }
    write_carried(&mut archive, files.keys().cloned(), |file| File::open(&files[file])).map_err(|error| {
        match error {
            WriteBundleError::TooLarge { .. } => CarryError::TooLarge,
            error => CarryError::Write(error),
        }
    })?;
    archive.rewind().map_err(CarryError::Temporary)?;
    let files = BlobRef::of_reader(&archive).map_err(CarryError::Temporary)?;
    archive.rewind().map_err(CarryError::Temporary)?;
    match files.size > MAX_CARRIED {
        true => Err(CarryError::TooLarge),
        false => Ok(Packed { archive, files, count, left_out }),
    }
}

/// A walk over the files of a custom node.
struct Walk<'a> {
    /// Its folder, without links on the way.
    root: PathBuf,
    taken: &'a Taken<'a>,
    /// What git is told to pass over.
    passed_over: BTreeSet<String>,
    /// What is taken, and where it lies.
    files: BTreeMap<CarriedFile, PathBuf>,
    left_out: Vec<String>,
}

impl<'a> Walk<'a> {
    fn new(path: &Path, taken: &'a Taken<'a>) -> Result<Self, CarryError> {
        let root = path.canonicalize().map_err(io_at(path))?;
        let passed_over = match taken {
            Taken::Repository(repository) => repository.passed_over()?,
            _ => BTreeSet::new(),
        };
        Ok(Self { root, taken, passed_over, files: BTreeMap::new(), left_out: Vec::new() })
    }

    /// Takes a file, or what is in a folder; `entry` is its path in `custom_nodes`.
    fn enter(&mut self, entry: &str, path: &Path) -> Result<(), CarryError> {
        let below = entry.split_once('/').map_or("", |(_, below)| below);
        let refused = |fault| Err(CarryError::Entry { path: entry.to_owned(), fault });
        let link = fs::symlink_metadata(path).map_err(io_at(path))?;
        let is_top = below.is_empty();
        if !is_top && !self.takes(below, link.is_dir()) {
            self.left_out.push(format!("`{below}`"));
            return Ok(());
        }
        let metadata = fs::metadata(path).map_err(io_at(path))?;
        if link.is_symlink() && !is_top {
            if !path.canonicalize().map_err(io_at(path))?.starts_with(&self.root) {
                return refused("is a link that leads outside");
            }
            if metadata.is_dir() {
                return refused("is a link to a folder");
            }
        }
        if metadata.is_dir() {
            let entries = fs::read_dir(path).map_err(io_at(path))?;
            for found in entries {
                let found = found.map_err(io_at(path))?;
                let Ok(name) = found.file_name().into_string() else {
                    return refused("has a file whose name is no text");
                };
                if !NEVER.contains(&name.as_str()) {
                    self.enter(&format!("{entry}/{name}"), &found.path())?;
                }
            }
            return Ok(());
        }
        if !metadata.is_file() {
            return refused("is no plain file");
        }
        if self.files.len() >= MAX_CARRIED_FILES {
            return Err(CarryError::TooMany);
        }
        let executable = metadata.permissions().mode() & 0o100 != 0;
        self.files.insert(CarriedFile { path: entry.to_owned(), executable }, path.to_owned());
        Ok(())
    }

    fn takes(&self, below: &str, is_folder: bool) -> bool {
        match self.taken {
            Taken::All => true,
            Taken::Repository(_) => !self.passed_over.contains(below),
            Taken::Listed(listed) => is_folder || listed.contains(below) || is_code(below),
        }
    }
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> CarryError {
    let path = path.to_owned();
    move |source| CarryError::Io { path, source }
}
