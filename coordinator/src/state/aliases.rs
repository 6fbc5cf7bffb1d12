//! Which blob has which SHA-256, as nodes that read the files told it.
//!
//! One node's word is a hint: most of those who told decide, and whoever fetches the blob proves it. Not
//! here: what deployed lockfiles say, which is the catalog's and counts for more.

use std::collections::{BTreeMap, HashMap};

use protocol::{Alias, BlobRef, PeerId, Sha256};

/// The most aliases that are remembered of one node.
const MAX_TOLD: usize = 16_384;
/// The most nodes whose word on one file is remembered.
const MAX_TELLERS: usize = 16;

/// What nodes told.
#[derive(Debug, Default)]
pub(crate) struct Aliases {
    told: HashMap<Sha256, BTreeMap<PeerId, BlobRef>>,
    /// How many of them each node told.
    tellers: HashMap<PeerId, usize>,
}

impl Aliases {
    /// Takes in what a node told; its later word replaces an earlier one.
    pub(crate) fn tell(&mut self, peer: PeerId, aliases: &[Alias]) {
        let count = self.tellers.entry(peer).or_default();
        for alias in aliases {
            if let Some(told) = self.told.get_mut(&alias.sha256).and_then(|told| told.get_mut(&peer)) {
                *told = alias.blob;
                continue;
            }
            if *count >= MAX_TOLD {
                continue;
            }
            let told = self.told.entry(alias.sha256).or_default();
            if told.len() < MAX_TELLERS {
                told.insert(peer, alias.blob);
                *count += 1;
            }
        }
        if *count == 0 {
            self.tellers.remove(&peer);
        }
    }

    /// The blob that most nodes name.
    pub(crate) fn get(&self, sha256: Sha256) -> Option<BlobRef> {
        most_named(self.told.get(&sha256)?.values().copied())
    }

    /// The SHA-256 of a blob, if a node told one that most agree on.
    pub(crate) fn sha256_of(&self, blob: BlobRef) -> Option<Sha256> {
        let names_it = |told: &BTreeMap<PeerId, BlobRef>| told.values().any(|named| *named == blob);
        let named = self.told.iter().filter(|(_, told)| names_it(told)).map(|(sha256, _)| *sha256);
        named.filter(|sha256| self.get(*sha256) == Some(blob)).min()
    }

    /// Forgets what a node told.
    pub(crate) fn forget(&mut self, peer: PeerId) {
        if self.tellers.remove(&peer).is_none() {
            return;
        }
        self.told.retain(|_, told| {
            told.remove(&peer);
            !told.is_empty()
        });
    }
}

/// What is named most often; of several, the least, so that the answer is always the same.
pub(crate) fn most_named<T: Ord>(named: impl Iterator<Item = T>) -> Option<T> {
    let mut times: BTreeMap<T, usize> = BTreeMap::new();
    named.for_each(|name| *times.entry(name).or_default() += 1);
    times.into_iter().rev().max_by_key(|(_, times)| *times).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(seed: u8) -> PeerId {
        PeerId([seed; 32])
    }

    fn sha256(number: u32) -> Sha256 {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        Sha256(bytes)
    }

    fn alias(number: u32, bytes: &[u8]) -> Alias {
        Alias { sha256: sha256(number), blob: BlobRef::of(bytes) }
    }

    #[test]
    fn most_decide_and_a_lonely_liar_is_outvoted() {
        let mut aliases = Aliases::default();
        aliases.tell(peer(1), &[alias(1, b"wrong")]);
        assert_eq!(aliases.get(sha256(1)), Some(BlobRef::of(b"wrong")), "there is no better word");
        aliases.tell(peer(2), &[alias(1, b"right")]);
        aliases.tell(peer(3), &[alias(1, b"right")]);
        assert_eq!(aliases.get(sha256(1)), Some(BlobRef::of(b"right")));
        assert_eq!(aliases.sha256_of(BlobRef::of(b"right")), Some(sha256(1)));
        assert_eq!(aliases.sha256_of(BlobRef::of(b"wrong")), None);
        aliases.forget(peer(2));
        aliases.forget(peer(3));
        assert_eq!(aliases.get(sha256(1)), Some(BlobRef::of(b"wrong")));
        aliases.forget(peer(1));
        assert!(aliases.told.is_empty() && aliases.tellers.is_empty());
    }

    #[test]
    fn nodes_can_make_it_remember_only_so_much() {
        let mut aliases = Aliases::default();
        let many: Vec<Alias> = (0..20_000).map(|number| alias(number, b"x")).collect();
        aliases.tell(peer(1), &many);
        assert_eq!(aliases.told.len(), MAX_TOLD);
        (2..100).for_each(|seed| aliases.tell(peer(seed), &[alias(1, b"y")]));
        assert_eq!(aliases.told[&sha256(1)].len(), MAX_TELLERS);
        assert_eq!(aliases.tellers.len(), MAX_TELLERS);
    }
}
