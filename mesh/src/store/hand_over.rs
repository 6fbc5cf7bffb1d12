//! A whole blob that becomes the file somebody asked for, by one rename, and is served from there on.
//!
//! Not here: copies; `files` makes those.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use protocol::BlobHash;

use super::draft::sync_folder;
use super::in_place::InPlaceFile;
use super::{BlobStore, StoreError, blocking, failure};

impl BlobStore {
    /// Moves a blob of the store's own to this path on the same file system, in place of what is there. From
    /// then on it is a file in place, which its owner may change. One that is that file already stays; any
    /// other file in place is its owner's, and not moved.
    pub async fn hand_over(&self, hash: BlobHash, destination: impl AsRef<Path>) -> Result<(), StoreError> {
        let (store, destination) = (self.clone(), destination.as_ref().to_owned());
        blocking(move || {
            let (file, blob) = store.open_whole(hash)?.ok_or(StoreError::Missing(hash))?;
            let path = store.blob_path(hash);
            if store.index().own(hash).is_none() {
                let is_there = store.path_of(hash) == fs::canonicalize(&destination).ok();
                return if is_there { Ok(()) } else { Err(StoreError::Missing(hash)) };
            }
            file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(failure("changing", &path))?;
            // Before the index is told: whoever opens the blob meanwhile has the same bytes by either name.
            fs::rename(&path, &destination).map_err(failure("moving the blob to", &destination))?;
            let metadata = file.metadata().map_err(failure("reading", &destination))?;
            let destination = fs::canonicalize(&destination).map_err(failure("finding", &destination))?;
            sync_folder(&destination)?;
            let in_place = InPlaceFile::new(destination, blob, &metadata);
            let mut index = store.index();
            index.remove_own(hash);
            index.add_file(in_place);
            store.save_in_place(&index)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn handed_over_file_is_served_where_it_lies_until_it_changes() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = BlobStore::open(folder.path().join("store")).await.expect("a store");
        let blob = store.import_bytes(&[7; 40_000]).await.expect("there is room");
        let before = store.path_of(blob.hash).expect("it is whole");
        let file = folder.path().join("model");
        fs::write(&file, "an older one").expect("own folder");
        store.hand_over(blob.hash, &file).await.expect("it is the same file system");
        assert!(!before.exists());
        assert_eq!(fs::read(&file).expect("own file"), [7; 40_000]);
        assert_eq!(store.read_all(blob.hash, 50_000).await.expect("it is whole"), [7; 40_000]);
        store.hand_over(blob.hash, &file).await.expect("it is there already");
        let elsewhere = store.hand_over(blob.hash, folder.path().join("elsewhere")).await;
        assert!(matches!(elsewhere, Err(StoreError::Missing(_))) && file.exists(), "{elsewhere:?}");
        fs::write(&file, "changed").expect("its owner may write to it");
        assert!(store.check(blob.hash).await.expect("no error").is_none());
    }
}
