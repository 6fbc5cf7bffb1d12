//! The memory of devices: where a job may still go that ran out of it.
//!
//! Such a job goes on a device with more, and on no other as long as the farm has one for it. Where it has none, the
//! largest that there is is tried, on another node first: what it lacked may have been in the hands of another program.
//! A processor counts with the machine's memory, as one that has more; a run that was too large for it says nothing of
//! cards. Not here: which attempts count, which is the state's.

use std::fmt;

use protocol::{LockfileHash, PeerId, WorkspaceState};

use super::{NodePicture, Waiting, is_managed, obstacle};
use crate::view::{FailedRun, Requirements};

/// Where a job ran out of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RanOut {
    /// How much the largest device has on which it did.
    memory: u64,
    /// The nodes on which it did, each with how much the device has.
    on: Vec<(PeerId, u64)>,
}

impl RanOut {
    /// What the failures of a job tell of it; `None` where none is for want of memory.
    pub fn of<'a>(failures: impl IntoIterator<Item = &'a FailedRun>) -> Option<Self> {
        let on = failures.into_iter().filter_map(|failed| Some((failed.node, failed.ran_out_of?)));
        let on: Vec<_> = on.collect();
        let memory = on.iter().map(|(_, memory)| *memory).max()?;
        Some(Self { memory, on })
    }

    /// Whether the job ran out of memory on this node, which has no larger device.
    pub(super) fn is_all_that(&self, node: &NodePicture<'_>) -> bool {
        self.on.iter().any(|(on, memory)| *on == node.peer && memory_of(node) <= *memory)
    }

    /// What the job lacks where no device that could take it has more memory.
    pub fn lack(&self, requirements: &Requirements, nodes: &[NodePicture<'_>]) -> Option<Lack> {
        let largest = largest(requirements, nodes);
        (largest <= self.memory).then_some(Lack { needed: self.memory, largest })
    }
}

/// More memory than any device has that could take a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lack {
    /// The job needs more than this.
    needed: u64,
    /// No device has more than this.
    largest: u64,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (needed, largest) = (gib(self.needed), gib(self.largest));
        write!(
            f,
            "it needs more than {needed} of graphics memory; the largest device of the farm has {largest}"
        )
    }
}

/// The most memory that a device has of a node that takes the class, or will take it once it has built the workspace.
pub(super) fn largest(requirements: &Requirements, nodes: &[NodePicture<'_>]) -> u64 {
    let takes = |node: &&NodePicture<'_>| {
        obstacle(requirements, node).is_none() || is_building(requirements.lockfile, node)
    };
    nodes.iter().filter(takes).map(memory_of).max().unwrap_or_default()
}

/// The least memory that a device must have for a job of a class for which the largest one has so much.
pub(super) fn least(job: &Waiting<'_>, largest: u64) -> u64 {
    job.ran_out.as_ref().map_or(0, |ran_out| {
        // Those on which it ran out may have gone.
        if largest > ran_out.memory { ran_out.memory + 1 } else { largest }
    })
}

/// Why none of a node's slots is one for a job that needs so much.
pub(super) fn is_too_small(job: &Waiting<'_>, least: u64, node: &NodePicture<'_>) -> Option<String> {
    let RanOut { memory, .. } = job.ran_out.as_ref()?;
    let (ran_out_of, largest) = (gib(*memory), gib(memory_of(node)));
    (memory_of(node) < least).then(|| {
        format!("the job ran out of memory on a device that has {ran_out_of}, and its largest has {largest}")
    })
}

/// The memory of a node's largest device.
pub(super) fn memory_of(node: &NodePicture<'_>) -> u64 {
    node.offer.slots.iter().map(|slot| slot.device.memory()).max().unwrap_or_default()
}

fn is_building(lockfile: Option<LockfileHash>, node: &NodePicture<'_>) -> bool {
    let can_build = node.connected && !node.draining && is_managed(node);
    let is_wanted = |lockfile: &LockfileHash| can_build && node.wanted.contains(lockfile);
    let Some(lockfile) = lockfile.filter(is_wanted) else { return false };
    let state = node.workspaces.get(&lockfile);
    !matches!(state, Some(WorkspaceState::Failed { .. } | WorkspaceState::Refused { .. }))
}

fn gib(bytes: u64) -> String {
    // Tenths of it, rounded, without a float.
    let tenths = (u128::from(bytes) * 10 + (1 << 29)) >> 30;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use protocol::{Device, Engine};

    use super::super::tests::{Made, needs, version, waiting};
    use super::super::{Class, Picture, explain, plan};
    use super::*;

    /// A node with a card for each of these memories, in GiB.
    fn node(seed: u8, memories: &[u64]) -> Made {
        let mut node = Made::node(seed, u16::try_from(memories.len()).expect("few"));
        for (slot, memory) in node.offer.slots.iter_mut().zip(memories) {
            slot.device = Device::Gpu { name: String::new(), uuid: String::new(), memory: memory << 30 };
        }
        node
    }

    /// A job that ran out of so many GiB, on these nodes.
    fn ran_out(memory: u64, on: &[u8]) -> Waiting<'static> {
        let on = on.iter().map(|seed| (PeerId([*seed; 32]), memory << 30)).collect();
        Waiting { ran_out: Some(RanOut { memory: memory << 30, on }), ..waiting(1) }
    }

    fn placed(job: Waiting<'_>, requirements: &Requirements, nodes: &[Made]) -> Option<(u8, u16)> {
        let workflow = version(1);
        let classes = vec![Class { workflow: &workflow, requirements, jobs: vec![job] }];
        let placements = plan(&Picture { classes, nodes: nodes.iter().map(Made::picture).collect() });
        placements.first().map(|placed| (placed.node.0[0], placed.slot.0))
    }

    fn told(job: &Waiting<'_>, nodes: &[Made]) -> Vec<String> {
        let pictures: Vec<_> = nodes.iter().map(Made::picture).collect();
        let reasons = explain(&version(1), &needs(&[]), job, &pictures);
        reasons.into_iter().map(|reason| reason.reason).collect()
    }

    #[test]
    fn job_that_ran_out_of_memory_goes_on_a_larger_device_and_waits_for_it() {
        let mut nodes = vec![node(1, &[8]), node(2, &[8, 8]), node(3, &[24]), node(4, &[6])];
        let check = |nodes: &[Made], expected| {
            assert_eq!(placed(ran_out(8, &[1]), &needs(&[]), nodes), expected);
        };
        check(&nodes, Some((3, 0)));
        nodes[2].free.clear();
        check(&nodes, None);
        let told = told(&ran_out(8, &[1]), &nodes);
        assert_eq!(told[2], "all its slots are busy");
        assert_eq!(
            told[3],
            "the job ran out of memory on a device that has 8.0 GiB, and its largest has 6.0 GiB"
        );
        assert_eq!(placed(waiting(1), &needs(&[]), &nodes), Some((1, 0)), "others take what they fit on");
    }

    #[test]
    fn larger_card_of_the_same_node_is_used_and_the_small_one_beside_it_left() {
        let mut nodes = vec![node(1, &[8, 24]), node(2, &[8])];
        assert_eq!(placed(ran_out(8, &[1]), &needs(&[]), &nodes), Some((1, 1)));
        nodes[0].free.truncate(1);
        assert_eq!(placed(ran_out(8, &[1]), &needs(&[]), &nodes), None);
        assert_eq!(told(&ran_out(8, &[1]), &nodes)[0], "all its slots with enough memory are busy");
    }

    #[test]
    fn where_no_device_is_larger_the_largest_is_tried_and_the_farm_says_what_it_lacks() {
        let mut nodes = vec![node(1, &[8]), node(2, &[8]), node(3, &[6])];
        assert_eq!(placed(ran_out(8, &[1]), &needs(&[]), &nodes), Some((2, 0)));
        assert_eq!(placed(ran_out(8, &[1, 2]), &needs(&[]), &nodes), Some((1, 0)));
        let lack =
            "it needs more than 8.0 GiB of graphics memory; the largest device of the farm has 8.0 GiB";
        assert_eq!(told(&ran_out(8, &[1]), &nodes)[0], lack);
        nodes.retain(|node| node.peer == PeerId([3; 32]));
        nodes.push(node(4, &[4]));
        assert_eq!(placed(ran_out(8, &[1]), &needs(&[]), &nodes), Some((3, 0)), "it must come to an end");
        let told = told(&ran_out(8, &[1]), &nodes);
        let lack =
            "it needs more than 8.0 GiB of graphics memory; the largest device of the farm has 6.0 GiB";
        assert_eq!([&told[0], &told[1]], [lack, "it is next in turn"]);
        assert_eq!(
            told[2],
            "the job ran out of memory on a device that has 8.0 GiB, and its largest has 4.0 GiB"
        );
    }

    #[test]
    fn node_whose_largest_device_was_not_tried_is_as_good_as_another() {
        let nodes = [node(1, &[8, 16]), node(2, &[16]), node(3, &[16])];
        let mut job = ran_out(16, &[2]);
        job.ran_out.as_mut().expect("it did").on.push((PeerId([1; 32]), 8 << 30));
        assert_eq!(placed(job, &needs(&[]), &nodes), Some((3, 0)), "its slot is free for longer");
        let mut job = ran_out(16, &[2, 3]);
        job.ran_out.as_mut().expect("it did").on.push((PeerId([1; 32]), 8 << 30));
        assert_eq!(placed(job, &needs(&[]), &nodes), Some((1, 1)));
    }

    #[test]
    fn larger_device_whose_node_is_still_to_build_the_workspace_is_waited_for() {
        let lockfile = LockfileHash(protocol::BlobHash([9; 32]));
        let requirements = Requirements { lockfile: Some(lockfile), ..needs(&[]) };
        let check = |state: Option<WorkspaceState>, is_wanted: bool, expected| {
            let mut nodes = vec![node(1, &[8]), node(2, &[24])];
            for (node, state) in nodes.iter_mut().zip([Some(WorkspaceState::Proven), state]) {
                node.offer.engine = Engine::Managed;
                node.workspaces.extend(state.map(|state| (lockfile, state)));
                node.wanted.extend(is_wanted.then_some(lockfile));
            }
            assert_eq!(placed(ran_out(8, &[1]), &requirements, &nodes), expected);
        };
        check(Some(WorkspaceState::Waiting), true, None);
        check(None, true, None);
        check(Some(WorkspaceState::Refused { reason: "pickled".into() }), true, Some((1, 0)));
        check(Some(WorkspaceState::Proven), true, Some((2, 0)));
        check(Some(WorkspaceState::Proven), false, Some((2, 0)));
        // Of an older version it is never built.
        check(Some(WorkspaceState::Waiting), false, Some((1, 0)));
        check(None, false, Some((1, 0)));
    }

    #[test]
    fn processor_counts_with_the_memory_of_its_machine() {
        let mut nodes = vec![node(1, &[8]), node(2, &[0])];
        nodes[1].offer.slots[0].device = Device::Cpu { threads: 8, memory: 64 << 30 };
        assert_eq!(placed(ran_out(8, &[1]), &needs(&[]), &nodes), Some((2, 0)));
    }
}
