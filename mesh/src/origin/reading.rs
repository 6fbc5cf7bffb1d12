//! One range of a file while it is read: pieces come out, whatever happens to connections.
//!
//! A connection that breaks is made again from the next byte; a busy server is waited for; a link that ran
//! out is asked for anew; a URL that does not help gives way to the next. Not here: what a URL is known
//! for; that is `mirrors`.

use std::ops::Range;

use bytes::Bytes;
use protocol::PIECE_SIZE;
use reqwest::Response;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use crate::origin::answer::Answer;
use crate::origin::error::{OriginError, OriginFailed, host};
use crate::origin::question::{Question, Reply};
use crate::origin::request::Opened;
use crate::origin::{Origin, OriginReader};
use crate::tree::piece_size;

/// The range that is being read; dropped, it ends.
pub struct Reading {
    origin: Origin,
    /// The pieces that are still to come.
    pieces: Range<u64>,
    /// What came of the first of them.
    buffer: Vec<u8>,
    body: Option<Body>,
    question: Option<Question>,
    /// An attempt that was made before anybody waited for it.
    early: Option<Result<Attempt, OriginFailed>>,
    /// From whom the buffer came.
    mirror: usize,
    /// How often it failed since the last piece.
    failures: u32,
    /// It is not tried again before.
    rests_until: Instant,
    /// Held while the file is read from its beginning.
    from_beginning: Option<OwnedMutexGuard<()>>,
}

/// What comes of a range.
#[derive(Debug)]
pub enum OriginEvent {
    /// A piece.
    Piece {
        /// Which one.
        index: u64,
        /// Its bytes.
        bytes: Vec<u8>,
        /// Which of the URLs gave it.
        mirror: usize,
    },
    /// The file at this URL is another one now: pieces that it gave before are not part of it.
    Changed {
        /// Which of the URLs.
        mirror: usize,
    },
}

struct Body {
    response: Response,
    host: String,
    /// How many bytes of it are not of use.
    skip: u64,
    /// How many bytes are to come, after those.
    left: u64,
    rest: Bytes,
    /// How many bytes came that the caps were not asked about yet.
    unpaid: usize,
    _connection: OwnedSemaphorePermit,
}

/// What became of an attempt to go on.
enum Attempt {
    Opened,
    Changed(usize),
    Failed(usize, OriginError),
}

impl Reading {
    pub(super) fn new(origin: Origin, pieces: Range<u64>) -> Self {
        Self {
            origin,
            pieces,
            buffer: Vec::new(),
            body: None,
            question: None,
            early: None,
            mirror: 0,
            failures: 0,
            rests_until: Instant::now(),
            from_beginning: None,
        }
    }

    /// The pieces that are still to come.
    pub fn pieces(&self) -> Range<u64> {
        self.pieces.clone()
    }

    /// Asks for the range, so that its first piece is on its way before it is waited for.
    pub async fn prepare(&mut self) {
        if self.body.is_none() && self.early.is_none() && !self.pieces.is_empty() {
            self.early = Some(self.open().await);
        }
    }

    /// Whether the range was asked for.
    pub fn is_prepared(&self) -> bool {
        self.body.is_some() || self.early.is_some()
    }

    /// The next piece; `None` after the last one. Whoever stops waiting for it loses nothing.
    pub async fn next(&mut self) -> Result<Option<OriginEvent>, OriginFailed> {
        while !self.pieces.is_empty() {
            let failed = match &mut self.body {
                None => match self.attempt().await? {
                    Attempt::Opened => continue,
                    Attempt::Changed(mirror) => return Ok(Some(OriginEvent::Changed { mirror })),
                    Attempt::Failed(mirror, error) => (mirror, error),
                },
                Some(body) => match body.fill(self.origin.reader()).await {
                    Ok(true) => match self.take() {
                        Some(piece) => return Ok(Some(piece)),
                        None => continue,
                    },
                    // The range that was sent is shorter than the one that was asked for.
                    Ok(false) => {
                        self.body = None;
                        continue;
                    }
                    Err(error) => (self.mirror, error),
                },
            };
            self.body = None;
            self.rest_or_leave(failed.0, failed.1);
        }
        Ok(None)
    }

    async fn attempt(&mut self) -> Result<Attempt, OriginFailed> {
        match self.early.take() {
            Some(attempt) => attempt,
            None => self.open().await,
        }
    }

    /// The next byte that is to come.
    fn position(&self) -> u64 {
        self.pieces.start * PIECE_SIZE + self.buffer.len() as u64
    }

    /// Asks, or goes on waiting for the answer.
    async fn open(&mut self) -> Result<Attempt, OriginFailed> {
        sleep_until(self.rests_until).await;
        let question = match &mut self.question {
            Some(question) => question,
            None => {
                let question = self.ask().await?;
                self.question.insert(question)
            }
        };
        let reply = question.reply().await;
        let question = self.question.take().expect("it was answered");
        Ok(self.begin(question, reply))
    }

    async fn ask(&mut self) -> Result<Question, OriginFailed> {
        let Some(choice) = self.origin.choose() else { return Err(self.origin.failures()) };
        if choice.mirror != self.mirror {
            // A piece has one giver.
            self.buffer.clear();
            self.mirror = choice.mirror;
        }
        if !choice.has_ranges && self.from_beginning.is_none() {
            self.from_beginning = Some(self.origin.turn_to_read_all().lock_owned().await);
            self.pieces = 0..self.origin.size().div_ceil(PIECE_SIZE);
            self.buffer.clear();
        }
        let end = self.pieces.end.saturating_mul(PIECE_SIZE).min(self.origin.size());
        let bytes = choice.has_ranges.then(|| (self.position(), Some(end)));
        let reader = self.origin.reader().clone();
        Ok(Question::new(reader, choice, bytes, self.origin.size()))
    }

    fn begin(&mut self, question: Question, reply: Reply) -> Attempt {
        let Question { mirror, version, .. } = question;
        if let Some(link) = reply.link {
            self.origin.led(mirror, link);
        }
        let Opened { answer, response, connection, .. } = match reply.result {
            Ok(opened) => opened,
            Err(error) => return Attempt::Failed(mirror, error),
        };
        let host = host(response.url());
        let (skip, left) = match answer {
            Answer::Range { bytes, version, .. } => {
                if !self.origin.is_same(mirror, version) {
                    return self.begin_anew(mirror, &host);
                }
                (0, bytes.end - bytes.start)
            }
            Answer::Whole { version: now, .. } if self.from_beginning.is_some() => {
                if !self.origin.is_same(mirror, now) {
                    return self.begin_anew(mirror, &host);
                }
                (self.position(), self.origin.size() - self.position())
            }
            // The condition `If-Range` did not hold.
            Answer::Whole { version: now, .. } if version.is_some() && now != version => {
                return self.begin_anew(mirror, &host);
            }
            Answer::Whole { .. }
                if self.position() == 0 && self.pieces.end * PIECE_SIZE >= self.origin.size() =>
            {
                (0, self.origin.size())
            }
            Answer::Whole { .. } => {
                debug!(host, "server knows no ranges");
                self.origin.lacks_ranges(mirror);
                // Another URL may; if none does, this one is asked again from the beginning.
                return Attempt::Opened;
            }
        };
        let (rest, unpaid) = (Bytes::new(), 0);
        self.body = Some(Body { response, host, skip, left, rest, unpaid, _connection: connection });
        Attempt::Opened
    }

    fn begin_anew(&mut self, mirror: usize, host: &str) -> Attempt {
        self.origin.changed(mirror, host);
        self.buffer.clear();
        Attempt::Changed(mirror)
    }

    /// Moves bytes of the body to the piece that is next; gives it when it is whole.
    fn take(&mut self) -> Option<OriginEvent> {
        let body = self.body.as_mut()?;
        let index = self.pieces.start;
        let size = piece_size(self.origin.size(), index);
        self.buffer.reserve_exact(size.saturating_sub(self.buffer.len()));
        let part = body.rest.split_to(body.rest.len().min(size - self.buffer.len()));
        self.buffer.extend_from_slice(&part);
        if self.buffer.len() < size {
            return None;
        }
        self.pieces.start += 1;
        self.failures = 0;
        if self.pieces.is_empty() {
            self.body = None;
        }
        Some(OriginEvent::Piece { index, bytes: std::mem::take(&mut self.buffer), mirror: self.mirror })
    }

    /// Lets a URL rest before it is tried again, or gives up on it.
    fn rest_or_leave(&mut self, mirror: usize, error: OriginError) {
        let config = &self.origin.reader().inner.config;
        let own = config.retry_pause.saturating_mul(1 << self.failures.min(16));
        let pause = match &error {
            OriginError::Busy { wait: Some(wait), .. } => Some(*wait),
            OriginError::Busy { .. }
            | OriginError::Connect { .. }
            | OriginError::Broken { .. }
            | OriginError::Silent { .. }
            | OriginError::Short { .. } => Some(own),
            _ => None,
        };
        let pause = pause.filter(|pause| *pause <= config.longest_pause && self.failures < config.retries);
        debug!(%error, ?pause, "origin does not go on");
        match pause {
            Some(pause) => {
                self.failures += 1;
                self.rests_until = Instant::now() + pause;
            }
            None => {
                self.failures = 0;
                self.origin.fail(mirror, error);
            }
        }
    }
}

impl Body {
    /// Sees to it that there are bytes to take; `false` at the end of the range.
    async fn fill(&mut self, reader: &OriginReader) -> Result<bool, OriginError> {
        let silence = reader.inner.config.silence;
        while self.rest.is_empty() {
            if self.left == 0 {
                return Ok(false);
            }
            let host = || self.host.clone();
            let chunk = timeout(silence, self.response.chunk()).await;
            let chunk = chunk.map_err(|_| OriginError::Silent { host: host(), waited: silence })?;
            let broken =
                |source: reqwest::Error| OriginError::Broken { host: host(), source: source.without_url() };
            let Some(mut chunk) = chunk.map_err(broken)? else {
                return Err(OriginError::Short { host: host(), lacking: self.skip + self.left });
            };
            self.unpaid += chunk.len();
            let skipped = self.skip.min(chunk.len() as u64);
            self.skip -= skipped;
            let _ = chunk.split_to(skipped as usize);
            // What a server sends beyond its range is not looked at.
            chunk.truncate(self.left.min(chunk.len() as u64) as usize);
            self.left -= chunk.len() as u64;
            self.rest = chunk;
        }
        // What is not taken from the connection yet slows the server down.
        if let Some(throttle) = reader.throttle.as_ref().filter(|_| self.unpaid > 0) {
            throttle.download.take(self.unpaid).await;
        }
        self.unpaid = 0;
        Ok(true)
    }
}
