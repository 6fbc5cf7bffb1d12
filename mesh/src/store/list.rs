//! What the store tells people of its blobs.
//!
//! Not here: how it is shown.

use std::path::PathBuf;

use protocol::{BlobHash, BlobName, BlobRef, Sha256};
use serde::{Deserialize, Serialize};

use super::BlobStore;
use super::in_place::InPlaceFile;
use super::index::Index;

/// A whole blob, as people ask about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobEntry {
    /// Its hash.
    pub hash: BlobHash,
    /// How many bytes it is.
    pub size: u64,
    /// Whether it is never evicted.
    pub pinned: bool,
    /// Whether other peers may have it.
    pub shared: bool,
    /// The files elsewhere that it is; they are neither counted nor evicted.
    pub in_place: Vec<PathBuf>,
    /// Its SHA-256, where it is known.
    pub sha256: Option<Sha256>,
}

impl BlobStore {
    /// Every whole blob with what is known of it, by hash.
    pub fn list(&self) -> Vec<BlobEntry> {
        let index = self.index();
        let entry = |BlobRef { hash, size }| BlobEntry {
            hash,
            size,
            pinned: index.marks.is_pinned(hash),
            shared: index.is_shared(hash),
            in_place: index.files_of(hash).map(|file| file.path.clone()).collect(),
            sha256: index.files_of(hash).find_map(|file| file.sha256).or(index.aliases.sha256_of(hash)),
        };
        let mut entries: Vec<_> = index.complete().map(entry).collect();
        entries.sort_by_key(|entry| entry.hash);
        entries
    }

    /// The whole blob of this name, if other peers may have it; of a SHA-256, only one that was proven.
    pub fn find_shared(&self, name: &BlobName) -> Option<BlobRef> {
        self.find(name, Index::alias)
    }

    /// The same, also where only a trusted publisher's signature ties the SHA-256 to it: for whoever proves it.
    pub(crate) fn find_offered(&self, name: &BlobName) -> Option<BlobRef> {
        self.find(name, Index::named)
    }

    fn find(&self, name: &BlobName, named: fn(&Index, &Sha256) -> Option<BlobRef>) -> Option<BlobRef> {
        let index = self.index();
        let blob = match name {
            BlobName::Blake3(hash) => index.get(*hash)?,
            BlobName::Sha256(sha256) => named(&index, sha256)?,
        };
        (index.get(blob.hash) == Some(blob) && index.is_shared(blob.hash)).then_some(blob)
    }

    /// The whole blobs of this size that lie elsewhere under such a name, as `vae/tiny.safetensors`; each once.
    pub fn in_place_as(&self, name: &str, size: u64) -> Vec<BlobRef> {
        let index = self.index();
        let is_it =
            |file: &&InPlaceFile| file.blob.size == size && file.path.ends_with(name) && file.is_unchanged();
        let mut blobs: Vec<BlobRef> = index.files().filter(is_it).map(|file| file.blob).collect();
        blobs.sort_by_key(|blob| blob.hash);
        blobs.dedup();
        blobs
    }

    /// The whole blob with this SHA-256, as far as the SHA-256 of what is here is known.
    pub fn with_sha256(&self, sha256: &Sha256) -> Option<BlobRef> {
        let index = self.index();
        index.alias(sha256).filter(|blob| index.get(blob.hash) == Some(*blob))
    }
}
