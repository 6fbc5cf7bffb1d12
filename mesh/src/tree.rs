//! The hash tree of a blob: its leaves are groups of 16 KiB, its pairs in pre-order are the outboard.
//!
//! The format is bao's outboard with chunk groups of 2^4 and no length in front; its root is the plain
//! BLAKE3 hash. Not here: where an outboard is kept, and who sends it.

mod assembly;

pub use self::assembly::{Assembly, PieceLeaves};

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

/// A hash tree whose leaves are known: whatever bytes match it belong to the blob.
#[derive(Debug, Clone)]
pub struct Tree {
    blob: BlobRef,
    leaves: Vec<Leaf>,
}

impl Tree {
    /// The blob.
    pub fn blob(&self) -> BlobRef {
        self.blob
    }

    /// Whether these bytes are this piece of the blob, every group of it.
    pub fn verifies(&self, piece: u64, bytes: &[u8]) -> bool {
        bytes.len() == piece_size(self.blob.size, piece) && self.verifies_part(piece, 0, bytes)
    }

    /// Whether these bytes are a part of this piece, whole groups of it, that begins `offset` bytes after it.
    pub fn verifies_part(&self, piece: u64, offset: usize, bytes: &[u8]) -> bool {
        let group = GROUP_SIZE as usize;
        let left = piece_size(self.blob.size, piece).checked_sub(offset);
        let is_whole = bytes.len().is_multiple_of(group) || left == Some(bytes.len());
        if !is_whole || !offset.is_multiple_of(group) || left.is_none_or(|left| bytes.len() > left) {
            return false;
        }
        if self.leaves.len() == 1 {
            return BlobHash::of(bytes) == self.blob.hash;
        }
        let first = piece * GROUPS_PER_PIECE + (offset / group) as u64;
        let expected = self.leaves.get(first as usize..).unwrap_or_default();
        expected.len() >= bytes.len().div_ceil(group)
            && leaves_from(bytes, first).zip(expected).all(|(leaf, expected)| leaf == *expected)
    }
}

/// The leaves below this piece of a blob of more than one group.
pub(crate) fn leaves_of(bytes: &[u8], piece: u64) -> impl Iterator<Item = Leaf> {
    leaves_from(bytes, piece * GROUPS_PER_PIECE)
}

/// The leaves of these groups, the number of the first being `first`.
fn leaves_from(bytes: &[u8], first: u64) -> impl Iterator<Item = Leaf> {
    bytes.chunks(GROUP_SIZE as usize).zip(first..).map(|(group, index)| leaf_of(group, index))
}

/// The blob of this size, more than one group, that has these leaves; and its outboard.
pub(crate) fn outboard_of(leaves: &[Leaf], size: u64) -> (BlobRef, Vec<u8>) {
    debug_assert_eq!(leaves.len() as u64, groups(size));
    let mut outboard = vec![0; outboard_size(size) as usize];
    let (left, right) = fill(leaves, &mut outboard);
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
    let (left_leaves, right_leaves) = leaves.split_at(left_groups(leaves.len() as u64) as usize);
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

/// How many of these groups, two or more, are left of the topmost pair.
fn left_groups(groups: u64) -> u64 {
    left_subtree_len(groups * GROUP_SIZE) / GROUP_SIZE
}

/// Checks an outboard from its root down while it arrives: memory grows only with pairs that matched.
#[derive(Debug)]
pub struct OutboardVerifier {
    tree: Tree,
    /// Subtrees whose pairs are still to come, the next one last.
    expected: Vec<Subtree>,
}

#[derive(Debug)]
struct Subtree {
    groups: u64,
    /// `None` for the root, whose hash is the blob's.
    value: Option<ChainingValue>,
}

/// A pair of an outboard that does not belong to the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the outboard does not belong to the blob")]
pub struct WrongOutboard;

impl OutboardVerifier {
    /// Expects the outboard of this blob.
    pub fn new(blob: BlobRef) -> Self {
        let groups = groups(blob.size);
        let (leaves, expected) = match groups {
            1 => (vec![blob.hash.0], Vec::new()),
            _ => (Vec::new(), vec![Subtree { groups, value: None }]),
        };
        Self { tree: Tree { blob, leaves }, expected }
    }

    /// Takes the next pairs, a multiple of [`PAIR`] bytes.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), WrongOutboard> {
        let (pairs, rest) = bytes.as_chunks::<PAIR>();
        if !rest.is_empty() {
            return Err(WrongOutboard);
        }
        pairs.iter().try_for_each(|pair| self.take(pair))
    }

    /// The tree, once every pair was there.
    pub fn finish(self) -> Result<Tree, WrongOutboard> {
        if self.expected.is_empty() { Ok(self.tree) } else { Err(WrongOutboard) }
    }

    fn take(&mut self, pair: &[u8; PAIR]) -> Result<(), WrongOutboard> {
        let subtree = self.expected.pop().ok_or(WrongOutboard)?;
        let half = |range: &[u8]| ChainingValue::try_from(range).expect("half of a pair is 32 bytes");
        let (left, right) = (half(&pair[..PAIR / 2]), half(&pair[PAIR / 2..]));
        let matches = match subtree.value {
            None => *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes() == self.tree.blob.hash.0,
            Some(value) => merge_subtrees_non_root(&left, &right, Mode::Hash) == value,
        };
        if !matches {
            return Err(WrongOutboard);
        }
        let left_groups = left_groups(subtree.groups);
        self.expected.push(Subtree { groups: subtree.groups - left_groups, value: Some(right) });
        self.expected.push(Subtree { groups: left_groups, value: Some(left) });
        // Leaves have no pairs of their own: they are known as soon as they are next.
        while let Some(Subtree { groups: 1, value: Some(leaf) }) = self.expected.last() {
            self.tree.leaves.push(*leaf);
            self.expected.pop();
        }
        Ok(())
    }
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
    fn outboard_is_that_of_bao_and_its_root_is_the_plain_hash() {
        for size in SIZES {
            let bytes = bytes(size);
            let (blob, outboard) = hashed(&bytes);
            assert_eq!(blob, BlobRef::of(&bytes), "{size}");
            let bao = PreOrderMemOutboard::create(&bytes, BlockSize::from_chunk_log(4));
            assert_eq!(outboard, bao.data, "{size}");
        }
    }

    #[test]
    fn verified_outboard_verifies_every_piece_and_no_other_bytes() {
        for size in SIZES {
            let bytes = bytes(size);
            let (blob, outboard) = hashed(&bytes);
            let mut verifier = OutboardVerifier::new(blob);
            verifier.update(&outboard).expect("the outboard is good");
            let tree = verifier.finish().expect("the outboard is whole");
            for (index, piece) in bytes.chunks(PIECE_SIZE as usize).enumerate() {
                assert!(tree.verifies(index as u64, piece), "piece {index} of {size}");
                let mut altered = piece.to_vec();
                *altered.last_mut().expect("a piece has bytes") ^= 1;
                assert!(!tree.verifies(index as u64, &altered), "piece {index} of {size}");
                assert!(!tree.verifies(index as u64 + 1, piece) || size == 0);
                let groups = 5 * GROUP_SIZE as usize;
                for (part, offset) in piece.chunks(groups).zip((0..).step_by(groups)) {
                    let verifies = |offset, part| tree.verifies_part(index as u64, offset, part);
                    assert!(verifies(offset, part), "{offset} in piece {index} of {size}");
                    assert!(!verifies(offset + 1, part) && !verifies(offset + groups, part));
                    assert!(part.len() == 1 || !verifies(offset, &part[..1]), "less than a group");
                }
            }
        }
    }

    #[test]
    fn altered_short_and_long_outboards_are_refused() {
        let (blob, outboard) = hashed(&bytes(3_500_000));
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
