//! What holds for a schedule whatever happens to its sources.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

use super::{Held, Reach, Schedule, SourceId};
use crate::store::Pieces;

#[derive(Debug, Clone)]
enum Step {
    Join { held: Option<Vec<bool>>, reach: Reach },
    Gain { source: usize, first: u64, count: u64 },
    Ask { source: usize },
    Send { source: usize, is_good: bool },
    Leave { source: usize },
    Wait { milliseconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let held = proptest::option::of(vec(any::<bool>(), 80));
    let reach = prop_oneof![Just(Reach::Near), Just(Reach::Far)];
    let source = 0..3usize;
    prop_oneof![
        2 => (held, reach).prop_map(|(held, reach)| Step::Join { held, reach }),
        2 => (source.clone(), 0..80u64, 1..9u64)
            .prop_map(|(source, first, count)| Step::Gain { source, first, count }),
        6 => source.clone().prop_map(|source| Step::Ask { source }),
        8 => (source.clone(), proptest::bool::weighted(0.95))
            .prop_map(|(source, is_good)| Step::Send { source, is_good }),
        1 => source.prop_map(|source| Step::Leave { source }),
        2 => (1..3000u64).prop_map(|milliseconds| Step::Wait { milliseconds }),
    ]
}

/// A schedule, and what each of its sources was asked for.
struct Model {
    schedule: Schedule,
    pieces: u64,
    held: BTreeMap<u32, Held>,
    open: BTreeMap<u32, VecDeque<u64>>,
    next: u32,
    now: Duration,
}

impl Model {
    fn new(pieces: u64, us: u64) -> Self {
        let schedule = Schedule::new(Pieces::none(pieces), us, us.is_multiple_of(2));
        let (held, open) = (BTreeMap::new(), BTreeMap::new());
        Self { schedule, pieces, held, open, next: 0, now: Duration::ZERO }
    }

    fn source(&self, index: usize) -> Option<u32> {
        let sources: Vec<_> = self.held.keys().collect();
        sources.get(index % sources.len().max(1)).map(|id| **id)
    }

    fn join(&mut self, held: Held, reach: Reach) {
        self.held.insert(self.next, held.clone());
        self.open.insert(self.next, VecDeque::new());
        self.schedule.join(SourceId(self.next), u64::from(self.next) << 60, held, reach, self.now);
        self.next += 1;
    }

    fn ask(&mut self, id: u32) -> bool {
        let Some(range) = self.schedule.next(SourceId(id), self.now) else { return false };
        assert!(range.start < range.end && range.end <= self.pieces, "{range:?} of {}", self.pieces);
        for piece in range {
            assert!(self.held[&id].contains(piece), "it does not hold {piece}");
            assert!(!self.schedule.here.contains(piece), "{piece} is here");
            let open = self.open.get_mut(&id).expect("it joined");
            assert!(!open.contains(&piece), "it was asked for {piece} already");
            open.push_back(piece);
        }
        true
    }

    fn send(&mut self, id: u32, is_good: bool) {
        let Some(piece) = self.open.get_mut(&id).expect("it joined").pop_front() else { return };
        let is_wanted = self.schedule.received(SourceId(id), piece, self.now);
        match (is_wanted, is_good) {
            (true, true) => self.schedule.arrived(SourceId(id), piece),
            (true, false) => self.leave(id),
            (false, _) => assert!(self.schedule.here.contains(piece), "nothing is being checked"),
        }
    }

    fn leave(&mut self, id: u32) {
        self.schedule.leave(SourceId(id));
        self.held.remove(&id);
        self.open.remove(&id);
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Join { held, reach } if self.held.len() < 3 => {
                let bits = held.map(|bits| {
                    let mut pieces = Pieces::none(self.pieces);
                    let set = (0..self.pieces).filter(|piece| bits[*piece as usize]);
                    set.for_each(|piece| pieces.insert(piece));
                    pieces
                });
                self.join(bits.map_or(Held::Whole, Held::Growing), reach);
            }
            Step::Join { .. } => {}
            Step::Gain { source, first, count } => {
                let Some(id) = self.source(source) else { return };
                let range = first.min(self.pieces)..(first + count).min(self.pieces);
                self.schedule.gained(SourceId(id), range.clone(), self.now);
                if let Some(Held::Growing(pieces)) = self.held.get_mut(&id) {
                    range.for_each(|piece| pieces.insert(piece));
                }
            }
            Step::Ask { source } => {
                if let Some(id) = self.source(source) {
                    self.ask(id);
                }
            }
            Step::Send { source, is_good } => {
                if let Some(id) = self.source(source) {
                    self.send(id, is_good);
                }
            }
            Step::Leave { source } => {
                if let Some(id) = self.source(source) {
                    self.leave(id);
                }
            }
            Step::Wait { milliseconds } => self.now += Duration::from_millis(milliseconds),
        }
        self.check();
    }

    fn check(&self) {
        let asked = |piece: u64| self.open.values().flatten().filter(|open| **open == piece).count();
        for piece in 0..self.pieces {
            assert_eq!(usize::from(self.schedule.asked[piece as usize]), asked(piece), "piece {piece}");
            assert!(asked(piece) <= 4, "piece {piece} was asked for {} times", asked(piece));
        }
        let is_fresh = |piece: &u64| !self.schedule.here.contains(*piece) && asked(*piece) == 0;
        assert_eq!(self.schedule.fresh, (0..self.pieces).filter(is_fresh).count() as u64);
    }
}

proptest! {
    #[test]
    fn every_piece_comes_whoever_vanishes_lies_or_stalls(
        pieces in 1..80u64,
        us in any::<u64>(),
        steps in vec(step(), 0..200),
    ) {
        let mut model = Model::new(pieces, us);
        steps.into_iter().for_each(|step| model.apply(step));
        // Whatever happened, one good source is enough for the rest, though the others fall silent.
        model.join(Held::Whole, Reach::Far);
        let id = model.next - 1;
        let mut rounds = 0;
        while !model.schedule.is_complete() {
            rounds += 1;
            assert!(rounds < 10 * pieces + 1000, "{} pieces never come", model.schedule.missing());
            model.now += Duration::from_millis(200);
            let asked: Vec<u32> = model.held.keys().copied().collect();
            for source in asked {
                while model.ask(source) {}
            }
            model.send(id, true);
            model.check();
        }
        assert!(!model.schedule.has_missing(SourceId(id)));
    }
}

#[test]
fn whoever_reads_a_blob_while_it_comes_begins_at_its_beginning() {
    for (in_order, first) in [(false, 7), (true, 0)] {
        let mut schedule = Schedule::new(Pieces::none(10), 7, in_order);
        schedule.join(SourceId(0), 1, Held::Whole, Reach::Near, Duration::ZERO);
        let range = schedule.next(SourceId(0), Duration::ZERO).expect("nothing is here");
        assert_eq!(range.start, first);
    }
}
