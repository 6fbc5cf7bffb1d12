//! Who is asked for which pieces of a blob next.
//!
//! Pure: no IO, no clock; `now` is the time since some start. Each source is asked by whoever talks to it,
//! one range at a time, so that fast sources take more by themselves. The rules, in their order:
//! 1. *Fresh before again*: a piece that nobody was asked for; among those the rarest, and among those
//!    our own part of the blob first, so that many who fetch at once ask one seed for different pieces.
//!    Before others are known that is all of it, begun anywhere, or at its beginning for whoever reads it
//!    while it comes.
//! 2. *Again*: a piece that another source was asked for and that this one would bring clearly sooner. It
//!    takes the ranges of slow and silent sources, and is the end game. As long as anything is fresh, it has
//!    to be much sooner: a source that has nothing for us now is told of something soon, and what comes
//!    twice takes its place on our link.
//!
//! A near source spares a far one wherever it is no slower, and every peer the internet. Not here: how a source is asked.

mod choice;
mod meter;
#[cfg(test)]
mod order;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod simulation;

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use protocol::PIECE_SIZE;
use protocol::wire::{MAX_OPEN_GETS, MAX_RANGE};

pub(crate) use self::meter::{Meter, UNKNOWN};
use crate::store::Pieces;

/// How much of a source's time one range is to take.
const RANGE_TIME: f64 = 0.5;
/// A further range is asked for when what is open takes no longer than this, so that it is on its way by
/// then. What waits at one source is not asked of another that could bring it now.
const LOOKAHEAD: f64 = 0.1;
/// The same for a source that is far, where a request takes longer, and for one beside which there is no other.
const FAR_LOOKAHEAD: f64 = 1.0;

/// One of the sources of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SourceId(pub(crate) u32);

/// What a source can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Held {
    /// All of it.
    Whole,
    /// These pieces, and more as they come.
    Growing(Pieces),
}

impl Held {
    pub(crate) fn contains(&self, piece: u64) -> bool {
        match self {
            Self::Whole => true,
            Self::Growing(pieces) => pieces.contains(piece),
        }
    }
}

/// How far away a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// In the same network.
    Near,
    /// Behind somebody's uplink.
    Far,
    /// On the internet, where one of the farm reads it for all: in one go, from its beginning.
    Origin,
}

/// The pieces of one blob, and who is asked for them.
#[derive(Debug)]
pub(crate) struct Schedule {
    here: Pieces,
    missing: u64,
    /// How many sources were asked for each piece and have not failed to bring it.
    asked: Vec<u8>,
    /// How many growing sources have each piece.
    holders: Vec<u16>,
    /// Pieces that are missing and that nobody was asked for.
    fresh: u64,
    /// Our own name among those who fetch the blob.
    us: u64,
    /// Whether it begins at the beginning.
    in_order: bool,
    sources: BTreeMap<SourceId, Source>,
}

/// What is known of a source.
#[derive(Debug)]
struct Source {
    /// Its name among those who fetch the blob, if it is one of them.
    key: u64,
    held: Held,
    reach: Reach,
    meter: Meter,
    /// How many pieces it has sent.
    gave: u64,
    /// What it was asked for and has not sent.
    open: VecDeque<Range<u64>>,
    /// What it sent and is being checked.
    checking: Vec<u64>,
    /// When it last told of a new piece, or came.
    grew: Duration,
}

impl Source {
    fn open_pieces(&self) -> u64 {
        self.open.iter().map(|range| range.end - range.start).sum()
    }

    /// When everything that is open will have come, in seconds from now. A piece that is late counts as one
    /// that comes now: what follows it is to be on its way by then.
    fn backlog(&self, now: Duration) -> f64 {
        let each = 1.0 / self.pieces_per_second(now);
        let after_first = self.open_pieces().checked_sub(1);
        after_first.map_or(0.0, |more| (each - self.meter.silence(now)).max(0.0) + more as f64 * each)
    }

    /// When the first open piece will have come, in seconds from now. One that is late is expected to take as
    /// long again as it has taken.
    fn first_in(&self, now: Duration) -> f64 {
        let (each, silent) = (1.0 / self.pieces_per_second(now), self.meter.silence(now));
        if silent < each { each - silent } else { silent }
    }

    fn pieces_per_second(&self, now: Duration) -> f64 {
        let waiting = (!self.open.is_empty()).then_some(now);
        self.meter.bytes_per_second(waiting) / PIECE_SIZE as f64
    }

    fn has_room(&self, lookahead: f64, now: Duration) -> bool {
        self.open.is_empty()
            || (self.open.len() < MAX_OPEN_GETS && self.most_more() > 0 && self.backlog(now) < lookahead)
    }

    /// How many pieces more may be open: all together twice what came, for what the first of them say of a source
    /// that many ask at once is soon too much.
    fn most_more(&self) -> u64 {
        (2 * self.gave.max(1)).saturating_sub(self.open_pieces())
    }

    /// Whether it still fetches the blob itself.
    fn is_growing(&self) -> bool {
        self.reach != Reach::Origin && matches!(&self.held, Held::Growing(pieces) if !pieces.is_full())
    }
}

impl Schedule {
    /// A schedule for what is not among `here`. `us` tells us from others who fetch the blob. `in_order`, it begins
    /// at the beginning as long as there are none.
    pub(crate) fn new(here: Pieces, us: u64, in_order: bool) -> Self {
        let count = here.count();
        let missing = count - here.len();
        Self {
            missing,
            asked: vec![0; count as usize],
            holders: vec![0; count as usize],
            fresh: missing,
            us,
            in_order,
            sources: BTreeMap::new(),
            here,
        }
    }

    /// Whether every piece is here.
    pub(crate) fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// How many pieces are not here.
    pub(crate) fn missing(&self) -> u64 {
        self.missing
    }

    /// Takes a source in. `key` is its name among those who fetch the blob.
    pub(crate) fn join(&mut self, id: SourceId, key: u64, held: Held, reach: Reach, now: Duration) {
        if let Held::Growing(pieces) = &held {
            let count = self.here.count();
            let held = (0..count).filter(|piece| pieces.contains(*piece));
            held.for_each(|piece| self.holders[piece as usize] += 1);
        }
        let (meter, open, checking) = (Meter::default(), VecDeque::new(), Vec::new());
        self.sources.insert(id, Source { key, held, reach, meter, gave: 0, open, checking, grew: now });
    }

    /// Takes note of pieces that a source has from now on.
    pub(crate) fn gained(&mut self, id: SourceId, range: Range<u64>, now: Duration) {
        let Some(source) = self.sources.get_mut(&id) else { return };
        source.grew = now;
        let Held::Growing(pieces) = &mut source.held else { return };
        for piece in range.start..range.end.min(self.here.count()) {
            if !pieces.contains(piece) {
                pieces.insert(piece);
                self.holders[piece as usize] += 1;
            }
        }
    }

    /// Lets a source go; what it was asked for is free for others.
    pub(crate) fn leave(&mut self, id: SourceId) {
        let Some(source) = self.sources.remove(&id) else { return };
        if let Held::Growing(pieces) = &source.held {
            let held = (0..self.here.count()).filter(|piece| pieces.contains(*piece));
            held.for_each(|piece| self.holders[piece as usize] -= 1);
        }
        let lost = source.open.into_iter().flatten().chain(source.checking);
        lost.for_each(|piece| self.release(piece));
    }

    /// What this source is to be asked for next, if anything.
    pub(crate) fn next(&mut self, id: SourceId, now: Duration) -> Option<Range<u64>> {
        let source = self.sources.get(&id)?;
        let is_spread = source.reach == Reach::Near && self.sources.len() > 1;
        let lookahead = if is_spread { LOOKAHEAD } else { FAR_LOOKAHEAD };
        if self.missing == 0 || !source.has_room(lookahead, now) {
            return None;
        }
        let longest = self.longest(source, now);
        let range = self.fresh_range(id, longest, now).or_else(|| self.again_range(id, longest, now))?;
        for piece in range.clone() {
            let asked = &mut self.asked[piece as usize];
            if *asked == 0 {
                self.fresh -= 1;
            }
            *asked += 1;
        }
        let source = self.sources.get_mut(&id).expect("it was there above");
        if source.open.is_empty() {
            source.meter.begin(now);
        }
        source.open.push_back(range.clone());
        Some(range)
    }

    /// Takes note that a source sent the piece that it was to send next; says whether it is still wanted.
    /// One that is wanted is to be checked, and then [`arrived`](Self::arrived).
    pub(crate) fn received(&mut self, id: SourceId, piece: u64, now: Duration) -> bool {
        let Some(source) = self.sources.get_mut(&id) else { return false };
        let Some(range) = source.open.front_mut() else { return false };
        debug_assert_eq!(range.start, piece, "pieces come in the order in which they were asked for");
        range.start += 1;
        if range.is_empty() {
            source.open.pop_front();
        }
        source.gave += 1;
        source.meter.received(PIECE_SIZE, now);
        let is_checked = self.sources.values().any(|source| source.checking.contains(&piece));
        if self.here.contains(piece) || is_checked {
            self.release(piece);
            return false;
        }
        self.sources.get_mut(&id).expect("it was there above").checking.push(piece);
        true
    }

    /// Takes note that a piece is here.
    pub(crate) fn arrived(&mut self, id: SourceId, piece: u64) {
        if let Some(source) = self.sources.get_mut(&id) {
            source.checking.retain(|checking| *checking != piece);
        }
        self.release(piece);
        if !self.here.contains(piece) {
            if self.asked[piece as usize] == 0 {
                self.fresh -= 1;
            }
            self.here.insert(piece);
            self.missing -= 1;
        }
    }

    /// Whether the source was asked for something that it has not sent.
    pub(crate) fn is_open(&self, id: SourceId) -> bool {
        self.sources.get(&id).is_some_and(|source| !source.open.is_empty())
    }

    /// Whether anything was asked for that has not come or is being checked.
    pub(crate) fn is_busy(&self) -> bool {
        self.sources.values().any(|source| !source.open.is_empty() || !source.checking.is_empty())
    }

    /// Whether the source has anything that is missing.
    pub(crate) fn has_missing(&self, id: SourceId) -> bool {
        let Some(source) = self.sources.get(&id) else { return false };
        match &source.held {
            Held::Whole => self.missing > 0,
            Held::Growing(pieces) => {
                (0..self.here.count()).any(|piece| pieces.contains(piece) && !self.here.contains(piece))
            }
        }
    }

    /// Who is asked for something, or has something that is missing.
    pub(crate) fn giving(&self) -> impl Iterator<Item = SourceId> {
        self.sources.keys().copied().filter(|id| self.is_open(*id) || self.has_missing(*id))
    }

    /// The measured speed of a source, in bytes per second; `None` before its first piece.
    pub(crate) fn speed(&self, id: SourceId) -> Option<u64> {
        self.sources.get(&id)?.meter.measured()
    }

    /// One source fewer is asked for this piece.
    fn release(&mut self, piece: u64) {
        let asked = &mut self.asked[piece as usize];
        *asked -= 1;
        if *asked == 0 && !self.here.contains(piece) {
            self.fresh += 1;
        }
    }

    /// How long a range from this source may be: less near the end, so that all end together.
    fn longest(&self, source: &Source, now: Duration) -> u64 {
        let speed = source.pieces_per_second(now);
        let all: f64 = self.sources.values().map(|source| source.pieces_per_second(now)).sum();
        let share = self.fresh as f64 * speed / all / 2.0;
        ((speed * RANGE_TIME).min(share.ceil()) as u64).min(source.most_more()).clamp(1, MAX_RANGE)
    }
}
