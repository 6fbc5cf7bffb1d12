//! The asker's side of the blob wire: what one provider has of what is missing.
//!
//! The words are `protocol::wire`'s. Each piece is verified and written while the next one crosses. Not here:
//! who is asked, and what happens after.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use protocol::wire::{
    Announce, Bad, BlobAnswer, BlobRequest, Get, GetOutboard, Have, MAX_ANNOUNCED, MAX_BLOB_FRAME, MAX_RANGE,
    Outboard, Piece,
};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use crate::fetch::learned::Learned;
use crate::frames::{FrameError, FrameReceiver, FrameSender};
use crate::plane::Link;
use crate::store::{PartialBlob, Pieces, StoreError};
use crate::tree::{OutboardVerifier, PAIR, outboard_size, piece_size};

/// How many requests are open at once: the next is on its way while one is answered.
const OPEN_GETS: usize = 2;
/// How much of an outboard is taken at a time.
const OUTBOARD_PART: usize = 1024 * PAIR;

/// Why a provider did not give all that is missing.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error("the link broke")]
    Link(#[from] io::Error),
    #[error("the conversation broke")]
    Frame(#[from] FrameError),
    #[error("it ended the conversation")]
    Ended,
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
    Store(#[from] StoreError),
}

/// A part of a blob that did not verify.
#[derive(Debug)]
pub(super) enum WrongPart {
    Outboard,
    Piece(u64),
}

impl std::fmt::Display for WrongPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Outboard => f.write_str("outboard"),
            Self::Piece(piece) => write!(f, "piece {piece}"),
        }
    }
}

impl TransferError {
    /// Whether the provider did what no honest one with a good disk does.
    pub(super) fn is_fault(&self) -> bool {
        matches!(self, Self::Wrong(_) | Self::OutOfTurn | Self::Frame(FrameError::Codec(_)))
    }
}

/// One conversation to be had.
pub(super) struct Transfer<'a> {
    pub(super) partial: &'a Arc<PartialBlob>,
    pub(super) piece_timeout: Duration,
    pub(super) progress: Option<&'a watch::Sender<u64>>,
    /// Where others can fetch from us what we have of it.
    pub(super) listening: &'a [SocketAddr],
    /// Whom the provider names besides itself.
    pub(super) learned: &'a Learned,
}

impl<'a> Transfer<'a> {
    pub(super) async fn run(&self, link: &dyn Link) -> Result<(), TransferError> {
        let channel = self.in_time(async { Ok(link.open().await?) }).await?;
        let mut provider = Channel {
            requests: FrameSender::with_limit(channel.writer, MAX_BLOB_FRAME),
            answers: FrameReceiver::with_limit(channel.reader, MAX_BLOB_FRAME),
            learned: self.learned,
        };
        let have = self.in_time(provider.open(self.partial)).await?;
        if self.partial.blob().pieces() > 1 {
            self.in_time(provider.announce(self.listening)).await?;
        }
        let result = self.take(&mut provider, &have).await;
        if let Err(TransferError::Wrong(part)) = &result {
            let bad = match part {
                WrongPart::Outboard => Bad::Outboard,
                WrongPart::Piece(piece) => Bad::Piece(*piece),
            };
            // It helps the provider find a bad disk; whether it hears it does not matter here.
            let _ = timeout(Duration::from_secs(1), provider.requests.send(&BlobRequest::Bad(bad))).await;
        }
        result
    }

    async fn take(&self, provider: &mut Channel<'a>, have: &Pieces) -> Result<(), TransferError> {
        if self.partial.needs_outboard() {
            self.take_outboard(provider).await?;
        }
        let missing = self.partial.pieces().missing_from(have, MAX_RANGE);
        if missing.is_empty() && !self.partial.pieces().is_full() {
            return Err(TransferError::Nothing);
        }
        self.take_pieces(provider, missing).await
    }

    async fn take_outboard(&self, provider: &mut Channel<'a>) -> Result<(), TransferError> {
        let blob = self.partial.blob();
        let length = outboard_size(blob.size);
        provider.requests.send(&BlobRequest::GetOutboard(GetOutboard)).await?;
        match self.in_time(provider.answer()).await? {
            BlobAnswer::Outboard(Outboard { length: announced }) if announced == length => {}
            BlobAnswer::Outboard(_) => return Err(TransferError::Wrong(WrongPart::Outboard)),
            _ => return Err(TransferError::OutOfTurn),
        }
        let mut verifier = OutboardVerifier::new(blob);
        let mut outboard = Vec::new();
        let mut part = vec![0; OUTBOARD_PART];
        while (outboard.len() as u64) < length {
            let size = (length - outboard.len() as u64).min(OUTBOARD_PART as u64) as usize;
            let part = &mut part[..size];
            self.in_time(async { Ok(provider.answers.recv_bytes(part).await?) }).await?;
            verifier.update(part).map_err(|_| TransferError::Wrong(WrongPart::Outboard))?;
            outboard.extend_from_slice(part);
        }
        let tree = verifier.finish().map_err(|_| TransferError::Wrong(WrongPart::Outboard))?;
        let partial = Arc::clone(self.partial);
        joined(spawn_blocking(move || partial.add_outboard(tree, &outboard))).await?;
        Ok(())
    }

    async fn take_pieces(
        &self,
        provider: &mut Channel<'a>,
        missing: Vec<Range<u64>>,
    ) -> Result<(), TransferError> {
        let mut missing = missing.into_iter();
        let mut asked: VecDeque<Range<u64>> = VecDeque::new();
        let mut writing: Option<Writing> = None;
        loop {
            while asked.len() < OPEN_GETS
                && let Some(range) = missing.next()
            {
                let get = Get { first: range.start, count: range.end - range.start };
                self.in_time(async { Ok(provider.requests.send(&BlobRequest::Get(get)).await?) }).await?;
                asked.push_back(range);
            }
            let Some(range) = asked.pop_front() else { break };
            for piece in range {
                let received = self.in_time(provider.piece(self.partial, piece)).await;
                // What came before the break is kept.
                if let Some(writing) = writing.take() {
                    self.written(writing).await?;
                }
                let bytes = received?;
                let partial = Arc::clone(self.partial);
                let written = spawn_blocking(move || partial.write_piece(piece, &bytes));
                writing = Some(Writing { piece, written });
            }
        }
        match writing {
            Some(writing) => self.written(writing).await,
            None => Ok(()),
        }
    }

    async fn written(&self, writing: Writing) -> Result<(), TransferError> {
        if !joined(writing.written).await? {
            return Err(TransferError::Wrong(WrongPart::Piece(writing.piece)));
        }
        if let Some(progress) = self.progress {
            progress.send_replace(self.partial.bytes());
        }
        Ok(())
    }

    async fn in_time<T>(
        &self,
        step: impl Future<Output = Result<T, TransferError>>,
    ) -> Result<T, TransferError> {
        timeout(self.piece_timeout, step).await.unwrap_or(Err(TransferError::Silent(self.piece_timeout)))
    }
}

/// A piece that is being verified and written.
struct Writing {
    piece: u64,
    written: JoinHandle<Result<bool, StoreError>>,
}

/// The channel of the conversation.
struct Channel<'a> {
    requests: FrameSender<BlobRequest>,
    answers: FrameReceiver<BlobAnswer>,
    learned: &'a Learned,
}

impl Channel<'_> {
    /// Asks for the blob; the pieces that the provider has.
    async fn open(&mut self, partial: &PartialBlob) -> Result<Pieces, TransferError> {
        let blob = partial.blob();
        // A provider that is busy may answer without reading this.
        let sent = self.requests.send(&BlobRequest::Open(blob)).await;
        let answer = self.answers.recv().await;
        match answer {
            Ok(Some(BlobAnswer::Have(Have::Whole))) => Ok(Pieces::all(blob.pieces())),
            Ok(Some(BlobAnswer::Have(Have::Pieces(bits)))) => {
                Pieces::from_bits(blob.pieces(), bits).ok_or(TransferError::OutOfTurn)
            }
            Ok(Some(BlobAnswer::NotFound(_))) => Err(TransferError::NotFound),
            Ok(Some(BlobAnswer::Busy(_))) => Err(TransferError::Busy),
            Ok(Some(_)) => Err(TransferError::OutOfTurn),
            Ok(None) => Err(sent.map_or_else(TransferError::from, |()| TransferError::Ended)),
            Err(error) => Err(error.into()),
        }
    }

    /// Says where we listen.
    async fn announce(&mut self, listening: &[SocketAddr]) -> Result<(), TransferError> {
        let addresses = listening.iter().take(MAX_ANNOUNCED).copied().collect();
        Ok(self.requests.send(&BlobRequest::Announce(Announce { addresses })).await?)
    }

    /// The next answer, without news of pieces that the provider got meanwhile and of other providers.
    async fn answer(&mut self) -> Result<BlobAnswer, TransferError> {
        loop {
            match self.answers.recv().await?.ok_or(TransferError::Ended)? {
                BlobAnswer::Have(_) | BlobAnswer::Gained(_) => {}
                BlobAnswer::Peers(peers) => {
                    self.learned.add(peers.dialable().ok_or(TransferError::OutOfTurn)?);
                }
                answer => return Ok(answer),
            }
        }
    }

    /// The bytes of this piece, which must be the next to come.
    async fn piece(&mut self, partial: &PartialBlob, piece: u64) -> Result<Vec<u8>, TransferError> {
        match self.answer().await? {
            BlobAnswer::Piece(Piece { index }) if index == piece => {}
            _ => return Err(TransferError::OutOfTurn),
        }
        let mut bytes = vec![0; piece_size(partial.blob().size, piece)];
        self.answers.recv_bytes(&mut bytes).await?;
        Ok(bytes)
    }
}

async fn joined<T>(work: JoinHandle<Result<T, StoreError>>) -> Result<T, TransferError> {
    match work.await {
        Ok(result) => Ok(result?),
        Err(_) => Err(TransferError::Store(StoreError::Abandoned)),
    }
}
