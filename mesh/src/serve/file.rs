//! A conversation about a file that only its SHA-256 names: what is here of it, and what comes meanwhile.
//!
//! There is no outboard: what is sent is proven by the whole, at whoever asked. Not here: how it is put
//! together.

use std::ops::Range;
use std::time::Duration;

use protocol::wire::{BlobAnswer, BlobRequest, Gained, MAX_GAINED, NotFound, Piece};
use protocol::{FileRef, PIECE_SIZE, PieceRange};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout};

use super::{ASKER_TIMEOUT, Conversation, ServeError, checked_range, have, joined};
use crate::store::{BlobStore, Pieces, Source};

/// How often further pieces are told of at most.
const BETWEEN_NEWS: Duration = Duration::from_millis(50);

/// What the asker knows of what is here.
struct Told {
    pieces: Pieces,
    at: Instant,
}

impl Conversation {
    /// Serves what there is of the file, for as long as it is wanted.
    pub(super) async fn serve_file(&mut self, file: FileRef, store: &BlobStore) -> Result<(), ServeError> {
        let Some(source) = store.file_source(file).await? else {
            return self.answer(&BlobAnswer::NotFound(NotFound), &[]).await;
        };
        let mut told = Told { pieces: source.pieces(), at: Instant::now() };
        self.answer(&BlobAnswer::Have(have(&source)), &[]).await?;
        let mut grown = source.grown();
        loop {
            let request = tokio::select! {
                request = timeout(ASKER_TIMEOUT, self.requests.recv()) => request,
                () = news(&source, &mut grown, &told) => {
                    self.tell_growth(&source, &mut told).await?;
                    continue;
                }
            };
            match request.map_err(|_| ServeError::Silent)?? {
                None => return Ok(()),
                Some(BlobRequest::Get(get)) => {
                    let pieces = file.size.div_ceil(PIECE_SIZE);
                    let range = checked_range(get, pieces).ok_or(ServeError::OutOfTurn)?;
                    self.send_file(range, &source, &mut told).await?;
                }
                // Whoever reads the same file is told of by the one who leases its ranges.
                Some(BlobRequest::Announce(announce)) => {
                    announce.dialable().ok_or(ServeError::OutOfTurn)?;
                }
                Some(_) => return Err(ServeError::OutOfTurn),
            }
        }
    }

    /// Sends pieces in order, and news of others between them; the next one is read while one crosses.
    async fn send_file(
        &mut self,
        range: Range<u64>,
        source: &Source,
        told: &mut Told,
    ) -> Result<(), ServeError> {
        let read = |piece| {
            let source = source.clone();
            spawn_blocking(move || source.read_piece(piece))
        };
        let mut reading = read(range.start);
        for index in range.clone() {
            let piece = joined(reading).await?.ok_or(ServeError::OutOfTurn)?;
            reading = read((index + 1).min(range.end - 1));
            if told.at.elapsed() >= BETWEEN_NEWS {
                self.tell_growth(source, told).await?;
            }
            self.answer(&BlobAnswer::Piece(Piece { index }), &piece).await?;
        }
        Ok(())
    }

    async fn tell_growth(&mut self, source: &Source, told: &mut Told) -> Result<(), ServeError> {
        let mut ranges = told.pieces.missing_from(&source.pieces(), u64::MAX);
        ranges.truncate(MAX_GAINED);
        told.at = Instant::now();
        if ranges.is_empty() {
            return Ok(());
        }
        ranges.iter().cloned().flatten().for_each(|piece| told.pieces.insert(piece));
        let ranges = ranges.into_iter().map(PieceRange::from).collect();
        self.answer(&BlobAnswer::Gained(Gained { ranges }), &[]).await
    }
}

/// Waits until there are pieces that the asker has not heard of, and may hear of by now.
async fn news(source: &Source, grown: &mut Option<watch::Receiver<()>>, told: &Told) {
    let Some(grown) = grown else { return std::future::pending().await };
    while told.pieces.missing_from(&source.pieces(), u64::MAX).is_empty() {
        if grown.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
    sleep_until(told.at + BETWEEN_NEWS).await;
}
