//! Who reads which file from the internet: the pieces that each reader holds, and those that it alone is
//! to read.
//!
//! A lease on pieces lasts a while and is renewed by the reader's next question. Nothing of this is
//! written down: after a restart a piece may be read twice. Pure; not here: who holds a file whole.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use fixedbitset::FixedBitSet;
use protocol::message::{MAX_LIST, ReadOrigin};
use protocol::{FileRef, PIECE_SIZE, PeerId, PieceRange, Sha256};

/// How long a lease on pieces lasts without another question.
pub(crate) const ORIGIN_LEASE: Duration = Duration::from_secs(20);
/// The most pieces that are leased to one reader of a file at a time.
const LONGEST: usize = 16;
/// The most pieces of a file: 256 GiB, as of a blob.
const MAX_PIECES: u64 = (256 << 30) / PIECE_SIZE;
/// The most files that are kept, in all and of one reader.
const MAX_FILES: usize = 1024;
const MAX_FILES_OF_READER: usize = 16;
/// The most readers of one file.
const MAX_READERS: usize = 1024;
/// How long a reader is kept that says nothing more and lacks something: it may have given up.
const SILENCE: Duration = Duration::from_secs(60);
/// How long one is kept that has it all. By then its inventory names it.
const IDLE: Duration = Duration::from_secs(600);

/// The files that are being read.
#[derive(Debug, Default)]
pub(crate) struct Origins {
    files: BTreeMap<FileRef, File>,
}

/// One file.
#[derive(Debug)]
struct File {
    pieces: usize,
    readers: BTreeMap<PeerId, Reader>,
}

/// A node that reads a file.
#[derive(Debug)]
struct Reader {
    /// What it holds and serves.
    held: FixedBitSet,
    /// What it alone is to read. It holds none of that.
    leased: FixedBitSet,
    /// When it last said so.
    heard: Duration,
}

/// What a reader is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// All that is leased to it.
    pub(crate) ranges: Vec<PieceRange>,
    /// The others, those that hold most first.
    pub(crate) readers: Vec<PeerId>,
}

impl Origins {
    /// Takes in what a reader holds, renews what was leased to it and is still to be read, and leases it
    /// more, up to what it wants. Beyond the limits nothing is remembered, and it reads as if alone.
    pub(crate) fn read(&mut self, peer: PeerId, asked: &ReadOrigin, now: Duration) -> Share {
        if asked.file.pieces() > MAX_PIECES {
            return Share::default();
        }
        let pieces = usize::try_from(asked.file.pieces()).expect("it is within the limit");
        let held = set_of(&asked.held, pieces);
        let wanted = usize::try_from(asked.wanted).unwrap_or(LONGEST).min(LONGEST);
        let mut passing = File { pieces, readers: BTreeMap::new() };
        let file = match self.has_room(peer, asked.file) {
            true => self.files.entry(asked.file).or_insert(passing),
            false => &mut passing,
        };
        let share = file.read(peer, held, wanted, now);
        if file.readers.is_empty() {
            self.files.remove(&asked.file);
        }
        share
    }

    /// Who reads the file with this SHA-256 and has some of it.
    pub(crate) fn readers(&self, sha256: Sha256) -> Vec<PeerId> {
        let of_any_size = FileRef { sha256, size: 0 }..=FileRef { sha256, size: u64::MAX };
        self.files.range(of_any_size).flat_map(|(_, file)| file.serving(None)).collect()
    }

    /// How many pieces each reader of the file with this SHA-256 holds, of how many.
    pub(crate) fn progress(&self, sha256: Sha256) -> Vec<(PeerId, u64, u64)> {
        let of_any_size = FileRef { sha256, size: 0 }..=FileRef { sha256, size: u64::MAX };
        let files = self.files.range(of_any_size).map(|(_, file)| file);
        let of_file = |file: &File| {
            let pieces = file.pieces as u64;
            let held = |(peer, reader): (&PeerId, &Reader)| (*peer, count(&reader.held), pieces);
            file.readers.iter().map(held).collect::<Vec<_>>()
        };
        files.flat_map(of_file).collect()
    }

    /// A node's session is gone: what was leased to it is free, and nobody waits for what it holds.
    pub(crate) fn leave(&mut self, peer: PeerId) {
        self.files.retain(|_, file| {
            file.readers.remove(&peer);
            !file.readers.is_empty()
        });
    }

    /// Forgets readers that say nothing more.
    pub(crate) fn forget_silent(&mut self, now: Duration) {
        self.files.retain(|_, file| {
            file.readers.retain(|_, reader| {
                let patience = if reader.held.is_full() { IDLE } else { SILENCE };
                now.saturating_sub(reader.heard) < patience
            });
            !file.readers.is_empty()
        });
    }

    fn has_room(&self, peer: PeerId, file: FileRef) -> bool {
        match self.files.get(&file) {
            Some(known) if known.readers.contains_key(&peer) => true,
            Some(known) if known.readers.len() >= MAX_READERS => false,
            None if self.files.len() >= MAX_FILES => false,
            _ => {
                let of_peer = self.files.values().filter(|file| file.readers.contains_key(&peer));
                of_peer.count() < MAX_FILES_OF_READER
            }
        }
    }
}

impl File {
    fn read(&mut self, peer: PeerId, held: FixedBitSet, wanted: usize, now: Duration) -> Share {
        let mut taken = held.clone();
        let mut at_work = 1;
        for (_, reader) in self.readers.iter().filter(|(other, _)| **other != peer) {
            taken.union_with(&reader.held);
            if reader.is_at_work(now) {
                taken.union_with(&reader.leased);
                at_work += usize::from(!reader.held.is_full());
            }
        }
        // What it was leased is its own as long as nobody else has it, also after its time.
        let before = self.readers.remove(&peer).map(|reader| reader.leased);
        let mut leased = before.filter(|_| wanted > 0).unwrap_or_else(|| none(self.pieces));
        leased.difference_with(&taken);
        // Towards the end each gets less, so that all end together.
        let left = self.pieces - taken.count_ones(..);
        let goal = wanted.min((left / (2 * at_work)).max(1));
        let more = goal.saturating_sub(leased.count_ones(..));
        taken.union_with(&leased);
        leased.extend(taken.zeroes().take(more));

        let share = Share { ranges: ranges_of(&leased), readers: self.serving(Some(peer)) };
        if wanted > 0 || !held.is_clear() {
            self.readers.insert(peer, Reader { held, leased, heard: now });
        }
        share
    }

    /// Those who hold some of it or are about to, other than `asking`.
    fn serving(&self, asking: Option<PeerId>) -> Vec<PeerId> {
        let others = self.readers.iter().filter(|(peer, _)| Some(**peer) != asking);
        let mut others: Vec<(u64, PeerId)> =
            others.map(|(peer, reader)| (count(&reader.held), *peer)).collect();
        others.sort_by_key(|(held, _)| std::cmp::Reverse(*held));
        others.into_iter().map(|(_, peer)| peer).collect()
    }
}

impl Reader {
    /// Whether its leases last.
    fn is_at_work(&self, now: Duration) -> bool {
        now.saturating_sub(self.heard) < ORIGIN_LEASE
    }
}

fn none(pieces: usize) -> FixedBitSet {
    FixedBitSet::with_capacity(pieces)
}

fn count(set: &FixedBitSet) -> u64 {
    set.count_ones(..) as u64
}

/// The pieces in these ranges, without those that lie outside the file.
fn set_of(ranges: &[PieceRange], pieces: usize) -> FixedBitSet {
    let mut set = none(pieces);
    for range in ranges.iter().take(MAX_LIST).filter_map(|range| range.within(pieces as u64)) {
        set.insert_range(range.start as usize..range.end as usize);
    }
    set
}

fn ranges_of(set: &FixedBitSet) -> Vec<PieceRange> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for piece in set.ones().map(|piece| piece as u64) {
        match ranges.last_mut() {
            Some(last) if last.end == piece => last.end += 1,
            _ => ranges.push(piece..piece + 1),
        }
    }
    ranges.into_iter().map(PieceRange::from).collect()
}

#[cfg(test)]
mod tests;
