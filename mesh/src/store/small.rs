//! Many small blobs at once: written one after another, brought to the disk together, then named.
//!
//! A file by itself costs the disk a flush; a batch costs one. Not here: blobs of more than one piece.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};

use nix::unistd::syncfs;
use protocol::{BlobRef, PIECE_SIZE};
use tempfile::NamedTempFile;

use super::{BlobHold, BlobStore, StoreError, blocking, failure};
use crate::tree::TreeHasher;

/// Small blobs that are written and not named yet. It blocks on the disk; dropped, it leaves nothing behind.
struct Batch {
    store: BlobStore,
    written: Vec<Written>,
}

struct Written {
    blob: BlobRef,
    /// Its outboard is no stray one while it has no name yet.
    _hold: BlobHold,
    outboard: Vec<u8>,
    file: NamedTempFile,
}

impl BlobStore {
    /// Stores these blobs, each of one piece at most, whose bytes must match their names; says which did.
    /// A crash right after may lose some of them whole, and none in part.
    pub(crate) async fn import_small(&self, blobs: Vec<(BlobRef, Vec<u8>)>) -> Result<Vec<bool>, StoreError> {
        let store = self.clone();
        blocking(move || {
            let wanted = blobs.iter().map(|(blob, _)| blob.size).sum();
            let room = store.make_room(wanted)?;
            let mut batch = Batch { store: store.clone(), written: Vec::with_capacity(blobs.len()) };
            let matching: Result<_, _> =
                blobs.iter().map(|(blob, bytes)| batch.write(*blob, bytes)).collect();
            drop(room);
            let matching = matching?;
            batch.name()?;
            Ok(matching)
        })
        .await
    }
}

impl BlobStore {
    /// The bytes of those of these blobs, each of one piece at most, that are whole here and shared.
    pub(crate) async fn read_small(&self, blobs: Vec<BlobRef>) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let store = self.clone();
        blocking(move || blobs.into_iter().map(|blob| store.read_one(blob)).collect()).await
    }

    /// Those of these blobs that are not whole here.
    pub(crate) async fn missing(&self, blobs: Vec<BlobRef>) -> Result<Vec<BlobRef>, StoreError> {
        let store = self.clone();
        blocking(move || {
            let mut missing = Vec::new();
            for blob in blobs {
                if store.use_whole(blob.hash)?.is_none_or(|(_, found)| found != blob) {
                    missing.push(blob);
                }
            }
            Ok(missing)
        })
        .await
    }

    fn read_one(&self, blob: BlobRef) -> Result<Option<Vec<u8>>, StoreError> {
        let Some((file, found)) = self.use_whole(blob.hash)? else { return Ok(None) };
        if found != blob || !self.index().is_shared(blob.hash) {
            return Ok(None);
        }
        let mut bytes = vec![0; blob.size as usize];
        file.read_exact_at(&mut bytes, 0).map_err(failure("reading", &self.blob_path(blob.hash)))?;
        Ok(Some(bytes))
    }
}

impl Batch {
    /// Writes a blob if its bytes match its name.
    fn write(&mut self, blob: BlobRef, bytes: &[u8]) -> Result<bool, StoreError> {
        debug_assert!(blob.size <= PIECE_SIZE);
        let mut hasher = TreeHasher::default();
        hasher.update(bytes);
        let (found, outboard) = hasher.finish();
        if found != blob {
            return Ok(false);
        }
        let folder = self.store.temporary();
        let mut file = NamedTempFile::new_in(&folder).map_err(failure("creating a file in", &folder))?;
        file.write_all(bytes).map_err(|error| self.store.write_failure(blob.size, file.path(), error))?;
        let read_only = fs::Permissions::from_mode(0o444);
        file.as_file().set_permissions(read_only).map_err(failure("writing", file.path()))?;
        let _hold = self.store.hold(blob.hash);
        self.written.push(Written { blob, _hold, outboard, file });
        Ok(true)
    }

    /// Gives every blob its name, once all bytes are on the disk.
    fn name(self) -> Result<(), StoreError> {
        let Self { store, written } = self;
        let folder = store.temporary();
        for Written { blob, outboard, .. } in written.iter().filter(|written| !written.outboard.is_empty()) {
            let path = store.outboard_path(blob.hash);
            store.make_parent(&path)?;
            // No blob is whole before its own file is there, so half an outboard is only a stray one.
            fs::write(&path, outboard).map_err(failure("writing", &path))?;
        }
        let flushed = fs::File::open(&folder).and_then(|folder| syncfs(folder).map_err(Into::into));
        flushed.map_err(failure("writing", &folder))?;
        for Written { blob, file, _hold, .. } in written {
            let path = store.blob_path(blob.hash);
            store.make_parent(&path)?;
            file.persist(&path).map_err(|error| failure("writing", &path)(error.error))?;
            store.add_whole(blob);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn batch_keeps_what_matches_its_name_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = BlobStore::open(folder.path()).await.expect("a store");
        let bytes = [vec![], vec![1; 100], vec![2; 40_000], vec![3; 5]];
        let mut blobs: Vec<_> = bytes.iter().map(|bytes| (BlobRef::of(bytes), bytes.clone())).collect();
        blobs[3].1[0] = 4;
        let matching = store.import_small(blobs.clone()).await.expect("there is room");
        assert_eq!(matching, [true, true, true, false]);
        let store = BlobStore::open(folder.path()).await.expect("the store again");
        for ((blob, bytes), matched) in blobs.into_iter().zip(matching) {
            assert_eq!(store.read_all(blob.hash, 50_000).await.ok(), matched.then_some(bytes));
            assert_eq!(store.verify(blob.hash).await.ok(), Some(matched));
        }
        let left = fs::read_dir(folder.path().join("temporary")).expect("own folder").count();
        assert_eq!(left, 0);
    }
}
