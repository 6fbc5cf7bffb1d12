//! The blobs of one process on its disk: what is whole, what is partial, and how bytes become either.
//!
//! ```text
//! DIR/blobs/ab/<hash>               a whole blob, never written again
//! DIR/blobs/ab/<hash>.outboard      its hash tree, where it has more than one group of 16 KiB
//! DIR/partial/<hash>.data           pieces that verified, at their places
//! DIR/partial/<hash>.outboard       the tree they were verified with
//! DIR/partial/<hash>.pieces         which pieces those are, one bit each
//! DIR/in-place.json                 blobs that are files elsewhere, with size and time of change
//! DIR/temporary/                    bytes whose hash is not known yet; emptied at each start
//! ```
//!
//! Bytes get a blob's name only after their hash matched, and after they are on the disk. A blob is
//! whole or known to be partial; the names in memory are those on the disk. Not here: which blobs are
//! worth keeping, and how they cross between peers.

mod draft;
mod files;
mod in_place;
mod partial;
mod pieces;
mod source;

pub use draft::BlobWriter;
pub use partial::PartialBlob;
pub use pieces::Pieces;
pub(crate) use source::Source;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use protocol::{BlobHash, BlobRef};
use tracing::warn;

use crate::store::draft::Draft;
use crate::store::files::read_parts;
use crate::store::in_place::{InPlaceFile, InPlaceIndex};
use crate::tree::{MAX_BLOB_SIZE, TreeHasher};

/// The blobs of one process. A clone is another handle to the same store.
#[derive(Clone, Debug)]
pub struct BlobStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    index: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    whole: HashMap<BlobHash, Held>,
    /// Partial blobs that somebody is filling.
    partial: HashMap<BlobHash, Weak<PartialBlob>>,
}

#[derive(Debug, Clone)]
struct Held {
    size: u64,
    /// The file elsewhere; `None` for one of the store's own.
    in_place: Option<InPlaceFile>,
}

/// Why the store cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refuses.
    #[error("{attempt} `{}` did not succeed", path.display())]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// More bytes came than the caller allows for.
    #[error("more than the {limit} bytes that are taken here")]
    TooLarge {
        /// How many are taken.
        limit: u64,
    },
    /// No such blob is whole here.
    #[error("blob `{0}` is not in the store")]
    Missing(BlobHash),
    /// A file changed while it was read.
    #[error("`{}` changed while it was read: try again when nothing writes to it", .0.display())]
    Changed(PathBuf),
    /// A write was cancelled half-way, so what was written is not known.
    #[error("an earlier write of this blob was cancelled, begin again")]
    Abandoned,
}

impl BlobStore {
    /// Opens the store in this folder, which is made if it is missing.
    pub async fn open(directory: impl AsRef<Path>) -> Result<Self, StoreError> {
        let directory = directory.as_ref().to_owned();
        blocking(move || Self::open_blocking(directory)).await
    }

    fn open_blocking(directory: PathBuf) -> Result<Self, StoreError> {
        let temporary = directory.join("temporary");
        match fs::remove_dir_all(&temporary) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::Io { attempt: "clearing", path: temporary, source });
            }
            _ => {}
        }
        for folder in [temporary, directory.join("partial"), directory.join("blobs")] {
            fs::create_dir_all(&folder).map_err(failure("creating", &folder))?;
        }
        let mut index = Index { whole: scan(&directory.join("blobs"))?, partial: HashMap::new() };
        for file in InPlaceIndex::read(&directory)? {
            if file.is_unchanged() {
                let held = Held { size: file.blob.size, in_place: Some(file.clone()) };
                index.whole.entry(file.blob.hash).or_insert(held);
            } else {
                warn!(path = %file.path.display(), "file in place has changed, no longer served");
            }
        }
        Ok(Self { inner: Arc::new(Inner { directory, index: Mutex::new(index) }) })
    }

    /// The blob's reference, if it is whole here.
    pub fn get(&self, hash: BlobHash) -> Option<BlobRef> {
        self.index().whole.get(&hash).map(|held| BlobRef { hash, size: held.size })
    }

    /// Whether the blob is whole here.
    pub fn contains(&self, hash: BlobHash) -> bool {
        self.index().whole.contains_key(&hash)
    }

    /// Every whole blob, in no order.
    pub fn complete(&self) -> Vec<BlobRef> {
        self.index().whole.iter().map(|(hash, held)| BlobRef { hash: *hash, size: held.size }).collect()
    }

    /// The file that holds a whole blob. Whoever opens it must not write to it.
    pub fn path_of(&self, hash: BlobHash) -> Option<PathBuf> {
        let index = self.index();
        let held = index.whole.get(&hash)?;
        Some(held.in_place.as_ref().map_or_else(|| self.blob_path(hash), |file| file.path.clone()))
    }

    /// Opens a whole blob for reading. A file in place that has changed is forgotten, never opened.
    pub async fn open_blob(&self, hash: BlobHash) -> Result<Option<(tokio::fs::File, BlobRef)>, StoreError> {
        let store = self.clone();
        let opened = blocking(move || store.open_whole(hash)).await?;
        Ok(opened.map(|(file, blob)| (tokio::fs::File::from_std(file), blob)))
    }

    /// The blob's reference, if it is whole here and its file neither went away nor changed.
    pub async fn check(&self, hash: BlobHash) -> Result<Option<BlobRef>, StoreError> {
        let store = self.clone();
        Ok(blocking(move || store.open_whole(hash)).await?.map(|(_, blob)| blob))
    }

    /// All bytes of a whole blob of at most `limit` bytes.
    pub async fn read_all(&self, hash: BlobHash, limit: u64) -> Result<Vec<u8>, StoreError> {
        let store = self.clone();
        blocking(move || {
            let (file, blob) = store.open_whole(hash)?.ok_or(StoreError::Missing(hash))?;
            if blob.size > limit {
                return Err(StoreError::TooLarge { limit });
            }
            let mut bytes = vec![0; blob.size as usize];
            file.read_exact_at(&mut bytes, 0).map_err(failure("reading", &store.blob_path(hash)))?;
            Ok(bytes)
        })
        .await
    }

    /// Stores these bytes.
    pub async fn import_bytes(&self, bytes: &[u8]) -> Result<BlobRef, StoreError> {
        let (store, bytes) = (self.clone(), bytes.to_vec());
        blocking(move || {
            let mut draft = Draft::new(&store, MAX_BLOB_SIZE)?;
            draft.write(&bytes)?;
            draft.finish(&store)
        })
        .await
    }

    /// A blob to be written bit by bit, of at most `limit` bytes; dropped unfinished, it leaves nothing.
    pub async fn writer(&self, limit: u64) -> Result<BlobWriter, StoreError> {
        BlobWriter::new(self.clone(), limit).await
    }

    /// What there is of a blob that is not whole yet, ready to take what is missing.
    pub async fn partial(&self, blob: BlobRef) -> Result<Arc<PartialBlob>, StoreError> {
        let store = self.clone();
        blocking(move || {
            let mut index = store.index();
            if let Some(partial) = index.partial.get(&blob.hash).and_then(Weak::upgrade)
                && partial.blob() == blob
            {
                return Ok(partial);
            }
            drop(index);
            let partial = Arc::new(PartialBlob::open(&store, blob)?);
            index = store.index();
            index.partial.retain(|_, partial| partial.strong_count() > 0);
            index.partial.insert(blob.hash, Arc::downgrade(&partial));
            Ok(partial)
        })
        .await
    }

    /// Forgets a blob, whole or partial. The file of a blob in place stays.
    pub async fn remove(&self, hash: BlobHash) -> Result<(), StoreError> {
        let store = self.clone();
        blocking(move || {
            let mut index = store.index();
            let held = index.whole.remove(&hash);
            index.partial.remove(&hash);
            if held.is_some_and(|held| held.in_place.is_some()) {
                store.save_in_place(&index)?;
            }
            let partial = ["data", "outboard", "pieces"].map(|part| store.partial_path(hash, part));
            let whole = [store.blob_path(hash), store.outboard_path(hash)];
            whole.iter().chain(&partial).try_for_each(|path| remove_file(path))
        })
        .await
    }

    /// Reads a whole blob again and forgets it unless its hash still matches; says whether it does.
    pub async fn verify(&self, hash: BlobHash) -> Result<bool, StoreError> {
        let store = self.clone();
        let verified = blocking(move || {
            let Some((mut file, blob)) = store.open_whole(hash)? else { return Ok(false) };
            let mut hasher = TreeHasher::default();
            read_parts(&mut file, &store.blob_path(hash), |part| {
                hasher.update(part);
                Ok(())
            })?;
            Ok(hasher.finish().0 == blob)
        })
        .await?;
        if !verified {
            self.remove(hash).await?;
        }
        Ok(verified)
    }

    fn open_whole(&self, hash: BlobHash) -> Result<Option<(fs::File, BlobRef)>, StoreError> {
        let Some(held) = self.index().whole.get(&hash).cloned() else { return Ok(None) };
        let path = held.in_place.as_ref().map_or_else(|| self.blob_path(hash), |file| file.path.clone());
        let file = match fs::File::open(&path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(StoreError::Io { attempt: "opening", path, source }),
            Ok(file) => {
                let metadata = file.metadata().map_err(failure("reading", &path))?;
                let unchanged = match &held.in_place {
                    Some(in_place) => in_place.matches(&metadata),
                    None => metadata.len() == held.size,
                };
                unchanged.then_some(file)
            }
        };
        if file.is_none() {
            warn!(path = %path.display(), blob = %hash.fmt_short(), "file has gone or changed, no longer served");
            self.index().whole.remove(&hash);
        }
        Ok(file.map(|file| (file, BlobRef { hash, size: held.size })))
    }

    fn add_whole(&self, blob: BlobRef) {
        let mut index = self.index();
        index.whole.insert(blob.hash, Held { size: blob.size, in_place: None });
        index.partial.remove(&blob.hash);
    }

    fn save_in_place(&self, index: &Index) -> Result<(), StoreError> {
        let files = index.whole.values().filter_map(|held| held.in_place.clone()).collect();
        InPlaceIndex::write(&self.inner.directory, files)
    }

    /// Writes an outboard under its final name; a blob of one group has none.
    fn save_outboard(&self, hash: BlobHash, outboard: &[u8]) -> Result<(), StoreError> {
        if outboard.is_empty() {
            return Ok(());
        }
        let path = self.outboard_path(hash);
        self.make_parent(&path)?;
        let file = tempfile::NamedTempFile::new_in(self.temporary()).map_err(failure("writing", &path))?;
        file.as_file().write_all_at(outboard, 0).map_err(failure("writing", &path))?;
        file.as_file().sync_all().map_err(failure("writing", &path))?;
        file.persist(&path).map_err(|error| failure("writing", &path)(error.error))?;
        Ok(())
    }

    fn make_parent(&self, path: &Path) -> Result<(), StoreError> {
        let folder = path.parent().expect("every blob's path has a folder");
        fs::create_dir_all(folder).map_err(failure("creating", folder))
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.inner.index.lock().expect("nothing panics while it holds the index")
    }

    fn blob_path(&self, hash: BlobHash) -> PathBuf {
        let name = hash.to_string();
        self.inner.directory.join("blobs").join(&name[..2]).join(name)
    }

    fn outboard_path(&self, hash: BlobHash) -> PathBuf {
        self.blob_path(hash).with_extension("outboard")
    }

    fn partial_path(&self, hash: BlobHash, part: &str) -> PathBuf {
        self.inner.directory.join("partial").join(format!("{hash}.{part}"))
    }

    fn temporary(&self) -> PathBuf {
        self.inner.directory.join("temporary")
    }
}

/// The whole blobs in a folder. Names that are no hashes are other things, such as outboards.
fn scan(folder: &Path) -> Result<HashMap<BlobHash, Held>, StoreError> {
    let mut whole = HashMap::new();
    for shelf in fs::read_dir(folder).map_err(failure("reading", folder))? {
        let shelf = shelf.map_err(failure("reading", folder))?.path();
        for entry in fs::read_dir(&shelf).map_err(failure("reading", &shelf))? {
            let entry = entry.map_err(failure("reading", &shelf))?;
            let Ok(hash) = entry.file_name().to_string_lossy().parse() else { continue };
            let size = entry.metadata().map_err(failure("reading", &entry.path()))?.len();
            whole.insert(hash, Held { size, in_place: None });
        }
    }
    Ok(whole)
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failure("removing", path)(error)),
        _ => Ok(()),
    }
}

fn failure(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Io { attempt, path, source }
}

/// Runs file work off the threads that drive the network.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(StoreError::Abandoned),
    }
}

#[cfg(test)]
mod tests;
