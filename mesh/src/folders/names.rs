//! What files are called by, both their names, for whoever only wants to know.
//!
//! Not here: serving them. A file whose names are asked for here does not become a blob.

use std::collections::HashMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use protocol::{BlobRef, PIECE_SIZE, Sha256, error_chain};
use tracing::warn;

use super::IndexProgress;
use crate::store::{InPlaceFile, InPlaceIndex, StoreError, hash_model};

/// After how many bytes that were read the names are kept: so much is read again after a crash.
const BATCH: u64 = 256 << 20;

/// The two names of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileNames {
    /// Its BLAKE3 hash and size.
    pub blob: BlobRef,
    /// Its SHA-256.
    pub sha256: Sha256,
}

/// What files were called by when they were last looked at where they lie.
#[derive(Debug, Default)]
pub struct KnownNames {
    files: HashMap<PathBuf, InPlaceFile>,
    /// Where the names of what is read are kept.
    kept_in: Option<PathBuf>,
    /// What was read and is not kept yet.
    fresh: Mutex<Fresh>,
}

#[derive(Debug, Default)]
struct Fresh {
    files: Vec<InPlaceFile>,
    bytes: u64,
}

impl KnownNames {
    /// Those that the store in this folder has; none where there is no store.
    pub fn read(store: &Path) -> Result<Self, StoreError> {
        let files = InPlaceIndex::read(store)?;
        Ok(Self { files: by_path(files), ..Self::default() })
    }

    /// Those and what is kept in this folder, where the names of whatever is read from now on are kept too.
    pub fn kept_in(mut self, folder: PathBuf) -> Self {
        // What cannot be read there is found out anew.
        let mut files = by_path(InPlaceIndex::read(&folder).unwrap_or_default());
        files.extend(self.files);
        self.files = files;
        self.kept_in = Some(folder);
        self
    }

    /// Keeps the names of a file with the next batch, or with this one where much was read for it.
    fn keep(&self, file: &InPlaceFile) {
        let Ok(path) = std::fs::canonicalize(&file.path) else { return };
        let mut fresh = self.fresh();
        fresh.bytes += file.blob.size;
        let mut file = file.clone();
        file.path = path;
        fresh.files.push(file);
        if fresh.bytes >= BATCH {
            self.write(&mut fresh);
        }
    }

    /// Keeps what no batch has yet.
    fn keep_rest(&self) {
        let mut fresh = self.fresh();
        if !fresh.files.is_empty() {
            self.write(&mut fresh);
        }
    }

    fn fresh(&self) -> MutexGuard<'_, Fresh> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes these names with those of all other files that are still what they were. Nothing but time is lost where
    /// that does not succeed.
    fn write(&self, fresh: &mut Fresh) {
        let fresh = std::mem::take(fresh).files;
        let Some(folder) = &self.kept_in else { return };
        let mut files = by_path(InPlaceIndex::read(folder).unwrap_or_default());
        files.retain(|_, file| file.is_unchanged());
        files.extend(by_path(fresh));
        let mut files: Vec<&InPlaceFile> = files.values().collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        if let Err(error) = InPlaceIndex::keep(folder, &files) {
            warn!(folder = %folder.display(), error = %error_chain(&error), "names of hashed files could not be kept");
        }
    }

    /// The names of a file that is still what it was.
    fn of(&self, path: &Path) -> Option<FileNames> {
        let path = std::fs::canonicalize(path).ok()?;
        let file = self.files.get(&path)?;
        let is_unchanged = std::fs::metadata(&path).is_ok_and(|metadata| file.matches(&metadata));
        file.sha256.filter(|_| is_unchanged).map(|sha256| FileNames { blob: file.blob, sha256 })
    }
}

fn by_path(files: Vec<InPlaceFile>) -> HashMap<PathBuf, InPlaceFile> {
    files.into_iter().map(|file| (file.path.clone(), file)).collect()
}

/// The names of these files, in their order; those that are not known are read, with all cores. `tell` hears
/// after each piece how far it is.
pub fn names_of(
    paths: &[PathBuf],
    known: &KnownNames,
    tell: &(dyn Fn(IndexProgress) + Sync),
) -> Result<Vec<FileNames>, StoreError> {
    let names: Vec<Option<FileNames>> = paths.iter().map(|path| known.of(path)).collect();
    let unknown = paths.iter().zip(&names).filter(|(_, names)| names.is_none()).map(|(path, _)| path);
    let mut read = read(&unknown.collect::<Vec<_>>(), known, tell)?.into_iter();
    Ok(names.into_iter().filter_map(|names| names.or_else(|| read.next())).collect())
}

fn read(
    paths: &[&PathBuf],
    known: &KnownNames,
    tell: &(dyn Fn(IndexProgress) + Sync),
) -> Result<Vec<FileNames>, StoreError> {
    let sizes = paths.iter().map(|path| std::fs::metadata(path).map_or(0, |metadata| metadata.len()));
    let (total, done, next) = (sizes.sum(), AtomicU64::new(0), AtomicUsize::new(0));
    // It is asked before each piece whether to stop, and so knows of each piece.
    let never = || {
        let done = done.fetch_add(PIECE_SIZE, Ordering::Relaxed);
        tell(IndexProgress { done: done.min(total), total });
        false
    };
    let work = || {
        let mut named = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(path) = paths.get(index) else { return Ok(named) };
            let (file, _) = hash_model(path, &never)?;
            known.keep(&file);
            let sha256 = file.sha256.expect("a model is hashed under both names");
            named.push((index, FileNames { blob: file.blob, sha256 }));
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get).min(paths.len());
    let named = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(|worker| worker.join().expect("hashing does not panic"));
        joined.collect::<Result<Vec<_>, StoreError>>()
    });
    // Also where a file cannot be read: the others need not be read again.
    known.keep_rest();
    let mut named = named?.concat();
    named.sort_unstable_by_key(|(index, _)| *index);
    Ok(named.into_iter().map(|(_, names)| names).collect())
}

#[cfg(test)]
mod tests {
    use sha2::Digest;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::folders::index;
    use crate::store::BlobStore;

    #[test]
    fn files_are_named_in_their_order_and_every_byte_is_told() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let contents = [vec![1; 3], vec![2; 3 * PIECE_SIZE as usize + 5], Vec::new()];
        let paths: Vec<PathBuf> =
            (0..contents.len()).map(|index| folder.path().join(index.to_string())).collect();
        paths
            .iter()
            .zip(&contents)
            .for_each(|(path, bytes)| std::fs::write(path, bytes).expect("own folder"));
        let told = Mutex::new(Vec::new());
        let none = KnownNames::default();
        let names = names_of(&paths, &none, &|progress| told.lock().expect("no panic").push(progress));
        let expected = contents.iter().map(|bytes| FileNames {
            blob: BlobRef::of(bytes),
            sha256: Sha256(sha2::Sha256::digest(bytes).into()),
        });
        assert_eq!(names.expect("they can be read"), expected.collect::<Vec<_>>());
        let told = told.into_inner().expect("no panic");
        assert!(told.iter().all(|told| told.total == 3 * PIECE_SIZE + 8 && told.done <= told.total));
        assert!(told.iter().any(|told| told.done >= 3 * PIECE_SIZE));
        assert!(names_of(&[folder.path().join("none")], &none, &|_| {}).is_err());
    }

    #[tokio::test]
    async fn file_that_a_store_knows_is_read_again_only_where_it_changed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (data, path) = (folder.path().join("data"), folder.path().join("x.safetensors"));
        std::fs::write(&path, b"a model").expect("own folder");
        let store = BlobStore::open(&data).await.expect("a store");
        index(&store, &path, CancellationToken::new(), |_| {}).await.expect("indexed");
        let known = KnownNames::read(&data).expect("it can be read");
        let names = |known: &KnownNames| {
            let told = AtomicU64::new(0);
            let names = names_of(std::slice::from_ref(&path), known, &|_| {
                told.fetch_add(1, Ordering::Relaxed);
            });
            (names.expect("it can be read")[0], told.into_inner())
        };
        let (first, read) = names(&known);
        assert_eq!((first.blob, read), (BlobRef::of(b"a model"), 0));
        assert_eq!(names(&KnownNames::read(&folder.path().join("none")).expect("there is none")), (first, 1));
        std::fs::write(&path, b"another").expect("own folder");
        assert_eq!(names(&known).0.blob, BlobRef::of(b"another"));
    }

    #[test]
    fn what_was_read_once_is_kept_for_the_next_time_while_it_is_the_same_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (kept, path) = (folder.path().join("cache/hashed"), folder.path().join("x.safetensors"));
        std::fs::write(&path, b"a model").expect("own folder");
        let names = || {
            let told = AtomicU64::new(0);
            let known = KnownNames::default().kept_in(kept.clone());
            let names = names_of(std::slice::from_ref(&path), &known, &|_| {
                told.fetch_add(1, Ordering::Relaxed);
            });
            (names.expect("it can be read")[0], told.into_inner())
        };
        let (first, read) = names();
        assert_eq!((first.blob, read), (BlobRef::of(b"a model"), 1));
        assert_eq!(names(), (first, 0));
        std::fs::write(&path, b"another").expect("own folder");
        assert_eq!((names().0.blob, names().1), (BlobRef::of(b"another"), 0));
        std::fs::write(kept.join("in-place.json"), b"{").expect("own folder");
        assert_eq!((names().1, names().1), (1, 0), "what cannot be read there is written anew");
    }

    #[test]
    fn names_of_many_small_files_are_kept_at_once_also_where_another_file_cannot_be_read() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let kept = folder.path().join("cache");
        let mut paths: Vec<PathBuf> =
            (0..20).map(|index| folder.path().join(format!("{index}.safetensors"))).collect();
        paths
            .iter()
            .for_each(|path| std::fs::write(path, path.as_os_str().as_encoded_bytes()).expect("own folder"));
        paths.push(folder.path().join("none.safetensors"));
        let known = KnownNames::default().kept_in(kept.clone());
        let refused = names_of(&paths, &known, &|_| assert!(!kept.exists(), "written for each file"));
        assert!(refused.is_err());
        let missing = paths.pop().expect("it was pushed");
        assert!(!missing.exists());
        let known = KnownNames::default().kept_in(kept);
        names_of(&paths, &known, &|_| panic!("all of them are known")).expect("they are");
    }
}
