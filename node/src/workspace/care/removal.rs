//! Removing workspaces, as their owner asks or to keep a quota. Blocks.
//!
//! Nothing is removed while one is being built, which may have found a part that it did not make. Not here: which ones
//! are wanted, and what goes with them of what they share (`sweep`).

use std::io;
use std::path::{Path, PathBuf};

use protocol::LockfileHash;
use tracing::{info, warn};

use super::inventory::{Kept, bytes, is_damaged};
use super::{CareError, Caretaker, Removed};
use crate::os::file::clear_link_drafts;
use crate::os::removal::remove;
use crate::workspace::git::clear_leftovers;
use crate::workspace::log::PrepareLog;

impl Caretaker {
    /// Removes one; for `None`, all that are not wanted and in which nothing is at work.
    pub(super) fn remove(&self, prefix: Option<&str>) -> Result<Removed, CareError> {
        let named = prefix.map(|prefix| self.named(Some(prefix))).transpose()?;
        let is_at_work = |kept: &&Kept| {
            self.running.as_ref().is_some_and(|running| running.shelf.is_at_work(kept.lockfile))
        };
        if let Some(kept) = named.iter().flatten().find(is_at_work) {
            return Err(CareError::AtWork(kept.lockfile));
        }
        let _quiet = self.quiet()?;
        let mut removed = Removed::default();
        match named {
            Some(named) => {
                for kept in named {
                    self.remove_damaged(&kept, &mut removed)?;
                    if !self.take_out(kept.lockfile) {
                        return Err(CareError::AtWork(kept.lockfile));
                    }
                    self.discard(&kept, &mut removed)?;
                }
            }
            None => {
                let wanted = self.wanted().ok_or(CareError::WantedUnknown)?;
                for kept in self.kept()?.iter().filter(|kept| !wanted.contains(&kept.lockfile)) {
                    match self.take_out(kept.lockfile) {
                        true => self.discard(kept, &mut removed)?,
                        false => removed.at_work.push(kept.lockfile),
                    }
                }
            }
        }
        removed.bytes += self.sweep()?;
        Ok(removed)
    }

    /// Removes what of a workspace was found to be damaged, also where others share it: they are made anew as well.
    fn remove_damaged(&self, kept: &Kept, removed: &mut Removed) -> Result<(), CareError> {
        let damaged: Vec<_> = kept.parts(&self.root).into_iter().filter(|part| is_damaged(part)).collect();
        if damaged.is_empty() {
            return Ok(());
        }
        let is_of = |kept: &Kept| kept.parts(&self.root).iter().any(|part| damaged.contains(part));
        for other in self.kept()?.iter().filter(|other| is_of(other)) {
            if !self.take_out(other.lockfile) {
                return Err(CareError::AtWork(other.lockfile));
            }
        }
        // Also one that was made anew of others since.
        let running = self.running.as_ref().map(|running| running.shelf.in_use()).unwrap_or_default();
        let is_in_use = |part: &PathBuf| {
            running.iter().any(|(code, environment)| {
                [code.to_string(), environment.to_string()].iter().any(|name| part.ends_with(name))
            })
        };
        for part in damaged {
            if is_in_use(&part) {
                return Err(CareError::AtWork(kept.lockfile));
            }
            removed.bytes += bytes(&part);
            remove_folder(&part)?;
        }
        Ok(())
    }

    /// Removes the least recently used of those that are not wanted, until all of them take no more than this.
    pub(super) fn evict(&self, quota: u64) -> Result<Removed, CareError> {
        let (Ok(_quiet), Some(wanted)) = (self.quiet(), self.wanted()) else { return Ok(Removed::default()) };
        let mut removed = Removed::default();
        if self.disk_bytes()? <= quota {
            return Ok(removed);
        }
        removed.bytes += self.sweep()?;
        if self.disk_bytes()? > quota {
            // What is installed has its files under another name.
            remove_folder(&self.root.join("uv/cache"))?;
        }
        let mut unwanted = self.kept()?;
        unwanted.retain(|kept| !wanted.contains(&kept.lockfile));
        unwanted.sort_by_key(Kept::used);
        let mut unwanted = unwanted.into_iter();
        while self.disk_bytes()? > quota {
            let Some(next) = unwanted.find(|kept| self.take_out(kept.lockfile)) else {
                warn!(
                    quota,
                    "workspaces take more than their quota, and all that are left are wanted or at work"
                );
                break;
            };
            self.discard(&next, &mut removed)?;
            removed.bytes += self.sweep()?;
            info!(lockfile = %next.lockfile.0.fmt_short(), "workspace is evicted");
        }
        Ok(removed)
    }

    /// Evicts as [`evict`](Self::evict) does. A failure is told and costs nothing but disk.
    pub(crate) async fn keep_quota(&self, quota: u64) {
        if let Err(error) = self.blocking(move |care| care.evict(quota)).await {
            warn!(error = protocol::error_chain(&error), "workspaces are not kept within their quota");
        }
    }

    /// Nothing is built as long as this is held.
    fn quiet(&self) -> Result<Option<tokio::sync::OwnedMutexGuard<()>>, CareError> {
        let quiet = self.running.as_ref().map(|running| running.shelf.try_work());
        quiet.map(|quiet| quiet.ok_or(CareError::Building)).transpose()
    }

    fn take_out(&self, lockfile: LockfileHash) -> bool {
        self.running.as_ref().is_none_or(|running| running.shelf.take_out(lockfile))
    }

    /// Removes what is one workspace's alone, whatever it shares.
    fn discard(&self, kept: &Kept, removed: &mut Removed) -> Result<(), CareError> {
        removed.bytes += bytes(&kept.folder);
        remove_folder(&kept.folder)?;
        // People may have read it already, and it is not worth an error.
        for log in [PrepareLog::latest, PrepareLog::last_failed] {
            let _ = std::fs::remove_file(log(&self.root, kept.lockfile));
        }
        removed.workspaces.push(kept.lockfile);
        Ok(())
    }
}

/// Removes a folder, if it is there.
pub(super) fn remove_folder(folder: &Path) -> Result<(), CareError> {
    remove(folder).map_err(CareError::io("removing", folder))
}

/// Removes what builds and removals that were killed left, as far as it goes: what stays costs nothing but disk. To be
/// called before any is at work.
pub(crate) fn clear_drafts(root: &Path) {
    for name in [
        "code",
        "environments",
        "git",
        "locks",
        "ready",
        "registry",
        "slots",
        "slots/byte-code",
        "uv",
        "uv/temporary",
    ] {
        let folder = root.join(name);
        let cleared = match name {
            "git" => clear_folder(&folder, false).and_then(|()| clear_leftovers(&folder)),
            // Models are put at their places one by one.
            "ready" => clear_folder(&folder, false).and_then(|()| clear_link_drafts(&folder)),
            _ => clear_folder(&folder, name == "uv/temporary"),
        };
        if let Err(error) = cleared {
            warn!(folder = %folder.display(), %error, "drafts of former builds cannot be looked for");
        }
    }
}

/// Removes the drafts in a folder; for `all`, everything in it.
fn clear_folder(folder: &Path, all: bool) -> io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()? {
        let is_left = all || entry.file_name().as_encoded_bytes().starts_with(b".");
        if is_left && let Err(error) = remove(&entry.path()) {
            warn!(path = %entry.path().display(), %error, "a draft of a former build stays");
        }
    }
    Ok(())
}
