//! A blob while it is written: a temporary file, hashed as it grows, named at its end.
//!
//! Not here: bytes whose hash is known beforehand; those arrive in a `PartialBlob`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use protocol::{BlobRef, PIECE_SIZE};
use tempfile::NamedTempFile;

use super::{BlobStore, StoreError, blocking, failure};
use crate::tree::{MAX_BLOB_SIZE, TreeHasher};

/// Writes one blob; dropped before `finish`, it leaves nothing behind.
pub struct BlobWriter {
    store: BlobStore,
    /// `None` while a write is under way, and after one was cancelled.
    draft: Option<Draft>,
    buffer: Vec<u8>,
}

impl BlobWriter {
    pub(super) async fn new(store: BlobStore, limit: u64) -> Result<Self, StoreError> {
        let handle = store.clone();
        let draft = blocking(move || Draft::new(&handle, limit.min(MAX_BLOB_SIZE))).await?;
        Ok(Self { store, draft: Some(draft), buffer: Vec::new() })
    }

    /// Takes the next bytes.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let draft = self.draft.as_ref().ok_or(StoreError::Abandoned)?;
        draft.check_room((self.buffer.len() + bytes.len()) as u64)?;
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() as u64 >= PIECE_SIZE {
            self.flush().await?;
        }
        Ok(())
    }

    /// Gives the blob its name once it is on the disk.
    pub async fn finish(mut self) -> Result<BlobRef, StoreError> {
        self.flush().await?;
        let draft = self.draft.take().ok_or(StoreError::Abandoned)?;
        blocking(move || draft.finish(&self.store)).await
    }

    async fn flush(&mut self) -> Result<(), StoreError> {
        let mut draft = self.draft.take().ok_or(StoreError::Abandoned)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let store = self.store.clone();
        let (draft, buffer) = blocking(move || {
            draft.write(&store, &buffer)?;
            buffer.clear();
            Ok((draft, buffer))
        })
        .await?;
        self.draft = Some(draft);
        self.buffer = buffer;
        Ok(())
    }
}

/// The temporary file and what is known of it.
pub(super) struct Draft {
    file: NamedTempFile,
    hasher: TreeHasher,
    written: u64,
    limit: u64,
}

impl Draft {
    pub(super) fn new(store: &BlobStore, limit: u64) -> Result<Self, StoreError> {
        let folder = store.temporary();
        let file = NamedTempFile::new_in(&folder).map_err(failure("creating a file in", &folder))?;
        Ok(Self { file, hasher: TreeHasher::default(), written: 0, limit })
    }

    fn check_room(&self, more: u64) -> Result<(), StoreError> {
        match self.written.checked_add(more) {
            Some(size) if size <= self.limit => Ok(()),
            _ => Err(StoreError::TooLarge { limit: self.limit }),
        }
    }

    pub(super) fn write(&mut self, store: &BlobStore, bytes: &[u8]) -> Result<(), StoreError> {
        self.check_room(bytes.len() as u64)?;
        let room = store.make_room(bytes.len() as u64)?;
        let written = self.file.write_all(bytes);
        written.map_err(|error| store.write_failure(bytes.len() as u64, self.file.path(), error))?;
        drop(room);
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn finish(self, store: &BlobStore) -> Result<BlobRef, StoreError> {
        let (blob, outboard) = self.hasher.finish();
        // Looked at on the disk, where somebody may have removed it.
        if store.open_whole(blob.hash)?.is_some() {
            return Ok(blob);
        }
        let path = store.blob_path(blob.hash);
        store.make_parent(&path)?;
        store.save_outboard(blob.hash, &outboard)?;
        let file = self.file.as_file();
        file.set_permissions(fs::Permissions::from_mode(0o444)).map_err(failure("writing", &path))?;
        file.sync_all().map_err(failure("writing", &path))?;
        self.file.persist(&path).map_err(|error| failure("writing", &path)(error.error))?;
        sync_folder(&path)?;
        store.add_whole(blob);
        Ok(blob)
    }
}

/// Makes the names in a file's folder durable.
pub(super) fn sync_folder(path: &std::path::Path) -> Result<(), StoreError> {
    let folder = path.parent().expect("every blob's path has a folder");
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failure("writing", folder))
}
