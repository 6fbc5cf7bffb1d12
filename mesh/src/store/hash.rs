//! Whole files hashed with all cores.
//!
//! The tree of a blob has leaves of 16 KiB that know nothing of each other, so each core takes the next
//! part of the file. A SHA-256 goes from the first byte to the last, on one core; the tree is then made
//! beside it on another. Not here: what becomes of the file.

use std::fs;
use std::io;
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;

use protocol::{BlobRef, GROUP_SIZE, PIECE_SIZE, Sha256};
use sha2::Digest;

use super::piece_buffer::PieceBuffer;
use super::{StoreError, failure};
use crate::tree::{Leaf, TreeHasher, leaves_of, outboard_of, piece_size};

/// The most threads that read one file: a disk gains nothing from more.
const MAX_THREADS: usize = 16;
/// How many pieces may lie between the SHA-256 and the tree.
const QUEUE: usize = 4;

/// What hashing a file gives.
pub(super) struct Hashed {
    pub(super) blob: BlobRef,
    pub(super) outboard: Vec<u8>,
    pub(super) sha256: Option<Sha256>,
}

/// A file of this size that is to be hashed.
pub(super) struct FileToHash<'a> {
    pub(super) file: &'a fs::File,
    pub(super) path: &'a Path,
    pub(super) size: u64,
    /// Asked between pieces.
    pub(super) is_stopped: &'a (dyn Fn() -> bool + Sync),
}

impl FileToHash<'_> {
    /// The blob, with all cores.
    pub(super) fn blob(&self) -> Result<Hashed, StoreError> {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let threads = (cores.min(MAX_THREADS) as u64).min(self.pieces()).max(1);
        if self.size <= GROUP_SIZE {
            return self.in_order(|_| {});
        }
        let next = AtomicU64::new(0);
        let work = || {
            let mut leaves: Vec<(u64, Vec<Leaf>)> = Vec::new();
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= self.pieces() {
                    return Ok(leaves);
                }
                let bytes = self.read(piece)?;
                leaves.push((piece, leaves_of(&bytes, piece).collect()));
            }
        };
        let parts = thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            let joined = others.into_iter().map(|other| other.join().expect("hashing does not panic"));
            std::iter::once(own).chain(joined).collect::<Result<Vec<_>, StoreError>>()
        })?;
        let mut leaves: Vec<(u64, Vec<Leaf>)> = parts.into_iter().flatten().collect();
        leaves.sort_unstable_by_key(|(piece, _)| *piece);
        let leaves: Vec<Leaf> = leaves.into_iter().flat_map(|(_, leaves)| leaves).collect();
        let (blob, outboard) = outboard_of(&leaves, self.size);
        Ok(Hashed { blob, outboard, sha256: None })
    }

    /// The blob and the SHA-256, on two cores.
    pub(super) fn blob_and_sha256(&self) -> Result<Hashed, StoreError> {
        let mut sha256 = sha2::Sha256::new();
        let mut hashed = self.in_order(|bytes| sha256.update(bytes))?;
        let digest = hex::encode(sha256.finalize());
        hashed.sha256 = Some(digest.parse().expect("64 hex digits are a SHA-256"));
        Ok(hashed)
    }

    /// The tree on a thread of its own, beside what `take` does with the bytes on this one.
    fn in_order(&self, mut take: impl FnMut(&[u8])) -> Result<Hashed, StoreError> {
        if self.pieces() <= 1 {
            let bytes = self.read(0)?;
            take(&bytes);
            let mut hasher = TreeHasher::default();
            hasher.update(&bytes);
            let (blob, outboard) = hasher.finish();
            return Ok(Hashed { blob, outboard, sha256: None });
        }
        thread::scope(|scope| {
            let (sender, receiver) = sync_channel::<PieceBuffer>(QUEUE);
            let tree = scope.spawn(move || {
                let mut hasher = TreeHasher::default();
                receiver.iter().for_each(|bytes| hasher.update(&bytes));
                hasher.finish()
            });
            let read = (0..self.pieces()).try_for_each(|piece| {
                let bytes = self.read(piece)?;
                take(&bytes);
                sender.send(bytes).expect("the tree is made until the last piece");
                Ok(())
            });
            drop(sender);
            let (blob, outboard) = tree.join().expect("hashing does not panic");
            read.map(|()| Hashed { blob, outboard, sha256: None })
        })
    }

    fn read(&self, piece: u64) -> Result<PieceBuffer, StoreError> {
        if (self.is_stopped)() {
            return Err(StoreError::Abandoned);
        }
        let mut bytes = PieceBuffer::new(piece_size(self.size, piece));
        match self.file.read_exact_at(&mut bytes, piece * PIECE_SIZE) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(StoreError::Changed(self.path.to_owned()))
            }
            Err(error) => Err(failure("reading", self.path)(error)),
        }
    }

    fn pieces(&self) -> u64 {
        self.size.div_ceil(PIECE_SIZE)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn all_ways_give_the_same_blob_outboard_and_sha256() {
        for size in [0, 1, GROUP_SIZE, GROUP_SIZE + 1, PIECE_SIZE, PIECE_SIZE + 1, 9 * PIECE_SIZE + 70_000] {
            let bytes: Vec<u8> = (0..size).map(|index| (index * 31 % 251) as u8).collect();
            let mut file = tempfile::NamedTempFile::new().expect("there is room");
            file.write_all(&bytes).expect("there is room");
            let path = file.path();
            let to_hash = FileToHash { file: file.as_file(), path, size, is_stopped: &|| false };
            let mut hasher = TreeHasher::default();
            hasher.update(&bytes);
            let (blob, outboard) = hasher.finish();
            let sha256 = hex::encode(sha2::Sha256::digest(&bytes));
            for hashed in [to_hash.blob(), to_hash.blob_and_sha256()] {
                let hashed = hashed.expect("the file can be read");
                assert_eq!(hashed.blob, blob, "{size}");
                assert_eq!(hashed.outboard, outboard, "{size}");
                assert!(hashed.sha256.is_none_or(|found| found.to_string() == sha256), "{size}");
            }
        }
    }

    #[test]
    fn stopped_and_shortened_files_give_no_blob() {
        let file = tempfile::NamedTempFile::new().expect("there is room");
        file.as_file().set_len(5 * PIECE_SIZE).expect("there is room");
        let path = file.path();
        let to_hash = |size, is_stopped| FileToHash { file: file.as_file(), path, size, is_stopped };
        for stopped in [to_hash(5 * PIECE_SIZE, &|| true).blob(), to_hash(1, &|| true).blob_and_sha256()] {
            assert!(matches!(stopped, Err(StoreError::Abandoned)));
        }
        for short in [
            to_hash(6 * PIECE_SIZE, &|| false).blob(),
            to_hash(5 * PIECE_SIZE + 1, &|| false).blob_and_sha256(),
        ] {
            assert!(matches!(short, Err(StoreError::Changed(_))));
        }
    }
}
