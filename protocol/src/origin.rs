//! Files that the rest of the world names: by SHA-256, and by the ranges in which they are read.
//!
//! A blob is named by its BLAKE3 hash; until somebody of the farm has read a whole file, only its SHA-256
//! and its size are known, and its pieces prove nothing by themselves. Not here: where it lies, which is
//! the lockfile's, and how it is read.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::blob::{BlobHash, BlobRef, PIECE_SIZE, ParseBlobHashError};
use crate::lockfile::{ParseTextError, Sha256};

/// What a SHA-256 is written with in front, where a hash may be of either kind.
const SHA256_PREFIX: &str = "sha256:";

/// A file as the world names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileRef {
    /// Its SHA-256.
    pub sha256: Sha256,
    /// How many bytes it has.
    pub size: u64,
}

impl FileRef {
    /// How many pieces it has: one at least, as a blob.
    pub fn pieces(&self) -> u64 {
        self.size.div_ceil(PIECE_SIZE).max(1)
    }
}

/// The two names of one file: as the world knows it, and as peers serve it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// Its SHA-256.
    pub sha256: Sha256,
    /// Its BLAKE3 hash and size.
    pub blob: BlobRef,
}

/// A name by which a blob is asked for: its BLAKE3 hash in hex, or `sha256:` and its SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BlobName {
    /// Its BLAKE3 hash.
    Blake3(BlobHash),
    /// Its SHA-256.
    Sha256(Sha256),
}

impl From<BlobHash> for BlobName {
    fn from(hash: BlobHash) -> Self {
        Self::Blake3(hash)
    }
}

impl From<Sha256> for BlobName {
    fn from(sha256: Sha256) -> Self {
        Self::Sha256(sha256)
    }
}

/// Why a text names no blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseBlobNameError {
    /// It is no BLAKE3 hash.
    #[error(transparent)]
    Blake3(#[from] ParseBlobHashError),
    /// What follows `sha256:` is no SHA-256.
    #[error(transparent)]
    Sha256(#[from] ParseTextError),
}

impl fmt::Display for BlobName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blake3(hash) => hash.fmt(f),
            Self::Sha256(sha256) => write!(f, "{SHA256_PREFIX}{sha256}"),
        }
    }
}

impl FromStr for BlobName {
    type Err = ParseBlobNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.strip_prefix(SHA256_PREFIX) {
            Some(sha256) => Self::Sha256(sha256.parse()?),
            None => Self::Blake3(text.parse()?),
        })
    }
}

/// Pieces that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PieceRange {
    /// The first piece.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl PieceRange {
    /// The pieces, if there are such among `pieces`; whoever takes a range from a peer asks this first.
    pub fn within(self, pieces: u64) -> Option<Range<u64>> {
        let end = self.first.checked_add(self.count)?;
        (self.count > 0 && end <= pieces).then_some(self.first..end)
    }
}

impl From<Range<u64>> for PieceRange {
    fn from(range: Range<u64>) -> Self {
        Self { first: range.start, count: range.end.saturating_sub(range.start) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_is_named_by_either_hash() {
        let hex = "ab".repeat(32);
        for text in [hex.clone(), format!("sha256:{hex}")] {
            assert_eq!(text.parse::<BlobName>().expect("a name").to_string(), text);
        }
        for wrong in ["", "sha256:", "sha256:ab", "md5:ab", &hex[1..]] {
            assert!(wrong.parse::<BlobName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranges_outside_the_file_are_refused() {
        let within = |first, count| PieceRange { first, count }.within(4);
        assert_eq!(within(0, 4), Some(0..4));
        assert_eq!(within(3, 1), Some(3..4));
        for (first, count) in [(0, 5), (4, 1), (0, 0), (u64::MAX, 1), (1, u64::MAX)] {
            assert_eq!(within(first, count), None, "{count} from {first}");
        }
    }
}
