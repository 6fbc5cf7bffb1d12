//! Why the store cannot do what was asked.
//!
//! Not here: what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use protocol::BlobHash;

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
    /// The disk has less room than is needed, before the first byte or in the middle.
    #[error("{wanted} bytes are wanted and {free} are free in `{}`: make room and try again", folder.display())]
    NoRoom {
        /// How many bytes are to be written.
        wanted: u64,
        /// How many can be.
        free: u64,
        /// Where.
        folder: PathBuf,
    },
    /// The disk takes no writes, whatever room it has.
    #[error("`{}` is read-only: {wanted} bytes are wanted and {free} are free: have it take writes, or use another folder", folder.display())]
    ReadOnly {
        /// How many bytes are to be written.
        wanted: u64,
        /// How many there would be room for.
        free: u64,
        /// Where.
        folder: PathBuf,
    },
    /// All that may be evicted does not win enough.
    #[error("{wanted} bytes are wanted, and of the quota of {quota} bytes {used} are used in `{}`: raise the quota or unpin something", folder.display())]
    OverQuota {
        /// How many bytes are to be written.
        wanted: u64,
        /// How many the store may take.
        quota: u64,
        /// How many it takes.
        used: u64,
        /// Where.
        folder: PathBuf,
    },
    /// A file changed while it was read.
    #[error("`{}` changed while it was read: try again when nothing writes to it", .0.display())]
    Changed(PathBuf),
    /// A write or a hash was cancelled half-way.
    #[error("earlier work on this blob was cancelled, begin again")]
    Abandoned,
}

/// The error of this attempt on this file.
pub(super) fn failure(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Io { attempt, path, source }
}
