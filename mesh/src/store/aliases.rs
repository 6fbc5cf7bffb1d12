//! Which blob has which SHA-256, as far as this process read the bytes itself: `DIR/aliases.json`.
//!
//! It stays true when the blob goes: whoever wants the file again then knows what to ask peers for. Not
//! here: what others say of it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use protocol::{Alias, BlobHash, BlobRef, Sha256};

use super::{BlobStore, StoreError, blocking, read_json, write_json};

const NAME: &str = "aliases.json";
/// How many are kept; of more, only those whose blobs are here.
const MAX_ALIASES: usize = 1 << 16;

/// The blobs by their SHA-256.
#[derive(Debug, Default, Clone)]
pub(super) struct Aliases {
    blobs: BTreeMap<Sha256, BlobRef>,
    by_hash: HashMap<BlobHash, Sha256>,
}

impl Aliases {
    pub(super) fn read(directory: &Path) -> Result<Self, StoreError> {
        let aliases: Vec<Alias> = read_json(directory, NAME)?;
        Ok(Self::of(aliases.into_iter().map(|alias| (alias.sha256, alias.blob)).collect()))
    }

    fn of(blobs: BTreeMap<Sha256, BlobRef>) -> Self {
        let by_hash = blobs.iter().map(|(sha256, blob)| (blob.hash, *sha256)).collect();
        Self { blobs, by_hash }
    }

    pub(super) fn get(&self, sha256: &Sha256) -> Option<BlobRef> {
        self.blobs.get(sha256).copied()
    }

    /// The same by the other name.
    pub(super) fn sha256_of(&self, hash: BlobHash) -> Option<Sha256> {
        self.by_hash.get(&hash).copied()
    }

    fn all(&self) -> impl Iterator<Item = Alias> {
        self.blobs.iter().map(|(sha256, blob)| Alias { sha256: *sha256, blob: *blob })
    }
}

impl BlobStore {
    /// The blob with this SHA-256, as far as this process ever read it whole; it need not be here any more.
    pub fn alias(&self, sha256: &Sha256) -> Option<BlobRef> {
        self.index().alias(sha256)
    }

    /// Both names of every whole blob here that other peers may have, as far as its SHA-256 is known.
    pub fn aliases(&self) -> Vec<Alias> {
        let index = self.index();
        let in_place = index.files().filter_map(|file| Some(Alias { sha256: file.sha256?, blob: file.blob }));
        let is_here = |alias: &Alias| {
            index.get(alias.blob.hash) == Some(alias.blob) && index.is_shared(alias.blob.hash)
        };
        let mut aliases: Vec<_> = index.aliases.all().chain(in_place).filter(is_here).collect();
        aliases.sort_by_key(|alias| alias.sha256);
        aliases.dedup_by_key(|alias| alias.sha256);
        aliases
    }

    /// The SHA-256 of a whole blob, read again for it unless it is known; both names are kept.
    pub async fn prove_sha256(&self, blob: BlobRef) -> Result<Sha256, StoreError> {
        let known = self.index().aliases.sha256_of(blob.hash);
        if let Some(sha256) = known {
            return Ok(sha256);
        }
        let sha256 = self.sha256(blob.hash).await?;
        let store = self.clone();
        blocking(move || store.add_alias(Alias { sha256, blob })).await?;
        Ok(sha256)
    }

    /// Keeps what was proven by reading the bytes. It blocks on the disk.
    pub(super) fn add_alias(&self, alias: Alias) -> Result<(), StoreError> {
        let mut index = self.index();
        if index.aliases.get(&alias.sha256) == Some(alias.blob) {
            return Ok(());
        }
        let mut blobs = index.aliases.blobs.clone();
        if blobs.len() >= MAX_ALIASES {
            blobs.retain(|_, blob| index.get(blob.hash).is_some());
        }
        blobs.insert(alias.sha256, alias.blob);
        let aliases = Aliases::of(blobs);
        write_json(&self.inner.directory, NAME, &aliases.all().collect::<Vec<_>>())?;
        index.aliases = aliases;
        drop(index);
        // Whoever waits for the file finds it by this name now.
        self.inner.begun.send_replace(());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn alias_survives_a_restart_and_its_blob() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = BlobStore::open(folder.path()).await.expect("a store");
        let blob = store.import_bytes(b"a model").await.expect("there is room");
        let alias = Alias { sha256: Sha256([7; 32]), blob };
        store.add_alias(alias).expect("there is room");
        let store = BlobStore::open(folder.path()).await.expect("the store again");
        assert_eq!(store.aliases(), [alias]);
        assert_eq!(store.with_sha256(&alias.sha256), Some(blob));
        assert_eq!(store.list()[0].sha256, Some(alias.sha256));
        store.remove(blob.hash).await.expect("own folder");
        assert_eq!((store.aliases(), store.with_sha256(&alias.sha256)), (vec![], None));
        assert_eq!(store.alias(&alias.sha256), Some(blob));
    }
}
