//! Repositories at exactly one commit: fetched, laid out, and carried from node to node.
//!
//! ```text
//! GitStore    bare object stores of each upstream; each commit is in one with all its files, without its past
//! fetch       from its upstream, or else from a mirror, submodules included
//! way         the connection to it
//! folder      the same for one that is a folder of this machine
//! checkout    the files of a commit, byte for byte, read-only
//! pack        a commit as one file, from which another node has it with no way to the upstream
//! upkeep      what nobody needs any more goes, and so does what cannot be read, to be fetched anew
//! local       a repository in somebody's folder: its upstream, its commit, what was changed
//! ```
//!
//! The only home of git2. Nothing of a repository is executed and no setting of a user changes a file: no
//! hooks, no filters, no line endings. All of it blocks; whoever is async calls it on a thread that may. Not
//! here: which commits are wanted, and who else has them.

mod error;
mod fetch;
mod way;
mod folder;
mod tree;
mod checkout;
mod pack;
mod upkeep;
mod local;
#[cfg(test)]
pub(super) mod tests;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use git2::{Oid, Repository};
use mesh::origin::{Lookup, system_lookup};
use protocol::{BlobHash, GitCommit, GitPin, GitUrl};

use self::tree::{Entry, Kind};
use self::way::Patience;

pub use checkout::Checkout;
pub use error::GitError;
pub use fetch::Fetching;
pub(super) use local::{LocalRepository, Remote};
pub(super) use upkeep::clear_leftovers;

/// How deep submodules may be nested.
const MAX_DEPTH: usize = 8;
/// The most repositories that one commit may need.
const MAX_REPOSITORIES: usize = 256;
/// The setting of a store that says whose it is.
const UPSTREAM: &str = "farm.upstream";

/// The object stores of all upstreams.
#[derive(Debug, Clone)]
pub struct GitStore {
    root: PathBuf,
    bounds: Bounds,
    patience: Patience,
    lookup: Lookup,
}

/// How much one commit may have with its submodules: what is laid out can be a thousand times what crossed the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    /// The most bytes, as they come and as they are laid out. Defaults to 8 GiB.
    bytes: u64,
    /// The most bytes of one file, which is in memory as a whole at times. Defaults to 1 GiB.
    file: u64,
    /// The most files and folders. Defaults to 200 000.
    entries: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { bytes: 8 << 30, file: 1 << 30, entries: 200_000 }
    }
}

/// A repository that a commit needs: itself, or one of its submodules.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    /// Where it goes below the folder of the commit; empty for itself.
    path: String,
    url: GitUrl,
    commit: Oid,
}

/// How the commits of a store came, by which an upstream has one or two of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Came {
    /// This node asked the upstream itself, so it has them.
    Fetched,
    /// In packs, of which others say what the upstream is.
    Packed,
}

/// A repository that is here at its commit, and what the commit has in it.
struct Held {
    part: Part,
    repository: Repository,
    entries: Vec<Entry>,
}

impl GitStore {
    /// The stores in this folder, which is made if need be.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, GitError> {
        let root = root.into();
        fs::create_dir_all(&root).map_err(|source| GitError::io(&root, source))?;
        let (bounds, patience) = (Bounds::default(), Patience::default());
        Ok(Self { root, bounds, patience, lookup: system_lookup })
    }

    /// Whether a commit is here with all its files and submodules.
    pub fn holds(&self, pin: &GitPin) -> bool {
        self.whole(pin, &BTreeSet::new()).is_ok()
    }

    /// A store of an upstream, which is made if need be.
    fn repository(&self, url: &GitUrl, came: Came) -> Result<Repository, GitError> {
        let path = self.path(url, came);
        let open = || {
            let repository = Repository::open_bare(&path).or_else(|_| Repository::init_bare(&path))?;
            let mut config = repository.config()?;
            // Whoever made it may have been killed before it was set.
            if config.get_string(UPSTREAM).is_err() {
                config.set_str(UPSTREAM, url.as_str())?;
            }
            Ok(repository)
        };
        open().map_err(|source| GitError::git("open", url, source))
    }

    fn path(&self, url: &GitUrl, came: Came) -> PathBuf {
        let name = BlobHash::of(url.bare().as_bytes()).to_string();
        let ending = match came {
            Came::Fetched => "fetched.git",
            Came::Packed => "git",
        };
        self.root.join(format!("{}.{ending}", &name[..32]))
    }

    /// A store of an upstream that has a commit by itself. Where hosts are named, that is one that this node itself filled
    /// from one of them.
    fn find(&self, url: &GitUrl, commit: Oid, hosts: &BTreeSet<String>) -> Option<Repository> {
        let counting: &[Came] = match hosts.is_empty() {
            true => &[Came::Fetched, Came::Packed],
            false if hosts.contains(&url.host()) => &[Came::Fetched],
            false => &[],
        };
        let stores = counting.iter().flat_map(|came| Repository::open_bare(self.path(url, *came)));
        stores.into_iter().find(|store| has(store, commit))
    }

    /// Whose stores have a commit by itself: another lockfile may have named it by another address.
    fn upstreams_with(&self, commit: &GitCommit) -> Vec<GitUrl> {
        let upstream = |store: fs::DirEntry| {
            let repository = Repository::open_bare(store.path()).ok()?;
            has(&repository, oid(commit)).then(|| upstream(&repository))?
        };
        fs::read_dir(&self.root).into_iter().flatten().flatten().filter_map(upstream).collect()
    }

    /// The repositories that a commit of this upstream needs, as far as they are here (from these hosts, if any are
    /// named), and the first that is not.
    fn parts(
        &self,
        url: &GitUrl,
        commit: &GitCommit,
        hosts: &BTreeSet<String>,
    ) -> Result<(Vec<Held>, Option<Part>), GitError> {
        let whole = Part { path: String::new(), url: url.clone(), commit: oid(commit) };
        let (mut parts, mut open) = (Vec::new(), vec![(whole, 0)]);
        let mut entries_left = self.bounds.entries;
        while let Some((part, depth)) = open.pop() {
            let Some(repository) = self.find(&part.url, part.commit, hosts) else {
                return Ok((parts, Some(part)));
            };
            if parts.len() >= MAX_REPOSITORIES || depth > MAX_DEPTH {
                return Err(GitError::TooManySubmodules { url: url.to_string() });
            }
            let entries = tree::entries(&repository, &part, entries_left)?;
            entries_left -= entries.len();
            let submodules = tree::submodules(&repository, &part, &entries)?;
            open.extend(submodules.into_iter().map(|submodule| (submodule, depth + 1)));
            parts.push(Held { part, repository, entries });
        }
        Ok((parts, None))
    }

    /// All repositories of a commit, from whichever upstream it came (of these hosts, if any are named), each before its
    /// submodules.
    fn whole(&self, pin: &GitPin, hosts: &BTreeSet<String>) -> Result<Vec<Held>, GitError> {
        let mut broken = None;
        let others = || self.upstreams_with(&pin.commit).into_iter();
        for url in pin.urls().cloned().chain(std::iter::once_with(others).flatten()) {
            match self.parts(&url, &pin.commit, hosts) {
                Ok((parts, None)) => return Ok(parts),
                Ok(_) => {}
                // Another store may be a good one.
                Err(error) => broken = broken.or(Some(error)),
            }
        }
        let (url, commit) = (pin.url.to_string(), pin.commit.to_string());
        Err(broken.unwrap_or(GitError::NotHere { url, commit }))
    }

    /// Sees whether every file of a commit is in a store, and marks it if so. What has too much in it is refused.
    fn mark_whole(&self, repository: &Repository, part: &Part) -> Result<bool, GitError> {
        let read = |source| GitError::git("read", &part.url, source);
        let odb = repository.odb().map_err(read)?;
        if !odb.exists(part.commit) {
            return Ok(false);
        }
        let entries = match tree::entries(repository, part, self.bounds.entries) {
            Ok(entries) => entries,
            // A folder that is not there ends the walk.
            Err(GitError::Damaged { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        let is_there = |entry: &Entry| entry.kind == Kind::Submodule || odb.exists(entry.id);
        if !entries.iter().all(is_there) {
            return Ok(false);
        }
        self.weigh(repository, part, &entries)?;
        // Not before what it speaks of is on the disk, or it would outlive that in a power cut.
        upkeep::sync(repository).map_err(|source| GitError::io(repository.path(), source))?;
        let mark = repository.reference(&whole_mark(part.commit), part.commit, true, "whole");
        mark.map(|_| true).map_err(read)
    }

    /// How many bytes the files of a commit have, without reading them. Too many are refused.
    fn weigh(&self, repository: &Repository, part: &Part, entries: &[Entry]) -> Result<u64, GitError> {
        let read = |source| GitError::git("read", &part.url, source);
        let odb = repository.odb().map_err(read)?;
        let mut bytes = 0_u64;
        for entry in entries.iter().filter(|entry| entry.kind != Kind::Submodule) {
            let (size, _) =
                odb.read_header(entry.id).map_err(|source| GitError::damaged(&part.url, source))?;
            let (size, most) = (size as u64, self.bounds.file);
            bytes = bytes.saturating_add(size);
            if size > most {
                let (url, entry) = (part.url.to_string(), entry.path.clone());
                return Err(GitError::FileTooLarge { url, entry, size, most });
            }
        }
        if bytes > self.bounds.bytes { Err(GitError::too_large(&part.url)) } else { Ok(bytes) }
    }
}

/// Whether a commit was seen to be whole in a store.
fn has(repository: &Repository, commit: Oid) -> bool {
    repository.find_reference(&whole_mark(commit)).is_ok()
}

/// Whose store it is.
fn upstream(repository: &Repository) -> Option<GitUrl> {
    repository.config().ok()?.get_string(UPSTREAM).ok()?.parse().ok()
}

/// The reference that marks a commit of which every file is there.
fn whole_mark(commit: Oid) -> String {
    format!("refs/whole/{commit}")
}

/// The commit as libgit2 names it; of a repository with SHA-256 names, which it does not read, none that exists.
fn oid(commit: &GitCommit) -> Oid {
    Oid::from_str(commit.as_str()).unwrap_or(Oid::ZERO_SHA1)
}

/// Makes a folder by filling a hidden one beside it and renaming that.
pub(super) fn make_folder<T, E: From<GitError>>(
    into: &Path,
    fill: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    let parent = into.parent().unwrap_or(Path::new("."));
    let fail = |source: io::Error| GitError::io(into, source);
    fs::create_dir_all(parent).map_err(fail)?;
    let draft = tempfile::Builder::new().prefix(".").tempdir_in(parent).map_err(fail)?;
    let filled = draft.path().join("tree");
    fs::create_dir(&filled).map_err(fail)?;
    let made = fill(&filled)?;
    fs::rename(&filled, into).map_err(fail)?;
    Ok(made)
}
