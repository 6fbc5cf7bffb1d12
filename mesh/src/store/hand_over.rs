//! A whole blob that becomes the file somebody asked for, by one rename, and is served from there on.
//!
//! Not here: copies; `files` makes those.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use protocol::BlobHash;

use super::draft::sync_folder;
use super::in_place::{InPlaceFile, InPlaceIndex};
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
            let metadata = file.metadata().map_err(failure("reading", &path))?;
            let in_place = InPlaceFile::new(place_of(&destination)?, blob, &metadata);
            let mut index = store.index();
            // The list on the disk is first, so that the blob is found at one of its two names whenever we are
            // killed; what is in memory last, as whoever opens the blob meanwhile has the same bytes by either.
            let others = index.files().filter(|file| file.path != in_place.path);
            InPlaceIndex::write(&store.inner.directory, &others.chain([&in_place]).collect::<Vec<_>>())?;
            fs::rename(&path, &destination).map_err(failure("moving the blob to", &destination))?;
            sync_folder(&in_place.path)?;
            index.remove_own(hash);
            index.add_file(in_place);
            Ok(())
        })
        .await
    }
}

/// The path of a file that may not be there yet, in the words of the file system.
fn place_of(destination: &Path) -> Result<PathBuf, StoreError> {
    let finding = |folder: &Path| fs::canonicalize(folder).map_err(failure("finding", folder));
    let folder = destination.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = finding(folder.unwrap_or(Path::new(".")))?;
    Ok(folder.join(destination.file_name().unwrap_or_default()))
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

    #[tokio::test]
    async fn blob_whose_rename_fails_or_was_the_last_thing_done_is_not_fetched_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = BlobStore::open(folder.path().join("store")).await.expect("a store");
        let blob = store.import_bytes(&[7; 40_000]).await.expect("there is room");
        let file = folder.path().join("model");
        fs::create_dir_all(file.join("in the way")).expect("own folder");
        store.hand_over(blob.hash, &file).await.expect_err("a folder is in the way");
        drop(store);
        // As one who was killed before the rename finds it, and one who was killed right after it.
        for is_moved in [false, true] {
            if is_moved {
                fs::remove_dir_all(&file).expect("own folder");
                let store = BlobStore::open(folder.path().join("store")).await.expect("the store again");
                store.hand_over(blob.hash, &file).await.expect("nothing is in the way");
            }
            let store = BlobStore::open(folder.path().join("store")).await.expect("the store again");
            assert_eq!(store.read_all(blob.hash, 50_000).await.expect("it is whole"), [7; 40_000]);
            assert_eq!(file.is_file(), is_moved);
        }
    }
}
