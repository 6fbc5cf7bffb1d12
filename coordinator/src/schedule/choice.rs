//! The best slot for a job among those that could take it: the soft rules.
//!
//! A slot that is free is always better than one that is waited for, however warm that is: so nothing here makes a job
//! wait, but for nodes in doubt. Not here: whether a node can take a job at all.

use std::collections::BTreeSet;

use protocol::{LockfileHash, WorkflowVersion};

use super::memory::memory_of;
use super::{Class, FreeSlot, NodePicture, Picture, RanOut, Waiting, is_managed};

/// A free slot while a plan is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open<'a> {
    /// The slot.
    pub(super) slot: FreeSlot<'a>,
    /// Whether jobs wait that its ComfyUI serves.
    is_wanted: bool,
}

impl<'a> Open<'a> {
    /// The free slots of each node.
    pub(super) fn all(picture: &Picture<'a>) -> Vec<Vec<Self>> {
        let waiting = picture.classes.iter().filter(|class| !class.jobs.is_empty());
        let due: BTreeSet<LockfileHash> = waiting.filter_map(|class| class.requirements.lockfile).collect();
        let open = |slot: &FreeSlot<'a>| {
            let is_wanted = slot.serves.is_some_and(|serves| !serves.is_disjoint(&due));
            Self { slot: *slot, is_wanted }
        };
        picture.nodes.iter().map(|node| node.free.iter().map(open).collect()).collect()
    }
}

/// The best slot for a job: the place of its node among all, and its own among the free ones of that node.
pub(super) fn choose(
    job: &Waiting<'_>,
    least_memory: u64,
    class: &Class<'_>,
    able: &[usize],
    free: &[Vec<Open<'_>>],
    nodes: &[NodePicture<'_>],
) -> Option<(usize, usize)> {
    let doubt = |index: usize| doubt(job, class.workflow, &nodes[index]);
    let able = || able.iter().copied().filter(|&index| memory_of(&nodes[index]) >= least_memory);
    // A busy node is waited for rather than one of more doubt used.
    let least = able().map(doubt).min()?;
    let certain = able().filter(|&index| doubt(index) == least);
    let slots = certain.flat_map(|index| (0..free[index].len()).map(move |place| (index, place)));
    let slots = slots.filter(|&(index, place)| free[index][place].slot.memory >= least_memory);
    slots.min_by_key(|&(index, place)| preference(job, class, &nodes[index], &free[index][place]))
}

/// Why a node is used only where no other one could ever take the job, the stronger reason first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Doubt {
    /// The job failed there.
    pub(super) failed_there: bool,
    /// It is set aside for the workflow.
    is_aside: bool,
}

pub(super) fn doubt(job: &Waiting<'_>, workflow: &WorkflowVersion, node: &NodePicture<'_>) -> Doubt {
    let has_no_more = |ran_out: &RanOut| ran_out.is_all_that(node);
    let failed_there = job.avoid.contains(&node.peer) || job.ran_out.as_ref().is_some_and(has_no_more);
    Doubt { failed_there, is_aside: node.aside.contains_key(workflow) }
}

/// The soft rules, the strongest first; the least value wins.
fn preference(
    job: &Waiting<'_>,
    class: &Class<'_>,
    node: &NodePicture<'_>,
    open: &Open<'_>,
) -> impl Ord + use<> {
    let is_cold = !node.ran.contains(class.workflow);
    let missing_inputs = job.inputs.iter().filter(|hash| !node.holds.contains(hash)).count();
    (start(class, node, open), is_cold, missing_inputs, open.slot.since, node.peer, open.slot.id)
}

/// What has to be started on a slot before a run, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Start {
    /// Nothing.
    Nothing,
    /// A ComfyUI, for the slot has none.
    First,
    /// A ComfyUI, in place of one for which no job waits.
    InPlaceOfIdle,
    /// A ComfyUI, in place of one for which jobs wait, which would start again elsewhere.
    InPlaceOfWanted,
}

fn start(class: &Class<'_>, node: &NodePicture<'_>, open: &Open<'_>) -> Start {
    let Some(lockfile) = class.requirements.lockfile.filter(|_| is_managed(node)) else {
        return Start::Nothing;
    };
    match open.slot.serves {
        None => Start::First,
        Some(serves) if serves.contains(&lockfile) => Start::Nothing,
        Some(_) if open.is_wanted => Start::InPlaceOfWanted,
        Some(_) => Start::InPlaceOfIdle,
    }
}
