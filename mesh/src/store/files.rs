//! Files that become blobs, copied or where they lie, and blobs that become files.
//!
//! Not here: how a change of a file in place is noticed; that is `in_place`.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use protocol::{BlobHash, BlobRef, PIECE_SIZE};

use super::draft::Draft;
use super::in_place::InPlaceFile;
use super::{BlobStore, Held, StoreError, blocking, failure};
use crate::tree::{MAX_BLOB_SIZE, TreeHasher};

/// The coarsest clock of the file systems that models lie on.
const CLOCK_TICK: Duration = Duration::from_millis(20);

impl BlobStore {
    /// Stores a copy of this file.
    pub async fn import_file(&self, path: impl AsRef<Path>) -> Result<BlobRef, StoreError> {
        let (store, path) = (self.clone(), path.as_ref().to_owned());
        blocking(move || {
            let mut file = fs::File::open(&path).map_err(failure("opening", &path))?;
            let mut draft = Draft::new(&store, MAX_BLOB_SIZE)?;
            read_parts(&mut file, &path, |part| draft.write(part))?;
            draft.finish(&store)
        })
        .await
    }

    /// Makes this file a blob where it lies. It is never written to, and no longer served once it changed.
    pub async fn import_in_place(&self, path: impl AsRef<Path>) -> Result<BlobRef, StoreError> {
        let (store, path) = (self.clone(), path.as_ref().to_owned());
        blocking(move || {
            let path = fs::canonicalize(&path).map_err(failure("finding", &path))?;
            let mut file = fs::File::open(&path).map_err(failure("opening", &path))?;
            let before = file.metadata().map_err(failure("reading", &path))?;
            // A second change within one tick of the file system's clock would look like none.
            if before.modified().is_ok_and(|time| time.elapsed().is_ok_and(|age| age < CLOCK_TICK)) {
                std::thread::sleep(CLOCK_TICK);
            }
            let mut hasher = TreeHasher::default();
            read_parts(&mut file, &path, |part| {
                hasher.update(part);
                Ok(())
            })?;
            let (blob, outboard) = hasher.finish();
            let in_place = InPlaceFile::new(path.clone(), blob, &before);
            if !in_place.is_unchanged() {
                return Err(StoreError::Changed(path));
            }
            store.save_outboard(blob.hash, &outboard)?;
            let mut index = store.index();
            let held = Held { size: blob.size, in_place: Some(in_place) };
            index.whole.entry(blob.hash).or_insert(held);
            store.save_in_place(&index)?;
            Ok(blob)
        })
        .await
    }

    /// Writes a whole blob to this path, by way of a temporary file beside it. It is a copy (a cheap one
    /// where the file system can), so that whoever changes it does not change the blob.
    pub async fn export(&self, hash: BlobHash, destination: impl AsRef<Path>) -> Result<(), StoreError> {
        let (store, destination) = (self.clone(), destination.as_ref().to_owned());
        blocking(move || {
            let (mut file, _) = store.open_whole(hash)?.ok_or(StoreError::Missing(hash))?;
            let folder = destination.parent().filter(|folder| !folder.as_os_str().is_empty());
            let mut temporary = tempfile::Builder::new()
                .prefix(".comfy-farm-")
                .permissions(PermissionsExt::from_mode(0o644))
                .tempfile_in(folder.unwrap_or(Path::new(".")))
                .map_err(failure("writing beside", &destination))?;
            io::copy(&mut file, temporary.as_file_mut()).map_err(failure("writing", &destination))?;
            temporary.persist(&destination).map_err(|error| failure("writing", &destination)(error.error))?;
            Ok(())
        })
        .await
    }
}

/// Reads a file to its end in parts of 1 MiB.
pub(super) fn read_parts(
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
