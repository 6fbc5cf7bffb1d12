//! How far a fetch is, in numbers.
//!
//! Not here: its sources one by one; those are a `protocol::Transfer`.

/// How far a fetch is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many bytes are here: verified, apart from those of a file that only its SHA-256 names.
    pub bytes: u64,
    /// How many sources give.
    pub sources: usize,
    /// How fast all of them are, in bytes per second.
    pub speed: u64,
}
