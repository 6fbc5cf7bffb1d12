//! The data folder, which one process has at a time.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

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

/// Makes the data folder and takes it for this process alone, as long as the file lives.
pub(super) fn lock_folder(data: &Path) -> Result<File, FolderError> {
    let path = data.join("lock");
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
    let holder = format!("the coordinator with process id {}", std::process::id());
    write_holder(&mut file, &holder).map_err(error(&path))?;
    Ok(file)
}

fn write_holder(file: &mut File, holder: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(holder.as_bytes())
}

fn read_holder(file: &mut File) -> String {
    let mut holder = String::new();
    match file.take(256).read_to_string(&mut holder) {
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
        let first = lock_folder(&data).expect("free");
        let error = lock_folder(&data).expect_err("taken").to_string();
        assert!(error.contains(&format!("process id {}", std::process::id())), "{error}");
        drop(first);
        lock_folder(&data).expect("free again");
    }
}
