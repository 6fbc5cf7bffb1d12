//! The internet as a source of a fetch: it can be asked for what is leased to us, or for all of it.
//!
//! Pieces that follow each other cross as one answer of the server, however they are asked for. A server
//! that knows no ranges is read from its beginning, and has what passes by. Not here: connections.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::pending;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use protocol::{FileRef, SourceName};
use tokio::runtime::Handle;
use tokio::time::sleep;
use tracing::warn;

use super::leases::{Keeper, LeaseNews, Leases};
use crate::fetch::gather::Gathering;
use crate::fetch::schedule::{Held, Reach};
use crate::fetch::source::{Event, Opened, Part, Source, SourceError, Supplier, WrongPart, next_asked};
use crate::fetch::target::Target;
use crate::finder::Finder;
use crate::origin::{Origin, OriginEvent, Reading};
use crate::store::Pieces;

/// What carries it.
const CARRIER: &str = "https";
/// How many pieces one answer of a server is to have at most.
const LONGEST_ANSWER: u64 = 64;
/// How many pieces that nobody asked for yet are kept of a server that knows no ranges.
const MAX_PASSED: usize = 4;
/// How often it is looked whether those are still wanted.
const LOOK: Duration = Duration::from_millis(50);

/// The URLs of a file, ready to be read. A clone is the same.
#[derive(Clone)]
pub(super) struct OriginSupplier {
    origin: Origin,
    file: FileRef,
    finder: Option<Arc<dyn Finder>>,
    /// Whether it is asked only where peers are slow.
    is_spared: bool,
    record: Arc<Mutex<Record>>,
}

/// What the URLs gave.
#[derive(Default)]
struct Record {
    /// Which URL gave which piece.
    givers: BTreeMap<u64, usize>,
    /// URLs that have another file than before.
    changed: BTreeSet<usize>,
    /// Whether nobody leases ranges at the moment.
    is_alone: bool,
    /// Whether ranges were ever asked for.
    has_leased: bool,
}

impl OriginSupplier {
    pub(super) fn new(origin: Origin, file: FileRef, finder: Option<Arc<dyn Finder>>) -> Self {
        Self { origin, file, finder, is_spared: false, record: Arc::default() }
    }

    /// The same, asked only while peers are slow.
    pub(super) fn spared(self) -> Self {
        Self { is_spared: true, ..self }
    }

    /// Whether ranges were leased to us.
    pub(super) fn has_leased(&self) -> bool {
        self.lock().has_leased
    }

    /// Whether there is anything to read.
    pub(super) fn has_urls(&self) -> bool {
        !self.origin.is_empty()
    }

    /// The same without asking anybody what may be read.
    pub(super) fn alone(self) -> Self {
        Self { finder: None, ..self }
    }

    /// The URLs whose file changed while it was read, if there are such.
    pub(super) fn take_changed(&self) -> Option<BTreeSet<usize>> {
        let changed = std::mem::take(&mut self.lock().changed);
        (!changed.is_empty()).then_some(changed)
    }

    /// The pieces that these URLs gave, which count as given no more.
    pub(super) fn take_given(&self, mirrors: &BTreeSet<usize>) -> BTreeSet<u64> {
        let gone = |_: &u64, mirror: &mut usize| mirrors.contains(mirror);
        self.lock().givers.extract_if(.., gone).map(|(piece, _)| piece).collect()
    }

    /// Gives up on every URL that gave a piece; how they are shown.
    pub(super) fn blame(&self) -> Vec<String> {
        let mirrors: BTreeSet<usize> = std::mem::take(&mut self.lock().givers).into_values().collect();
        mirrors.iter().for_each(|mirror| self.origin.blame(*mirror));
        mirrors.iter().map(|mirror| self.origin.shown(*mirror)).collect()
    }

    /// Gives up on the URL that gave this piece, which is not the blob's.
    fn blame_for(&self, part: WrongPart) {
        let WrongPart::Piece(piece) = part else { return };
        if let Some(mirror) = self.lock().givers.remove(&piece) {
            let url = self.origin.shown(mirror);
            warn!(url, piece, "URL gave a piece that is not the blob's, not asked for it again");
            self.origin.blame(mirror);
        }
    }

    fn changed(&self, mirror: usize) -> SourceError {
        self.lock().changed.insert(mirror);
        SourceError::Changed
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("nothing panics while it holds the record")
    }
}

#[async_trait]
impl Supplier for OriginSupplier {
    fn name(&self) -> SourceName {
        SourceName::Origin(self.origin.host())
    }

    async fn open(&self, gathering: &Gathering, _thread: &Handle) -> Result<Opened, SourceError> {
        if self.is_spared {
            gathering.slow().await;
        }
        if !self.origin.is_usable() {
            return Err(self.origin.failures().into());
        }
        let target = Arc::clone(gathering.target());
        let count = target.pieces().count();
        if !self.origin.has_ranges() {
            let source = Box::new(Passing::new(self.clone(), target));
            let held = Held::Growing(Pieces::none(count));
            return Ok(Opened { source, held, reach: Reach::Origin, carrier: CARRIER });
        }
        let is_alone = self.finder.is_none() || self.lock().is_alone;
        let leases = self.finder.clone().map(|finder| {
            self.lock().has_leased = true;
            let keeper = Keeper { finder, file: self.file, target: Arc::clone(&target), is_alone };
            Leases::start(keeper)
        });
        let (held, mine) = match is_alone {
            true => (Held::Whole, Pieces::all(count)),
            false => (Held::Growing(Pieces::none(count)), Pieces::none(count)),
        };
        let (asked, read) = (VecDeque::new(), Pieces::none(count));
        let stream =
            Stream { supplier: self.clone(), target, mine, read, reading: None, upcoming: None, asked };
        let source = Box::new(Ranged { leases, stream });
        Ok(Opened { source, held, reach: Reach::Origin, carrier: CARRIER })
    }
}

/// A server that gives ranges.
struct Ranged {
    /// `None` where nobody leases any.
    leases: Option<Leases>,
    stream: Stream,
}

/// What is read from it.
struct Stream {
    supplier: OriginSupplier,
    target: Arc<dyn Target>,
    /// What may be read.
    mine: Pieces,
    /// What was read: it is not read again of itself, also before it is written.
    read: Pieces,
    reading: Option<Reading>,
    /// What will be read after that, asked for already.
    upcoming: Option<Reading>,
    asked: VecDeque<Range<u64>>,
}

impl Stream {
    /// The next piece that was asked for, by going on with what is being read where that brings it.
    async fn piece(&mut self, buffer: &mut Vec<u8>) -> Result<u64, SourceError> {
        let Some(asked) = self.asked.front().cloned() else { return pending().await };
        let brings = |reading: &Reading| {
            let pieces = reading.pieces();
            pieces.start == asked.start && !pieces.is_empty()
        };
        if !self.reading.as_ref().is_some_and(brings) {
            let upcoming = self.upcoming.take().filter(brings);
            self.reading = upcoming.or_else(|| Some(self.supplier.origin.read(self.run(asked.clone()))));
        }
        let reading = self.reading.as_ref().expect("it was set above").pieces();
        if self.upcoming.is_none()
            && let Some(first) = self.first_after(reading.end)
        {
            self.upcoming = Some(self.supplier.origin.read(self.run(first..first + 1)));
        }
        let Self { reading: Some(reading), upcoming, .. } = self else { return pending().await };
        let event = match upcoming.as_mut().filter(|upcoming| !upcoming.is_prepared()) {
            None => reading.next().await,
            Some(upcoming) => {
                let preparing = async {
                    upcoming.prepare().await;
                    pending().await
                };
                tokio::select! {
                    event = reading.next() => event,
                    event = preparing => event,
                }
            }
        };
        match event? {
            Some(OriginEvent::Piece { index, bytes, mirror }) if index == asked.start => {
                *buffer = bytes;
                self.read.insert(index);
                next_asked(&mut self.asked);
                self.supplier.lock().givers.insert(index, mirror);
                Ok(index)
            }
            Some(OriginEvent::Changed { mirror }) => Err(self.supplier.changed(mirror)),
            // The server knows no ranges: opened again, it is read otherwise.
            Some(OriginEvent::Piece { .. }) | None => Err(SourceError::Busy),
        }
    }

    /// This range, and what may be read and is lacking right behind it.
    fn run(&self, asked: Range<u64>) -> Range<u64> {
        let here = self.target.pieces();
        let follows = |piece: &u64| self.is_lacking(*piece, &here);
        let last = (asked.end..asked.start + LONGEST_ANSWER).take_while(follows).last();
        asked.start..last.map_or(asked.end, |last| last + 1)
    }

    /// The first piece from here on that may be read and is lacking.
    fn first_after(&self, piece: u64) -> Option<u64> {
        let here = self.target.pieces();
        (piece..here.count()).find(|piece| self.is_lacking(*piece, &here))
    }

    fn is_lacking(&self, piece: u64, here: &Pieces) -> bool {
        self.mine.contains(piece) && !self.read.contains(piece) && !here.contains(piece)
    }

    fn hear(&mut self, news: LeaseNews) -> Result<Event, SourceError> {
        match news {
            LeaseNews::Event(event) => {
                if let Event::Gained(ranges) = &event {
                    ranges.iter().cloned().flatten().for_each(|piece| self.mine.insert(piece));
                }
                Ok(event)
            }
            // Opened again, it offers all of it, or what is leased.
            LeaseNews::Alone(is_alone) => {
                self.supplier.lock().is_alone = is_alone;
                Err(SourceError::Busy)
            }
        }
    }
}

#[async_trait]
impl Source for Ranged {
    async fn ask(&mut self, range: Range<u64>) -> Result<(), SourceError> {
        self.stream.asked.push_back(range);
        Ok(())
    }

    async fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Event, SourceError> {
        let Self { leases, stream } = self;
        let news = tokio::select! {
            biased;
            news = news_of(leases) => news,
            piece = stream.piece(buffer) => {
                let piece = piece?;
                leases.iter().for_each(Leases::count);
                return Ok(Event::Part(Part::first(piece)));
            }
        };
        stream.hear(news)
    }

    async fn news(&mut self) -> Result<Event, SourceError> {
        let news = news_of(&mut self.leases).await;
        self.stream.hear(news)
    }

    async fn blame(&mut self, part: WrongPart) {
        self.stream.supplier.blame_for(part);
    }
}

async fn news_of(leases: &mut Option<Leases>) -> LeaseNews {
    match leases {
        Some(leases) => leases.next().await,
        None => pending().await,
    }
}

/// A server that knows no ranges: it has what passed by.
struct Passing {
    supplier: OriginSupplier,
    target: Arc<dyn Target>,
    reading: Reading,
    asked: VecDeque<Range<u64>>,
    passed: BTreeMap<u64, Vec<u8>>,
}

impl Passing {
    fn new(supplier: OriginSupplier, target: Arc<dyn Target>) -> Self {
        let reading = supplier.origin.read(0..target.pieces().count());
        Self { supplier, target, reading, asked: VecDeque::new(), passed: BTreeMap::new() }
    }
}

#[async_trait]
impl Source for Passing {
    async fn ask(&mut self, range: Range<u64>) -> Result<(), SourceError> {
        self.asked.push_back(range);
        Ok(())
    }

    async fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Event, SourceError> {
        let asked = self.asked.front().map(|range| range.start).ok_or(SourceError::OutOfTurn)?;
        // It is asked only for what it told of.
        *buffer = self.passed.remove(&asked).ok_or(SourceError::OutOfTurn)?;
        next_asked(&mut self.asked);
        Ok(Event::Part(Part::first(asked)))
    }

    async fn news(&mut self) -> Result<Event, SourceError> {
        loop {
            let here = self.target.pieces();
            self.passed.retain(|piece, _| !here.contains(*piece));
            if self.passed.len() >= MAX_PASSED {
                sleep(LOOK).await;
                continue;
            }
            match self.reading.next().await? {
                Some(OriginEvent::Piece { index, bytes, mirror }) if !here.contains(index) => {
                    self.passed.insert(index, bytes);
                    self.supplier.lock().givers.insert(index, mirror);
                    return Ok(Event::Gained(std::iter::once(index..index + 1).collect()));
                }
                Some(OriginEvent::Piece { .. }) => {}
                Some(OriginEvent::Changed { mirror }) => return Err(self.supplier.changed(mirror)),
                None => return pending().await,
            }
        }
    }

    async fn blame(&mut self, part: WrongPart) {
        self.supplier.blame_for(part);
    }
}
