//! The blobs of one process on its disk: what is whole, what is partial, and how bytes become either.
//!
//! ```text
//! DIR/blobs/ab/<hash>               a whole blob, never written again
//! DIR/blobs/ab/<hash>.outboard      its hash tree, where it has more than one group of 16 KiB
//! DIR/partial/<hash>.data           pieces that verified, at their places
//! DIR/partial/<hash>.outboard       the tree they were verified with
//! DIR/partial/<hash>.pieces         which pieces those are, one bit each
//! DIR/partial/sha256-<hash>.data    a file that only its SHA-256 names, while it is put together
//! DIR/partial/sha256-<hash>.pieces  what its pieces are, 32 bytes each
//! DIR/partial/sha256-<hash>.outboard  the hash tree of the blob whose bytes it goes on with, if it does
//! DIR/in-place.json                 blobs that are files elsewhere, with size and time of change
//! DIR/pins.json                     blobs that are never evicted
//! DIR/aliases.json                  which blob has which SHA-256, as it was read
//! DIR/vouched.json                  the same, as trusted publishers signed
//! DIR/temporary/                    bytes whose hash is not known yet; emptied at each start
//! ```
//!
//! Bytes get a blob's name only after their hash matched, and after they are on the disk. A blob is
//! whole or known to be partial; the names in memory are those on the disk. When a blob was last used is
//! the time of change of its file. Not here: how blobs cross between peers.

mod aliases;
mod byte_size;
mod cached;
mod error;
mod index;
mod draft;
mod export;
mod export_beside;
mod files;
mod followed;
mod growing;
mod hash;
mod hand_over;
mod hand_over_folder;
mod in_place;
mod list;
mod marks;
mod other_name;
mod partial;
mod piece_buffer;
mod pieces;
mod room;
mod small;
mod source;
mod unproven;

pub use byte_size::{ByteSize, ParseByteSizeError};
pub use draft::BlobWriter;
pub use error::StoreError;
pub(crate) use export_beside::ExportBeside;
pub(crate) use files::hash_model;
pub use growing::GrowingFile;
pub(crate) use growing::Sha256Beside;
pub(crate) use in_place::{InPlaceFile, InPlaceIndex};
pub use list::BlobEntry;
pub use partial::PartialBlob;
pub use pieces::Pieces;
pub use room::{BlobHold, Collected, free_bytes};
pub(crate) use source::Source;
pub use unproven::{Giver, Proof, UnprovenFile};

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::SystemTime;

use protocol::{BlobHash, BlobName, BlobRef, PIECE_SIZE};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::store::aliases::Aliases;
use crate::store::draft::Draft;
use crate::store::error::failure;
use crate::store::hash::FileToHash;
use crate::store::index::Index;
use crate::store::marks::Marks;
use crate::tree::MAX_BLOB_SIZE;

/// How the name of a file in `partial` begins that only a SHA-256 names.
const SHA256_STEM: &str = "sha256-";

/// The blobs of one process. A clone is another handle to the same store.
#[derive(Clone, Debug)]
pub struct BlobStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    index: Mutex<Index>,
    /// Held while room is made and taken.
    room: Mutex<()>,
    /// Counts what went away, what came in place or is large, and pins: small blobs are heard of otherwise.
    changes: watch::Sender<u64>,
    /// Changes whenever a blob or a file begins to come, or is whole.
    begun: watch::Sender<()>,
    /// Folders whose files are blobs in place, as long as they are there.
    followed: watch::Sender<BTreeSet<PathBuf>>,
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
        let mut index = Index::default();
        index.marks = Marks::read(&directory)?;
        index.aliases = Aliases::read(&directory)?;
        index.vouched = Aliases::read_vouched(&directory)?;
        scan(&directory.join("blobs"), &mut index)?;
        for file in InPlaceIndex::read(&directory)? {
            if file.is_unchanged() {
                index.add_file(file);
            } else {
                warn!(path = %file.path.display(), "file in place has changed, no longer served");
            }
        }
        let followed = watch::Sender::new(read_json(&directory, followed::NAME)?);
        let (index, room, changes) = (Mutex::new(index), Mutex::default(), watch::Sender::new(0));
        let begun = watch::Sender::new(());
        Ok(Self { inner: Arc::new(Inner { directory, index, room, changes, begun, followed }) })
    }

    /// The blob's reference, if it is whole here.
    pub fn get(&self, hash: BlobHash) -> Option<BlobRef> {
        self.index().get(hash)
    }

    /// Whether the blob is whole here.
    pub fn contains(&self, hash: BlobHash) -> bool {
        self.get(hash).is_some()
    }

    /// Every whole blob, in no order.
    pub fn complete(&self) -> Vec<BlobRef> {
        self.index().complete().collect()
    }

    /// Changes whenever blobs went away, came in place, are new and have a MiB or more, or were pinned or unpinned.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// The file that holds a whole blob. Whoever opens it must not write to it.
    pub fn path_of(&self, hash: BlobHash) -> Option<PathBuf> {
        let index = self.index();
        match index.own(hash) {
            Some(_) => Some(self.blob_path(hash)),
            None => index.files_of(hash).next().map(|file| file.path.clone()),
        }
    }

    /// Opens a whole blob for reading. A file in place that has changed is forgotten, never opened.
    pub async fn open_blob(&self, hash: BlobHash) -> Result<Option<(tokio::fs::File, BlobRef)>, StoreError> {
        let store = self.clone();
        let opened = blocking(move || store.use_whole(hash)).await?;
        Ok(opened.map(|(file, blob)| (tokio::fs::File::from_std(file), blob)))
    }

    /// The blob's reference, if it is whole here and its file neither went away nor changed.
    pub async fn check(&self, hash: BlobHash) -> Result<Option<BlobRef>, StoreError> {
        let store = self.clone();
        Ok(blocking(move || store.use_whole(hash)).await?.map(|(_, blob)| blob))
    }

    /// All bytes of a whole blob of at most `limit` bytes.
    pub async fn read_all(&self, hash: BlobHash, limit: u64) -> Result<Vec<u8>, StoreError> {
        let store = self.clone();
        blocking(move || {
            let (file, blob) = store.use_whole(hash)?.ok_or(StoreError::Missing(hash))?;
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
            draft.write(&store, &bytes)?;
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
            let known = store.index().partial.get(&blob.hash).and_then(Weak::upgrade);
            if let Some(partial) = known.filter(|partial| partial.blob() == blob) {
                return Ok(partial);
            }
            let partial = Arc::new(PartialBlob::open(&store, blob)?);
            // Asked for again when it is taken; here nothing has crossed yet.
            drop(store.make_room(partial.bytes_to_reserve()?)?);
            let mut index = store.index();
            index.partial.retain(|_, partial| partial.strong_count() > 0);
            index.partial.insert(blob.hash, Arc::downgrade(&partial));
            store.inner.begun.send_replace(());
            Ok(partial)
        })
        .await
    }

    /// Forgets a blob, whole or partial. The file of a blob in place stays.
    pub async fn remove(&self, hash: BlobHash) -> Result<(), StoreError> {
        let store = self.clone();
        blocking(move || {
            let mut index = store.index();
            let was_whole = index.get(hash).is_some();
            index.remove_own(hash);
            index.partial.remove(&hash);
            let files: Vec<_> = index.files_of(hash).map(|file| file.path.clone()).collect();
            if !files.is_empty() {
                for path in &files {
                    index.remove_file(path);
                }
                store.save_in_place(&index)?;
            }
            if was_whole {
                store.tell_change();
            }
            let partial = ["data", "outboard", "pieces"].map(|part| store.partial_path(hash, part));
            let whole = [store.blob_path(hash), store.outboard_path(hash)];
            whole.iter().chain(&partial).try_for_each(|path| remove_file(path))
        })
        .await
    }

    /// Reads a whole blob again and forgets it unless its hash still matches; says whether it does. A hash tree that
    /// does not belong to it is written anew.
    pub async fn verify(&self, hash: BlobHash) -> Result<bool, StoreError> {
        let store = self.clone();
        let verified = blocking(move || {
            let Some((file, blob)) = store.open_whole(hash)? else { return Ok(false) };
            let path = store.blob_path(hash);
            let to_hash = FileToHash { file: &file, path: &path, size: blob.size, is_stopped: &|| false };
            match to_hash.blob() {
                Ok(hashed) if hashed.blob == blob => {
                    store.mend_outboard(hash, &hashed.outboard).map(|()| true)
                }
                Ok(_) => Ok(false),
                Err(StoreError::Changed(_)) => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await?;
        if !verified {
            self.remove(hash).await?;
        }
        Ok(verified)
    }

    /// Writes an outboard anew that is not what it is to be.
    fn mend_outboard(&self, hash: BlobHash, outboard: &[u8]) -> Result<(), StoreError> {
        let path = self.outboard_path(hash);
        if outboard.is_empty() || fs::read(&path).is_ok_and(|kept| kept == outboard) {
            return Ok(());
        }
        warn!(path = %path.display(), "hash tree of a good blob was missing or damaged, and is written anew");
        self.save_outboard(hash, outboard)
    }

    /// Opens a whole blob, which counts as a use of it.
    fn use_whole(&self, hash: BlobHash) -> Result<Option<(fs::File, BlobRef)>, StoreError> {
        let opened = self.open_whole(hash)?;
        if let Some((file, _)) = opened.as_ref().filter(|_| self.index().own(hash).is_some()) {
            let now = SystemTime::now();
            self.index().touch(hash, now);
            if let Err(error) = file.set_modified(now) {
                debug!(%error, blob = %hash.fmt_short(), "use of a blob is not remembered after a restart");
            }
        }
        Ok(opened)
    }

    /// Opens the store's own file or the first file in place that is unchanged; forgets the others.
    fn open_whole(&self, hash: BlobHash) -> Result<Option<(fs::File, BlobRef)>, StoreError> {
        let own = self.index().own(hash);
        if let Some(own) = own {
            let matches = |metadata: &fs::Metadata| metadata.len() == own.size;
            if let Some(file) = open_matching(&self.blob_path(hash), matches)? {
                return Ok(Some((file, BlobRef { hash, size: own.size })));
            }
            self.index().remove_own(hash);
            self.tell_change();
        }
        let files: Vec<InPlaceFile> = self.index().files_of(hash).cloned().collect();
        for in_place in files {
            if let Some(file) = open_matching(&in_place.path, |metadata| in_place.matches(metadata))? {
                return Ok(Some((file, in_place.blob)));
            }
            self.index().remove_file(&in_place.path);
            self.tell_change();
        }
        Ok(None)
    }

    fn add_whole(&self, blob: BlobRef) {
        self.index().add_own(blob, SystemTime::now());
        self.inner.begun.send_replace(());
        if blob.size >= PIECE_SIZE {
            self.tell_change();
        }
    }

    fn tell_change(&self) {
        self.inner.changes.send_modify(|count| *count += 1);
    }

    fn save_in_place(&self, index: &Index) -> Result<(), StoreError> {
        InPlaceIndex::write(&self.inner.directory, &index.files().collect::<Vec<_>>())
    }

    /// Writes an outboard under its final name; a blob of one group has none.
    fn save_outboard(&self, hash: BlobHash, outboard: &[u8]) -> Result<(), StoreError> {
        if outboard.is_empty() {
            return Ok(());
        }
        let path = self.outboard_path(hash);
        self.make_parent(&path)?;
        let full = |error| self.write_failure(outboard.len() as u64, &path, error);
        let file = tempfile::NamedTempFile::new_in(self.temporary()).map_err(full)?;
        file.as_file().write_all_at(outboard, 0).map_err(full)?;
        file.as_file().sync_all().map_err(full)?;
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

    fn partial_path(&self, name: impl Into<BlobName>, part: &str) -> PathBuf {
        let name = match name.into() {
            BlobName::Blake3(hash) => format!("{hash}.{part}"),
            BlobName::Sha256(sha256) => format!("{SHA256_STEM}{sha256}.{part}"),
        };
        self.inner.directory.join("partial").join(name)
    }

    fn temporary(&self) -> PathBuf {
        self.inner.directory.join("temporary")
    }
}

/// Finds the whole blobs in a folder. Names that are no hashes are other things, such as outboards.
fn scan(folder: &Path, index: &mut Index) -> Result<(), StoreError> {
    for shelf in fs::read_dir(folder).map_err(failure("reading", folder))? {
        let shelf = shelf.map_err(failure("reading", folder))?.path();
        for entry in fs::read_dir(&shelf).map_err(failure("reading", &shelf))? {
            let entry = entry.map_err(failure("reading", &shelf))?;
            let Ok(hash) = entry.file_name().to_string_lossy().parse() else { continue };
            let metadata = entry.metadata().map_err(failure("reading", &entry.path()))?;
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            index.add_own(BlobRef { hash, size: metadata.len() }, used);
        }
    }
    Ok(())
}

/// Opens a file if it is there and is still what it was.
fn open_matching(
    path: &Path,
    matches: impl FnOnce(&fs::Metadata) -> bool,
) -> Result<Option<fs::File>, StoreError> {
    let file = match fs::File::open(path) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(StoreError::Io { attempt: "opening", path: path.to_owned(), source }),
        Ok(file) => Some(file),
    };
    let metadata = file.as_ref().map(fs::File::metadata).transpose().map_err(failure("reading", path))?;
    if metadata.is_some_and(|metadata| matches(&metadata)) {
        return Ok(file);
    }
    warn!(path = %path.display(), "file has gone or changed, no longer served");
    Ok(None)
}

/// Replaces a file of the store as a whole.
/// What was written with [`write_json`]; the default, where nothing was.
fn read_json<T: DeserializeOwned + Default>(directory: &Path, name: &str) -> Result<T, StoreError> {
    let path = directory.join(name);
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(failure("reading", &path)(error)),
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failure("reading", &path)(error.into())),
    }
}

fn write_json(directory: &Path, name: &str, value: &(impl Serialize + ?Sized)) -> Result<(), StoreError> {
    let path = directory.join(name);
    let file = tempfile::NamedTempFile::new_in(directory.join("temporary"));
    let file = file.map_err(failure("writing", &path))?;
    let mut writer = io::BufWriter::new(file.as_file());
    serde_json::to_writer_pretty(&mut writer, value)
        .map_err(|error| failure("writing", &path)(error.into()))?;
    io::Write::flush(&mut writer).map_err(failure("writing", &path))?;
    drop(writer);
    file.as_file().sync_all().map_err(failure("writing", &path))?;
    file.persist(&path).map_err(|error| failure("writing", &path)(error.error))?;
    Ok(())
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failure("removing", path)(error)),
        _ => Ok(()),
    }
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
