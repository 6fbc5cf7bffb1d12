//! A file that is read from its beginning while it still comes.
//!
//! What only its SHA-256 names is read ahead where it came from where the file is published: whoever reads it proves
//! the whole, as with any download. What a peer gave of such a file is read once the whole is proven. Not here: having
//! it come.

use std::path::PathBuf;

use protocol::{Alias, BlobName, BlobRef, FileRef, PIECE_SIZE, Sha256};
use sha2::Digest;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::task::AbortOnDropHandle;

use super::{BlobStore, Source, StoreError, blocking, failure};
use crate::tree::piece_size;

/// A file that may not be whole yet, and the next piece to be read of it.
pub struct GrowingFile {
    store: BlobStore,
    size: u64,
    /// Under which name it may be read while nobody knows the blob.
    file: Option<FileRef>,
    blob: Option<BlobRef>,
    source: Option<Source>,
    piece: u64,
}

impl BlobStore {
    /// Reads a file, as the blob that it is said to be or under its SHA-256, also before anything of it is here.
    pub fn read_growing(&self, file: FileRef, blob: Option<BlobRef>) -> GrowingFile {
        GrowingFile { store: self.clone(), size: file.size, file: Some(file), blob, source: None, piece: 0 }
    }

    /// Computes the SHA-256 of a blob while it comes; it ends with whoever waits for it.
    pub(crate) fn sha256_beside(&self, blob: BlobRef) -> Sha256Beside {
        let reader = GrowingFile {
            store: self.clone(),
            size: blob.size,
            file: None,
            blob: Some(blob),
            source: None,
            piece: 0,
        };
        Sha256Beside(AbortOnDropHandle::new(tokio::spawn(sha256_of(reader))))
    }

    /// The SHA-256 that was computed beside a blob that is whole now, unless that goes before; both names are kept.
    pub(crate) async fn prove_beside(
        &self,
        blob: BlobRef,
        beside: Sha256Beside,
    ) -> Result<Sha256, StoreError> {
        let (mut computing, mut changes) = (beside.0, self.changes());
        let sha256 = loop {
            if !self.contains(blob.hash) {
                return Err(StoreError::Missing(blob.hash));
            }
            tokio::select! {
                computed = &mut computing => break computed.map_err(|_| StoreError::Abandoned)??,
                // Its sender lives as long as the store.
                _ = changes.changed() => {}
            }
        };
        let store = self.clone();
        blocking(move || store.add_alias(Alias { sha256, blob })).await?;
        Ok(sha256)
    }
}

/// The SHA-256 of a blob, on its way.
pub(crate) struct Sha256Beside(AbortOnDropHandle<Result<Sha256, StoreError>>);

/// Each piece is hashed where threads may take their time, while others come.
async fn sha256_of(mut reader: GrowingFile) -> Result<Sha256, StoreError> {
    let mut hasher = sha2::Sha256::new();
    while let Some(bytes) = reader.next().await? {
        let hashed = spawn_blocking(move || {
            hasher.update(&bytes);
            hasher
        });
        hasher = hashed.await.map_err(|_| StoreError::Abandoned)?;
    }
    Ok(Sha256(hasher.finalize().into()))
}

impl GrowingFile {
    /// The next piece, `None` after the last one. It waits until that is here: for ever, where nobody fetches it.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        if self.piece * PIECE_SIZE >= self.size {
            return Ok(None);
        }
        let source = self.holder().await?;
        let mut bytes = Vec::new();
        let length = piece_size(self.size, self.piece);
        let read = source.read(self.piece * PIECE_SIZE, 0..length, &mut bytes).await;
        read.map_err(|error| failure("reading", &self.path())(error))?;
        self.source = Some(source);
        self.piece += 1;
        Ok(Some(bytes))
    }

    /// Where it lies while it comes, for people.
    fn path(&self) -> PathBuf {
        let by_hash = self.blob.map(|blob| BlobName::from(blob.hash));
        let name = by_hash.or(self.file.map(|file| file.sha256.into()));
        name.map_or_else(PathBuf::new, |name| self.store.partial_path(name, "data"))
    }

    /// Where the next piece is, once it is anywhere.
    async fn holder(&mut self) -> Result<Source, StoreError> {
        let has = |source: &Source| match source {
            Source::Unproven(unproven) => unproven.is_from_origin(self.piece),
            Source::Whole { .. } | Source::Partial(_) => source.has(self.piece),
        };
        if let Some(source) = self.source.take().filter(has) {
            return Ok(source);
        }
        loop {
            let mut begun = self.store.inner.begun.subscribe();
            let by_hash = match self.blob {
                Some(blob) => self.store.own_source(blob).await?,
                None => None,
            };
            let by_file = match self.file {
                Some(file) => self.store.own_file_source(file).await?,
                None => None,
            };
            let growth = |source: &Option<Source>| source.as_ref().and_then(Source::growth);
            let (hash_growth, file_growth) = (growth(&by_hash), growth(&by_file));
            if let Some(source) = [&by_hash, &by_file].into_iter().flatten().find(|source| has(source)) {
                return Ok(source.clone());
            }
            tokio::select! {
                _ = begun.changed() => {}
                () = changed(hash_growth) => {}
                () = changed(file_growth) => {}
            }
        }
    }
}

async fn changed(growth: Option<watch::Receiver<()>>) {
    match growth {
        // It ends with its file, of which there is nothing new then.
        Some(mut growth) => drop(growth.changed().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use protocol::BlobHash;

    use super::*;
    use crate::store::Giver;

    async fn store() -> (tempfile::TempDir, BlobStore) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = BlobStore::open(folder.path()).await.expect("a store");
        (folder, store)
    }

    fn file_of(bytes: &[u8]) -> FileRef {
        let sha256 = Sha256(sha2::Sha256::digest(bytes).into());
        FileRef { sha256, size: bytes.len() as u64 }
    }

    #[tokio::test]
    async fn file_is_read_as_it_comes_and_also_once_it_is_whole() {
        let (_folder, store) = store().await;
        let bytes: Vec<u8> = (0..2 * PIECE_SIZE + 5).map(|index| (index * 31 % 251) as u8).collect();
        let file = file_of(&bytes);
        let blob = BlobRef { hash: BlobHash::of(&bytes), size: file.size };
        let reader = store.read_growing(file, Some(blob));
        let reading = tokio::spawn(read_all(reader));
        tokio::task::yield_now().await;
        let unproven = store.unproven(file).await.expect("there is room");
        unproven.hash_beside();
        // The last piece first: it has to wait for its turn.
        for piece in [2, 0, 1] {
            let from = (piece * PIECE_SIZE) as usize;
            let part = &bytes[from..bytes.len().min(from + PIECE_SIZE as usize)];
            assert!(unproven.write_piece(piece, part, Giver::Origin).expect("there is room"));
        }
        assert!(reading.await.expect("it ends") == bytes, "other bytes were read");
        let proof = unproven.prove().await.expect("all pieces are there");
        unproven.keep(proof).await.expect("there is room");
        for blob in [Some(blob), None] {
            assert!(read_all(store.read_growing(file, blob)).await == bytes, "other bytes were read");
        }
    }

    #[tokio::test]
    async fn what_a_peer_gave_of_an_unproven_file_is_read_once_that_is_proven() {
        let (_folder, store) = store().await;
        let bytes = vec![7; PIECE_SIZE as usize + 5];
        let file = file_of(&bytes);
        let unproven = store.unproven(file).await.expect("there is room");
        let (first, last) = bytes.split_at(PIECE_SIZE as usize);
        let peer = Giver::Peer(protocol::PeerId([9; 32]));
        assert!(unproven.write_piece(0, first, peer).expect("there is room"));
        assert!(unproven.write_piece(1, last, Giver::Origin).expect("there is room"));
        let mut reader = store.read_growing(file, None);
        let ahead = tokio::time::timeout(std::time::Duration::from_millis(50), reader.next()).await;
        assert!(ahead.is_err(), "it was read before the proof");
        let reading = tokio::spawn(read_all(reader));
        let proof = unproven.prove().await.expect("all pieces are there");
        unproven.keep(proof).await.expect("there is room");
        assert!(reading.await.expect("it ends") == bytes, "other bytes were read");
    }

    #[tokio::test]
    async fn file_that_came_as_a_blob_is_read_when_its_sha256_is_known() {
        let (_folder, store) = store().await;
        let bytes = vec![7; PIECE_SIZE as usize + 5];
        let file = file_of(&bytes);
        let blob = store.import_bytes(&bytes).await.expect("there is room");
        let reading = tokio::spawn(read_all(store.read_growing(file, None)));
        tokio::task::yield_now().await;
        assert_eq!(store.prove_sha256(blob).await.expect("it can be read"), file.sha256);
        assert!(reading.await.expect("it ends") == bytes, "other bytes were read");
    }

    #[tokio::test]
    async fn sha256_is_computed_beside_a_blob_that_nobody_else_may_read() {
        let (_folder, store) = store().await;
        let bytes: Vec<u8> = (0..2 * PIECE_SIZE + 5).map(|index| (index * 31 % 251) as u8).collect();
        let (file, blob) = (file_of(&bytes), BlobRef::of(&bytes));
        let beside = store.sha256_beside(blob);
        tokio::task::yield_now().await;
        store.keep_private(vec![blob.hash.into()]).await.expect("there is room");
        store.import_bytes(&bytes).await.expect("there is room");
        assert_eq!(store.prove_beside(blob, beside).await.expect("it can be read"), file.sha256);
        assert_eq!(store.with_sha256(&file.sha256), Some(blob));
    }

    #[tokio::test]
    async fn sha256_of_a_blob_that_goes_before_it_was_read_is_not_waited_for() {
        let (_folder, store) = store().await;
        let blob = store.import_bytes(&vec![7; 2 * PIECE_SIZE as usize]).await.expect("there is room");
        store.remove(blob.hash).await.expect("own folder");
        let beside = store.sha256_beside(blob);
        tokio::task::yield_now().await;
        let proven = store.prove_beside(blob, beside).await;
        assert!(matches!(proven, Err(StoreError::Missing(hash)) if hash == blob.hash), "{proven:?}");

        // It is whole at first, and goes while nothing more is read of it.
        store.import_bytes(&vec![7; 2 * PIECE_SIZE as usize]).await.expect("there is room");
        let endless = Sha256Beside(AbortOnDropHandle::new(tokio::spawn(std::future::pending())));
        let (proven, removed) = tokio::join!(store.prove_beside(blob, endless), store.remove(blob.hash));
        removed.expect("own folder");
        assert!(matches!(proven, Err(StoreError::Missing(hash)) if hash == blob.hash), "{proven:?}");
    }

    async fn read_all(mut reader: GrowingFile) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next().await.expect("it can be read") {
            bytes.extend(piece);
        }
        bytes
    }
}
