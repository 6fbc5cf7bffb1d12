//! Checking pairs of an outboard from the root down: first those above pieces, then those of each piece.

use blake3::hazmat::{ChainingValue, Mode, merge_subtrees_non_root, merge_subtrees_root};
use protocol::{BlobHash, BlobRef, GROUP_SIZE};

use super::{GROUPS_PER_PIECE, Leaf, PAIR, groups, leaves_from, left_of, pairs_of, piece_size, pieces};

/// A pair of an outboard that does not belong to the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the outboard does not belong to the blob")]
pub struct WrongOutboard;

/// A hash tree down to its pieces: each piece with its pairs can be told from any other bytes.
#[derive(Debug, Clone)]
pub struct Tree {
    blob: BlobRef,
    /// One of each piece. That of an only piece is the blob's hash.
    values: Vec<ChainingValue>,
}

impl Tree {
    /// The blob.
    pub fn blob(&self) -> BlobRef {
        self.blob
    }

    /// The tree of a piece, given the pairs within it, [`pairs_of`] bytes.
    pub fn piece(&self, piece: u64, pairs: &[u8]) -> Result<PieceTree, WrongOutboard> {
        let value = *self.values.get(piece as usize).ok_or(WrongOutboard)?;
        let size = piece_size(self.blob.size, piece);
        if pairs.len() != pairs_of(self.blob.size, piece).1 {
            return Err(WrongOutboard);
        }
        let is_only = self.values.len() == 1;
        let top = if is_only { Top::Root(self.blob.hash) } else { Top::Inner(value) };
        let mut verifier = Verifier::new(groups(size as u64), top);
        verifier.take_all(pairs)?;
        Ok(PieceTree { piece, size, is_only, leaves: verifier.finish()? })
    }
}

/// The hash tree of a piece whose leaves are known: whatever bytes match it belong to the blob.
#[derive(Debug, Clone)]
pub struct PieceTree {
    piece: u64,
    size: usize,
    /// Whether the blob has no other piece.
    is_only: bool,
    leaves: Vec<Leaf>,
}

impl PieceTree {
    /// Whether these bytes are a part of the piece, whole groups of it, that begins `offset` bytes after it.
    pub fn verifies(&self, offset: usize, bytes: &[u8]) -> bool {
        let group = GROUP_SIZE as usize;
        let left = self.size.checked_sub(offset);
        let is_whole = bytes.len().is_multiple_of(group) || left == Some(bytes.len());
        if !is_whole || !offset.is_multiple_of(group) || left.is_none_or(|left| bytes.len() > left) {
            return false;
        }
        if self.is_only && self.leaves.len() == 1 {
            return BlobHash::of(bytes).0 == self.leaves[0];
        }
        let first = offset / group;
        let expected = self.leaves.get(first..).unwrap_or_default();
        let leaves = leaves_from(bytes, self.piece * GROUPS_PER_PIECE + first as u64);
        expected.len() >= bytes.len().div_ceil(group)
            && leaves.zip(expected).all(|(leaf, known)| leaf == *known)
    }
}

/// Checks the pairs above pieces while they arrive: memory grows only with pairs that matched.
#[derive(Debug)]
pub struct OutboardVerifier {
    blob: BlobRef,
    verifier: Verifier,
}

impl OutboardVerifier {
    /// Expects the beginning of the outboard of this blob, [`upper_size`](super::upper_size) bytes.
    pub fn new(blob: BlobRef) -> Self {
        Self { blob, verifier: Verifier::new(pieces(blob.size), Top::Root(blob.hash)) }
    }

    /// Takes the next pairs, a multiple of [`PAIR`] bytes.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), WrongOutboard> {
        self.verifier.take_all(bytes)
    }

    /// The tree, once every pair was there.
    pub fn finish(self) -> Result<Tree, WrongOutboard> {
        Ok(Tree { blob: self.blob, values: self.verifier.finish()? })
    }
}

/// What the topmost pair must match.
#[derive(Debug)]
enum Top {
    Root(BlobHash),
    Inner(ChainingValue),
}

/// Checks pairs in pre-order; what has none below it is a leaf.
#[derive(Debug)]
struct Verifier {
    leaves: Vec<ChainingValue>,
    /// Subtrees whose pairs are still to come, the next one last.
    expected: Vec<Subtree>,
}

#[derive(Debug)]
struct Subtree {
    leaves: u64,
    top: Top,
}

impl Verifier {
    fn new(leaves: u64, top: Top) -> Self {
        match (leaves, top) {
            (1, Top::Root(BlobHash(value)) | Top::Inner(value)) => {
                Self { leaves: vec![value], expected: Vec::new() }
            }
            (leaves, top) => Self { leaves: Vec::new(), expected: vec![Subtree { leaves, top }] },
        }
    }

    fn take_all(&mut self, bytes: &[u8]) -> Result<(), WrongOutboard> {
        let (pairs, rest) = bytes.as_chunks::<PAIR>();
        if !rest.is_empty() {
            return Err(WrongOutboard);
        }
        pairs.iter().try_for_each(|pair| self.take(pair))
    }

    fn take(&mut self, pair: &[u8; PAIR]) -> Result<(), WrongOutboard> {
        let subtree = self.expected.last().ok_or(WrongOutboard)?;
        let half = |range: &[u8]| ChainingValue::try_from(range).expect("half of a pair is 32 bytes");
        let (left, right) = (half(&pair[..PAIR / 2]), half(&pair[PAIR / 2..]));
        let matches = match subtree.top {
            Top::Root(hash) => *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes() == hash.0,
            Top::Inner(value) => merge_subtrees_non_root(&left, &right, Mode::Hash) == value,
        };
        if !matches {
            return Err(WrongOutboard);
        }
        let (leaves, left_leaves) = (subtree.leaves, left_of(subtree.leaves));
        self.expected.pop();
        self.expected.push(Subtree { leaves: leaves - left_leaves, top: Top::Inner(right) });
        self.expected.push(Subtree { leaves: left_leaves, top: Top::Inner(left) });
        // Leaves have no pairs of their own: they are known as soon as they are next.
        while let Some(Subtree { leaves: 1, top: Top::Inner(leaf) }) = self.expected.last() {
            self.leaves.push(*leaf);
            self.expected.pop();
        }
        Ok(())
    }

    fn finish(self) -> Result<Vec<ChainingValue>, WrongOutboard> {
        if self.expected.is_empty() { Ok(self.leaves) } else { Err(WrongOutboard) }
    }
}
