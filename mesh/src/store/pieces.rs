//! Which pieces of a blob are there: a bitmap, the same in memory, on the disk and on the wire.
//!
//! Bit `i % 8` of byte `i / 8`, from the lowest, is piece `i`; the bits past the end are zero.

use std::ops::Range;

/// A set of pieces of one blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pieces {
    count: u64,
    bits: Vec<u8>,
}

impl Pieces {
    /// None of `count` pieces.
    pub fn none(count: u64) -> Self {
        Self { count, bits: vec![0; count.div_ceil(8) as usize] }
    }

    /// All of `count` pieces.
    pub fn all(count: u64) -> Self {
        let mut pieces = Self::none(count);
        (0..count).for_each(|piece| pieces.insert(piece));
        pieces
    }

    /// The set in this bitmap; `None` if it is not one of `count` pieces.
    pub fn from_bits(count: u64, bits: Vec<u8>) -> Option<Self> {
        let is_tail_clear =
            count.is_multiple_of(8) || bits.last().is_some_and(|last| last >> (count % 8) == 0);
        (bits.len() as u64 == count.div_ceil(8) && is_tail_clear).then_some(Self { count, bits })
    }

    /// How many pieces the blob has.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The bitmap.
    pub fn bits(&self) -> &[u8] {
        &self.bits
    }

    /// Adds a piece.
    pub fn insert(&mut self, piece: u64) {
        debug_assert!(piece < self.count, "piece {piece} of {}", self.count);
        self.bits[(piece / 8) as usize] |= 1 << (piece % 8);
    }

    /// Takes a piece out.
    pub fn remove(&mut self, piece: u64) {
        debug_assert!(piece < self.count, "piece {piece} of {}", self.count);
        self.bits[(piece / 8) as usize] &= !(1 << (piece % 8));
    }

    /// Whether a piece is in it.
    pub fn contains(&self, piece: u64) -> bool {
        piece < self.count && self.bits[(piece / 8) as usize] & (1 << (piece % 8)) != 0
    }

    /// How many pieces are in it.
    pub fn len(&self) -> u64 {
        self.bits.iter().map(|byte| u64::from(byte.count_ones())).sum()
    }

    /// Whether no piece is in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether every piece is in it.
    pub fn is_full(&self) -> bool {
        self.len() == self.count
    }

    /// The pieces that are in `other` and not here, as ranges of at most `longest`, from the first.
    pub fn missing_from(&self, other: &Self, longest: u64) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for piece in (0..self.count).filter(|piece| other.contains(*piece) && !self.contains(*piece)) {
            match ranges.last_mut() {
                Some(last) if last.end == piece && last.end - last.start < longest => last.end += 1,
                _ => ranges.push(piece..piece + 1),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmap_of_another_blob_is_refused() {
        assert!(Pieces::from_bits(9, vec![0xff, 0x01]).is_some_and(|pieces| pieces.is_full()));
        assert!(Pieces::from_bits(9, vec![0xff, 0x02]).is_none(), "a bit past the end");
        assert!(Pieces::from_bits(9, vec![0xff]).is_none(), "too short");
        assert!(Pieces::from_bits(8, vec![0xff, 0]).is_none(), "too long");
        assert!(Pieces::from_bits(0, Vec::new()).is_some_and(|pieces| pieces.is_full()));
    }

    #[test]
    fn missing_pieces_are_named_in_ranges() {
        let mut here = Pieces::none(10);
        [0, 4].into_iter().for_each(|piece| here.insert(piece));
        let mut there = Pieces::all(10);
        assert_eq!(here.missing_from(&there, 3), [1..4, 5..8, 8..10]);
        there = Pieces::none(10);
        there.insert(4);
        assert!(here.missing_from(&there, 3).is_empty());
    }
}
