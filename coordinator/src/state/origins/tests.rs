//! Readers of one file in a made-up time, and what holds whatever they do.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn peer(seed: u8) -> PeerId {
    PeerId([seed; 32])
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn file(pieces: u64) -> FileRef {
    FileRef { sha256: Sha256([1; 32]), size: pieces * PIECE_SIZE }
}

fn asked(file: FileRef, held: &[(u64, u64)], wanted: u64) -> ReadOrigin {
    let held = held.iter().map(|&(first, count)| PieceRange { first, count }).collect();
    ReadOrigin { request: 1, file, held, wanted }
}

/// The ranges that a reader gets.
fn read(origins: &mut Origins, seed: u8, held: &[(u64, u64)], wanted: u64, now: u64) -> Vec<(u64, u64)> {
    let share = origins.read(peer(seed), &asked(file(100), held, wanted), seconds(now));
    share.ranges.iter().map(|range| (range.first, range.count)).collect()
}

#[test]
fn each_reader_gets_other_pieces_and_what_it_holds_is_not_read_again() {
    let mut origins = Origins::default();
    assert_eq!(read(&mut origins, 1, &[], 16, 0), [(0, 16)]);
    assert_eq!(read(&mut origins, 2, &[], 16, 0), [(16, 16)]);
    // Who asks again keeps what it has not read yet, and gets more.
    assert_eq!(read(&mut origins, 1, &[(0, 10)], 16, 1), [(10, 6), (32, 10)]);
    assert_eq!(read(&mut origins, 3, &[(0, 10)], 4, 1), [(42, 4)]);
}

#[test]
fn lease_ends_with_its_time_and_with_its_session() {
    let mut origins = Origins::default();
    read(&mut origins, 1, &[(0, 2)], 16, 0);
    assert_eq!(read(&mut origins, 2, &[], 2, 19), [(18, 2)]);
    assert_eq!(read(&mut origins, 2, &[(18, 2)], 2, 20), [(2, 2)], "its time is over");
    // Who comes back late has the rest of it still.
    assert_eq!(read(&mut origins, 1, &[(0, 2)], 16, 21)[0], (4, 14));
    origins.leave(peer(1));
    assert_eq!(read(&mut origins, 2, &[(18, 2), (2, 2)], 4, 22), [(0, 2), (4, 2)], "nobody serves them");
}

#[test]
fn leases_are_given_back_and_what_was_read_stays() {
    let mut origins = Origins::default();
    read(&mut origins, 1, &[], 8, 0);
    assert_eq!(read(&mut origins, 1, &[(0, 4)], 0, 1), []);
    assert_eq!(read(&mut origins, 2, &[], 2, 1), [(4, 2)]);
    assert_eq!(origins.readers(Sha256([1; 32])), [peer(1), peer(2)]);
    // Who held nothing and gives up is no reader any more.
    read(&mut origins, 2, &[], 0, 2);
    assert_eq!(origins.readers(Sha256([1; 32])), [peer(1)]);
}

#[test]
fn tail_is_shared_and_who_lacks_only_what_others_read_gets_nothing() {
    let mut origins = Origins::default();
    read(&mut origins, 1, &[(0, 88)], 1, 0);
    assert_eq!(read(&mut origins, 2, &[(0, 88)], 16, 0), [(89, 2)], "a quarter of what is left");
    read(&mut origins, 1, &[(0, 100)], 1, 1);
    let share = origins.read(peer(3), &asked(file(100), &[], 16), seconds(1));
    assert_eq!(share, Share { ranges: vec![], readers: vec![peer(1), peer(2)] });
}

#[test]
fn silent_readers_are_forgotten_and_a_whole_file_is_remembered_longer() {
    let mut origins = Origins::default();
    read(&mut origins, 1, &[(0, 50)], 1, 0);
    read(&mut origins, 2, &[(0, 100)], 0, 0);
    origins.forget_silent(seconds(60));
    assert_eq!(origins.readers(Sha256([1; 32])), [peer(2)]);
    origins.forget_silent(seconds(600));
    assert!(origins.files.is_empty());
}

#[test]
fn no_claim_of_a_node_sizes_what_is_kept() {
    let mut origins = Origins::default();
    let endless = FileRef { sha256: Sha256([1; 32]), size: u64::MAX };
    assert_eq!(
        origins.read(peer(1), &asked(endless, &[(0, u64::MAX)], u64::MAX), seconds(0)),
        Share::default()
    );
    for number in 0..40 {
        let file = FileRef { sha256: Sha256([number; 32]), size: 100 * PIECE_SIZE };
        let share = origins.read(peer(1), &asked(file, &[(90, 20), (u64::MAX, 2)], u64::MAX), seconds(0));
        assert_eq!(
            share.ranges,
            [PieceRange { first: 0, count: 16 }],
            "beyond the limit it reads as if alone"
        );
    }
    assert_eq!(origins.files.len(), MAX_FILES_OF_READER);
}

/// What readers of one file may do.
#[derive(Clone, Debug)]
enum Step {
    /// It reads this many of its leased pieces, and asks for more.
    Read(u8, usize, u64),
    /// It takes a piece from another one, and asks for more.
    Take(u8, u64),
    Leave(u8),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_u8..5, 0_usize..20, 0_u64..20).prop_map(|(seed, read, wanted)| Step::Read(seed, read, wanted)),
        3 => (1_u8..5, 0_u64..60).prop_map(|(seed, piece)| Step::Take(seed, piece)),
        1 => (1_u8..5).prop_map(Step::Leave),
        2 => (0_u64..15).prop_map(Step::Pass),
    ]
}

/// What a reader of the test knows.
#[derive(Default)]
struct Known {
    held: BTreeSet<u64>,
    leased: BTreeSet<u64>,
    until: u64,
}

/// Four readers of one file.
#[derive(Default)]
struct World {
    origins: Origins,
    now: u64,
    readers: BTreeMap<u8, Known>,
}

const PIECES: u64 = 60;

impl World {
    fn ask(&mut self, seed: u8, wanted: u64) -> Result<(), TestCaseError> {
        let known = self.readers.entry(seed).or_default();
        let held: Vec<(u64, u64)> = known.held.iter().map(|piece| (*piece, 1)).collect();
        let share = self.origins.read(peer(seed), &asked(file(PIECES), &held, wanted), seconds(self.now));
        let leased = share.ranges.iter().flat_map(|range| range.within(PIECES).expect("of this file"));
        known.leased = leased.collect();
        known.until = self.now + ORIGIN_LEASE.as_secs();
        prop_assert!(known.leased.len() <= LONGEST && known.leased.is_disjoint(&known.held));
        let asking = self.readers.remove(&seed).expect("it was made above");
        for (other, theirs) in &self.readers {
            let is_leased = theirs.until > self.now;
            prop_assert!(!is_leased || asking.leased.is_disjoint(&theirs.leased), "{} has it too", other);
            prop_assert!(asking.leased.is_disjoint(&theirs.held), "{} holds it", other);
        }
        self.readers.insert(seed, asking);
        Ok(())
    }

    fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Read(seed, read, wanted) => {
                let known = self.readers.entry(seed).or_default();
                let read: Vec<u64> = known.leased.iter().copied().take(read).collect();
                known.held.extend(read);
                self.ask(seed, wanted)?;
            }
            Step::Take(seed, piece) => {
                if self.readers.values().any(|known| known.held.contains(&piece)) {
                    self.readers.entry(seed).or_default().held.insert(piece);
                }
                self.ask(seed, 1)?;
            }
            Step::Leave(seed) => {
                self.origins.leave(peer(seed));
                self.readers.remove(&seed);
            }
            Step::Pass(time) => self.now += time,
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn no_piece_is_leased_to_two_and_every_piece_is_leased_in_the_end(steps in prop::collection::vec(step(), 0..80)) {
        let mut world = World::default();
        for step in &steps {
            world.take(step)?;
        }
        // One that goes on until nothing is left, among others that fell silent.
        world.now += ORIGIN_LEASE.as_secs();
        for _ in 0..PIECES {
            world.take(&Step::Read(9, LONGEST, 16))?;
        }
        let held: BTreeSet<u64> = world.readers.values().flat_map(|known| known.held.iter().copied()).collect();
        prop_assert_eq!(held.len() as u64, PIECES, "a piece is read by nobody");
    }
}
