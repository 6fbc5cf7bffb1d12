//! A day of a small farm on a simulated clock: how often a ComfyUI is started, with and without being told which are up.

use std::collections::BTreeMap;

use protocol::{BlobHash, WorkspaceState};

use super::tests::{Made, needs, version, waiting};
use super::*;

/// How many workflows there are, each with code of its own.
const WORKFLOWS: u32 = 3;
const NODES: u8 = 4;
const JOBS: u64 = 500;
/// How long a run takes, and how long a start before it: in seconds, as measured on a small machine.
const RUN: u64 = 5;
const START: u64 = 10;

/// What a day came to.
#[derive(Debug)]
struct Day {
    starts: u64,
    /// From the submission to the end, in seconds.
    mean: u64,
    longest: u64,
}

/// A node with one slot.
struct Machine {
    node: Made,
    /// The workflow whose ComfyUI is up.
    up: Option<u32>,
    busy_until: Option<u64>,
}

/// Jobs come at random, one in so many seconds on average.
fn day(is_told: bool, one_in: u64) -> Day {
    let workflows: Vec<WorkflowVersion> = (0..WORKFLOWS).map(version).collect();
    let lockfile = |workflow: u32| LockfileHash(BlobHash([workflow as u8 + 1; 32]));
    let requirements: Vec<Requirements> = (0..WORKFLOWS)
        .map(|workflow| Requirements { lockfile: Some(lockfile(workflow)), ..needs(&[]) })
        .collect();
    let machine = |seed| {
        let mut node = Made::node(seed, 1);
        node.offer.engine = Engine::Managed;
        node.workspaces =
            (0..WORKFLOWS).map(|workflow| (lockfile(workflow), WorkspaceState::Proven)).collect();
        Machine { node, up: None, busy_until: None }
    };
    let mut machines: Vec<Machine> = (0..NODES).map(machine).collect();
    let (mut queue, mut seed, mut submitted): (BTreeMap<u64, u32>, u64, Vec<u64>) = Default::default();
    let (mut starts, mut took) = (0, Vec::new());
    for now in 0.. {
        for machine in machines.iter_mut().filter(|machine| machine.busy_until == Some(now)) {
            machine.busy_until = None;
            machine.node.free = vec![(SlotId(0), Duration::from_secs(now))];
        }
        if (submitted.len() as u64) < JOBS && random(&mut seed).is_multiple_of(one_in) {
            queue.insert(submitted.len() as u64, (random(&mut seed) % u64::from(WORKFLOWS)) as u32);
            submitted.push(now);
        }
        for machine in &mut machines {
            let serves =
                machine.up.filter(|_| is_told).map(|workflow| (SlotId(0), [lockfile(workflow)].into()));
            machine.node.warm = serves.into_iter().collect();
        }
        let class = |workflow: u32| Class {
            workflow: &workflows[workflow as usize],
            requirements: &requirements[workflow as usize],
            jobs: queue
                .iter()
                .filter(|(_, of)| **of == workflow)
                .map(|(number, _)| waiting(*number))
                .collect(),
        };
        let nodes = machines.iter().map(|machine| machine.node.picture()).collect();
        let placements = plan(&Picture { classes: (0..WORKFLOWS).map(class).collect(), nodes });
        for Placement { job: id, node, .. } in placements {
            let number = u64::try_from(id.0.as_u128()).expect("it was made of one");
            let workflow = queue.remove(&number).expect("it waited");
            let machine = machines.iter_mut().find(|machine| machine.node.peer == node).expect("a node");
            let start = if machine.up.replace(workflow) == Some(workflow) { 0 } else { START };
            starts += u64::from(start > 0);
            machine.busy_until = Some(now + start + RUN);
            machine.node.free.clear();
            machine.node.ran.insert(version(workflow));
            took.push(now + start + RUN - submitted[number as usize]);
        }
        if took.len() as u64 == JOBS {
            break;
        }
    }
    let longest = took.iter().copied().max().unwrap_or_default();
    Day { starts, mean: took.iter().sum::<u64>() / JOBS, longest }
}

/// A number that nobody guesses, the same on each machine (`splitmix64`).
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[test]
fn farm_that_is_told_what_is_warm_starts_fewer_comfyuis_and_lets_nobody_wait_for_it() {
    let check = |one_in: u64, percent: u64| {
        let (untold, told) = (day(false, one_in), day(true, one_in));
        assert!(
            told.starts * 100 <= untold.starts * percent,
            "one in {one_in} s: {told:?} instead of {untold:?}"
        );
        assert!(told.mean <= untold.mean, "one in {one_in} s: {told:?} instead of {untold:?}");
        assert!(told.longest <= untold.longest + RUN, "one in {one_in} s: {told:?} instead of {untold:?}");
    };
    check(10, 25);
    check(5, 60);
    // Where slots are rare each takes what is due first, whatever is up there.
    check(2, 100);
}
