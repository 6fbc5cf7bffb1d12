//! Files that become blobs, copied or where they lie, and blobs that become files.
//!
//! Not here: how a change of a file in place is noticed; that is `in_place`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::{BlobHash, BlobRef, PIECE_SIZE, Sha256};
use sha2::Digest;

use super::draft::Draft;
use super::export;
use super::hash::{FileToHash, Hashed};
use super::in_place::InPlaceFile;
use super::{BlobStore, StoreError, blocking, failure};
use crate::tree::MAX_BLOB_SIZE;

/// The coarsest clock of the file systems that models lie on.
const CLOCK_TICK: Duration = Duration::from_millis(20);

impl BlobStore {
    /// Stores a copy of this file.
    pub async fn import_file(&self, path: impl AsRef<Path>) -> Result<BlobRef, StoreError> {
        let (store, path) = (self.clone(), path.as_ref().to_owned());
        blocking(move || {
            let mut file = fs::File::open(&path).map_err(failure("opening", &path))?;
            let size = file.metadata().map_err(failure("reading", &path))?.len();
            drop(store.make_room(size)?);
            let mut draft = Draft::new(&store, MAX_BLOB_SIZE)?;
            read_parts(&mut file, &path, |part| draft.write(&store, part))?;
            draft.finish(&store)
        })
        .await
    }

    /// Makes this file a blob where it lies. It is never written to, and no longer served once it changed.
    pub async fn import_in_place(&self, path: impl AsRef<Path>) -> Result<BlobRef, StoreError> {
        let (store, path) = (self.clone(), path.as_ref().to_owned());
        blocking(move || {
            let path = fs::canonicalize(&path).map_err(failure("finding", &path))?;
            let (in_place, outboard) = hash_in_place(&path, &|| false, |file| file.blob())?;
            let blob = in_place.blob;
            store.add_in_place(in_place, &outboard)?;
            let index = store.index();
            store.save_in_place(&index)?;
            Ok(blob)
        })
        .await
    }

    /// The SHA-256 of a whole blob, read where it is not known.
    pub async fn sha256(&self, hash: BlobHash) -> Result<Sha256, StoreError> {
        let store = self.clone();
        blocking(move || {
            let known = store.index().files_of(hash).find_map(|file| file.sha256);
            let (mut file, _) = store.use_whole(hash)?.ok_or(StoreError::Missing(hash))?;
            if let Some(known) = known {
                return Ok(known);
            }
            let mut sha256 = sha2::Sha256::new();
            read_parts(&mut file, &store.blob_path(hash), |part| {
                sha256.update(part);
                Ok(())
            })?;
            Ok(Sha256(sha256.finalize().into()))
        })
        .await
    }

    /// Makes a hashed file a blob, until the process ends: `keep_in_place` makes that last.
    pub(crate) fn add_in_place(&self, file: InPlaceFile, outboard: &[u8]) -> Result<(), StoreError> {
        self.save_outboard(file.blob.hash, outboard)?;
        self.index().add_file(file);
        self.tell_change();
        Ok(())
    }

    /// Forgets files in place that are no longer there or no longer what they were.
    pub(crate) fn drop_in_place(&self, paths: &[PathBuf]) {
        let mut index = self.index();
        let dropped = paths.iter().filter(|path| index.remove_file(path)).count();
        drop(index);
        if dropped > 0 {
            self.tell_change();
        }
    }

    /// Writes down which files in place there are.
    pub(crate) fn keep_in_place(&self) -> Result<(), StoreError> {
        let index = self.index();
        self.save_in_place(&index)
    }

    /// What is known of the file in place at this path.
    pub(crate) fn file_at(&self, path: &Path) -> Option<InPlaceFile> {
        self.index().file_at(path).cloned()
    }

    /// The files in place below this folder.
    pub(crate) fn files_below(&self, folder: &Path) -> Vec<PathBuf> {
        let index = self.index();
        let below = index.files().filter(|file| file.path.starts_with(folder));
        below.map(|file| file.path.clone()).collect()
    }

    /// Writes a whole blob to this path, by way of a temporary file beside it. It is a copy (one that takes no room
    /// where the file system can), so that whoever changes it does not change the blob.
    pub async fn export(&self, hash: BlobHash, destination: impl AsRef<Path>) -> Result<(), StoreError> {
        let (store, destination) = (self.clone(), destination.as_ref().to_owned());
        blocking(move || {
            let (file, blob) = store.use_whole(hash)?.ok_or(StoreError::Missing(hash))?;
            export::copy_to(&file, blob.size, &destination)
        })
        .await
    }
}

/// Hashes a file where it lies, under both names that models have, unless it is stopped; also gives its
/// outboard.
pub(crate) fn hash_model(
    path: &Path,
    is_stopped: &(dyn Fn() -> bool + Sync),
) -> Result<(InPlaceFile, Vec<u8>), StoreError> {
    hash_in_place(path, is_stopped, |file| file.blob_and_sha256())
}

fn hash_in_place(
    path: &Path,
    is_stopped: &(dyn Fn() -> bool + Sync),
    hash: impl Fn(&FileToHash<'_>) -> Result<Hashed, StoreError>,
) -> Result<(InPlaceFile, Vec<u8>), StoreError> {
    let file = fs::File::open(path).map_err(failure("opening", path))?;
    let before = file.metadata().map_err(failure("reading", path))?;
    // A second change within one tick of the file system's clock would look like none.
    if before.modified().is_ok_and(|time| time.elapsed().is_ok_and(|age| age < CLOCK_TICK)) {
        std::thread::sleep(CLOCK_TICK);
    }
    let to_hash = FileToHash { file: &file, path, size: before.len(), is_stopped };
    let Hashed { blob, outboard, sha256 } = hash(&to_hash)?;
    let mut in_place = InPlaceFile::new(path.to_owned(), blob, &before);
    in_place.sha256 = sha256;
    if in_place.is_unchanged() { Ok((in_place, outboard)) } else { Err(StoreError::Changed(path.to_owned())) }
}

/// Reads a file to its end in parts of 1 MiB.
fn read_parts(
    file: &mut fs::File,
    path: &Path,
    mut take: impl FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut part = vec![0; PIECE_SIZE as usize];
    loop {
        match io::Read::read(file, &mut part) {
            Ok(0) => return Ok(()),
            Ok(length) => take(&part[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failure("reading", path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn store() -> (tempfile::TempDir, BlobStore) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = BlobStore::open(folder.path()).await.expect("a store");
        (folder, store)
    }

    #[tokio::test]
    async fn exported_file_is_a_copy() {
        let (folder, store) = store().await;
        let blob = store.import_bytes(b"a picture").await.expect("there is room");
        let path = folder.path().join("out.png");
        fs::write(&path, b"an older one").expect("own folder");
        store.export(blob.hash, &path).await.expect("there is room");
        assert_eq!(fs::read(&path).expect("own file"), b"a picture");
        fs::write(&path, b"painted over").expect("it may be written to");
        assert_eq!(store.read_all(blob.hash, 100).await.expect("it is whole"), b"a picture");
        let unknown = store.export(BlobHash([1; 32]), &path).await;
        assert!(matches!(unknown, Err(StoreError::Missing(_))), "{unknown:?}");
    }

    #[tokio::test]
    async fn changed_file_in_place_is_forgotten_and_never_written_to() {
        let (folder, store) = store().await;
        let path = folder.path().join("model.safetensors");
        fs::write(&path, vec![1; 50_000]).expect("own folder");
        let blob = store.import_in_place(&path).await.expect("it is a file");
        let store = BlobStore::open(folder.path()).await.expect("the store again");
        assert_eq!(store.path_of(blob.hash), Some(fs::canonicalize(&path).expect("it exists")));
        fs::write(&path, vec![2; 50_000]).expect("own folder");
        assert!(store.open_blob(blob.hash).await.expect("no error").is_none());
        assert!(!store.contains(blob.hash));

        let changed = store.import_in_place(&path).await.expect("it is a file");
        store.remove(changed.hash).await.expect("own folder");
        assert_eq!(fs::read(&path).expect("the file stays").len(), 50_000);
        let store = BlobStore::open(folder.path()).await.expect("the store again");
        assert_eq!(store.complete(), []);
    }
}
