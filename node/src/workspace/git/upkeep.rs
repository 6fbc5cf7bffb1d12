//! The upkeep of the stores: commits that nobody needs any more go, and so do those that cannot be read, which are then
//! fetched anew.
//!
//! A store that loses some of its commits is made anew from the others: what is packed has no other way to shrink. Not
//! here: which commits are needed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use git2::{Oid, Repository};
use protocol::{GitPin, GitUrl};
use tracing::{info, warn};

use super::pack::copy_commit;
use super::tree::{self, Kind};
use super::{Came, GitError, GitStore, MAX_REPOSITORIES, Part, UPSTREAM, oid, upstream};
use crate::os::removal::remove;

/// What the marks of whole commits match.
const MARKS: &str = "refs/whole/*";

impl GitStore {
    /// Removes all commits but these and those of their submodules. Nobody may be fetching.
    pub fn keep_only(&self, pins: &[GitPin]) -> Result<(), GitError> {
        let mut needed = BTreeSet::new();
        for pin in pins {
            let others = self.upstreams_with(&pin.commit);
            for url in pin.urls().chain(&others) {
                self.add_needed(url, oid(&pin.commit), &mut needed)?;
            }
        }
        for path in self.stores()? {
            let Ok(store) = Repository::open_bare(&path) else { continue };
            let Some(url) = upstream(&store) else { continue };
            let marked = marked(&store);
            let kept = marked.iter().filter(|commit| needed.contains(*commit)).count();
            if kept == 0 {
                remove(&path).map_err(|source| GitError::io(&path, source))?;
            } else if kept < marked.len() {
                self.make_anew(&store, &url, |commit| needed.contains(&commit))?;
            }
        }
        Ok(())
    }

    /// Removes from the stores of an upstream what of them cannot be read.
    pub(super) fn heal(&self, url: &GitUrl) -> Result<(), GitError> {
        for came in [Came::Fetched, Came::Packed] {
            if let Ok(store) = Repository::open_bare(self.path(url, came)) {
                warn!(%url, "a repository is damaged here, and what cannot be read of it is fetched anew");
                self.make_anew(&store, url, |_| true)?;
            }
        }
        Ok(())
    }

    /// Adds a commit of an upstream and those of its submodules, as far as they are here.
    fn add_needed(&self, url: &GitUrl, commit: Oid, needed: &mut BTreeSet<Oid>) -> Result<(), GitError> {
        let mut open = vec![Part { path: String::new(), url: url.clone(), commit }];
        let mut left = MAX_REPOSITORIES;
        while let Some(part) = open.pop() {
            needed.insert(part.commit);
            let Some(store) = self.find(&part.url, part.commit, &BTreeSet::new()) else { continue };
            left = left.checked_sub(1).ok_or_else(|| GitError::TooManySubmodules { url: url.to_string() })?;
            let entries = tree::entries(&store, &part, self.bounds.entries)?;
            open.extend(tree::submodules(&store, &part, &entries)?);
        }
        Ok(())
    }

    /// The folders of all stores.
    fn stores(&self) -> Result<Vec<PathBuf>, GitError> {
        let read = || -> io::Result<Vec<_>> {
            let entries = fs::read_dir(&self.root)?.collect::<io::Result<Vec<_>>>()?;
            // What begins with a point is being made.
            let is_store = |entry: &&fs::DirEntry| {
                let name = entry.file_name();
                let name = name.as_encoded_bytes();
                !name.starts_with(b".") && name.ends_with(b".git")
            };
            Ok(entries.iter().filter(is_store).map(fs::DirEntry::path).collect())
        };
        read().map_err(|source| GitError::io(&self.root, source))
    }

    /// Makes a store anew with those of its commits that are meant and can be read.
    fn make_anew(
        &self,
        store: &Repository,
        url: &GitUrl,
        is_meant: impl Fn(Oid) -> bool,
    ) -> Result<(), GitError> {
        let make = |source| GitError::git("make a store of", url, source);
        let io = |source| GitError::io(store.path(), source);
        let scratch = tempfile::Builder::new().prefix(".store-").tempdir_in(&self.root).map_err(io)?;
        let path = scratch.path().join("store");
        let fresh = Repository::init_bare(&path).map_err(make)?;
        fresh.config().and_then(|mut config| config.set_str(UPSTREAM, url.as_str())).map_err(make)?;
        let mut shallow = String::new();
        for commit in marked(store).into_iter().filter(|commit| is_meant(*commit)) {
            let part = Part { path: String::new(), url: url.clone(), commit };
            if !self.is_readable(store, &part) {
                info!(%url, %commit, "a commit is not kept, because it cannot be read");
                continue;
            }
            copy_commit(store, &fresh, commit).map_err(make)?;
            self.mark_whole(&fresh, &part)?;
            shallow.push_str(&format!("{commit}\n"));
        }
        // Their past is not here, and whoever fetches more is not to look for it.
        fs::write(path.join("shallow"), shallow).map_err(io)?;
        drop(fresh);
        remove(store.path()).map_err(io)?;
        fs::rename(&path, store.path()).map_err(io)
    }

    /// Whether every byte of a commit is there and is what it is to be.
    fn is_readable(&self, store: &Repository, part: &Part) -> bool {
        let Ok(odb) = store.odb() else { return false };
        let entries = tree::entries(store, part, self.bounds.entries);
        let is_good = |id: Oid| odb.read(id).is_ok();
        entries.is_ok_and(|entries| {
            entries.iter().all(|entry| entry.kind == Kind::Submodule || is_good(entry.id))
        })
    }
}

/// The commits that are marked as whole in a store.
fn marked(store: &Repository) -> BTreeSet<Oid> {
    let marks = store.references_glob(MARKS);
    marks.into_iter().flatten().flatten().filter_map(|mark| mark.target()).collect()
}

/// Waits until the disk has all packs of a store.
pub(super) fn sync(store: &Repository) -> io::Result<()> {
    let packs = store.path().join("objects/pack");
    for pack in fs::read_dir(&packs)? {
        File::open(pack?.path())?.sync_all()?;
    }
    File::open(&packs)?.sync_all()
}

/// Removes what fetches that were killed left in the stores of this folder.
pub(in crate::workspace) fn clear_leftovers(root: &Path) -> io::Result<()> {
    for store in fs::read_dir(root)? {
        let Ok(packs) = fs::read_dir(store?.path().join("objects/pack")) else { continue };
        for file in packs {
            let file = file?;
            // As libgit2 calls what it has not named yet.
            if file.file_name().to_string_lossy().contains("_git2_") {
                fs::remove_file(file.path())?;
            }
        }
    }
    Ok(())
}
