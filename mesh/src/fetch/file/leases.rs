//! Which pieces of a file are ours to read from the internet: asked for, renewed, and asked for again.
//!
//! While others read all that we lack we take it from them, and ask again now and then: what nobody reads
//! any more is leased anew. Where nobody answers, all of it is ours. Not here: the reading.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use protocol::message::{MAX_LIST, OriginLease};
use protocol::{FileRef, PieceRange};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::fetch::source::Event;
use crate::fetch::target::Target;
use crate::finder::Finder;
use crate::store::Pieces;

/// The most pieces that are asked for, and how many before the speed is known.
const MOST: u64 = 16;
const AT_FIRST: u64 = 8;
/// How many seconds of reading are asked for.
const AHEAD: f64 = 2.0;
/// How long there may be no answer, after there were some, before the file is read alone.
const PATIENCE: Duration = Duration::from_secs(5);
/// When it is asked again: after a failure and while others read everything, and before a lease ends.
const AGAIN: Duration = Duration::from_millis(500);
const BEFORE_ITS_END: Duration = Duration::from_secs(7);

/// The leases on one file while it is read; dropped, nothing more is asked.
pub(super) struct Leases {
    news: mpsc::Receiver<LeaseNews>,
    /// How many pieces were read from the internet.
    read: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

/// What comes of asking.
pub(super) enum LeaseNews {
    /// Pieces that may be read, or others who read.
    Event(Event),
    /// From now on nobody answers, or somebody does again.
    Alone(bool),
}

/// Nobody listens any more.
struct Unheard;

impl Leases {
    /// Begins to ask.
    pub(super) fn start(keeper: Keeper) -> Self {
        let (sender, news) = mpsc::channel(4);
        let read = Arc::default();
        let mine = Pieces::none(keeper.target.pieces().count());
        let keeping = Keeping { keeper, news: sender, read: Arc::clone(&read), mine };
        let task = async {
            // It ends when nobody listens.
            let Unheard = keeping.run().await;
        };
        Self { news, read, _task: AbortOnDropHandle::new(tokio::spawn(task)) }
    }

    /// What comes next. It may be cancelled and called again.
    pub(super) async fn next(&mut self) -> LeaseNews {
        match self.news.recv().await {
            Some(news) => news,
            None => pending().await,
        }
    }

    /// Takes note that a piece was read.
    pub(super) fn count(&self) {
        self.read.fetch_add(1, Ordering::Relaxed);
    }
}

/// Who is asked for what.
pub(super) struct Keeper {
    pub(super) finder: Arc<dyn Finder>,
    pub(super) file: FileRef,
    pub(super) target: Arc<dyn Target>,
    /// Whether nobody answered before.
    pub(super) is_alone: bool,
}

struct Keeping {
    keeper: Keeper,
    news: mpsc::Sender<LeaseNews>,
    read: Arc<AtomicU64>,
    /// What is ours to read.
    mine: Pieces,
}

impl Keeping {
    async fn run(mut self) -> Unheard {
        let (began, mut answered) = (Instant::now(), None);
        loop {
            let read = self.read.load(Ordering::Relaxed);
            let per_second = read as f64 / began.elapsed().as_secs_f64().max(0.001);
            let wanted = if read == 0 { AT_FIRST } else { ((per_second * AHEAD) as u64).clamp(1, MOST) };
            let Keeper { finder, file, target, is_alone } = &self.keeper;
            let told = match finder.read_origin(file, held(&target.pieces()), wanted).await {
                Ok(_) if *is_alone => self.tell(LeaseNews::Alone(false)).await,
                Ok(lease) => {
                    answered = Some(Instant::now());
                    self.take(lease).await
                }
                Err(error) => {
                    let is_patient = answered.is_some_and(|answered| answered.elapsed() < PATIENCE);
                    if *is_alone || is_patient {
                        Ok(())
                    } else {
                        debug!(%error, "ranges are not leased at the moment, the file is read alone");
                        self.tell(LeaseNews::Alone(true)).await
                    }
                }
            };
            if let Err(unheard) = told {
                return unheard;
            }
            self.rest().await;
        }
    }

    /// Tells of what is ours, and of the others.
    async fn take(&mut self, lease: OriginLease) -> Result<(), Unheard> {
        let count = self.mine.count();
        let ranges: Vec<_> = lease.ranges.into_iter().filter_map(|range| range.within(count)).collect();
        self.mine = Pieces::none(count);
        ranges.iter().cloned().flatten().for_each(|piece| self.mine.insert(piece));
        if !lease.readers.is_empty() {
            self.tell(LeaseNews::Event(Event::Learned(lease.readers))).await?;
        }
        // Even nothing is news: somebody sees to it that the rest is read.
        self.tell(LeaseNews::Event(Event::Gained(ranges))).await
    }

    async fn tell(&self, news: LeaseNews) -> Result<(), Unheard> {
        self.news.send(news).await.map_err(|_| Unheard)
    }

    /// Waits until there is a reason to ask again.
    async fn rest(&self) {
        let leased = self.unread();
        let until = Instant::now() + if leased == 0 { AGAIN } else { BEFORE_ITS_END };
        let mut grown = self.keeper.target.growth();
        while leased == 0 || self.unread() > leased / 2 {
            if timeout_at(until, grown.changed()).await.is_err() {
                return;
            }
        }
    }

    /// How many pieces are ours to read and not here yet.
    fn unread(&self) -> u64 {
        let here = self.keeper.target.pieces();
        here.missing_from(&self.mine, u64::MAX).iter().map(|range| range.end - range.start).sum()
    }
}

/// Pieces as ranges, as far as a message takes them.
pub(super) fn held(pieces: &Pieces) -> Vec<PieceRange> {
    let none = Pieces::none(pieces.count());
    let ranges = none.missing_from(pieces, u64::MAX).into_iter().map(PieceRange::from);
    ranges.take(MAX_LIST).collect()
}
