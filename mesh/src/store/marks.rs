//! What people decided about blobs: which ones are pinned and which are private, in `DIR/pins.json`.
//!
//! Not here: blobs that are held only while somebody works with them; that is `room`.

use std::collections::BTreeSet;
use std::path::Path;

use protocol::{BlobHash, BlobName, Sha256};
use serde::{Deserialize, Serialize};

use super::{StoreError, read_json, write_json};

const NAME: &str = "pins.json";

/// The blobs about which something was decided, also those that are not here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Marks {
    /// Never evicted.
    pinned: BTreeSet<BlobHash>,
    /// Never served to other peers, nor named to them.
    #[serde(default)]
    private: BTreeSet<BlobHash>,
    /// The same for files that only a SHA-256 names yet.
    #[serde(default)]
    private_files: BTreeSet<Sha256>,
}

impl Marks {
    pub(super) fn read(directory: &Path) -> Result<Self, StoreError> {
        read_json(directory, NAME)
    }

    pub(super) fn write(&self, directory: &Path) -> Result<(), StoreError> {
        write_json(directory, NAME, self)
    }

    pub(super) fn is_pinned(&self, hash: BlobHash) -> bool {
        self.pinned.contains(&hash)
    }

    /// The pinned blobs, also those that are not here.
    pub(super) fn pinned(&self) -> impl Iterator<Item = BlobHash> {
        self.pinned.iter().copied()
    }

    /// Pins or unpins; says whether that changes anything.
    pub(super) fn set_pinned(&mut self, hash: BlobHash, pinned: bool) -> bool {
        if pinned { self.pinned.insert(hash) } else { self.pinned.remove(&hash) }
    }

    pub(super) fn is_private(&self, name: BlobName) -> bool {
        match name {
            BlobName::Blake3(hash) => self.private.contains(&hash),
            BlobName::Sha256(sha256) => self.private_files.contains(&sha256),
        }
    }

    /// Makes it private for ever; says whether that changes anything.
    pub(super) fn set_private(&mut self, name: BlobName) -> bool {
        match name {
            BlobName::Blake3(hash) => self.private.insert(hash),
            BlobName::Sha256(sha256) => self.private_files.insert(sha256),
        }
    }
}
