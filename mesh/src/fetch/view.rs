//! What people see of the fetches that go on.

use protocol::BlobName;

use super::SourceName;

/// How far a fetch is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many bytes are here and verified.
    pub bytes: u64,
    /// How many sources give.
    pub sources: usize,
    /// How fast all of them are, in bytes per second.
    pub speed: u64,
}

/// A fetch that goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferView {
    /// What is fetched.
    pub name: BlobName,
    /// How many bytes it has.
    pub size: u64,
    /// How many of them are here.
    pub bytes: u64,
    /// Who is asked.
    pub sources: Vec<SourceView>,
}

/// One source of a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceView {
    /// Who it is.
    pub name: SourceName,
    /// What carries it, a plane for a peer; `None` before there is a link.
    pub carrier: Option<&'static str>,
    /// How many bytes it gave since it was opened.
    pub bytes: u64,
    /// How fast it is, in bytes per second; 0 before its first piece.
    pub speed: u64,
    /// What it does.
    pub state: SourceState,
}

/// What a source does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceState {
    /// A link to it, or a conversation over that, is being made.
    Connecting,
    /// It was asked for pieces.
    Sending,
    /// It has nothing that is missing and not asked of somebody else.
    Waiting,
}
