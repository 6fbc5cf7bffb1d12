//! What killed processes left in a folder where other things are as well.
//!
//! Not here: how it is told that nobody has it any more.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::geteuid;
use tracing::{debug, info};

/// Removes what is our user's, has a name that begins so, and is left: `remove_if_left` looks, removes, and says
/// whether it did. What it is given is never that of the target of a symbolic link: anybody may make one there.
pub(crate) fn remove_left(
    folder: &Path,
    prefix: &str,
    remove_if_left: impl Fn(&Path, &Metadata) -> io::Result<bool>,
) {
    let remove = |path: &Path| {
        let metadata = fs::symlink_metadata(path)?;
        Ok(metadata.uid() == geteuid().as_raw() && remove_if_left(path, &metadata)?)
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)) {
        let path = entry.path();
        match remove(&path) {
            Ok(true) => info!(path = %path.display(), "removed what a killed process left"),
            Ok(false) => {}
            Err::<_, io::Error>(error) => debug!(path = %path.display(), %error, "it is left"),
        }
    }
}
