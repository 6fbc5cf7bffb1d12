//! What the store knows in memory: its own whole blobs, the files in place, and which blobs must stay.
//!
//! Pure: the order of eviction is decided here. Not here: the disk.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::SystemTime;

use protocol::{Alias, BlobHash, BlobName, BlobRef, Sha256};

use super::aliases::Aliases;
use super::in_place::InPlaceFile;
use super::marks::Marks;
use super::{PartialBlob, UnprovenFile};

/// The store's memory.
#[derive(Debug, Default)]
pub(super) struct Index {
    own: HashMap<BlobHash, Own>,
    files: BTreeMap<PathBuf, InPlaceFile>,
    /// The files in place of each blob; none is empty.
    places: HashMap<BlobHash, BTreeSet<PathBuf>>,
    /// How many want each of these blobs and files to stay.
    holds: HashMap<BlobName, usize>,
    /// Partial blobs that somebody is filling.
    pub(super) partial: HashMap<BlobHash, Weak<PartialBlob>>,
    /// Files that only a SHA-256 names, and that somebody is filling.
    pub(super) unproven: HashMap<Sha256, Weak<UnprovenFile>>,
    /// How many fill each of those, from before they are opened.
    filling: HashMap<Sha256, usize>,
    /// What publishers who are trusted signed: served under that name, and no proof.
    pub(super) vouched: Aliases,
    /// What those say of a file from whom it is fetched at the moment; nobody has proven it.
    pub(super) said: HashMap<Sha256, BlobRef>,
    pub(super) marks: Marks,
    pub(super) aliases: Aliases,
    /// How many bytes the store may take; `None` for all that there are.
    pub(super) quota: Option<u64>,
}

/// A blob in the store's own folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own {
    pub(super) size: u64,
    pub(super) used: SystemTime,
}

/// Something that may be deleted to make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    pub(super) used: SystemTime,
    pub(super) what: Deletable,
    pub(super) bytes: u64,
}

/// What can be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deletable {
    /// A whole blob.
    Whole(BlobHash),
    /// What is left of a transfer.
    Leftover(BlobName),
}

impl Deletable {
    pub(super) fn name(self) -> BlobName {
        match self {
            Self::Whole(hash) => hash.into(),
            Self::Leftover(name) => name,
        }
    }
}

impl Index {
    /// The blob's reference, if it is whole here.
    pub(super) fn get(&self, hash: BlobHash) -> Option<BlobRef> {
        let own = self.own.get(&hash).map(|own| BlobRef { hash, size: own.size });
        own.or_else(|| self.files_of(hash).next().map(|file| file.blob))
    }

    /// The blob among the store's own.
    pub(super) fn own(&self, hash: BlobHash) -> Option<Own> {
        self.own.get(&hash).copied()
    }

    /// The files in place that are this blob.
    pub(super) fn files_of(&self, hash: BlobHash) -> impl Iterator<Item = &InPlaceFile> {
        self.places.get(&hash).into_iter().flatten().filter_map(|path| self.files.get(path))
    }

    /// Every file in place, by path.
    pub(super) fn files(&self) -> impl Iterator<Item = &InPlaceFile> {
        self.files.values()
    }

    /// The file in place at this path.
    pub(super) fn file_at(&self, path: &Path) -> Option<&InPlaceFile> {
        self.files.get(path)
    }

    /// The blob with this SHA-256, whether it is here or not.
    pub(super) fn alias(&self, sha256: &Sha256) -> Option<BlobRef> {
        let in_place = || self.files.values().find(|file| file.sha256.as_ref() == Some(sha256));
        self.aliases.get(sha256).or_else(|| in_place().map(|file| file.blob))
    }

    /// The same, or else as a trusted publisher signed, unless what was read contradicts that.
    pub(super) fn named(&self, sha256: &Sha256) -> Option<BlobRef> {
        let vouched = || self.vouched.get(sha256).map(|blob| Alias { sha256: *sha256, blob });
        let vouched = || vouched().filter(|alias| !self.contradicts(alias)).map(|alias| alias.blob);
        self.alias(sha256).or_else(vouched)
    }

    /// Whether what was read shows that a blob and a SHA-256 are not of one file.
    pub(super) fn contradicts(&self, alias: &Alias) -> bool {
        let Alias { sha256, blob } = alias;
        let in_place = || self.files_of(blob.hash).find_map(|file| file.sha256);
        let of_blob = self.aliases.sha256_of(blob.hash).or_else(in_place);
        of_blob.is_some_and(|other| other != *sha256)
            || self.alias(sha256).is_some_and(|other| other != *blob)
    }

    /// Every whole blob, in no order.
    pub(super) fn complete(&self) -> impl Iterator<Item = BlobRef> {
        let own = self.own.iter().map(|(hash, own)| BlobRef { hash: *hash, size: own.size });
        let elsewhere = self.places.keys().filter(|hash| !self.own.contains_key(hash));
        own.chain(elsewhere.filter_map(|hash| self.get(*hash)))
    }

    /// Whether other peers may have it: a blob that was made private is not theirs, nor one whose only
    /// copies are private files.
    pub(super) fn is_shared(&self, hash: BlobHash) -> bool {
        let has_shared = || self.own.contains_key(&hash) || self.files_of(hash).all(|file| file.shared);
        !self.is_private(hash) && has_shared()
    }

    /// Whether somebody made it private, under any name that it is known by here.
    pub(super) fn is_private(&self, hash: BlobHash) -> bool {
        let in_place = self.files_of(hash).filter_map(|file| file.sha256);
        let mut names = in_place.chain(self.aliases.sha256_of(hash)).chain(self.vouched.all_sha256_of(hash));
        self.marks.is_private(hash.into()) || names.any(|sha256| self.marks.is_private(sha256.into()))
    }

    /// The same of a file by its SHA-256.
    pub(super) fn is_private_file(&self, sha256: Sha256) -> bool {
        let blob = self.named(&sha256);
        self.marks.is_private(sha256.into()) || blob.is_some_and(|blob| self.is_private(blob.hash))
    }

    pub(super) fn add_own(&mut self, blob: BlobRef, used: SystemTime) {
        self.own.insert(blob.hash, Own { size: blob.size, used });
        self.partial.remove(&blob.hash);
    }

    pub(super) fn remove_own(&mut self, hash: BlobHash) {
        self.own.remove(&hash);
    }

    pub(super) fn touch(&mut self, hash: BlobHash, now: SystemTime) {
        if let Some(own) = self.own.get_mut(&hash) {
            own.used = now;
        }
    }

    pub(super) fn add_file(&mut self, file: InPlaceFile) {
        self.remove_file(&file.path.clone());
        self.places.entry(file.blob.hash).or_default().insert(file.path.clone());
        self.files.insert(file.path.clone(), file);
    }

    /// Forgets the file in place at this path; says whether there was one.
    pub(super) fn remove_file(&mut self, path: &Path) -> bool {
        let Some(file) = self.files.remove(path) else { return false };
        if let Some(places) = self.places.get_mut(&file.blob.hash) {
            places.remove(path);
            if places.is_empty() {
                self.places.remove(&file.blob.hash);
            }
        }
        true
    }

    pub(super) fn hold(&mut self, name: BlobName) {
        *self.holds.entry(name).or_default() += 1;
    }

    pub(super) fn release(&mut self, name: BlobName) {
        if let Some(count) = self.holds.get_mut(&name) {
            *count -= 1;
            if *count == 0 {
                self.holds.remove(&name);
            }
        }
    }

    pub(super) fn begin_filling(&mut self, sha256: Sha256) {
        *self.filling.entry(sha256).or_default() += 1;
    }

    pub(super) fn end_filling(&mut self, sha256: Sha256) {
        if let Entry::Occupied(mut count) = self.filling.entry(sha256) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// Whether somebody fills a file that only a SHA-256 names.
    pub(super) fn is_filled(&self, sha256: &Sha256) -> bool {
        self.filling.contains_key(sha256)
    }

    /// Whether it must not be deleted: somebody works with it, or it is pinned.
    pub(super) fn must_stay(&self, name: impl Into<BlobName>) -> bool {
        let name = name.into();
        let is_pinned = matches!(name, BlobName::Blake3(hash) if self.marks.is_pinned(hash));
        is_pinned || self.holds.contains_key(&name)
    }

    /// How many bytes the store's own blobs take.
    pub(super) fn own_bytes(&self) -> u64 {
        self.own.values().map(|own| own.size).sum()
    }

    /// All that may be deleted, out of the whole blobs and these leftovers, the least recently used first.
    pub(super) fn candidates(&self, leftovers: Vec<Candidate>) -> Vec<Candidate> {
        let whole = self.own.iter().map(|(hash, own)| Candidate {
            used: own.used,
            what: Deletable::Whole(*hash),
            bytes: own.size,
        });
        let may_go = |candidate: &Candidate| !self.must_stay(candidate.what.name());
        let mut candidates: Vec<_> = whole.chain(leftovers).filter(may_go).collect();
        candidates.sort();
        candidates
    }

    /// The candidates to delete so that `lacking` bytes are won; `None` where all are not enough.
    pub(super) fn choose(&self, lacking: u64, leftovers: Vec<Candidate>) -> Option<Vec<Candidate>> {
        let mut candidates = self.candidates(leftovers);
        let mut won = 0_u64;
        let enough = candidates.iter().position(|candidate| {
            won = won.saturating_add(candidate.bytes);
            won >= lacking
        });
        candidates.truncate(enough? + 1);
        Some(candidates)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn index() -> Index {
        let mut index = Index::default();
        for age in 1..=4_u8 {
            let blob = BlobRef { hash: BlobHash([age; 32]), size: 10 };
            index.add_own(blob, SystemTime::UNIX_EPOCH + Duration::from_secs(100 - u64::from(age)));
        }
        index
    }

    fn chosen(index: &Index, lacking: u64) -> Option<Vec<u8>> {
        let chosen = index.choose(lacking, vec![]);
        let first_byte = |candidate: &Candidate| match candidate.what {
            Deletable::Whole(hash) => hash.0[0],
            Deletable::Leftover(name) => panic!("{name} is nothing whole"),
        };
        chosen.map(|chosen| chosen.iter().map(first_byte).collect())
    }

    #[test]
    fn least_recently_used_goes_first_and_no_more_than_needed() {
        let mut index = index();
        assert_eq!(chosen(&index, 1), Some(vec![4]));
        assert_eq!(chosen(&index, 11), Some(vec![4, 3]));
        index.touch(BlobHash([4; 32]), SystemTime::UNIX_EPOCH + Duration::from_secs(200));
        assert_eq!(chosen(&index, 11), Some(vec![3, 2]));
    }

    #[test]
    fn nothing_is_chosen_where_all_of_it_is_not_enough() {
        let mut index = index();
        assert_eq!(chosen(&index, 41), None);
        index.hold(BlobHash([4; 32]).into());
        index.hold(BlobHash([4; 32]).into());
        index.marks.set_pinned(BlobHash([3; 32]), true);
        assert_eq!(chosen(&index, 21), None);
        assert_eq!(chosen(&index, 20), Some(vec![2, 1]));
        index.release(BlobHash([4; 32]).into());
        assert_eq!(chosen(&index, 21), None, "it is still held once");
        index.release(BlobHash([4; 32]).into());
        assert_eq!(chosen(&index, 21), Some(vec![4, 2, 1]));
    }
}
