//! A folder among the system's temporary ones, for as long as a process lives: what a killed one left is
//! removed by the next.
//!
//! Not here: what is kept in it.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use super::left::remove_left;
use super::{DataFolder, FolderError, LOCK};

/// A folder that is removed when this is dropped.
#[derive(Debug)]
pub struct PassingFolder {
    path: PathBuf,
    _taken: DataFolder,
}

impl PassingFolder {
    /// Makes one whose name begins with `prefix`, and removes those of dead processes.
    pub fn make(prefix: &str, role: &str) -> Result<Self, FolderError> {
        Self::make_in(&std::env::temp_dir(), prefix, role)
    }

    fn make_in(parent: &Path, prefix: &str, role: &str) -> Result<Self, FolderError> {
        remove_left(parent, prefix, remove_if_dead);
        let error = |path: &Path| {
            let path = path.to_owned();
            move |source| FolderError::Io { path, source }
        };
        let made = tempfile::Builder::new().prefix(&format!(".{prefix}")).tempdir_in(parent);
        let made = made.map_err(error(parent))?;
        // It gets its name when it is locked, so that nobody finds it unlocked while its process lives.
        let taken = DataFolder::take(made.path(), role)?;
        let name = made.path().file_name().and_then(OsStr::to_str).unwrap_or_default();
        let path = parent.join(name.trim_start_matches('.'));
        fs::rename(made.path(), &path).map_err(error(&path))?;
        // What it was called is there no more.
        let _ = made.keep();
        Ok(Self { path, _taken: taken })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PassingFolder {
    fn drop(&mut self) {
        // The next process removes what is left.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes a folder that no process has.
fn remove_if_dead(folder: &Path, metadata: &Metadata) -> io::Result<bool> {
    if !metadata.is_dir() {
        return Ok(false);
    }
    // The system lets a lock go with its process, whoever has its number now.
    let lock = File::options().write(true).open(folder.join(LOCK))?;
    if lock.try_lock().is_err() {
        return Ok(false);
    }
    fs::remove_dir_all(folder)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_dead_processes_are_removed_and_others_are_left() {
        let parent = tempfile::tempdir().expect("a folder");
        let make = || PassingFolder::make_in(parent.path(), "share-", "a share").expect("there is room");
        let living = make();
        let dead = parent.path().join("share-dead");
        drop(DataFolder::take(&dead, "a share").expect("free"));
        fs::write(dead.join("blob"), b"bytes").expect("own folder");
        let linked = parent.path().join("elsewhere");
        drop(DataFolder::take(&linked, "a node").expect("free"));
        std::os::unix::fs::symlink(&linked, parent.path().join("share-link")).expect("own folder");
        let without_lock = parent.path().join("share-of-another-program");
        fs::create_dir(&without_lock).expect("own folder");

        let next = make();
        assert!(!dead.exists());
        for left in [living.path(), next.path(), &linked, &without_lock] {
            assert!(left.exists(), "{left:?}");
        }
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists());
        let hidden = fs::read_dir(parent.path()).expect("own folder").flatten();
        assert!(hidden.into_iter().all(|entry| !entry.file_name().to_string_lossy().starts_with('.')));
    }
}
