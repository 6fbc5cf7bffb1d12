//! A blob: immutable bytes named by their BLAKE3 hash, and the pieces and groups it moves in.
//!
//! Not here: where blobs lie and how they cross; that is the mesh's store and planes.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::serde_as_text;

/// The unit of scheduling and resuming: 1 MiB.
pub const PIECE_SIZE: u64 = 1 << 20;
/// The unit of verification: 16 KiB, BLAKE3 chunk groups of 2^4 chunks.
pub const GROUP_SIZE: u64 = 16 << 10;

/// The BLAKE3 hash of a blob, written as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobHash(pub [u8; 32]);

impl BlobHash {
    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Ten characters for logs.
    pub fn fmt_short(&self) -> String {
        hex::encode(&self.0[..5])
    }
}

impl fmt::Display for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for BlobHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a BLAKE3 hash: 64 hex digits")]
pub struct ParseBlobHashError(String);

impl FromStr for BlobHash {
    type Err = ParseBlobHashError;

    fn from_str(text: &str) -> Result<Self, ParseBlobHashError> {
        let mut bytes = [0; 32];
        let shown = || ParseBlobHashError(text.chars().take(80).collect());
        hex::decode_to_slice(text, &mut bytes).map_err(|_| shown())?;
        Ok(Self(bytes))
    }
}

serde_as_text!(BlobHash);

/// A blob's name together with its size in bytes: every reference carries both, so that a receiver
/// can bound what it takes before the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// The BLAKE3 hash of the bytes.
    pub hash: BlobHash,
    /// How many bytes they are.
    pub size: u64,
}

impl BlobRef {
    /// The reference to these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self { hash: BlobHash::of(bytes), size: bytes.len() as u64 }
    }

    /// The reference to all bytes that a reader gives.
    pub fn of_reader(reader: impl Read) -> io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(reader)?;
        Ok(Self { hash: BlobHash(*hasher.finalize().as_bytes()), size: hasher.count() })
    }

    /// How many pieces it moves in; an empty blob has none.
    pub fn pieces(&self) -> u64 {
        self.size.div_ceil(PIECE_SIZE)
    }
}
