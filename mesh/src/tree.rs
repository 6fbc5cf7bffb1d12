//! The hash tree of a blob: its leaves are groups of 16 KiB, its pairs of chaining values the outboard.
//!
//! The pairs are those of bao's outboard with chunk groups of 2^4, and the root is the plain BLAKE3 hash.
//! Their order is another one: first the pairs above pieces, the *upper* ones, in pre-order, then those
//! within each piece, in pre-order too. So whoever knows the upper ones can verify any piece that brings
//! its own. Not here: where an outboard is kept, and who sends it.

mod assembly;
mod verifier;

pub use self::assembly::{Assembly, PieceLeaves};
pub use self::verifier::{OutboardVerifier, PieceTree, Tree, WrongOutboard};

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root,
};
use protocol::{BlobHash, BlobRef, GROUP_SIZE, PIECE_SIZE};

/// The largest blob that is stored or taken: 256 GiB, so that an outboard stays under 1 GiB.
pub const MAX_BLOB_SIZE: u64 = 1 << 38;
/// The bytes of one pair of chaining values in an outboard.
pub const PAIR: usize = 64;

const GROUPS_PER_PIECE: u64 = PIECE_SIZE / GROUP_SIZE;

/// The chaining value of one group.
pub(crate) type Leaf = ChainingValue;

/// How many groups a blob of this size has; even an empty one has its one leaf.
pub fn groups(size: u64) -> u64 {
    size.div_ceil(GROUP_SIZE).max(1)
}

/// How many bytes the outboard of a blob of this size has.
pub fn outboard_size(size: u64) -> u64 {
    (groups(size) - 1) * PAIR as u64
}

/// The bytes of a piece: 1 MiB, except for the last one.
pub fn piece_size(size: u64, piece: u64) -> usize {
    size.saturating_sub(piece * PIECE_SIZE).min(PIECE_SIZE) as usize
}

/// How many bytes of an outboard are the pairs above pieces; it begins with them.
pub fn upper_size(size: u64) -> u64 {
    (pieces(size) - 1) * PAIR as u64
}

/// Where the pairs within a piece lie in the outboard: the first byte, and how many there are.
pub fn pairs_of(size: u64, piece: u64) -> (u64, usize) {
    let within = groups(piece_size(size, piece) as u64) - 1;
    let before = (pieces(size) - 1) + piece * (GROUPS_PER_PIECE - 1);
    (before * PAIR as u64, within as usize * PAIR)
}

/// How many pieces a tree has below its upper pairs; even an empty blob has one.
fn pieces(size: u64) -> u64 {
    size.div_ceil(PIECE_SIZE).max(1)
}

/// The leaves below this piece of a blob of more than one group.
pub(crate) fn leaves_of(bytes: &[u8], piece: u64) -> impl Iterator<Item = Leaf> {
    leaves_from(bytes, piece * GROUPS_PER_PIECE)
}

/// The pairs within a piece, made of its bytes.
pub(crate) fn pairs_within(bytes: &[u8], piece: u64) -> Vec<u8> {
    let leaves: Vec<Leaf> = leaves_of(bytes, piece).collect();
    let mut pairs = vec![0; leaves.len().saturating_sub(1) * PAIR];
    if leaves.len() > 1 {
        fill(&leaves, &mut pairs);
    }
    pairs
}

/// The leaves of these groups, the number of the first being `first`.
fn leaves_from(bytes: &[u8], first: u64) -> impl Iterator<Item = Leaf> {
    bytes.chunks(GROUP_SIZE as usize).zip(first..).map(|(group, index)| leaf_of(group, index))
}

/// The blob of this size, more than one group, that has these leaves; and its outboard.
pub(crate) fn outboard_of(leaves: &[Leaf], size: u64) -> (BlobRef, Vec<u8>) {
    debug_assert_eq!(leaves.len() as u64, groups(size));
    let mut outboard = vec![0; outboard_size(size) as usize];
    let (upper, mut within) = outboard.split_at_mut(upper_size(size) as usize);
    let mut top = None;
    let of_piece = |leaves: &[Leaf]| {
        let pairs = within.split_off_mut(..(leaves.len() - 1) * PAIR).expect("there is room for every pair");
        if let [leaf] = leaves {
            return *leaf;
        }
        let (left, right) = fill(leaves, pairs);
        top = Some((left, right));
        merge_subtrees_non_root(&left, &right, Mode::Hash)
    };
    let values: Vec<Leaf> = leaves.chunks(GROUPS_PER_PIECE as usize).map(of_piece).collect();
    let top = if values.len() > 1 { Some(fill(&values, upper)) } else { top };
    let (left, right) = top.expect("there is more than one group");
    let root = merge_subtrees_root(&left, &right, Mode::Hash);
    (BlobRef { hash: BlobHash(*root.as_bytes()), size }, outboard)
}

fn leaf_of(group: &[u8], index: u64) -> Leaf {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(index * GROUP_SIZE);
    hasher.update(group);
    hasher.finalize_non_root()
}

/// Hashes a blob while it is written, and keeps what its outboard needs: 32 bytes for each 16 KiB.
#[derive(Debug, Default)]
pub struct TreeHasher {
    leaves: Vec<Leaf>,
    group: blake3::Hasher,
    filled: u64,
}

impl TreeHasher {
    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.filled == GROUP_SIZE {
                self.close_group();
            }
            let room = (GROUP_SIZE - self.filled) as usize;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.group.update(now);
            self.filled += now.len() as u64;
            bytes = later;
        }
    }

    /// The blob that was written, and its outboard.
    pub fn finish(mut self) -> (BlobRef, Vec<u8>) {
        let size = self.leaves.len() as u64 * GROUP_SIZE + self.filled;
        if self.leaves.is_empty() {
            return (BlobRef { hash: BlobHash(*self.group.finalize().as_bytes()), size }, Vec::new());
        }
        self.close_group();
        outboard_of(&self.leaves, size)
    }

    fn close_group(&mut self) {
        self.leaves.push(self.group.finalize_non_root());
        self.group = blake3::Hasher::new();
        self.group.set_input_offset(self.leaves.len() as u64 * GROUP_SIZE);
        self.filled = 0;
    }
}

/// Writes the pairs above at least two leaves in pre-order; gives the topmost pair.
fn fill(leaves: &[Leaf], outboard: &mut [u8]) -> (ChainingValue, ChainingValue) {
    let (own, below) = outboard.split_at_mut(PAIR);
    let (left_leaves, right_leaves) = leaves.split_at(left_of(leaves.len() as u64) as usize);
    let (left_below, right_below) = below.split_at_mut((left_leaves.len() - 1) * PAIR);
    let value = |leaves: &[Leaf], outboard: &mut [u8]| match leaves {
        [leaf] => *leaf,
        leaves => {
            let (left, right) = fill(leaves, outboard);
            merge_subtrees_non_root(&left, &right, Mode::Hash)
        }
    };
    let pair = (value(left_leaves, left_below), value(right_leaves, right_below));
    own[..PAIR / 2].copy_from_slice(&pair.0);
    own[PAIR / 2..].copy_from_slice(&pair.1);
    pair
}

/// How many of these leaves, two or more, are left of the topmost pair. It is the same for groups and for
/// pieces: the largest power of two that leaves one.
fn left_of(leaves: u64) -> u64 {
    left_subtree_len(leaves * GROUP_SIZE) / GROUP_SIZE
}

#[cfg(test)]
mod tests {
    use bao_tree::BlockSize;
    use bao_tree::io::outboard::PreOrderMemOutboard;

    use super::*;

    fn bytes(size: u64) -> Vec<u8> {
        (0..size).map(|index| (index * 31 % 251) as u8).collect()
    }

    fn hashed(bytes: &[u8]) -> (BlobRef, Vec<u8>) {
        let mut hasher = TreeHasher::default();
        bytes.chunks(10_007).for_each(|part| hasher.update(part));
        hasher.finish()
    }

    const SIZES: [u64; 9] = [
        0,
        1,
        GROUP_SIZE,
        GROUP_SIZE + 1,
        3 * GROUP_SIZE,
        5 * GROUP_SIZE - 1,
        PIECE_SIZE,
        PIECE_SIZE + 1,
        3_500_000,
    ];

    #[test]
    fn outboard_has_the_pairs_of_bao_those_above_pieces_first_and_its_root_is_the_plain_hash() {
        for size in SIZES {
            let bytes = bytes(size);
            let (blob, outboard) = hashed(&bytes);
            assert_eq!(blob, BlobRef::of(&bytes), "{size}");
            let bao = PreOrderMemOutboard::create(&bytes, BlockSize::from_chunk_log(4)).data;
            let (upper, mut within) = outboard.split_at(upper_size(size) as usize);
            let mut upper = upper.as_chunks::<PAIR>().0.iter();
            // A pair of bao's that is not the next above pieces begins those within the next piece.
            let mut bao = bao.as_slice();
            for piece in 0..pieces(size) {
                let (first, length) = pairs_of(size, piece);
                assert_eq!(first as usize, outboard.len() - within.len(), "{size}");
                let own = within.split_off(..length).expect("every pair is there");
                while !bao.starts_with(own) || own.is_empty() {
                    let Some(pair) = upper.next() else { break };
                    assert_eq!(bao.split_off(..PAIR), Some(&pair[..]), "before piece {piece} of {size}");
                }
                assert_eq!(bao.split_off(..length), Some(own), "piece {piece} of {size}");
            }
            assert!(bao.is_empty() && within.is_empty() && upper.next().is_none(), "{size}");
        }
    }

    #[test]
    fn verified_outboard_verifies_every_piece_and_no_other_bytes() {
        for size in SIZES {
            let bytes = bytes(size);
            let (blob, outboard) = hashed(&bytes);
            let mut verifier = OutboardVerifier::new(blob);
            verifier.update(&outboard[..upper_size(size) as usize]).expect("the outboard is good");
            let tree = verifier.finish().expect("the outboard is whole");
            for (index, piece) in (0..).zip(bytes.chunks(PIECE_SIZE as usize)) {
                let (first, length) = pairs_of(size, index);
                let pairs = &outboard[first as usize..][..length];
                assert_eq!(pairs_within(piece, index), pairs, "piece {index} of {size}");
                let own = tree.piece(index, pairs).expect("its pairs are good");
                assert!(own.verifies(0, piece), "piece {index} of {size}");
                let mut altered = piece.to_vec();
                *altered.last_mut().expect("a piece has bytes") ^= 1;
                assert!(!own.verifies(0, &altered), "piece {index} of {size}");
                let groups = 5 * GROUP_SIZE as usize;
                for (part, offset) in piece.chunks(groups).zip((0..).step_by(groups)) {
                    assert!(own.verifies(offset, part), "{offset} in piece {index} of {size}");
                    assert!(!own.verifies(offset + 1, part) && !own.verifies(offset + groups, part));
                    assert!(part.len() == 1 || !own.verifies(offset, &part[..1]), "less than a group");
                }
                assert!(tree.piece(index + 1, pairs).is_err(), "piece {index} of {size} elsewhere");
                for position in (0..length).step_by(PAIR + 5) {
                    let mut altered = pairs.to_vec();
                    altered[position] ^= 1;
                    assert!(tree.piece(index, &altered).is_err(), "{position} in piece {index} of {size}");
                }
            }
        }
    }

    #[test]
    fn altered_short_and_long_outboards_are_refused() {
        let (blob, mut outboard) = hashed(&bytes(3_500_000));
        outboard.truncate(upper_size(blob.size) as usize);
        for position in [0, 63, 64, outboard.len() - 1] {
            let mut altered = outboard.clone();
            altered[position] ^= 1;
            assert_eq!(OutboardVerifier::new(blob).update(&altered), Err(WrongOutboard), "{position}");
        }
        let mut short = OutboardVerifier::new(blob);
        short.update(&outboard[..outboard.len() - PAIR]).expect("every pair there is matches");
        assert!(short.finish().is_err());
        let mut long = outboard;
        long.extend_from_slice(&[0; PAIR]);
        assert_eq!(OutboardVerifier::new(blob).update(&long), Err(WrongOutboard));
    }
}
