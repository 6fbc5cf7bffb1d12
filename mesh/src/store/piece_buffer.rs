//! Memory for one piece, which is used again by the next: asking the system for a megabyte and having it
//! zeroed costs a good part of what it costs to send one.
//!
//! Not here: how many pieces may be in memory at once; that is up to whoever reads and sends.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use protocol::PIECE_SIZE;

/// How many are kept for the next; the others are given back to the system.
const MAX_KEPT: usize = 8;

static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// The bytes of a piece, or room for them.
pub(crate) struct PieceBuffer {
    /// As long as a piece, or as `length` where that is less.
    bytes: Vec<u8>,
    length: usize,
}

impl PieceBuffer {
    /// Room for that many bytes, at most a piece. What they are is left open.
    pub(crate) fn new(length: usize) -> Self {
        assert!(length as u64 <= PIECE_SIZE, "{length} bytes are more than a piece");
        let kept = KEPT.lock().expect("nothing panics while it holds the buffers").pop();
        let bytes = match kept {
            Some(bytes) => bytes,
            // A small blob does not cost the memory of a piece.
            None if length as u64 <= PIECE_SIZE / 2 => vec![0; length],
            None => vec![0; PIECE_SIZE as usize],
        };
        Self { bytes, length }
    }
}

impl Deref for PieceBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl DerefMut for PieceBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

impl Drop for PieceBuffer {
    fn drop(&mut self) {
        if self.bytes.len() as u64 == PIECE_SIZE {
            let mut kept = KEPT.lock().expect("nothing panics while it holds the buffers");
            if kept.len() < MAX_KEPT {
                kept.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

impl fmt::Debug for PieceBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PieceBuffer({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_is_as_long_as_asked_for_also_when_it_is_used_again() {
        for length in [0, 1, PIECE_SIZE as usize, 5, PIECE_SIZE as usize / 2 + 1] {
            let mut buffer = PieceBuffer::new(length);
            assert_eq!(buffer.len(), length);
            buffer.fill(7);
        }
    }

    #[test]
    fn no_more_are_kept_than_allowed() {
        let held: Vec<_> = (0..2 * MAX_KEPT).map(|_| PieceBuffer::new(PIECE_SIZE as usize)).collect();
        drop(held);
        assert!(KEPT.lock().expect("no panic").len() <= MAX_KEPT);
    }
}
