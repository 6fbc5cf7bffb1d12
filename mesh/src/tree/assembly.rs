//! The hash tree of a file whose pieces come in any order: their leaves are kept until all are there.
//!
//! Nothing is verified here, because nothing is known beforehand; at the end there is the hash. Not here:
//! the pieces themselves.

use protocol::{BlobHash, BlobRef};

use super::{GROUPS_PER_PIECE, Leaf, groups, leaves_of, outboard_of};

/// What a piece adds to the tree of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PieceLeaves {
    leaves: Vec<Leaf>,
    /// The hash of a file that is one group: it has no tree.
    whole: Option<BlobHash>,
}

impl PieceLeaves {
    /// The leaves of this piece of a file of `size` bytes.
    pub fn of(size: u64, piece: u64, bytes: &[u8]) -> Self {
        let leaves = leaves_of(bytes, piece).collect();
        Self { leaves, whole: (groups(size) == 1).then(|| BlobHash::of(bytes)) }
    }

    /// Thirty-two bytes that no other piece has at this place.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        self.leaves.iter().for_each(|leaf| {
            hasher.update(leaf);
        });
        *hasher.finalize().as_bytes()
    }
}

/// The tree of a file while its pieces come.
#[derive(Debug)]
pub struct Assembly {
    size: u64,
    leaves: Vec<Leaf>,
    whole: Option<BlobHash>,
}

impl Assembly {
    /// That of a file of `size` bytes, at most [`MAX_BLOB_SIZE`](super::MAX_BLOB_SIZE).
    pub fn new(size: u64) -> Self {
        let whole = (size == 0).then(|| BlobHash::of(&[]));
        Self { size, leaves: vec![[0; 32]; groups(size) as usize], whole }
    }

    /// Takes a piece's leaves; those that came before for it are forgotten.
    pub fn take(&mut self, piece: u64, leaves: &PieceLeaves) {
        let first = (piece * GROUPS_PER_PIECE) as usize;
        let places = self.leaves.iter_mut().skip(first);
        places.zip(&leaves.leaves).for_each(|(place, leaf)| *place = *leaf);
        if leaves.whole.is_some() {
            self.whole = leaves.whole;
        }
    }

    /// The blob and its outboard, once every piece was taken.
    pub fn finish(&self) -> (BlobRef, Vec<u8>) {
        if let Some(hash) = self.whole {
            return (BlobRef { hash, size: self.size }, Vec::new());
        }
        debug_assert!(self.leaves.len() > 1, "its only piece was never taken");
        outboard_of(&self.leaves, self.size)
    }
}

#[cfg(test)]
mod tests {
    use protocol::{GROUP_SIZE, PIECE_SIZE};

    use super::super::TreeHasher;
    use super::*;

    #[test]
    fn tree_of_pieces_in_any_order_is_that_of_the_whole() {
        for size in [0, 1, GROUP_SIZE, GROUP_SIZE + 1, PIECE_SIZE, PIECE_SIZE + 1, 5 * PIECE_SIZE + 40_000] {
            let bytes: Vec<u8> = (0..size).map(|index| (index * 31 % 251) as u8).collect();
            let mut hasher = TreeHasher::default();
            hasher.update(&bytes);
            let mut assembly = Assembly::new(size);
            for (index, piece) in
                bytes.chunks(PIECE_SIZE as usize).enumerate().collect::<Vec<_>>().iter().rev()
            {
                assembly.take(*index as u64, &PieceLeaves::of(size, *index as u64, &vec![1; piece.len()]));
                assembly.take(*index as u64, &PieceLeaves::of(size, *index as u64, piece));
            }
            assert_eq!(assembly.finish(), hasher.finish(), "{size}");
        }
    }

    #[test]
    fn digest_tells_pieces_apart() {
        let digest = |piece, bytes: &[u8]| PieceLeaves::of(3 * PIECE_SIZE, piece, bytes).digest();
        assert_eq!(digest(1, &[7; 50_000]), digest(1, &[7; 50_000]));
        assert_ne!(digest(1, &[7; 50_000]), digest(1, &[8; 50_000]));
        assert_ne!(digest(1, &[7; 50_000]), digest(2, &[7; 50_000]));
    }
}
