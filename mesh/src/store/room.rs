//! Room on the disk: the quota, what is deleted to keep to it, and what must never be.
//!
//! The store's own blobs and what is half fetched count; files in place do not, and are never deleted.
//! A store without a quota deletes nothing by itself. Not here: the order of eviction, which is `index`.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::MutexGuard;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::{FsFlags, statvfs};
use protocol::{BlobHash, BlobName, BlobRef, Sha256};
use tokio::time::sleep;
use tracing::{info, warn};

use super::cached::is_in_memory;
use super::index::{Candidate, Deletable};
use super::{BlobStore, SHA256_STEM, StoreError, blocking, failure, remove_file};

/// How often it is looked whether a full disk has room again.
const ROOM_LOOK: Duration = Duration::from_secs(2);

/// A blob, or a file on its way to be one, that is not evicted as long as this lives.
#[derive(Debug)]
pub struct BlobHold {
    store: BlobStore,
    name: BlobName,
}

impl Drop for BlobHold {
    fn drop(&mut self) {
        self.store.index().release(self.name);
    }
}

/// What was deleted to win room.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collected {
    /// How many whole blobs.
    pub blobs: u64,
    /// How many transfers that nobody goes on with.
    pub partial: u64,
    /// How many bytes both were.
    pub bytes: u64,
}

impl BlobStore {
    /// Sets how many bytes the store may take. Without one it takes what it is given.
    pub fn set_quota(&self, quota: Option<u64>) {
        self.index().quota = quota;
    }

    /// Keeps a blob from eviction, also one that is still to come.
    pub fn hold(&self, name: impl Into<BlobName>) -> BlobHold {
        let name = name.into();
        self.index().hold(name);
        BlobHold { store: self.clone(), name }
    }

    /// Pins or unpins a whole blob: a pinned one is never evicted, also after a restart.
    pub async fn set_pinned(&self, hash: BlobHash, pinned: bool) -> Result<(), StoreError> {
        let store = self.clone();
        blocking(move || {
            let mut index = store.index();
            if pinned && index.get(hash).is_none() {
                return Err(StoreError::Missing(hash));
            }
            let mut marks = index.marks.clone();
            if marks.set_pinned(hash, pinned) {
                marks.write(&store.inner.directory)?;
                index.marks = marks;
                store.tell_change();
            }
            Ok(())
        })
        .await
    }

    /// Makes these blobs private for ever, also where they are still to come: they are neither served to
    /// other peers nor named to them.
    pub async fn keep_private(&self, names: Vec<BlobName>) -> Result<(), StoreError> {
        let store = self.clone();
        blocking(move || {
            let mut index = store.index();
            let mut marks = index.marks.clone();
            if names.into_iter().filter(|name| marks.set_private(*name)).count() > 0 {
                marks.write(&store.inner.directory)?;
                index.marks = marks;
                store.tell_change();
            }
            Ok(())
        })
        .await
    }

    /// Whether somebody made a file, or the blob that it is said to be, private.
    pub(crate) fn is_private(&self, sha256: Sha256, blob: Option<BlobHash>) -> bool {
        let index = self.index();
        index.is_private_file(sha256) || blob.is_some_and(|hash| index.is_private(hash))
    }

    /// How many bytes it can still take: with a quota, once all that may go has gone.
    pub async fn room(&self) -> Result<u64, StoreError> {
        let store = self.clone();
        blocking(move || {
            let free = free_bytes(&store.inner.directory)?;
            let Some(quota) = store.index().quota else { return Ok(free) };
            let evictable = store.index().candidates(store.leftovers()?).iter().map(|one| one.bytes).sum();
            let staying = store.bytes_used()?.saturating_sub(evictable);
            Ok(quota.saturating_sub(staying).min(free.saturating_add(evictable)))
        })
        .await
    }

    /// The pinned blobs that are whole here and that other peers may have, by hash.
    pub fn pinned(&self) -> Vec<BlobRef> {
        let index = self.index();
        let whole = index.marks.pinned().filter_map(|hash| index.get(hash));
        whole.filter(|blob| index.is_shared(blob.hash)).collect()
    }

    /// Deletes what nobody goes on with, and the least recently used blobs over this quota or, without
    /// one, the store's own.
    pub async fn collect(&self, quota: Option<u64>) -> Result<Collected, StoreError> {
        let store = self.clone();
        blocking(move || {
            let _room = store.lock_room();
            let mut collected = Collected::default();
            let leftovers = store.leftovers()?;
            let stale: Vec<_> =
                leftovers.into_iter().filter(|left| !store.index().must_stay(left.what.name())).collect();
            store.delete(&stale, &mut collected)?;
            store.remove_stray_outboards()?;
            let quota = quota.or(store.index().quota);
            let lacking = quota.map_or(0, |quota| store.index().own_bytes().saturating_sub(quota));
            if lacking > 0 {
                let chosen = store.index().choose(lacking, vec![]);
                // What must stay may be more than the quota; then all the rest goes.
                let chosen = chosen.unwrap_or_else(|| store.index().candidates(vec![]));
                store.delete(&chosen, &mut collected)?;
            }
            Ok(collected)
        })
        .await
    }

    /// Sees to it that so many bytes can be written, and keeps others from doing the same until the guard
    /// is dropped. It blocks on the disk.
    pub(super) fn make_room(&self, wanted: u64) -> Result<MutexGuard<'_, ()>, StoreError> {
        let room = self.lock_room();
        let folder = &self.inner.directory;
        let quota = self.index().quota;
        let mut free = free_bytes(folder)?;
        if let Some(quota) = quota {
            let used = self.bytes_used()?;
            let over = used.saturating_add(wanted).saturating_sub(quota);
            let lacking = over.max(wanted.saturating_sub(free));
            if lacking > 0 {
                let leftovers = self.leftovers()?;
                let chosen = self.index().choose(lacking, leftovers);
                let Some(chosen) = chosen else {
                    let folder = folder.clone();
                    return Err(if over > 0 {
                        StoreError::OverQuota { wanted, quota, used, folder }
                    } else {
                        StoreError::NoRoom { wanted, free, folder }
                    });
                };
                let mut collected = Collected::default();
                self.delete(&chosen, &mut collected)?;
                info!(?collected, "blobs were evicted to make room");
                free = free_bytes(folder)?;
            }
        }
        if free < wanted {
            return Err(StoreError::NoRoom { wanted, free, folder: folder.clone() });
        }
        Ok(room)
    }

    /// Takes the room for all of a file before its first byte, where the file system can. It blocks on the
    /// disk.
    pub(super) fn reserve(&self, file: &fs::File, path: &Path, size: u64) -> Result<(), StoreError> {
        let length = file.metadata().map_err(failure("reading", path))?.len();
        let wanted = size.saturating_sub(length);
        if wanted == 0 {
            return Ok(());
        }
        let _room = self.make_room(wanted)?;
        let reserved = allocate(file, size).and_then(|()| file.set_len(size));
        reserved.map_err(|error| self.write_failure(wanted, path, error))
    }

    /// The error of a write that failed; of a full disk, with the numbers.
    pub(super) fn write_failure(&self, wanted: u64, path: &Path, error: io::Error) -> StoreError {
        disk_failure(&self.inner.directory, wanted, path, error)
    }

    fn lock_room(&self) -> MutexGuard<'_, ()> {
        self.inner.room.lock().expect("nothing panics while it makes room")
    }

    /// What counts against the quota.
    fn bytes_used(&self) -> Result<u64, StoreError> {
        let mut used = self.index().own_bytes();
        for folder in ["partial", "temporary"] {
            let folder = self.inner.directory.join(folder);
            for entry in fs::read_dir(&folder).map_err(failure("reading", &folder))? {
                // A file that went away between the two looks takes nothing.
                let length = entry.and_then(|entry| entry.metadata()).map_or(0, |metadata| metadata.len());
                used = used.saturating_add(length);
            }
        }
        Ok(used)
    }

    /// What is left of transfers, of those under way too: those are held.
    fn leftovers(&self) -> Result<Vec<Candidate>, StoreError> {
        let folder = self.inner.directory.join("partial");
        let mut leftovers = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failure("reading", &folder))? {
            let entry = entry.map_err(failure("reading", &folder))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let Some(name) = name.strip_suffix(".data").and_then(partial_name) else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            leftovers.push(Candidate { used, what: Deletable::Leftover(name), bytes: metadata.len() });
        }
        Ok(leftovers)
    }

    fn delete(&self, chosen: &[Candidate], collected: &mut Collected) -> Result<(), StoreError> {
        for candidate in chosen {
            // The lock is kept, so that nobody begins to work with it meanwhile.
            let mut index = self.index();
            if index.must_stay(candidate.what.name()) {
                continue;
            }
            match candidate.what {
                Deletable::Whole(hash) => {
                    index.remove_own(hash);
                    let is_elsewhere = index.files_of(hash).next().is_some();
                    remove_file(&self.blob_path(hash))?;
                    if !is_elsewhere {
                        remove_file(&self.outboard_path(hash))?;
                    }
                    collected.blobs += 1;
                }
                Deletable::Leftover(name) => {
                    for part in ["data", "outboard", "pieces"] {
                        remove_file(&self.partial_path(name, part))?;
                    }
                    collected.partial += 1;
                }
            }
            collected.bytes += candidate.bytes;
        }
        if collected.blobs > 0 {
            self.tell_change();
        }
        Ok(())
    }

    /// Removes hash trees of blobs that are not here any more.
    fn remove_stray_outboards(&self) -> Result<(), StoreError> {
        let folder = self.inner.directory.join("blobs");
        for shelf in fs::read_dir(&folder).map_err(failure("reading", &folder))? {
            let shelf = shelf.map_err(failure("reading", &folder))?.path();
            for entry in fs::read_dir(&shelf).map_err(failure("reading", &shelf))? {
                let path = entry.map_err(failure("reading", &shelf))?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let Some(Ok(hash)) = name.strip_suffix(".outboard").map(str::parse) else { continue };
                let index = self.index();
                // The lock is kept, so that no blob comes to its tree meanwhile.
                if index.get(hash).is_none() && !index.must_stay(hash) {
                    remove_file(&path)?;
                    warn!(path = %path.display(), "hash tree of a blob that has gone was removed");
                }
            }
        }
        Ok(())
    }
}

/// What the name of a file in `partial`, without its ending, says that it is.
pub(super) fn partial_name(stem: &str) -> Option<BlobName> {
    match stem.strip_prefix(SHA256_STEM) {
        Some(sha256) => sha256.parse().ok().map(BlobName::Sha256),
        None => stem.parse().ok().map(BlobName::Blake3),
    }
}

/// Takes the room for so many bytes of a file from the disk, where the file system can. Its length stays as it is
/// where it cannot.
pub(super) fn allocate(file: &fs::File, size: u64) -> io::Result<()> {
    // There every page would be touched now and again when it is written: half a second for a GiB.
    if is_in_memory(file) {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, size as i64) {
        // Nothing is nothing to take.
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::EINVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The error of a write below this folder that failed; of a full or read-only disk, with the numbers.
pub(super) fn disk_failure(folder: &Path, wanted: u64, path: &Path, error: io::Error) -> StoreError {
    let folder = folder.to_owned();
    match (error.kind(), free_bytes(&folder)) {
        (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, Ok(free)) => {
            StoreError::NoRoom { wanted, free, folder }
        }
        (io::ErrorKind::ReadOnlyFilesystem, Ok(free)) => StoreError::ReadOnly { wanted, free, folder },
        _ => failure("writing", path)(error),
    }
}

impl StoreError {
    /// Waits, where a full or read-only disk was what was wrong, until that has the room and takes writes; says
    /// whether it does. Whoever calls this in a loop does not try more often than every other second.
    pub async fn room_comes(&self) -> bool {
        let (wanted, folder) = match self {
            Self::NoRoom { wanted, folder, .. } => {
                warn!(wanted, folder = %folder.display(), "disk is full, waiting for room");
                (wanted, folder)
            }
            Self::ReadOnly { wanted, folder, .. } => {
                warn!(wanted, folder = %folder.display(), "disk is read-only, waiting until it takes writes");
                (wanted, folder)
            }
            _ => return false,
        };
        loop {
            sleep(ROOM_LOOK).await;
            if takes_writes(folder) && free_bytes(folder).is_ok_and(|free| free >= *wanted) {
                return true;
            }
        }
    }
}

fn takes_writes(folder: &Path) -> bool {
    statvfs(folder).is_ok_and(|status| !status.flags().contains(FsFlags::ST_RDONLY))
}

/// How many bytes this user can still write where the folder lies.
pub fn free_bytes(folder: &Path) -> Result<u64, StoreError> {
    let status =
        statvfs(folder).map_err(|errno| failure("asking for free space in", folder)(errno.into()))?;
    Ok(status.blocks_available().saturating_mul(status.fragment_size()))
}
