//! The provider's side of the blob wire: one conversation about one blob.
//!
//! Everything here is asked for by a member on a link that passed the gate; what it may cost is bounded
//! all the same. The words are `protocol::wire`'s. Not here: which blobs exist; that is the store's.

mod askers;
mod news;
mod small;

pub(crate) use self::askers::Askers;

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use protocol::codec::CodecError;
use protocol::introduction::{Introduce, Introduced, Ready};
use protocol::wire::{
    Bad, BlobAnswer, BlobRequest, Busy, Gained, Get, Have, MAX_BLOB_FRAME, MAX_RANGE, NotFound, Outboard,
    PART_SIZE, Peers, Piece,
};
use protocol::{BlobName, BlobRef, FileRef, PIECE_SIZE, PeerId};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::news::News;
use crate::frames::{FrameError, FrameReceiver, FrameSender};
use crate::limits::{Throttle, Turn};
use crate::links::Caller;
use crate::plane::Channel;
use crate::store::{BlobStore, Pieces, Source, StoreError};
use crate::tree::{pairs_of, piece_size, upper_size};

/// How many conversations one link may have at once.
const MAX_CONVERSATIONS: usize = 32;
/// How many more a link may ask for in a row before it is closed; whoever is told that we are busy waits.
const MAX_REFUSED: usize = 256;
/// How many blobs are read again at once because an asker could not verify them, on all links together:
/// an asker that lies must not keep the disk busy.
const MAX_CHECKS: usize = 1;
/// How long an asker may not begin, or not take what it asked for.
const ASKER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an asker may ask for nothing and be told nothing; it may wait for news.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a piece may take before others have their turn as well.
const LONGEST_TURN: Duration = Duration::from_secs(2);
/// How much is sent at once where a cap is set.
const CAPPED_PART: usize = 64 << 10;
/// How much of an outboard is read at a time.
const OUTBOARD_PART: usize = 256 << 10;

/// How much one link may ask at once, and how much all of them together may have sent and read again.
#[derive(Clone)]
pub(crate) struct Bounds {
    conversations: Arc<Semaphore>,
    /// How many conversations were refused since one was let in.
    refused: Arc<AtomicUsize>,
    /// Cancelled when the peer broke the protocol.
    broken: CancellationToken,
    checks: Arc<Semaphore>,
    throttle: Arc<Throttle>,
}

impl Bounds {
    pub(crate) fn new(throttle: Arc<Throttle>) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self {
            conversations: semaphore(MAX_CONVERSATIONS),
            refused: Arc::default(),
            broken: CancellationToken::new(),
            checks: semaphore(MAX_CHECKS),
            throttle,
        }
    }

    /// Those of one more link.
    pub(crate) fn for_link(&self) -> Self {
        Self { checks: Arc::clone(&self.checks), ..Self::new(Arc::clone(&self.throttle)) }
    }

    /// Waits until the peer of this link did what no honest one does.
    pub(crate) async fn broken(&self) {
        self.broken.cancelled().await;
    }

    /// The link is to be closed. It is logged once, however much still comes on it.
    fn blame(&self, reason: &'static str) {
        if !self.broken.is_cancelled() {
            self.broken.cancel();
            warn!(reason, "peer broke the protocol, its link is closed");
        }
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
    #[error("piece {0} is not here, or no more")]
    NotHere(u64),
    #[error("a piece is asked for again")]
    Again,
    #[error("it is not others' any more")]
    Private,
    #[error("the blob cannot be read")]
    Read(#[from] io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Who asks, and who else does.
pub(crate) struct Asker {
    pub(crate) peer: PeerId,
    pub(crate) askers: Arc<Askers>,
    /// Its link, for introductions.
    pub(crate) caller: Caller,
}

/// Has one conversation and reports what went wrong.
pub(crate) async fn serve_task(channel: Channel, store: BlobStore, bounds: Bounds, asker: Asker) {
    let mut answers = FrameSender::with_limit(channel.writer, MAX_BLOB_FRAME);
    let Ok(permit) = bounds.conversations.try_acquire() else {
        if bounds.refused.fetch_add(1, Ordering::Relaxed) >= MAX_REFUSED {
            bounds.blame("it opens channels without end");
        }
        // The asker may be gone already.
        let _ = answers.send(&BlobAnswer::Busy(Busy)).await;
        return;
    };
    bounds.refused.store(0, Ordering::Relaxed);
    let requests = FrameReceiver::with_limit(channel.reader, MAX_BLOB_FRAME);
    let throttle = Arc::clone(&bounds.throttle);
    let mut conversation = Conversation { requests, answers, asker, throttle, part: Vec::new() };
    match conversation.run(&store, &bounds).await {
        Ok(()) => {}
        Err(ServeError::Frame(FrameError::Io(_) | FrameError::Cut)) => debug!("asker left"),
        Err(ServeError::Frame(FrameError::Codec(CodecError::TooLarge { .. }))) => {
            bounds.blame("it announced more than a request may hold");
        }
        Err(ServeError::Frame(FrameError::Codec(CodecError::Body { .. } | CodecError::TooShort(_)))) => {
            bounds.blame("it sent what is no request");
        }
        Err(ServeError::OutOfTurn) => bounds.blame("it asked for what the conversation does not allow"),
        Err(error @ (ServeError::Read(_) | ServeError::Store(_))) => warn!(%error, "blob not served"),
        Err(error) => debug!(%error, "conversation ended early"),
    }
    drop(permit);
}

/// What a conversation is about. A file that only its SHA-256 names has no outboard: what is sent of it is
/// proven by the whole, at whoever asked.
#[derive(Clone, Copy)]
enum Subject {
    Blob(BlobRef),
    File(FileRef),
}

impl Subject {
    fn name(self) -> BlobName {
        match self {
            Self::Blob(blob) => blob.hash.into(),
            Self::File(file) => file.sha256.into(),
        }
    }

    fn pieces(self) -> u64 {
        match self {
            Self::Blob(blob) => blob.pieces(),
            Self::File(file) => file.size.div_ceil(PIECE_SIZE),
        }
    }
}

struct Conversation {
    requests: FrameReceiver<BlobRequest>,
    answers: FrameSender<BlobAnswer>,
    asker: Asker,
    throttle: Arc<Throttle>,
    /// Room for what is read and sent at a time.
    part: Vec<u8>,
}

impl Conversation {
    async fn run(&mut self, store: &BlobStore, bounds: &Bounds) -> Result<(), ServeError> {
        let (subject, source) = match self.next().await? {
            Some(BlobRequest::Open(blob)) => (Subject::Blob(blob), store.source(blob).await?),
            Some(BlobRequest::OpenFile(file)) => (Subject::File(file), store.file_source(file).await?),
            Some(BlobRequest::GetSmall(get)) => return self.serve_small(get, store).await,
            Some(BlobRequest::Introduce(Introduce { peer })) => {
                let address = self.asker.caller.introduce(peer).await;
                return self.answer(&BlobAnswer::Introduced(Introduced { address }), &[]).await;
            }
            Some(BlobRequest::Meet(meet)) => {
                let ready = self.asker.caller.meet(meet).await;
                return self.answer(&BlobAnswer::Ready(Ready { ready }), &[]).await;
            }
            Some(_) => return Err(ServeError::OutOfTurn),
            None => return Ok(()),
        };
        let Some(source) = source else {
            return self.answer(&BlobAnswer::NotFound(NotFound), &[]).await;
        };
        let pieces = source.pieces();
        let have = if source.is_whole() { Have::Whole } else { Have::Pieces(pieces.bits().to_vec()) };
        self.answer(&BlobAnswer::Have(have), &[]).await?;
        let askers = Arc::clone(&self.asker.askers);
        let mut news = News::new(subject.name(), self.asker.peer, askers, &source, pieces);
        let mut asked = Pieces::none(subject.pieces());
        loop {
            let request = tokio::select! {
                request = self.requests.recv() => request?,
                () = news.due() => {
                    self.tell(&mut news, &source).await?;
                    continue;
                }
                () = sleep(IDLE_TIMEOUT) => return Err(ServeError::Silent),
            };
            match (request, subject) {
                (None, _) => return Ok(()),
                (Some(BlobRequest::Get(get)), _) => {
                    let range = checked_range(get, subject.pieces()).ok_or(ServeError::OutOfTurn)?;
                    // An honest asker does so where another's bytes were wrong: it opens the blob again.
                    if range.clone().any(|piece| asked.contains(piece)) {
                        return Err(ServeError::Again);
                    }
                    range.clone().for_each(|piece| asked.insert(piece));
                    if store.keeps_private(subject.name()) {
                        return Err(ServeError::Private);
                    }
                    self.send_pieces(range, subject, &source, &mut news).await?;
                }
                (Some(BlobRequest::Announce(announce)), _) => {
                    let addresses = announce.dialable().ok_or(ServeError::OutOfTurn)?;
                    // Whoever reads the same file is told of by the one who leases its ranges.
                    if let Subject::Blob(_) = subject {
                        self.asker.askers.add(subject.name(), self.asker.peer, addresses);
                    }
                }
                (Some(BlobRequest::GetOutboard(_)), Subject::Blob(blob)) => {
                    self.send_outboard(blob, &source).await?;
                }
                (Some(BlobRequest::Bad(bad)), Subject::Blob(blob)) => {
                    return check(bad, blob, store, bounds).await;
                }
                (Some(_), _) => return Err(ServeError::OutOfTurn),
            }
        }
    }

    async fn next(&mut self) -> Result<Option<BlobRequest>, ServeError> {
        let request = timeout(ASKER_TIMEOUT, self.requests.recv()).await;
        Ok(request.map_err(|_| ServeError::Silent)??)
    }

    async fn answer(&mut self, answer: &BlobAnswer, bytes: &[u8]) -> Result<(), ServeError> {
        let sent = timeout(ASKER_TIMEOUT, self.answers.send_with(answer, bytes)).await;
        Ok(sent.map_err(|_| ServeError::Silent)??)
    }

    /// Tells the asker what it has not heard of.
    async fn tell(&mut self, news: &mut News, source: &Source) -> Result<(), ServeError> {
        let (providers, ranges) = news.take(source);
        if !ranges.is_empty() {
            self.answer(&BlobAnswer::Gained(Gained { ranges }), &[]).await?;
        }
        if !providers.is_empty() {
            self.answer(&BlobAnswer::Peers(Peers { providers }), &[]).await?;
        }
        Ok(())
    }

    /// Sends bytes of a blob, after the frame that announces them, in this asker's turn and no faster than
    /// the owner allows.
    async fn send_in_turn(&mut self, frame: Option<BlobAnswer>, bytes: &[u8]) -> Result<(), ServeError> {
        let turn = self.throttle.uploads.take(self.asker.peer).await;
        in_turn(turn, self.send_capped(frame, bytes)).await
    }

    async fn send_capped(&mut self, frame: Option<BlobAnswer>, bytes: &[u8]) -> Result<(), ServeError> {
        let throttle = Arc::clone(&self.throttle);
        let is_capped = throttle.upload.is_capped();
        match frame {
            Some(frame) if is_capped => self.answer(&frame, &[]).await?,
            Some(frame) => return self.answer(&frame, bytes).await,
            None => {}
        }
        let part = if is_capped { CAPPED_PART } else { bytes.len().max(1) };
        for part in bytes.chunks(part) {
            throttle.upload.take(part.len()).await;
            let sent = timeout(ASKER_TIMEOUT, self.answers.send_bytes(part)).await;
            sent.map_err(|_| ServeError::Silent)??;
        }
        Ok(())
    }

    async fn send_outboard(&mut self, blob: BlobRef, source: &Source) -> Result<(), ServeError> {
        let length = upper_size(blob.size);
        if length == 0 {
            return Err(ServeError::OutOfTurn);
        }
        self.answer(&BlobAnswer::Outboard(Outboard { length }), &[]).await?;
        let mut part = Vec::new();
        for offset in (0..length).step_by(OUTBOARD_PART) {
            let wanted = (length - offset).min(OUTBOARD_PART as u64) as usize;
            source.read_outboard(offset, 0..wanted, &mut part).await?;
            self.send_in_turn(None, &part[..wanted]).await?;
        }
        Ok(())
    }

    /// Sends pieces in order. Of one that is still coming, each part is passed on as it is verified, so that
    /// whoever stands at the end of a chain waits for parts and not for pieces.
    async fn send_pieces(
        &mut self,
        range: Range<u64>,
        subject: Subject,
        source: &Source,
        news: &mut News,
    ) -> Result<(), ServeError> {
        for index in range {
            if source.here_of(index) == 0 {
                return Err(ServeError::NotHere(index));
            }
            let (size, mut sent) = (piece_size(source.size(), index), 0);
            while sent < size {
                // Without a turn: others may have theirs meanwhile.
                self.wait_for(index, size.min(sent + PART_SIZE), source, news).await?;
                let here = source.here_of(index);
                let turn = self.throttle.uploads.take(self.asker.peer).await;
                in_turn(turn, self.send_parts(index, sent..here, subject, source, news)).await?;
                sent = here;
            }
        }
        Ok(())
    }

    /// Sends these bytes of a piece part by part, each encrypted while a core's cache still has it. The pairs of
    /// a blob's piece go before its first bytes.
    async fn send_parts(
        &mut self,
        index: u64,
        bytes: Range<usize>,
        subject: Subject,
        source: &Source,
        news: &mut News,
    ) -> Result<(), ServeError> {
        let mut part = std::mem::take(&mut self.part);
        for offset in bytes.clone().step_by(PART_SIZE) {
            if news.is_due() {
                self.tell(news, source).await?;
            }
            let mut pairs = 0;
            if let (0, Subject::Blob(blob)) = (offset, subject) {
                let (first, length) = pairs_of(blob.size, index);
                source.read_outboard(first, 0..length, &mut part).await?;
                pairs = length;
            }
            let (end, offset) = (pairs + PART_SIZE.min(bytes.end - offset), offset as u64);
            source.read(index * PIECE_SIZE + offset, pairs..end, &mut part).await?;
            self.send_capped(Some(BlobAnswer::Piece(Piece { index, offset })), &part[..end]).await?;
        }
        self.part = part;
        Ok(())
    }

    /// Waits until a piece is here up to `end`, and tells meanwhile what is new.
    async fn wait_for(
        &mut self,
        index: u64,
        end: usize,
        source: &Source,
        news: &mut News,
    ) -> Result<(), ServeError> {
        if source.here_of(index) >= end {
            return Ok(());
        }
        let arrival = timeout(ASKER_TIMEOUT, source.arrival(index, end));
        tokio::pin!(arrival);
        loop {
            tokio::select! {
                arrived = &mut arrival => return arrived.map_err(|_| ServeError::NotHere(index)),
                () = news.due() => self.tell(news, source).await?,
            }
        }
    }
}

/// Holds a turn for as long as the work takes, unless others have waited long enough.
async fn in_turn(turn: Turn, work: impl Future<Output = Result<(), ServeError>>) -> Result<(), ServeError> {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = sleep(LONGEST_TURN) => drop(turn),
    }
    work.await
}

fn checked_range(get: Get, pieces: u64) -> Option<Range<u64>> {
    let end = get.first.checked_add(get.count)?;
    ((1..=MAX_RANGE).contains(&get.count) && end <= pieces).then_some(get.first..end)
}

/// An asker could not verify what we sent: either it lies, or our disk does.
async fn check(bad: Bad, blob: BlobRef, store: &BlobStore, bounds: &Bounds) -> Result<(), ServeError> {
    let Ok(_permit) = bounds.checks.try_acquire() else { return Ok(()) };
    let verified = !store.contains(blob.hash) || store.verify(blob.hash).await?;
    warn!(?bad, blob = %blob.hash.fmt_short(), verified, "asker could not verify the blob, read it again");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_outside_the_blob_are_refused() {
        let check = |first, count| checked_range(Get { first, count }, 4);
        assert_eq!(check(0, 4), Some(0..4));
        assert_eq!(check(3, 1), Some(3..4));
        for (first, count) in [(0, 5), (4, 1), (0, 0), (u64::MAX, 1), (0, u64::MAX), (1, MAX_RANGE + 1)] {
            assert_eq!(check(first, count), None, "{count} from {first}");
        }
    }
}
