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

/// What is in a folder.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    /// Its files.
    pub(crate) found: Vec<Found>,
    /// How many symbolic links were not followed.
    pub(crate) links: u64,
}

/// The files of a folder, or the one file.
pub(crate) fn walk(root: &Path) -> io::Result<Walked> {
    let metadata = fs::metadata(root)?;
    let mut walked = Walked::default();
    if metadata.is_file() {
        walked.found.push(Found { path: root.to_owned(), metadata, shared: true });
        return Ok(walked);
    }
    let private = private_paths(root)?;
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
            if metadata.is_symlink() {
                debug!(path = %path.display(), "symbolic link is passed over");
                walked.links += 1;
            } else if metadata.is_dir() && depth < MAX_DEPTH {
                folders.push((path, depth + 1));
            } else if metadata.is_file() && is_finished(&path) {
                let shared = !private.iter().any(|private| path.starts_with(private));
                walked.found.push(Found { path, metadata, shared });
            }
        }
    }
    Ok(walked)
}

/// Whether no download is still writing it, as far as names tell.
fn is_finished(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let mut beside = path.as_os_str().to_owned();
    beside.push(".aria2");
    !UNFINISHED.contains(&extension.as_str()) && !Path::new(&beside).exists()
}
