//! In what order a schedule asks, and whom it does not ask. Not here: how long whole swarms take.

use std::time::Duration;

use super::{Held, Reach, Schedule, SourceId};
use crate::store::Pieces;

const PIECES: u64 = 24;
/// Long after every source has joined, when what one is at no longer counts.
const LATER: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(20);

/// Sources that hold this much of a blob, which is not here.
fn schedule<const COUNT: usize>(sources: [(Held, Reach); COUNT]) -> Schedule {
    let mut schedule = Schedule::new(Pieces::none(PIECES), 5, false);
    for (id, (held, reach)) in (0..).zip(sources) {
        schedule.join(SourceId(id), u64::from(id) << 60, held, reach, Duration::ZERO);
    }
    schedule
}

fn growing(holds: impl Fn(u64) -> bool) -> (Held, Reach) {
    let mut pieces = Pieces::none(PIECES);
    (0..PIECES).filter(|piece| holds(*piece)).for_each(|piece| pieces.insert(piece));
    (Held::Growing(pieces), Reach::Near)
}

/// The pieces that a source is asked for, where it brings each at once; none of the others brings anything.
fn asked(schedule: &mut Schedule, id: SourceId) -> Vec<u64> {
    let (mut now, mut asked) = (LATER, Vec::new());
    while let Some(range) = schedule.next(id, now) {
        for piece in range {
            now += TICK;
            asked.push(piece);
            assert!(schedule.received(id, piece, now), "nobody else brought it");
            schedule.arrived(id, piece);
        }
    }
    asked
}

#[test]
fn rarest_pieces_are_asked_for_first() {
    // How many of the growing ones have a piece.
    let holders = |piece: u64| 3 - piece / 8;
    for first in [(Held::Whole, Reach::Near), growing(|_| true)] {
        let is_whole = first.0 == Held::Whole;
        let more = [growing(|piece| holders(piece) > 1), growing(|piece| holders(piece) > 2)];
        let [second, third] = more;
        let mut schedule = schedule([first, second, third]);
        let asked = asked(&mut schedule, SourceId(0));
        assert!(schedule.is_complete());
        let rarity: Vec<u64> = asked.iter().map(|piece| holders(*piece)).collect();
        assert!(rarity.is_sorted(), "whole: {is_whole}; {asked:?}");
        assert!(!asked.is_sorted(), "not by their place: {asked:?}");
    }
}

#[test]
fn far_source_is_asked_for_nothing_that_a_near_one_brings_as_soon() {
    let (near, far) = (SourceId(0), SourceId(1));
    let mut schedule = schedule([(Held::Whole, Reach::Near), (Held::Whole, Reach::Far)]);
    assert_eq!(schedule.next(far, LATER), None, "both are as good as unknown");
    assert_eq!(asked(&mut schedule, near).len() as u64, PIECES);
}

#[test]
fn far_source_is_asked_for_what_no_near_one_has() {
    let mut schedule = schedule([growing(|piece| piece < 20), (Held::Whole, Reach::Far)]);
    let range = schedule.next(SourceId(1), LATER).expect("the near one has not all of it");
    assert!(range.start >= 20, "{range:?}");
}

#[test]
fn last_range_of_a_slow_source_is_asked_of_another_and_the_first_to_come_counts() {
    let (slow, fast) = (SourceId(0), SourceId(1));
    let mut schedule = schedule([(Held::Whole, Reach::Near), (Held::Whole, Reach::Near)]);
    let waited_for: Vec<u64> = schedule.next(slow, LATER).expect("nothing is here").collect();
    let (mut now, mut again) = (LATER, Vec::new());
    while let Some(range) = schedule.next(fast, now) {
        for piece in range {
            now += TICK;
            assert!(schedule.received(fast, piece, now), "the slow one brought nothing yet");
            schedule.arrived(fast, piece);
            if waited_for.contains(&piece) {
                assert_eq!(schedule.fresh, 0, "what nobody was asked for comes first");
                again.push(piece);
            }
        }
    }
    again.sort_unstable();
    assert_eq!(again, waited_for);
    assert!(schedule.is_complete());
    assert!(!schedule.received(slow, waited_for[0], now), "it is here");
}

#[test]
fn no_more_is_open_at_a_source_than_twice_what_it_has_sent() {
    let id = SourceId(0);
    let mut schedule = schedule([(Held::Whole, Reach::Near), (Held::Whole, Reach::Near)]);
    let mut now = LATER;
    for sent in 0..8 {
        while schedule.next(id, now).is_some() {}
        let open = schedule.sources[&id].open_pieces();
        assert!((1..=2 * sent.max(1)).contains(&open), "{open} after {sent}");
        now += TICK;
        let first = schedule.sources[&id].open[0].start;
        assert!(schedule.received(id, first, now), "nobody else was asked");
        schedule.arrived(id, first);
    }
}
