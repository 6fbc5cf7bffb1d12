//! One fetch while it goes on: its suppliers, each opened and asked at the same time, until all is here.
//!
//! What each is asked for is the [`Schedule`]'s affair; how it is asked, the source's. Not here: what
//! becomes of a target that is whole.

mod outboard;
mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use protocol::message::Provider;
use protocol::{PeerId, SourceName, Transfer, TransferSource, error_chain};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, debug_span, warn};

use self::outboard::OutboardTurn;
use self::worker::Worker;
use super::Inner;
use super::learned::Learned;
use super::peer::PeerSupplier;
use super::progress::Progress;
use super::schedule::{Meter, Schedule, SourceId, UNKNOWN};
use super::source::{SourceError, Supplier};
use super::target::Target;
use crate::store::StoreError;

/// The most sources that are asked at once.
const MAX_SOURCES: usize = 16;
/// A further source is asked for every so many pieces that are missing.
const PIECES_PER_SOURCE: u64 = 4;
/// A source that gives nothing for this long, or has nothing that is missing, does not count among them.
const STALLED: Duration = Duration::from_secs(1);
/// How many that do not count are kept besides.
const MAX_STALLED: usize = 16;
/// How often a supplier that is busy or broke off is opened again without giving anything, and the first
/// pause before that; each is twice as long.
const MAX_TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// How often it is looked whether another source is to be asked.
const LOOK: Duration = Duration::from_millis(250);

/// Why not everything came.
#[derive(Debug)]
pub(crate) enum GatherError {
    /// Nobody can give what is missing: whom we asked, and why it did not help.
    NoSource(Vec<(SourceName, String)>),
    Store(StoreError),
}

/// A fetch that goes on.
pub(crate) struct Gathering {
    exchange: Arc<Inner>,
    target: Arc<dyn Target>,
    state: Mutex<State>,
    /// Changes when a source may find something to ask for that was not there before.
    changed: watch::Sender<()>,
    /// Once every piece is here, or nobody waits for them any more.
    over: CancellationToken,
    began: Instant,
    learned: Learned,
    progress: Option<watch::Sender<Progress>>,
}

struct State {
    schedule: Schedule,
    seats: BTreeMap<SourceId, Seat>,
    next_id: u32,
    outboard: OutboardTurn,
    /// Who gave how many bytes, in the order in which they began.
    gave: Vec<(SourceName, u64)>,
    /// When anything last came from anybody.
    heard: Instant,
}

/// A supplier that is opened or asked.
struct Seat {
    name: SourceName,
    carrier: Option<&'static str>,
    /// How fast parts of pieces come from it.
    parts: Meter,
    bytes: u64,
    heard: Instant,
}

impl Gathering {
    /// Ready to fill this target, `in_order` for whoever reads it while it comes.
    pub(crate) fn new(
        exchange: Arc<Inner>,
        target: Arc<dyn Target>,
        in_order: bool,
        progress: Option<watch::Sender<Progress>>,
    ) -> Arc<Self> {
        let us = exchange.config.credentials.peer();
        let schedule = Schedule::new(target.pieces(), key_of(&SourceName::Peer(us)), in_order);
        let now = Instant::now();
        let state = State {
            schedule,
            seats: BTreeMap::new(),
            next_id: 0,
            outboard: OutboardTurn::default(),
            gave: Vec::new(),
            heard: now,
        };
        Arc::new(Self {
            exchange,
            target,
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
            over: CancellationToken::new(),
            began: now,
            learned: Learned::besides([us]),
            progress,
        })
    }

    fn us(&self) -> PeerId {
        self.exchange.config.credentials.peer()
    }

    pub(super) fn exchange(&self) -> &Inner {
        &self.exchange
    }

    /// What is filled.
    pub(crate) fn target(&self) -> &Arc<dyn Target> {
        &self.target
    }

    /// Takes note of others who may have some of it.
    pub(crate) fn learn(&self, providers: Vec<Provider>) {
        self.learned.add(providers);
    }

    /// Waits until those who give bring it slower than somebody of whom nothing is known would. What they bring of our
    /// other fetches meanwhile counts: who is busy with these is not slow.
    pub(crate) async fn slow(&self) {
        while self.target.lacks_outboard().is_some() || !self.is_slow() {
            sleep(LOOK).await;
        }
    }

    fn is_slow(&self) -> bool {
        let (givers, own) = {
            let (now, state) = (self.now(), self.lock());
            let giving = state.schedule.giving().filter_map(|id| Some((id, state.seats.get(&id)?)));
            let speed = |id: SourceId, seat: &Seat| seat.parts.bytes_per_second(state.waiting(id, now));
            let giving = giving.map(|(id, seat)| (seat.name.clone(), speed(id, seat)));
            giving.unzip::<SourceName, f64, Vec<_>, Vec<_>>()
        };
        let own: f64 = own.into_iter().sum();
        let others = || -> f64 {
            let others = self.exchange.gatherings();
            let others = others.iter().filter(|other| !std::ptr::eq(&***other, self));
            others.map(|other| other.brought_by(&givers)).sum()
        };
        own < UNKNOWN && own + others() < UNKNOWN
    }

    /// How fast these bring what they were asked for, in bytes per second.
    fn brought_by(&self, givers: &[SourceName]) -> f64 {
        let (now, state) = (self.now(), self.lock());
        let brings = |seat: &Seat| givers.contains(&seat.name) && seat.parts.measured().is_some();
        let seats = state.seats.iter().filter(|(_, seat)| brings(seat));
        let waited_for = seats.filter_map(|(id, seat)| Some((seat, state.waiting(*id, now)?)));
        waited_for.map(|(seat, now)| seat.parts.bytes_per_second(Some(now))).sum()
    }

    /// Takes everything that is missing from these suppliers, the preferred first, and from those who are
    /// heard of meanwhile.
    pub(crate) async fn run(self: &Arc<Self>, suppliers: Vec<Arc<dyn Supplier>>) -> Result<(), GatherError> {
        let mut round = Round::default();
        // Whoever lets go of this lets the sources go.
        let _over = self.over.clone().drop_guard();
        for supplier in suppliers {
            if let SourceName::Peer(peer) = supplier.name() {
                self.learned.knows(peer);
            }
            round.wait(Attempt::first(supplier));
        }
        let askers = self.exchange.links.askers();
        let (mut asked, mut told) = (askers.added(), 0);
        while !self.is_complete() {
            // Whoever asks us for it may have some of it as well.
            self.learn(askers.news(&self.target.name(), self.us(), &mut told));
            round.take_learned(self);
            round.begin(self);
            if round.is_empty() || self.is_helpless(&round) {
                return Err(GatherError::NoSource(round.give_up(self)));
            }
            let look = round.looks_again();
            tokio::select! {
                Some(ended) = round.working.join_next() => {
                    let (attempt, gave, result) = ended.map_err(|_| GatherError::Store(StoreError::Abandoned))?;
                    round.peers -= usize::from(attempt.is_peer());
                    if let Err(error) = result {
                        round.failed(self, attempt, gave, error)?;
                    }
                }
                () = self.learned.added() => {}
                _ = asked.changed() => {}
                () = self.over.cancelled() => {}
                () = sleep_until(look) => {}
            }
        }
        // They stop by themselves; what they write is written when they have.
        while round.working.join_next().await.is_some() {}
        Ok(())
    }

    /// Who gave how many bytes.
    pub(crate) fn gave(&self) -> Vec<(SourceName, u64)> {
        self.lock().gave.clone()
    }

    /// What it looks like from outside.
    pub(crate) fn view(&self) -> Transfer {
        let (name, size, here) = (self.target.name(), self.target.size(), self.target.bytes());
        let state = self.lock();
        let sources = state.seats.iter().map(|(id, seat)| TransferSource {
            from: seat.name.clone(),
            plane: seat.carrier.unwrap_or_default().to_owned(),
            bytes: seat.bytes,
            rate: state.schedule.speed(*id).unwrap_or(0),
        });
        Transfer { name, size, here, sources: sources.collect() }
    }

    fn is_complete(&self) -> bool {
        self.lock().schedule.is_complete() && self.target.lacks_outboard().is_none()
    }

    /// Whether nobody has anything that is missing, and nobody has told of anything new for long.
    fn is_helpless(&self, round: &Round) -> bool {
        let state = self.lock();
        let lacks_outboard = self.target.lacks_outboard().is_some();
        if lacks_outboard && round.peers == 0 {
            return true;
        }
        let is_waiting = !round.waiting.is_empty() || !round.resting.is_empty() || state.outboard.is_taken();
        let helps = |(id, seat): (&SourceId, &Seat)| {
            // Before its tree is here, the internet waits for peers that give it.
            let is_opened = seat.carrier.is_none() && (seat.name.is_peer() || !lacks_outboard);
            is_opened || state.schedule.is_open(*id) || state.schedule.has_missing(*id)
        };
        !is_waiting
            && state.heard.elapsed() > self.exchange.config.piece_timeout
            && !state.schedule.is_busy()
            && !state.seats.iter().any(helps)
    }

    /// How many suppliers may be opened or asked at the moment.
    fn places(&self) -> usize {
        let state = self.lock();
        let by_size = state.schedule.missing().div_ceil(PIECES_PER_SOURCE).clamp(1, MAX_SOURCES as u64);
        let is_stalled = |(id, seat): &(&SourceId, &Seat)| {
            let is_idle = seat.carrier.is_some() && !state.schedule.is_open(**id);
            seat.heard.elapsed() > STALLED || (is_idle && !state.schedule.has_missing(**id))
        };
        let stalled = state.seats.iter().filter(is_stalled).count();
        by_size as usize + stalled.min(MAX_STALLED)
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the state")
    }

    /// Lets sources that wait look again.
    fn wake(&self) {
        self.changed.send_replace(());
    }
}

/// A number that tells a source from others; the same in every process.
fn key_of(name: &SourceName) -> u64 {
    match name {
        SourceName::Peer(peer) => peer.0.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)),
        SourceName::Origin(_) => 0,
    }
}

/// A supplier, and how often it was opened without giving anything.
struct Attempt {
    supplier: Arc<dyn Supplier>,
    tries: u32,
}

impl Attempt {
    fn first(supplier: Arc<dyn Supplier>) -> Self {
        Self { supplier, tries: 0 }
    }

    fn is_peer(&self) -> bool {
        self.supplier.name().is_peer()
    }
}

/// The suppliers of one run: those that wait for their turn, rest before another try, or are at work.
#[derive(Default)]
struct Round {
    waiting: VecDeque<Attempt>,
    resting: Vec<(Instant, Attempt)>,
    working: JoinSet<(Attempt, u64, Result<(), SourceError>)>,
    /// How many of all of them are peers: nobody else has a hash tree.
    peers: usize,
    tried: Vec<(SourceName, String)>,
}

impl Round {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.resting.is_empty() && self.working.is_empty()
    }

    fn wait(&mut self, attempt: Attempt) {
        self.peers += usize::from(attempt.is_peer());
        self.waiting.push_back(attempt);
    }

    fn take_learned(&mut self, gathering: &Gathering) {
        for provider in gathering.learned.take() {
            self.wait(Attempt::first(Arc::new(PeerSupplier(provider))));
        }
        let now = Instant::now();
        let rested = self.resting.extract_if(.., |(until, _)| *until <= now);
        self.waiting.extend(rested.map(|(_, attempt)| attempt));
    }

    /// Opens suppliers as long as there is a place for one.
    fn begin(&mut self, gathering: &Arc<Gathering>) {
        while self.working.len() < gathering.places()
            && let Some(attempt) = self.waiting.pop_front()
        {
            let gathering = Arc::clone(gathering);
            let span = debug_span!("source", name = %attempt.supplier.name());
            let home = Handle::current();
            self.working.spawn_blocking(move || {
                let (gave, result) = span.in_scope(|| Worker::run(&gathering, &*attempt.supplier, home));
                (attempt, gave, result)
            });
        }
    }

    /// When there may be a supplier to open that there is not now.
    fn looks_again(&self) -> Instant {
        let rested = self.resting.iter().map(|(until, _)| *until).min();
        let look = Instant::now() + LOOK;
        rested.map_or(look, |rested| rested.min(look))
    }

    /// A supplier gives no more: it is remembered why, and opened again where that may help.
    fn failed(
        &mut self,
        gathering: &Gathering,
        mut attempt: Attempt,
        gave: u64,
        error: SourceError,
    ) -> Result<(), GatherError> {
        let name = attempt.supplier.name();
        if let SourceError::Store(error) = error {
            return Err(GatherError::Store(error));
        }
        if let SourceName::Peer(peer) = &name
            && error.is_fault()
        {
            warn!(provider = %peer.fmt_short(), %error, "provider sent wrong bytes, not asked for this blob again");
            gathering.exchange.faults().add(*peer, gathering.target.name(), error_chain(&error));
        } else {
            debug!(source = %name, %error, gave, "source gives no more");
        }
        self.tried.retain(|(tried, _)| *tried != name);
        self.tried.push((name, error_chain(&error)));
        attempt.tries = if gave > 0 { 1 } else { attempt.tries + 1 };
        // The next URL may have what this one has not, where a piece proves itself.
        let is_next_url = !attempt.is_peer()
            && !gathering.target.takes_whole_pieces()
            && matches!(error, SourceError::Wrong(_) | SourceError::Changed);
        let may_help = is_next_url || error.may_pass(gave);
        if may_help && attempt.tries < MAX_TRIES {
            let pause = FIRST_PAUSE * 2u32.pow(attempt.tries - 1);
            self.peers += usize::from(attempt.is_peer());
            self.resting.push((Instant::now() + pause, attempt));
        }
        Ok(())
    }

    /// Everybody who was asked, and why it did not help.
    fn give_up(mut self, gathering: &Gathering) -> Vec<(SourceName, String)> {
        for seat in gathering.lock().seats.values() {
            self.tried.retain(|(tried, _)| *tried != seat.name);
            self.tried.push((seat.name.clone(), SourceError::Nothing.to_string()));
        }
        self.tried
    }
}
