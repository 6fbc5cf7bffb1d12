//! The data folder of a process, which one process has at a time.
//!
//! Not here: what is kept in it.

pub(crate) mod left;
mod passing;

pub use self::passing::PassingFolder;

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// The longest name of a holder that is read from a lock file, in bytes.
const MAX_HOLDER: u64 = 256;
/// The file that is locked.
const LOCK: &str = "lock";

/// A data folder that this process has, as long as this lives.
#[derive(Debug)]
pub struct DataFolder {
    _lock: File,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another process has it.
    #[error("`{}` is in use by {holder}: stop it, or give another data folder with `--data`", data.display())]
    InUse {
        /// The folder.
        data: PathBuf,
        /// Which process, as it wrote itself into the lock file.
        holder: String,
    },
    /// It cannot be made or written.
    #[error("`{}` cannot be made or locked", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DataFolder {
    /// Makes the folder and takes it for this process, which is `role` to whoever else wants it, such as
    /// `a node`.
    pub fn take(data: &Path, role: &str) -> Result<Self, FolderError> {
        let path = data.join(LOCK);
        let error = |path: &Path| {
            let path = path.to_owned();
            move |source| FolderError::Io { path, source }
        };
        std::fs::create_dir_all(data).map_err(error(data))?;
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(error(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(FolderError::InUse { data: data.to_owned(), holder: read_holder(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(error(&path)(source)),
        }
        let holder = format!("{role} with process id {}", std::process::id());
        write_holder(&mut file, &holder).map_err(error(&path))?;
        Ok(Self { _lock: file })
    }
}

fn write_holder(file: &mut File, holder: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(holder.as_bytes())
}

fn read_holder(file: &mut File) -> String {
    let mut holder = String::new();
    match file.take(MAX_HOLDER).read_to_string(&mut holder) {
        Ok(1..) => holder,
        Ok(0) | Err(_) => "another comfy-farm process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_process_is_told_who_has_the_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data = folder.path().join("data");
        let first = DataFolder::take(&data, "a node").expect("free");
        let error = DataFolder::take(&data, "a node").expect_err("taken").to_string();
        assert!(error.contains(&format!("a node with process id {}", std::process::id())), "{error}");
        drop(first);
        DataFolder::take(&data, "the coordinator").expect("free again");
    }

    #[test]
    fn folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("file");
        std::fs::write(&file, b"").expect("own folder");
        let error = DataFolder::take(&file.join("data"), "a node").expect_err("a file is no folder");
        assert!(matches!(&error, FolderError::Io { path, .. } if *path == file.join("data")), "{error}");
    }
}
