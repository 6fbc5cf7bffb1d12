//! One source at work: asked for what the schedule says, its pieces checked and written as they come.
//!
//! It has a thread of its own, on which it may block: bytes are taken from the system, decrypted, verified
//! and written by one core while its cache has them, and nobody has to be woken in between. What the peer
//! sends meanwhile waits in the system's buffers. Not here: which pieces.

use std::sync::Arc;
use std::time::Duration;

use protocol::SourceName;
use tokio::runtime::{Builder, Handle};
use tokio::time::{Instant, sleep};
use tokio_util::context::TokioContext;

use super::{Gathering, Seat, key_of};
use crate::fetch::progress::Progress;
use crate::fetch::schedule::{Meter, SourceId};
use crate::fetch::source::{Event, Opened, Part, Source, SourceError, Supplier, WrongPart};
use crate::tree::piece_size;

/// How often a source with nothing to do looks whether another has become slow.
const IDLE_LOOK: Duration = Duration::from_millis(100);

/// What asks one source.
pub(super) struct Worker {
    gathering: Arc<Gathering>,
    id: SourceId,
    name: SourceName,
}

impl Worker {
    /// Opens a supplier and takes from it until everything is here or it gives no more; how many bytes it
    /// gave. It blocks until then. What a source leaves behind, a link say, goes on at `home`.
    pub(super) fn run(
        gathering: &Arc<Gathering>,
        supplier: &dyn Supplier,
        home: Handle,
    ) -> (u64, Result<(), SourceError>) {
        let name = supplier.name();
        let id = gathering.sit(name.clone());
        let mut worker = Self { gathering: Arc::clone(gathering), id, name };
        let taken = worker.take_here(supplier, home);
        (gathering.stand_up(id), taken)
    }

    fn take_here(&mut self, supplier: &dyn Supplier, home: Handle) -> Result<(), SourceError> {
        let over = self.gathering.over.clone();
        let thread = Builder::new_current_thread().enable_all().build()?;
        let taking = over.run_until_cancelled(self.open_and_take(supplier, thread.handle()));
        thread.block_on(TokioContext::new(taking, home)).unwrap_or(Ok(()))
    }

    async fn open_and_take(&mut self, supplier: &dyn Supplier, thread: &Handle) -> Result<(), SourceError> {
        let opened = supplier.open(&self.gathering, thread).await?;
        let mut source = self.gathering.join(self.id, &self.name, opened);
        let taken = self.take(&mut *source).await;
        if let Err(SourceError::Wrong(part)) = &taken {
            source.blame(*part).await;
        }
        taken
    }

    async fn take(&mut self, source: &mut dyn Source) -> Result<(), SourceError> {
        let mut changed = self.gathering.changed.subscribe();
        let mut buffer = Vec::new();
        loop {
            if self.gathering.target.lacks_outboard().is_none() {
                while let Some(range) = self.gathering.next_range(self.id) {
                    source.ask(range).await?;
                }
            } else if self.gathering.takes_outboard(self.id) {
                self.take_outboard(source).await?;
                continue;
            }
            if self.gathering.lock().schedule.is_open(self.id) {
                match source.next(&mut buffer).await? {
                    Event::Part(part) => self.keep(part, &buffer)?,
                    event => self.gathering.hear(self.id, event),
                }
                continue;
            }
            tokio::select! {
                event = source.news() => self.gathering.hear(self.id, event?),
                _ = changed.changed() => {}
                () = sleep(IDLE_LOOK) => {}
            }
        }
    }

    async fn take_outboard(&mut self, source: &mut dyn Source) -> Result<(), SourceError> {
        let Some(blob) = self.gathering.target.lacks_outboard() else { return Ok(()) };
        let (tree, upper) = source.outboard(blob).await?;
        self.gathering.target.add_tree(tree, &upper)?;
        self.gathering.wake();
        Ok(())
    }

    /// Verifies and writes what came, unless the piece came from another source as well.
    fn keep(&mut self, part: Part, bytes: &[u8]) -> Result<(), SourceError> {
        let (target, piece) = (&self.gathering.target, part.piece);
        let is_last = part.offset + bytes.len() - part.pairs >= piece_size(target.size(), piece);
        if is_last && !self.gathering.received(self.id, piece) {
            return Ok(());
        }
        self.gathering.took(self.id, bytes.len());
        if !target.write_part(part, bytes, &self.name)? {
            return Err(SourceError::Wrong(WrongPart::Piece(piece)));
        }
        if is_last {
            self.gathering.arrived(self.id, piece);
        }
        Ok(())
    }
}

/// What workers do with the state that they share.
impl Gathering {
    fn sit(&self, name: SourceName) -> SourceId {
        let mut state = self.lock();
        let id = SourceId(state.next_id);
        state.next_id += 1;
        state.seats.insert(
            id,
            Seat { name, carrier: None, parts: Meter::default(), bytes: 0, heard: Instant::now() },
        );
        id
    }

    /// Forgets a source; how many bytes it gave.
    fn stand_up(&self, id: SourceId) -> u64 {
        let mut state = self.lock();
        state.schedule.leave(id);
        state.outboard.give_back(id);
        let seat = state.seats.remove(&id);
        drop(state);
        self.wake();
        seat.map_or(0, |seat| seat.bytes)
    }

    fn join(&self, id: SourceId, name: &SourceName, opened: Opened) -> Box<dyn Source> {
        let Opened { source, held, reach, carrier } = opened;
        let now = self.now();
        let mut state = self.lock();
        state.schedule.join(id, key_of(name), held, reach, now);
        state.heard_from(id).carrier = Some(carrier);
        source
    }

    fn next_range(&self, id: SourceId) -> Option<std::ops::Range<u64>> {
        let (now, mut state) = (self.now(), self.lock());
        let is_waited_for = state.schedule.is_open(id);
        let range = state.schedule.next(id, now)?;
        if !is_waited_for {
            state.seat(id).parts.begin(now);
        }
        Some(range)
    }

    fn takes_outboard(&self, id: SourceId) -> bool {
        let now = self.now();
        let mut state = self.lock();
        let is_peer = state.seats.get(&id).is_some_and(|seat| seat.name.is_peer());
        is_peer && state.schedule.has_missing(id) && state.outboard.take(id, now)
    }

    fn hear(&self, id: SourceId, event: Event) {
        match event {
            Event::Gained(ranges) => {
                let now = self.now();
                let mut state = self.lock();
                ranges.into_iter().for_each(|range| state.schedule.gained(id, range, now));
                state.heard_from(id);
            }
            Event::Learned(providers) => self.learn(providers),
            Event::Part(_) => debug_assert!(false, "parts are kept"),
        }
    }

    /// A part of a piece came.
    fn took(&self, id: SourceId, bytes: usize) {
        let (now, mut state) = (self.now(), self.lock());
        state.seat(id).parts.received(bytes as u64, now);
    }

    fn received(&self, id: SourceId, piece: u64) -> bool {
        let now = self.now();
        let mut state = self.lock();
        state.heard_from(id);
        state.schedule.received(id, piece, now)
    }

    fn arrived(&self, id: SourceId, piece: u64) {
        let bytes = piece_size(self.target.size(), piece) as u64;
        let here = self.target.bytes();
        let mut state = self.lock();
        state.schedule.arrived(id, piece);
        state.count(id, bytes);
        let is_complete = state.schedule.is_complete();
        if let Some(progress) = &self.progress {
            let speeds = state.seats.keys().filter_map(|id| state.schedule.speed(*id));
            let (sources, speed) = speeds.fold((0, 0), |(count, sum), speed| (count + 1, sum + speed));
            progress.send_replace(Progress { bytes: here, sources, speed });
        }
        drop(state);
        if is_complete {
            self.over.cancel();
        }
    }
}

impl super::State {
    fn heard_from(&mut self, id: SourceId) -> &mut Seat {
        let now = Instant::now();
        self.heard = now;
        let seat = self.seat(id);
        seat.heard = now;
        seat
    }

    fn seat(&mut self, id: SourceId) -> &mut Seat {
        self.seats.get_mut(&id).expect("whoever is at work has a seat")
    }

    /// The time, if the source is waited for.
    pub(super) fn waiting(&self, id: SourceId, now: Duration) -> Option<Duration> {
        self.schedule.is_open(id).then_some(now)
    }

    fn count(&mut self, id: SourceId, bytes: u64) {
        let seat = self.seat(id);
        seat.bytes += bytes;
        let name = seat.name.clone();
        match self.gave.iter_mut().find(|(giver, _)| *giver == name) {
            Some((_, gave)) => *gave += bytes,
            None => self.gave.push((name, bytes)),
        }
    }
}
