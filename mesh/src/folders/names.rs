//! What files are called by, both their names, for whoever only wants to know.
//!
//! Not here: serving them. A file whose names are asked for here does not become a blob.

use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use protocol::{BlobRef, PIECE_SIZE, Sha256};

use super::IndexProgress;
use crate::store::{StoreError, hash_model};

/// The two names of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileNames {
    /// Its BLAKE3 hash and size.
    pub blob: BlobRef,
    /// Its SHA-256.
    pub sha256: Sha256,
}

/// The names of these files, in their order; all cores read. `tell` hears after each piece how far it is.
pub fn names_of(
    paths: &[PathBuf],
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
            let sha256 = file.sha256.expect("a model is hashed under both names");
            named.push((index, FileNames { blob: file.blob, sha256 }));
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get).min(paths.len());
    let mut named = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(|worker| worker.join().expect("hashing does not panic"));
        joined.collect::<Result<Vec<_>, StoreError>>()
    })?
    .concat();
    named.sort_unstable_by_key(|(index, _)| *index);
    Ok(named.into_iter().map(|(_, names)| names).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use sha2::Digest;

    use super::*;

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
        let names = names_of(&paths, &|progress| told.lock().expect("no panic").push(progress));
        let expected = contents.iter().map(|bytes| FileNames {
            blob: BlobRef::of(bytes),
            sha256: Sha256(sha2::Sha256::digest(bytes).into()),
        });
        assert_eq!(names.expect("they can be read"), expected.collect::<Vec<_>>());
        let told = told.into_inner().expect("no panic");
        assert!(told.iter().all(|told| told.total == 3 * PIECE_SIZE + 8 && told.done <= told.total));
        assert!(told.iter().any(|told| told.done >= 3 * PIECE_SIZE));
        assert!(names_of(&[folder.path().join("none")], &|_| {}).is_err());
    }
}
