//! The folders that somebody had a process follow, besides those that it was started with, in
//! `DIR/folders.json`: they outlive it.
//!
//! Not here: how a folder is followed; that is `folders`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tokio::sync::watch;

use super::{BlobStore, StoreError, blocking, write_json};

pub(super) const NAME: &str = "folders.json";

impl BlobStore {
    /// The folders that are followed, now and from now on.
    pub fn followed(&self) -> watch::Receiver<BTreeSet<PathBuf>> {
        self.inner.followed.subscribe()
    }

    /// Follows a folder, or no longer; says whether that changes anything.
    pub async fn set_followed(&self, folder: PathBuf, is_followed: bool) -> Result<bool, StoreError> {
        let store = self.clone();
        blocking(move || {
            let mut written = Ok(false);
            store.inner.followed.send_if_modified(|followed| {
                let mut changed = followed.clone();
                let differs = if is_followed { changed.insert(folder) } else { changed.remove(&folder) };
                if differs {
                    written = write_json(&store.inner.directory, NAME, &changed).map(|()| true);
                }
                let is_kept = matches!(written, Ok(true));
                if is_kept {
                    *followed = changed;
                }
                is_kept
            });
            written
        })
        .await
    }

    /// Forgets the files in place below a folder, or of one that is a file; how many there were.
    pub async fn forget_in_place(&self, folders: Vec<PathBuf>) -> Result<u64, StoreError> {
        let store = self.clone();
        blocking(move || {
            let files: Vec<PathBuf> = folders.iter().flat_map(|folder| store.files_below(folder)).collect();
            store.drop_in_place(&files);
            store.keep_in_place()?;
            Ok(files.len() as u64)
        })
        .await
    }
}
