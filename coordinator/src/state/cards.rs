//! Stories of a farm whose cards differ: what a job does that one of them is too small for.

use protocol::{Device, Engine, RunErrorKind, SlotId};

use super::made_farm::{Farm, failed, job, node};
use super::*;

/// On which node and slot a job runs now; it runs out of memory there at once.
fn runs_out(farm: &mut Farm) -> (PeerId, SlotId) {
    let (on, lease) = farm.granted();
    let slot = farm.state.runs.get(&lease.id).expect("just granted").slot;
    farm.end(on.0[0], failed(lease, RunErrorKind::OutOfMemory));
    (on, slot)
}

#[test]
fn job_for_which_many_cards_are_too_small_still_comes_to_the_largest() {
    let mut farm = Farm::new();
    for (seed, memory) in [(1, 6), (2, 8), (3, 10), (4, 12)] {
        farm.register_cards(seed, &[memory]);
    }
    farm.submit(1);
    for seed in 1..=4 {
        // Each next one has more; the last one is too small as well, and only there it counts.
        assert_eq!(runs_out(&mut farm), (node(seed), SlotId(0)));
        assert_eq!(farm.ends(), []);
    }
    assert_eq!(farm.view(1).failures.len(), 4);
    // Twice more on the largest, for its memory may have been another program's.
    for _ in 0..2 {
        assert_eq!(runs_out(&mut farm), (node(4), SlotId(0)));
    }
    assert_eq!(farm.ends(), [(job(1), JobState::Failed)]);
    let done = farm.done();
    let Some(Action::Archive(ended)) = done.first() else { panic!("{done:?}") };
    let error = ended.error.as_ref().expect("it failed");
    assert_eq!(
        error.detail,
        "it broke; it needs more than 12.0 GiB of graphics memory; the largest device of the farm has 12.0 GiB"
    );
}

#[test]
fn larger_card_beside_the_small_one_takes_the_job_and_the_node_is_not_set_aside() {
    let mut farm = Farm::new();
    farm.register_cards(1, &[8, 24]);
    farm.submit(1);
    let first = runs_out(&mut farm);
    assert_eq!(first, (node(1), SlotId(0)));
    farm.restart();
    farm.register_cards(1, &[8, 24]);
    let (on, lease) = farm.granted();
    assert_eq!((on, farm.state.runs[&lease.id].slot), (node(1), SlotId(1)), "a restart forgets it not");
    farm.succeed(1, lease);
    farm.register_cards(2, &[24]);
    farm.submit(2);
    let (on, lease) = farm.granted();
    farm.end(1, failed(lease, RunErrorKind::OutOfMemory));
    assert_eq!(on, node(1));
    let (on, lease) = farm.granted();
    farm.succeed(on.0[0], lease);
    assert_eq!(farm.state.node_view(node(1)).expect("registered").aside, []);
}

#[test]
fn job_for_which_the_largest_card_was_too_small_ends_on_what_is_left_once_that_has_gone() {
    let mut farm = Farm::new();
    farm.register_cards(1, &[24]);
    farm.submit(1);
    assert_eq!(runs_out(&mut farm).0, node(1));
    farm.disconnect(1);
    farm.pass(60);
    farm.done();
    farm.register_cards(2, &[8]);
    for _ in 0..2 {
        assert_eq!(farm.ends(), []);
        assert_eq!(runs_out(&mut farm).0, node(2));
    }
    assert_eq!(farm.ends(), [(job(1), JobState::Failed)]);
}

#[test]
fn processor_that_ran_out_excludes_no_card_and_is_not_set_aside() {
    let mut farm = Farm::new();
    let processor = Device::Cpu { threads: 8, memory: 64 << 30 };
    farm.register_devices(1, Engine::Builtin, vec![processor], vec![], vec![]);
    farm.submit(1);
    assert_eq!(runs_out(&mut farm).0, node(1));
    assert_eq!(farm.view(1).failures[0].ran_out_of, None);
    let (_, lease) = farm.granted();
    farm.register_cards(2, &[8]);
    farm.end(1, failed(lease, RunErrorKind::OutOfMemory));
    let (on, lease) = farm.granted();
    assert_eq!(on, node(2));
    farm.succeed(2, lease);
    assert_eq!(farm.state.node_view(node(1)).expect("registered").aside, []);
}

#[test]
fn job_waits_for_the_larger_card_while_it_is_busy() {
    let mut farm = Farm::new();
    farm.register_cards(1, &[24]);
    farm.submit(1);
    let (_, busy) = farm.granted();
    farm.register_cards(2, &[8]);
    farm.submit(2);
    assert_eq!(runs_out(&mut farm).0, node(2));
    assert_eq!(farm.grants(), []);
    farm.submit(3);
    assert_eq!(farm.granted().0, node(2), "the small card does what fits on it");
    farm.succeed(1, busy);
    let (on, lease) = farm.granted();
    assert_eq!((on, lease.job), (node(1), job(2)));
}
