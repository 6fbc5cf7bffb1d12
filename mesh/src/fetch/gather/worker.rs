//! One source at work: asked for what the schedule says, its pieces checked and written behind it.
//!
//! While one piece crosses, those before it are verified and written, each by one hand-over to a thread
//! that may block. Not here: which pieces.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use protocol::SourceName;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep};

use super::{Gathering, Seat, key_of};
use crate::fetch::progress::Progress;
use crate::fetch::schedule::SourceId;
use crate::fetch::source::{Event, Opened, Source, SourceError, Supplier, WrongPart};
use crate::store::StoreError;
use crate::tree::piece_size;

/// How many pieces of one source are verified and written at once.
const WRITES: usize = 2;
/// How often a source with nothing to do looks whether another has become slow.
const IDLE_LOOK: Duration = Duration::from_millis(100);

/// What asks one source.
pub(super) struct Worker {
    gathering: Arc<Gathering>,
    id: SourceId,
    name: SourceName,
    writing: VecDeque<Writing>,
    /// Buffers of pieces that were written.
    spare: Vec<Vec<u8>>,
}

/// A piece that is being verified and written; its buffer comes back.
struct Writing {
    piece: u64,
    written: JoinHandle<(Result<bool, StoreError>, Vec<u8>)>,
}

impl Worker {
    /// Opens a supplier and takes from it until everything is here or it gives no more; how many bytes it
    /// gave.
    pub(super) async fn run(
        gathering: Arc<Gathering>,
        supplier: &dyn Supplier,
    ) -> (u64, Result<(), SourceError>) {
        let name = supplier.name();
        let id = gathering.sit(name.clone());
        let complete = gathering.complete.clone();
        let mut worker = Self { gathering, id, name, writing: VecDeque::new(), spare: Vec::new() };
        let taken = complete.run_until_cancelled(worker.open_and_take(supplier)).await;
        // What came before the end, of whatever kind, is kept.
        let settled = worker.settle(0).await;
        let gave = worker.gathering.stand_up(id);
        (gave, taken.unwrap_or(Ok(())).and(settled))
    }

    async fn open_and_take(&mut self, supplier: &dyn Supplier) -> Result<(), SourceError> {
        let opened = supplier.open(&self.gathering).await?;
        let mut source = self.gathering.join(self.id, &self.name, opened);
        let taken = self.take(&mut *source).await;
        // A piece that came before may be the wrong one.
        let taken = self.settle(0).await.and(taken);
        if let Err(SourceError::Wrong(part)) = &taken {
            source.blame(*part).await;
        }
        taken
    }

    async fn take(&mut self, source: &mut dyn Source) -> Result<(), SourceError> {
        let mut changed = self.gathering.changed.subscribe();
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
                let mut buffer = self.spare.pop().unwrap_or_default();
                match self.next_event(source, &mut buffer).await? {
                    Event::Piece(piece) => self.check(piece, buffer).await?,
                    event => self.gathering.hear(self.id, event),
                }
                continue;
            }
            self.settle(0).await?;
            tokio::select! {
                event = source.news() => self.gathering.hear(self.id, event?),
                _ = changed.changed() => {}
                () = sleep(IDLE_LOOK) => {}
            }
        }
    }

    async fn take_outboard(&mut self, source: &mut dyn Source) -> Result<(), SourceError> {
        let Some(blob) = self.gathering.target.lacks_outboard() else { return Ok(()) };
        let (tree, outboard) = source.outboard(blob).await?;
        let target = Arc::clone(&self.gathering.target);
        let added = spawn_blocking(move || target.add_outboard(tree, &outboard)).await;
        added.unwrap_or(Err(StoreError::Abandoned))?;
        self.gathering.wake();
        Ok(())
    }

    /// Has a piece that came verified and written, unless it came from another source as well.
    async fn check(&mut self, piece: u64, bytes: Vec<u8>) -> Result<(), SourceError> {
        if !self.gathering.received(self.id, piece) {
            self.spare.push(bytes);
            return Ok(());
        }
        self.settle(WRITES - 1).await?;
        let (target, name) = (Arc::clone(&self.gathering.target), self.name.clone());
        let written = spawn_blocking(move || (target.write_piece(piece, &bytes, &name), bytes));
        self.writing.push_back(Writing { piece, written });
        Ok(())
    }

    /// What comes next; what was written meanwhile counts at once, however long that takes.
    async fn next_event(
        &mut self,
        source: &mut dyn Source,
        buffer: &mut Vec<u8>,
    ) -> Result<Event, SourceError> {
        let next = source.next(buffer);
        tokio::pin!(next);
        loop {
            tokio::select! {
                event = &mut next => return event,
                written = self.written() => written?,
            }
        }
    }

    /// Waits until at most so many pieces are being written.
    async fn settle(&mut self, most: usize) -> Result<(), SourceError> {
        while self.writing.len() > most {
            self.written().await?;
        }
        Ok(())
    }

    /// Waits until the next piece is written; for ever where there is none. It may be cancelled.
    async fn written(&mut self) -> Result<(), SourceError> {
        let Some(Writing { piece, written }) = self.writing.front_mut() else {
            return std::future::pending().await;
        };
        let (piece, written) = (*piece, written.await);
        self.writing.pop_front();
        let (written, buffer) = written.map_err(|_| StoreError::Abandoned)?;
        if !written? {
            return Err(SourceError::Wrong(WrongPart::Piece(piece)));
        }
        self.spare.push(buffer);
        self.gathering.arrived(self.id, piece);
        Ok(())
    }
}

/// What workers do with the state that they share.
impl Gathering {
    fn sit(&self, name: SourceName) -> SourceId {
        let mut state = self.lock();
        let id = SourceId(state.next_id);
        state.next_id += 1;
        state.seats.insert(id, Seat { name, carrier: None, bytes: 0, heard: Instant::now() });
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
        let now = self.now();
        self.lock().schedule.next(id, now)
    }

    fn takes_outboard(&self, id: SourceId) -> bool {
        let now = self.now();
        let mut state = self.lock();
        state.schedule.has_missing(id) && state.outboard.take(id, now)
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
            Event::Piece(_) => debug_assert!(false, "pieces are checked"),
        }
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
            self.complete.cancel();
        }
    }
}

impl super::State {
    fn heard_from(&mut self, id: SourceId) -> &mut Seat {
        let now = Instant::now();
        self.heard = now;
        let seat = self.seats.get_mut(&id).expect("whoever is heard from has a seat");
        seat.heard = now;
        seat
    }

    fn count(&mut self, id: SourceId, bytes: u64) {
        let seat = self.seats.get_mut(&id).expect("whoever gave something has a seat");
        seat.bytes += bytes;
        match self.gave.iter_mut().find(|(name, _)| *name == seat.name) {
            Some((_, gave)) => *gave += bytes,
            None => self.gave.push((seat.name.clone(), bytes)),
        }
    }
}
