//! A copy of a file at a place of its owner's choice: there as a whole, on the disk, or not at all.
//!
//! Not here: files that move out of the store; that is `hand_over`.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::ioctl_ficlone;
use tempfile::{Builder, NamedTempFile};
use tracing::debug;

use super::draft::sync_folder;
use super::room::{allocate, disk_failure};
use super::{StoreError, free_bytes};
use crate::folder::left::remove_left;

/// How the names of files begin that are still being written.
pub(super) const UNFINISHED: &str = ".comfy-farm-export-";
/// One that is younger may just be about to be locked by whoever writes it.
const FRESH: Duration = Duration::from_secs(60);

/// Copies all `size` bytes of a file to this path.
pub(super) fn copy_to(mut file: &fs::File, size: u64, destination: &Path) -> Result<(), StoreError> {
    let full = |error| copy_failure(size, destination, error);
    let mut copy = UnnamedCopy::begin(destination).map_err(full)?;
    if ioctl_ficlone(copy.file(), file).is_err() {
        copy.reserve(size, size).map_err(full)?;
        io::copy(&mut file, copy.0.as_file_mut()).map_err(full)?;
    }
    copy.finish(size, destination)
}

/// The error of a copy of `size` bytes to this path that failed.
pub(super) fn copy_failure(size: u64, destination: &Path, error: io::Error) -> StoreError {
    disk_failure(folder_of(destination), size, destination, error)
}

/// A copy that has no name yet. Dropped, it is deleted.
pub(super) struct UnnamedCopy(NamedTempFile);

impl UnnamedCopy {
    /// Nothing of it yet, beside where it is to be.
    fn begin(destination: &Path) -> io::Result<Self> {
        let folder = folder_of(destination);
        remove_left(folder, UNFINISHED, remove_if_left);
        let mut named = Builder::new();
        let temporary =
            named.prefix(UNFINISHED).permissions(PermissionsExt::from_mode(0o644)).tempfile_in(folder)?;
        // Held as long as it is written: what a killed process left is not. Where a file system has no locks, what is
        // younger than a minute is safe all the same.
        if let Err(error) = temporary.as_file().lock() {
            debug!(file = %temporary.path().display(), %error, "file cannot be locked");
        }
        Ok(Self(temporary))
    }

    /// One for a copy of a file that still comes; `None` where the file system would copy it without room or time
    /// once it is whole, and where the room may not be enough for both.
    pub(super) fn begin_early(file: &fs::File, size: u64, destination: &Path) -> io::Result<Option<Self>> {
        let copy = Self::begin(destination)?;
        let is_free_of_cost = ioctl_ficlone(copy.file(), file).is_ok();
        if is_free_of_cost || copy.reserve(size, size.saturating_mul(2)).is_err() {
            return Ok(None);
        }
        Ok(Some(copy))
    }

    pub(super) fn file(&self) -> &fs::File {
        self.0.as_file()
    }

    /// Takes the room for all of it before the first byte, where the file system can, and where `free` bytes are.
    fn reserve(&self, size: u64, free: u64) -> io::Result<()> {
        if free_bytes(folder_of(self.0.path())).is_ok_and(|found| found < free) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        allocate(self.file(), size)
    }

    /// Gives it its name, once its `size` bytes are on the disk.
    pub(super) fn finish(self, size: u64, destination: &Path) -> Result<(), StoreError> {
        let full = |error| copy_failure(size, destination, error);
        self.file().sync_all().map_err(full)?;
        self.0.persist(destination).map_err(|error| full(error.error))?;
        sync_folder(&folder_of(destination).join(destination.file_name().unwrap_or_default()))
    }
}

fn folder_of(destination: &Path) -> &Path {
    let folder = destination.parent().filter(|folder| !folder.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

/// Removes a file that nobody writes any more.
fn remove_if_left(path: &Path, metadata: &fs::Metadata) -> io::Result<bool> {
    let is_fresh = metadata.modified()?.elapsed().is_ok_and(|age| age < FRESH);
    if !metadata.is_file() || is_fresh {
        return Ok(false);
    }
    let file = fs::File::options().write(true).open(path)?;
    if file.try_lock().is_err() {
        return Ok(false);
    }
    fs::remove_file(path).map(|()| true)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn left_by_the_killed_is_removed_and_what_is_being_written_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let old = |name: &str| {
            let file = fs::File::create(at(name)).expect("own folder");
            file.set_modified(SystemTime::now() - 2 * FRESH).expect("own file");
            file
        };
        let _left = old(".comfy-farm-export-left");
        let held = old(".comfy-farm-export-held");
        let _list = old(crate::folders::paths::PRIVATE);
        held.lock().expect("nobody else has it");
        let fresh = at(".comfy-farm-export-fresh");
        let (_other, _fresh) = (old("model"), fs::File::create(fresh).expect("own folder"));
        let source = at("source");
        fs::write(&source, b"bytes").expect("own folder");
        copy_to(&fs::File::open(&source).expect("own file"), 5, &at("copy")).expect("there is room");
        assert_eq!(fs::read(at("copy")).expect("own file"), b"bytes");
        assert!(!at(".comfy-farm-export-left").exists());
        let kept =
            [".comfy-farm-export-held", ".comfy-farm-export-fresh", "model", crate::folders::paths::PRIVATE];
        for kept in kept {
            assert!(at(kept).exists(), "{kept}");
        }
    }
}
