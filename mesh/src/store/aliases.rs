//! Which blob has which SHA-256: `DIR/aliases.json`, as far as this process read the bytes itself, and
//! `DIR/vouched.json`, as far as it was told.
//!
//! Told means: by a publisher whom this node's owner trusts, in a signed lockfile that names both hashes of one
//! file (`fetch::OriginFile::trusted_blake3`). No peer's and no coordinator's word comes here. Such a name is
//! served and found, but it is no proof: the coordinator, who counts the word of those that read the bytes, is not
//! told of it, and whoever wants the file by its SHA-256 alone has it read once, which confirms or drops it.
//!
//! Both stay when the blob goes: whoever wants the file again then knows what to ask peers for. Not here: what
//! others say of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use protocol::{Alias, BlobHash, BlobRef, Sha256};
use tracing::debug;

use super::index::Index;
use super::{BlobStore, StoreError, blocking, read_json, write_json};

/// What was read.
const PROVEN: &str = "aliases.json";
/// What trusted publishers signed.
const VOUCHED: &str = "vouched.json";
/// How many are kept of each; of more, only those whose blobs are here.
const MAX_ALIASES: usize = 1 << 16;

/// The blobs by their SHA-256.
#[derive(Debug, Default, Clone)]
pub(super) struct Aliases {
    blobs: BTreeMap<Sha256, BlobRef>,
    by_hash: BTreeSet<(BlobHash, Sha256)>,
}

impl Aliases {
    /// What was proven.
    pub(super) fn read(directory: &Path) -> Result<Self, StoreError> {
        Self::read_from(directory, PROVEN)
    }

    /// What trusted publishers signed.
    pub(super) fn read_vouched(directory: &Path) -> Result<Self, StoreError> {
        Self::read_from(directory, VOUCHED)
    }

    fn read_from(directory: &Path, name: &str) -> Result<Self, StoreError> {
        let aliases: Vec<Alias> = read_json(directory, name)?;
        Ok(Self::of(aliases.into_iter().map(|alias| (alias.sha256, alias.blob)).collect()))
    }

    fn of(blobs: BTreeMap<Sha256, BlobRef>) -> Self {
        let by_hash = blobs.iter().map(|(sha256, blob)| (blob.hash, *sha256)).collect();
        Self { blobs, by_hash }
    }

    pub(super) fn get(&self, sha256: &Sha256) -> Option<BlobRef> {
        self.blobs.get(sha256).copied()
    }

    /// The same by the other name; of what was proven, there is one at most.
    pub(super) fn sha256_of(&self, hash: BlobHash) -> Option<Sha256> {
        self.all_sha256_of(hash).next()
    }

    /// Every SHA-256 that this blob is said to have.
    pub(super) fn all_sha256_of(&self, hash: BlobHash) -> impl Iterator<Item = Sha256> {
        let range = (hash, Sha256([0; 32]))..=(hash, Sha256([255; 32]));
        self.by_hash.range(range).map(|(_, sha256)| *sha256)
    }

    fn all(&self) -> impl Iterator<Item = Alias> {
        self.blobs.iter().map(|(sha256, blob)| Alias { sha256: *sha256, blob: *blob })
    }

    /// With one more, on the disk too.
    fn with(&self, alias: Alias, index: &Index, directory: &Path, name: &str) -> Result<Self, StoreError> {
        let mut blobs = self.blobs.clone();
        if blobs.len() >= MAX_ALIASES {
            blobs.retain(|_, blob| index.get(blob.hash).is_some());
        }
        blobs.insert(alias.sha256, alias.blob);
        let aliases = Self::of(blobs);
        write_json(directory, name, &aliases.all().collect::<Vec<_>>())?;
        Ok(aliases)
    }
}

impl BlobStore {
    /// The blob with this SHA-256, as far as this process ever read it whole; it need not be here any more.
    pub fn alias(&self, sha256: &Sha256) -> Option<BlobRef> {
        self.index().alias(sha256)
    }

    /// The blob with this SHA-256: proven, or else as a trusted publisher signed. It need not be here.
    pub fn named(&self, sha256: &Sha256) -> Option<BlobRef> {
        self.index().named(sha256)
    }

    /// Both names of every whole blob here that other peers may have, as far as its SHA-256 was proven.
    pub fn aliases(&self) -> Vec<Alias> {
        let index = self.index();
        let in_place = index.files().filter_map(|file| Some(Alias { sha256: file.sha256?, blob: file.blob }));
        shared(&index, index.aliases.all().chain(in_place))
    }

    /// The same, as far as only a trusted publisher's signature says so.
    pub fn vouched(&self) -> Vec<Alias> {
        let index = self.index();
        let is_only_signed = |alias: &Alias| {
            index.alias(&alias.sha256).is_none() && index.named(&alias.sha256) == Some(alias.blob)
        };
        shared(&index, index.vouched.all().filter(is_only_signed))
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

    /// The blob with this SHA-256 if it is whole here; where only a signature says so, it is read for that.
    pub(crate) async fn proven(&self, sha256: &Sha256) -> Result<Option<BlobRef>, StoreError> {
        let Some(blob) = self.named(sha256) else { return Ok(None) };
        if self.check(blob.hash).await? != Some(blob) {
            return Ok(None);
        }
        let is_proven = self.alias(sha256).is_some() || self.prove_sha256(blob).await? == *sha256;
        Ok(is_proven.then_some(blob))
    }

    /// Keeps what was proven by reading the bytes. It blocks on the disk.
    pub(super) fn add_alias(&self, alias: Alias) -> Result<(), StoreError> {
        let mut index = self.index();
        if index.aliases.get(&alias.sha256) == Some(alias.blob) {
            return Ok(());
        }
        index.aliases = index.aliases.with(alias, &index, &self.inner.directory, PROVEN)?;
        drop(index);
        // Whoever waits for the file finds it by this name now.
        self.inner.begun.send_replace(());
        Ok(())
    }

    /// Keeps what a trusted publisher signed, unless it is known otherwise. The caller answers for the trust: it
    /// checked the signature, and that this node's owner trusts whose it is.
    pub(crate) async fn vouch(&self, alias: Alias) -> Result<(), StoreError> {
        let store = self.clone();
        blocking(move || store.add_vouched(alias)).await
    }

    /// The same. It blocks on the disk.
    pub(super) fn add_vouched(&self, alias: Alias) -> Result<(), StoreError> {
        let mut index = self.index();
        if index.named(&alias.sha256) == Some(alias.blob) {
            return Ok(());
        }
        if index.contradicts(&alias) {
            debug!(sha256 = %alias.sha256, blob = %alias.blob.hash.fmt_short(), "publisher is wrong about a file");
            return Ok(());
        }
        index.vouched = index.vouched.with(alias, &index, &self.inner.directory, VOUCHED)?;
        drop(index);
        self.inner.begun.send_replace(());
        Ok(())
    }
}

/// Those of blobs that are here and that other peers may have, each SHA-256 once.
fn shared(index: &Index, aliases: impl Iterator<Item = Alias>) -> Vec<Alias> {
    let is_here =
        |alias: &Alias| index.get(alias.blob.hash) == Some(alias.blob) && index.is_shared(alias.blob.hash);
    let mut aliases: Vec<_> = aliases.filter(is_here).collect();
    aliases.sort_by_key(|alias| alias.sha256);
    aliases.dedup_by_key(|alias| alias.sha256);
    aliases
}

#[cfg(test)]
mod tests {
    use sha2::Digest;

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

    #[tokio::test]
    async fn name_that_a_trusted_publisher_signed_is_kept_until_reading_the_bytes_says_otherwise() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = BlobStore::open(folder.path()).await.expect("a store");
        let blob = store.import_bytes(b"a model").await.expect("there is room");
        let right = Sha256(sha2::Sha256::digest(b"a model").into());
        let wrong = Sha256([7; 32]);
        for sha256 in [right, wrong] {
            store.vouch(Alias { sha256, blob }).await.expect("there is room");
        }
        let store = BlobStore::open(folder.path()).await.expect("the store again");
        assert_eq!(store.vouched().len(), 2);
        for sha256 in [right, wrong] {
            assert_eq!((store.named(&sha256), store.alias(&sha256)), (Some(blob), None));
            assert_eq!(store.find_offered(&sha256.into()), Some(blob));
        }
        assert_eq!((store.aliases(), store.find_shared(&right.into())), (vec![], None), "nobody has read it");

        assert_eq!(store.proven(&wrong).await.expect("it can be read"), None);
        assert_eq!(store.proven(&right).await.expect("it can be read"), Some(blob));
        assert_eq!(store.aliases(), [Alias { sha256: right, blob }]);
        assert_eq!((store.named(&wrong), store.vouched()), (None, vec![]));
        store.vouch(Alias { sha256: wrong, blob }).await.expect("it is passed over");
        assert_eq!(store.named(&wrong), None);
        let store = BlobStore::open(folder.path()).await.expect("the store again");
        assert_eq!((store.named(&wrong), store.named(&right)), (None, Some(blob)));
    }
}
