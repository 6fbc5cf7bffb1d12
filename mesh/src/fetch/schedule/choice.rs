//! The two choices of a schedule: a fresh range, and a range that another source was asked for.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::time::Duration;

use super::{Held, Reach, Schedule, Source, SourceId};

/// How much sooner a piece must come from another source to be asked for again, and by how many seconds.
const SOONER: f64 = 1.25;
const SOONER_BY: f64 = 0.03;
/// The same while there are pieces that nobody was asked for.
const SOONER_BY_WHILE_FRESH: f64 = 1.0;
/// The most sources that are asked for one piece.
const MAX_COPIES: u8 = 4;
/// How many of the last pieces of its part are left to a source that fetches the blob itself.
const LEFT_TO_ITS_OWNER: u64 = 4;
/// A source that fetches the blob itself and gained nothing for this long does not get its part.
const STUCK: Duration = Duration::from_secs(2);

/// What makes a piece come before another: its class, how many have it, its place; the smallest first.
type Rank = (u8, u16, u64);
const OURS: u8 = 0;
/// Of a part that another does not get done with, what is our turn among those who help.
const FROM_ITS_END: u8 = 1;
/// What is the turn of another who helps.
const HELPED: u8 = 2;
const KNOWN_ELSEWHERE: u8 = 3;
const LAST: u8 = 4;

impl Schedule {
    /// The best range that nobody was asked for.
    pub(super) fn fresh_range(&self, id: SourceId, longest: u64, now: Duration) -> Option<Range<u64>> {
        if self.fresh == 0 {
            return None;
        }
        let source = &self.sources[&id];
        let parts = Parts::of(self, now);
        let near = self.nearer_than(id, now);
        let speed = source.pieces_per_second(now);
        // It is spared what nearer sources have that together are no slower.
        let is_spared = |piece: u64| {
            let holding = near.iter().filter(|(near, _)| near.held.contains(piece));
            !near.is_empty() && holding.map(|(_, speed)| speed).sum::<f64>() >= speed
        };
        let is_fresh = |piece: u64| {
            self.asked[piece as usize] == 0
                && !self.here.contains(piece)
                && source.held.contains(piece)
                && !is_spared(piece)
        };
        let rank = |piece: u64| self.rank(piece, source, &parts);
        let pieces = 0..self.here.count();
        let best = pieces.clone().filter(|piece| is_fresh(*piece)).min_by_key(|piece| rank(*piece))?;
        let (class, holders, _) = rank(best);
        if class > FROM_ITS_END && self.is_needed_more_by_others(id) {
            return None;
        }
        let goes_on = |piece: &u64| {
            is_fresh(*piece) && {
                let (next_class, next_holders, _) = rank(*piece);
                next_class == class && next_holders <= holders
            }
        };
        let further = longest as usize - 1;
        if class == FROM_ITS_END {
            let first = (0..best).rev().take(further).take_while(goes_on).last();
            return Some(first.unwrap_or(best)..best + 1);
        }
        let end = (best + 1..pieces.end).take(further).take_while(goes_on).last();
        Some(best..end.unwrap_or(best) + 1)
    }

    fn rank(&self, piece: u64, source: &Source, parts: &Parts) -> Rank {
        let holders = self.holders[piece as usize];
        match &source.held {
            // Whoever has all of it is asked for what nobody else has, each of us for another part.
            Held::Whole if holders == 0 => match parts.owner_of(piece) {
                Owner::Us { place } => (OURS, 0, place),
                Owner::Another { turn: Turn::Ours, place } => (FROM_ITS_END, 0, place),
                Owner::Another { turn: Turn::OfAHelper, .. } => (HELPED, 0, mix(self.us, piece)),
                Owner::Another { turn: Turn::ItsOwn, place } => (LAST, 0, place),
            },
            Held::Whole => (KNOWN_ELSEWHERE, holders, mix(self.us, piece)),
            Held::Growing(_) if source.reach == Reach::Origin => (OURS, holders, piece),
            Held::Growing(_) => (OURS, holders, mix(self.us, piece)),
        }
    }

    /// Whether others still take from this source what nobody else has, and we are busy without it: what it
    /// would send us again it would send them later.
    fn is_needed_more_by_others(&self, id: SourceId) -> bool {
        let is_left_to_others = |piece: u64| {
            let is_unasked = self.holders[piece as usize] == 0 && self.asked[piece as usize] == 0;
            is_unasked && !self.here.contains(piece)
        };
        let is_busy = |(other, source): (&SourceId, &Source)| *other != id && !source.open.is_empty();
        self.sources[&id].held == Held::Whole
            && self.sources.iter().any(is_busy)
            && (0..self.here.count()).any(is_left_to_others)
    }

    /// The sources that are nearer than this one, and their speeds.
    fn nearer_than(&self, id: SourceId, now: Duration) -> Vec<(&Source, f64)> {
        let reach = self.sources[&id].reach;
        let near = self.sources.values().filter(|source| source.reach < reach);
        near.map(|source| (source, source.pieces_per_second(now))).collect()
    }

    /// The range that this source would bring sooner than whoever was asked for it, the latest to come first.
    pub(super) fn again_range(&self, id: SourceId, longest: u64, now: Duration) -> Option<Range<u64>> {
        let source = &self.sources[&id];
        if self.is_needed_more_by_others(id) {
            return None;
        }
        let mut soonest: HashMap<u64, f64> = HashMap::new();
        for (piece, seconds) in self.sources.values().flat_map(|source| source.arrivals(now)) {
            let known = soonest.entry(piece).or_insert(seconds);
            *known = known.min(seconds);
        }
        let own: Vec<u64> = source.open.iter().cloned().flatten().collect();
        let ours = |pieces: u64| source.backlog(now) + pieces as f64 / source.pieces_per_second(now);
        let by = if self.fresh > 0 { SOONER_BY_WHILE_FRESH } else { SOONER_BY };
        let is_sooner = |theirs: f64, pieces| ours(pieces) * SOONER + by < theirs;
        let candidates: BTreeMap<u64, f64> = soonest
            .into_iter()
            .filter(|(piece, theirs)| {
                source.held.contains(*piece)
                    && !self.here.contains(*piece)
                    && self.asked[*piece as usize] < MAX_COPIES
                    && is_sooner(*theirs, 1)
                    && !own.contains(piece)
            })
            .collect();
        let (last, _) = candidates.iter().max_by(|(_, one), (_, other)| one.total_cmp(other))?;
        let mut first = *last;
        while first > 0
            && last + 2 - first <= longest
            && candidates.get(&(first - 1)).is_some_and(|theirs| is_sooner(*theirs, last + 2 - first))
        {
            first -= 1;
        }
        Some(first..last + 1)
    }
}

impl Source {
    /// When each open piece will come, in seconds from now.
    fn arrivals(&self, now: Duration) -> impl Iterator<Item = (u64, f64)> {
        let (first, each) = (self.first_in(now), 1.0 / self.pieces_per_second(now));
        let open = self.open.iter().cloned().flatten();
        open.enumerate().map(move |(index, piece)| (piece, first + index as f64 * each))
    }
}

/// Which part of the blob each of those who fetch it takes from whoever has all of it.
struct Parts {
    pieces: u64,
    us: u64,
    in_order: bool,
    /// In the order of their names, we among them.
    fetchers: Vec<Fetcher>,
}

struct Fetcher {
    key: u64,
    is_us: bool,
    /// Whether its part may be taken from it.
    is_free: bool,
    /// Whether it has nothing left to do in its own part, and takes from others.
    helps: bool,
}

enum Owner {
    Us { place: u64 },
    Another { turn: Turn, place: u64 },
}

/// Who is to take a piece of another's part next.
enum Turn {
    Ours,
    /// Another of those who help: two who help do not ask for the same.
    OfAHelper,
    ItsOwn,
}

impl Parts {
    fn of(schedule: &Schedule, now: Duration) -> Self {
        let (pieces, us) = (schedule.here.count(), schedule.us);
        let others = schedule.sources.values().filter(|source| source.is_growing());
        let is_stuck = |source: &Source| now.saturating_sub(source.grew) > STUCK;
        let mut fetchers: Vec<Fetcher> = others
            .map(|source| Fetcher { key: source.key, is_us: false, is_free: is_stuck(source), helps: false })
            .collect();
        fetchers.push(Fetcher { key: us, is_us: true, is_free: true, helps: true });
        fetchers.sort_by_key(|fetcher| (fetcher.key, fetcher.is_us));
        let mut parts = Self { pieces, us, in_order: schedule.in_order, fetchers };
        let mut left = vec![0; parts.fetchers.len()];
        let is_rare = |piece: &u64| schedule.holders[*piece as usize] == 0 && !schedule.here.contains(*piece);
        (0..pieces).filter(is_rare).for_each(|piece| left[parts.index_of(piece)] += 1);
        for (fetcher, left) in parts.fetchers.iter_mut().zip(left) {
            fetcher.is_free |= left > LEFT_TO_ITS_OWNER;
            fetcher.helps |= left == 0 && !fetcher.is_free;
        }
        parts
    }

    /// Of those who help, each is first at other pieces.
    fn is_our_turn(&self, piece: u64) -> bool {
        let helping = self.fetchers.iter().filter(|fetcher| fetcher.helps);
        helping.max_by_key(|fetcher| mix(fetcher.key, piece)).is_some_and(|fetcher| fetcher.is_us)
    }

    fn index_of(&self, piece: u64) -> usize {
        (u128::from(piece) * self.fetchers.len() as u128 / u128::from(self.pieces)) as usize
    }

    /// Whose part a piece is in. We begin ours at its start, and that of another at its end.
    fn owner_of(&self, piece: u64) -> Owner {
        let index = self.index_of(piece);
        let fetcher = &self.fetchers[index];
        match fetcher.is_us {
            // Before we know of others we begin anywhere, so that we do not all begin with the same.
            true if self.fetchers.len() == 1 && !self.in_order => {
                let start = self.us % self.pieces;
                Owner::Us { place: (piece + self.pieces - start) % self.pieces }
            }
            true => Owner::Us { place: piece },
            // Those who help here do not all help the same one.
            false => {
                let place = (mix(self.us, index as u64) << 20) | (0xf_ffff - (piece & 0xf_ffff));
                let turn = match fetcher.is_free {
                    true if self.is_our_turn(piece) => Turn::Ours,
                    true => Turn::OfAHelper,
                    false => Turn::ItsOwn,
                };
                Owner::Another { turn, place }
            }
        }
    }
}

/// A number that looks like chance and is the same each time.
pub(super) fn mix(us: u64, piece: u64) -> u64 {
    let mut value = us ^ piece.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
