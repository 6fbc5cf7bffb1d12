//! What a fetch takes pieces from: a supplier is opened, and is a source from then on.
//!
//! Not here: the suppliers themselves, and which of them is asked for what.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use protocol::message::Provider;
use protocol::{BlobRef, SourceName};
use tokio::runtime::Handle;

use super::gather::Gathering;
use super::schedule::{Held, Reach};
use crate::frames::FrameError;
use crate::links::LinkError;
use crate::origin::OriginFailed;
use crate::store::StoreError;
use crate::tree::Tree;

/// Somebody who may have what is missing.
#[async_trait]
pub(crate) trait Supplier: Send + Sync {
    /// Its name.
    fn name(&self) -> SourceName;

    /// Begins to take from it. Where it is busy, or broke off after it gave something, it is opened again.
    /// What is read from `thread` alone may be tied to it; everything else outlives it.
    async fn open(&self, gathering: &Gathering, thread: &Handle) -> Result<Opened, SourceError>;
}

/// A supplier that is ready to be asked.
pub(crate) struct Opened {
    pub(crate) source: Box<dyn Source>,
    /// What it can be asked for now; [`Event::Gained`] tells what more.
    pub(crate) held: Held,
    pub(crate) reach: Reach,
    /// What carries it, in words.
    pub(crate) carrier: &'static str,
}

/// Something that is asked for ranges of pieces and sends them in the order in which they were asked for.
#[async_trait]
pub(crate) trait Source: Send {
    /// Asks for a range; earlier ones may still be open.
    async fn ask(&mut self, range: Range<u64>) -> Result<(), SourceError>;

    /// What comes next while a range is open. A part's bytes are put into `buffer`, whatever it held.
    /// It is not cancelled but to let the source go.
    async fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Event, SourceError>;

    /// What comes next while nothing is open; no piece does. It may be cancelled and called again.
    async fn news(&mut self) -> Result<Event, SourceError>;

    /// The upper pairs of the blob's outboard, verified. Asked of a source that holds pieces, while nothing is open.
    async fn outboard(&mut self, _blob: BlobRef) -> Result<(Tree, Vec<u8>), SourceError> {
        Err(SourceError::Nothing)
    }

    /// Tells the source that it sent this wrong part; nothing is asked of it afterwards.
    async fn blame(&mut self, _part: WrongPart) {}
}

/// What comes from a source.
#[derive(Debug)]
pub(crate) enum Event {
    /// The next bytes of what was asked for. Parts of a piece come in order.
    Part(Part),
    /// Pieces that can be asked for from now on as well; they are pieces of the target.
    Gained(Vec<Range<u64>>),
    /// Others who may have some of it.
    Learned(Vec<Provider>),
}

/// Where bytes belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) piece: u64,
    /// How many bytes of the piece come before them: whole groups.
    pub(crate) offset: usize,
    /// How many bytes in front of them are the pairs within the piece: all of them with the first part of a
    /// blob's piece, none else.
    pub(crate) pairs: usize,
}

impl Part {
    /// A piece from its beginning.
    pub(crate) fn first(piece: u64) -> Self {
        Self { piece, offset: 0, pairs: 0 }
    }
}

/// Takes the piece whose turn it is from what was asked for.
pub(crate) fn next_asked(asked: &mut VecDeque<Range<u64>>) {
    if let Some(range) = asked.front_mut() {
        range.start += 1;
        if range.is_empty() {
            asked.pop_front();
        }
    }
}

/// Why a source gives no more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("it sent wrong bytes before: {0}")]
    Fault(String),
    #[error(transparent)]
    NoLink(#[from] LinkError),
    #[error("the link broke")]
    Link(#[from] io::Error),
    #[error("the conversation broke")]
    Frame(#[from] FrameError),
    #[error("it ended the conversation")]
    Ended,
    #[error("a direct link took the place of the relayed one")]
    Outdone,
    #[error("it sent nothing for {} s", .0.as_secs_f32())]
    Silent(Duration),
    #[error("it does not hold the blob")]
    NotFound,
    #[error("it holds nothing of what is missing")]
    Nothing,
    #[error("it is busy")]
    Busy,
    #[error("it answered something that was not asked")]
    OutOfTurn,
    #[error("its {0} does not belong to the blob")]
    Wrong(WrongPart),
    #[error(transparent)]
    Origin(#[from] OriginFailed),
    #[error("the file there changed while it was read")]
    Changed,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A part of a blob that did not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WrongPart {
    Outboard,
    Piece(u64),
}

impl fmt::Display for WrongPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outboard => f.write_str("outboard"),
            Self::Piece(piece) => write!(f, "piece {piece}"),
        }
    }
}

impl SourceError {
    /// Whether the source did what no honest one with a good disk does.
    pub(crate) fn is_fault(&self) -> bool {
        matches!(self, Self::Wrong(_) | Self::OutOfTurn | Self::Frame(FrameError::Codec(_)))
    }

    /// Whether to open the source again, which gave so many bytes that nobody had given before. One that is left for
    /// a better link did nothing wrong, also where others were faster with all that it sent.
    pub(crate) fn may_pass(&self, gave: u64) -> bool {
        matches!(self, Self::Busy | Self::Outdone) || (self.is_break() && gave > 0)
    }

    /// Whether it may go on where it broke off.
    fn is_break(&self) -> bool {
        let broke = matches!(self, Self::Link(_) | Self::Ended | Self::Silent(_));
        broke || matches!(self, Self::Frame(FrameError::Io(_) | FrameError::Cut))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_that_gave_only_what_others_had_given_is_asked_again_on_its_better_link() {
        assert!(SourceError::Outdone.may_pass(0) && SourceError::Outdone.may_pass(1));
        assert!(SourceError::Busy.may_pass(0));
        assert!(SourceError::Ended.may_pass(1) && !SourceError::Ended.may_pass(0));
        assert!(!SourceError::NotFound.may_pass(1) && !SourceError::Wrong(WrongPart::Piece(0)).may_pass(1));
    }
}
