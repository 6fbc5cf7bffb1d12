//! The provider's side of the blob wire: one conversation about one blob.
//!
//! Everything here is asked for by a member on a link that passed the gate; what it may cost is bounded
//! all the same. The words are `protocol::wire`'s. Not here: which blobs exist; that is the store's.

mod askers;
mod file;
mod small;

pub(crate) use self::askers::Askers;

use std::io;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use protocol::wire::{
    Announce, Bad, BlobAnswer, BlobRequest, Busy, Get, Have, MAX_BLOB_FRAME, MAX_RANGE, NotFound, Outboard,
    Peers, Piece,
};
use protocol::{BlobRef, GROUP_SIZE, PeerId};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::frames::{FrameError, FrameReceiver, FrameSender};
use crate::plane::Channel;
use crate::store::{BlobStore, Source, StoreError};
use crate::tree::outboard_size;

/// How many conversations one link may have at once.
const MAX_CONVERSATIONS: usize = 32;
/// How many blobs are read again at once because an asker could not verify them, on all links together:
/// an asker that lies must not keep the disk busy.
const MAX_CHECKS: usize = 1;
/// How long an asker may say nothing, or not take what it asked for.
const ASKER_TIMEOUT: Duration = Duration::from_secs(60);
/// How much of an outboard is read at a time.
const OUTBOARD_PART: usize = 256 << 10;

/// How much one link may ask at once, and how much all of them together may have read again.
#[derive(Clone)]
pub(crate) struct Limits {
    conversations: Arc<Semaphore>,
    checks: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self { conversations: semaphore(MAX_CONVERSATIONS), checks: semaphore(MAX_CHECKS) }
    }
}

impl Limits {
    /// Those of one more link.
    pub(crate) fn for_link(&self) -> Self {
        Self { checks: Arc::clone(&self.checks), ..Self::default() }
    }
}

/// Why a conversation ended early.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("the asker went away or broke the protocol")]
    Frame(#[from] FrameError),
    #[error("the asker says or takes nothing any more")]
    Silent,
    #[error("the asker asks for what the conversation does not allow")]
    OutOfTurn,
    #[error("the blob cannot be read")]
    Read(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Who asks, and who else does.
pub(crate) struct Asker {
    pub(crate) peer: PeerId,
    pub(crate) askers: Arc<Askers>,
}

/// Has one conversation and reports what went wrong.
pub(crate) async fn serve_task(channel: Channel, store: BlobStore, limits: Limits, asker: Asker) {
    let mut answers = FrameSender::with_limit(channel.writer, MAX_BLOB_FRAME);
    let Ok(permit) = limits.conversations.try_acquire() else {
        // The asker may be gone already.
        let _ = answers.send(&BlobAnswer::Busy(Busy)).await;
        return;
    };
    let requests = FrameReceiver::with_limit(channel.reader, MAX_BLOB_FRAME);
    let mut conversation = Conversation { requests, answers, asker, told: 0 };
    match conversation.run(&store, &limits).await {
        Ok(()) => {}
        Err(ServeError::Frame(FrameError::Io(_) | FrameError::Cut)) => debug!("asker left"),
        Err(error @ (ServeError::Read(_) | ServeError::Store(_))) => warn!(%error, "blob not served"),
        Err(error) => debug!(%error, "conversation ended early"),
    }
    drop(permit);
}

struct Conversation {
    requests: FrameReceiver<BlobRequest>,
    answers: FrameSender<BlobAnswer>,
    asker: Asker,
    /// Up to which news the asker was told of others.
    told: u64,
}

impl Conversation {
    async fn run(&mut self, store: &BlobStore, limits: &Limits) -> Result<(), ServeError> {
        let blob = match self.next().await? {
            Some(BlobRequest::Open(blob)) => blob,
            Some(BlobRequest::GetSmall(get)) => return self.serve_small(get, store).await,
            Some(BlobRequest::OpenFile(file)) => return self.serve_file(file, store).await,
            Some(_) => return Err(ServeError::OutOfTurn),
            None => return Ok(()),
        };
        let Some(source) = store.source(blob).await? else {
            return self.answer(&BlobAnswer::NotFound(NotFound), &[]).await;
        };
        self.answer(&BlobAnswer::Have(have(&source)), &[]).await?;
        while let Some(request) = self.next().await? {
            match request {
                BlobRequest::GetOutboard(_) => self.send_outboard(blob, &source).await?,
                BlobRequest::Get(get) => {
                    let range = checked_range(get, blob.pieces()).ok_or(ServeError::OutOfTurn)?;
                    self.send_pieces(blob, range, &source).await?;
                }
                BlobRequest::Announce(announce) => self.hear(announce, blob).await?,
                BlobRequest::Bad(bad) => return check(bad, blob, store, limits).await,
                BlobRequest::Open(_) | BlobRequest::OpenFile(_) | BlobRequest::GetSmall(_) => {
                    return Err(ServeError::OutOfTurn);
                }
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<BlobRequest>, ServeError> {
        let request = timeout(ASKER_TIMEOUT, self.requests.recv()).await;
        Ok(request.map_err(|_| ServeError::Silent)??)
    }

    async fn answer(&mut self, answer: &BlobAnswer, bytes: &[u8]) -> Result<(), ServeError> {
        let sent = timeout(ASKER_TIMEOUT, self.answers.send_with(answer, bytes)).await;
        Ok(sent.map_err(|_| ServeError::Silent)??)
    }

    /// Takes note of where the asker listens, and tells it of the others.
    async fn hear(&mut self, announce: Announce, blob: BlobRef) -> Result<(), ServeError> {
        let addresses = announce.dialable().ok_or(ServeError::OutOfTurn)?;
        self.asker.askers.add(blob.hash, self.asker.peer, addresses);
        self.tell(blob).await
    }

    /// Tells the asker of others, where it has not heard of them.
    async fn tell(&mut self, blob: BlobRef) -> Result<(), ServeError> {
        let providers = self.asker.askers.news(blob.hash, self.asker.peer, &mut self.told);
        if providers.is_empty() {
            return Ok(());
        }
        self.answer(&BlobAnswer::Peers(Peers { providers }), &[]).await
    }

    async fn send_outboard(&mut self, blob: BlobRef, source: &Source) -> Result<(), ServeError> {
        if blob.size <= GROUP_SIZE {
            return Err(ServeError::OutOfTurn);
        }
        let source = source.clone();
        let file = blocking(move || source.open_outboard()).await?;
        let mut left = outboard_size(blob.size);
        if file.metadata()?.len() != left {
            return Err(io::Error::from(io::ErrorKind::InvalidData).into());
        }
        self.answer(&BlobAnswer::Outboard(Outboard { length: left }), &[]).await?;
        let file = Arc::new(file);
        while left > 0 {
            let (file, length) = (Arc::clone(&file), left.min(OUTBOARD_PART as u64) as usize);
            let part = blocking(move || {
                let mut part = vec![0; length];
                (&*file).read_exact(&mut part)?;
                Ok(part)
            })
            .await?;
            left -= part.len() as u64;
            let sent = timeout(ASKER_TIMEOUT, self.answers.send_bytes(&part)).await;
            sent.map_err(|_| ServeError::Silent)??;
        }
        Ok(())
    }

    /// Sends pieces in order; the next one is read while one crosses.
    async fn send_pieces(
        &mut self,
        blob: BlobRef,
        range: Range<u64>,
        source: &Source,
    ) -> Result<(), ServeError> {
        let read = |piece| {
            let source = source.clone();
            spawn_blocking(move || source.read_piece(piece))
        };
        let mut next = Some(read(range.start));
        for index in range.clone() {
            let reading = next.take().expect("it is set for every piece of the range");
            let piece = joined(reading).await?.ok_or(ServeError::OutOfTurn)?;
            if index + 1 < range.end {
                next = Some(read(index + 1));
            }
            self.tell(blob).await?;
            self.answer(&BlobAnswer::Piece(Piece { index }), &piece).await?;
        }
        Ok(())
    }
}

fn have(source: &Source) -> Have {
    let pieces = source.pieces();
    if pieces.is_full() { Have::Whole } else { Have::Pieces(pieces.bits().to_vec()) }
}

fn checked_range(get: Get, pieces: u64) -> Option<Range<u64>> {
    let end = get.first.checked_add(get.count)?;
    ((1..=MAX_RANGE).contains(&get.count) && end <= pieces).then_some(get.first..end)
}

/// An asker could not verify what we sent: either it lies, or our disk does.
async fn check(bad: Bad, blob: BlobRef, store: &BlobStore, limits: &Limits) -> Result<(), ServeError> {
    let Ok(_permit) = limits.checks.try_acquire() else { return Ok(()) };
    let verified = !store.contains(blob.hash) || store.verify(blob.hash).await?;
    warn!(?bad, blob = %blob.hash.fmt_short(), verified, "asker could not verify the blob, read it again");
    Ok(())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    joined(spawn_blocking(work)).await
}

async fn joined<T>(reading: JoinHandle<io::Result<T>>) -> io::Result<T> {
    reading.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use protocol::{BlobHash, PIECE_SIZE};

    use super::*;

    #[test]
    fn ranges_outside_the_blob_are_refused() {
        let blob = BlobRef { hash: BlobHash([1; 32]), size: 3 * PIECE_SIZE + 1 };
        let check = |first, count| checked_range(Get { first, count }, blob.pieces());
        assert_eq!(check(0, 4), Some(0..4));
        assert_eq!(check(3, 1), Some(3..4));
        for (first, count) in [(0, 5), (4, 1), (0, 0), (u64::MAX, 1), (0, u64::MAX), (1, MAX_RANGE + 1)] {
            assert_eq!(check(first, count), None, "{count} from {first}");
        }
    }
}
