//! A copy of a file at a place of its owner's choice: there as a whole, on the disk, or not at all.
//!
//! Not here: files that move out of the store; that is `hand_over`.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use rustix::fs::ioctl_ficlone;
use tempfile::{Builder, NamedTempFile};
use tracing::debug;

use super::draft::sync_folder;
use super::room::disk_failure;
use super::{StoreError, free_bytes};
use crate::folder::left::remove_left;

/// How the names of files begin that are still being written.
const UNFINISHED: &str = ".comfy-farm-export-";
/// One that is younger may just be about to be locked by whoever writes it.
const FRESH: Duration = Duration::from_secs(60);

/// Copies all `size` bytes of a file to this path.
pub(super) fn copy_to(file: &fs::File, size: u64, destination: &Path) -> Result<(), StoreError> {
    let folder = destination.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    remove_left(folder, UNFINISHED, remove_if_left);
    let full = |error| disk_failure(folder, size, destination, error);
    let made =
        Builder::new().prefix(UNFINISHED).permissions(PermissionsExt::from_mode(0o644)).tempfile_in(folder);
    let mut temporary = made.map_err(full)?;
    // Held as long as it is written: what a killed process left is not. Where a file system has no locks, what is
    // younger than a minute is safe all the same.
    if let Err(error) = temporary.as_file().lock() {
        debug!(file = %temporary.path().display(), %error, "file cannot be locked");
    }
    if ioctl_ficlone(temporary.as_file(), file).is_err() {
        copy(file, size, folder, &mut temporary).map_err(full)?;
    }
    temporary.as_file().sync_all().map_err(full)?;
    temporary.persist(destination).map_err(|error| full(error.error))?;
    sync_folder(&folder.join(destination.file_name().unwrap_or_default()))
}

/// Takes the room for all of it before the first byte, where the file system can.
fn copy(mut file: &fs::File, size: u64, folder: &Path, temporary: &mut NamedTempFile) -> io::Result<()> {
    if free_bytes(folder).is_ok_and(|free| free < size) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    match fallocate(temporary.as_file(), FallocateFlags::empty(), 0, size as i64) {
        // Nothing is nothing to take.
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::EINVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    io::copy(&mut file, temporary.as_file_mut()).map(drop)
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
