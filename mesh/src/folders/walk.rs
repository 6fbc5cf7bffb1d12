//! Which files of a folder are models: all that lie in it whole, in plain sight and by themselves.
//!
//! Not here: reading what they hold.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use tracing::debug;

use super::paths::private_paths;

/// How deep folders may lie in each other.
const MAX_DEPTH: usize = 32;
/// What downloads are called until they are done.
const UNFINISHED: [&str; 9] =
    ["part", "partial", "tmp", "temp", "crdownload", "download", "incomplete", "aria2", "lock"];

/// A file that is to be a blob.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) metadata: Metadata,
    /// Whether other peers may have it.
    pub(crate) shared: bool,
}

/// The files of a folder, or the one file.
pub(crate) fn walk(root: &Path) -> io::Result<Vec<Found>> {
    let metadata = fs::metadata(root)?;
    if metadata.is_file() {
        return Ok(vec![Found { path: root.to_owned(), metadata, shared: true }]);
    }
    let private = private_paths(root)?;
    let mut found = Vec::new();
    let mut folders = vec![(root.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            // The folder itself must be readable; one inside it may be somebody else's.
            Err(error) if depth > 0 => {
                debug!(folder = %folder.display(), %error, "folder is passed over");
                continue;
            }
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let path = entry.path();
            // Not that of the target of a symbolic link.
            let Ok(metadata) = entry.metadata() else { continue };
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            if metadata.is_dir() && depth < MAX_DEPTH {
                folders.push((path, depth + 1));
            } else if metadata.is_file() && is_finished(&path) {
                let shared = !private.iter().any(|private| path.starts_with(private));
                found.push(Found { path, metadata, shared });
            }
        }
    }
    Ok(found)
}

/// Whether no download is still writing it, as far as names tell.
fn is_finished(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let mut beside = path.as_os_str().to_owned();
    beside.push(".aria2");
    !UNFINISHED.contains(&extension.as_str()) && !Path::new(&beside).exists()
}
