//! Which queued job goes on which slot: a pure function over a picture of the farm.
//!
//! Hard rules say whether a node can take a workflow at all ([`HARD`], in the order in which people are
//! told of them). Soft rules choose among the slots of those that can (`choice`). Jobs are served by
//! priority, then by submission; one that nothing can take does not hold up the others. All that is
//! the same for every job of a class (a workflow version) is worked out once a class, so a long queue
//! costs no more than the jobs that find a slot.
//!
//! Not here: leases, time, and what a job is. Nothing waits or reads a clock.

mod choice;
mod memory;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use protocol::{
    BlobHash, Engine, JobId, LockfileHash, Offer, PeerId, SlotId, WorkflowVersion, WorkspaceState, lacking,
};

use self::choice::{Open, choose, doubt};
pub use self::memory::{Lack, RanOut};
use self::memory::{is_too_small, largest, least};
use crate::view::{Requirements, WaitReason};

/// The most nodes that [`explain`] names.
const MAX_REASONS: usize = 32;

/// What the planner looks at.
#[derive(Debug, Default)]
pub struct Picture<'a> {
    /// The queued jobs, by class.
    pub classes: Vec<Class<'a>>,
    /// The nodes.
    pub nodes: Vec<NodePicture<'a>>,
}

/// The queued jobs of one workflow version; at least as many of the first as there are free slots.
#[derive(Debug)]
pub struct Class<'a> {
    /// The workflow.
    pub workflow: &'a WorkflowVersion,
    /// What it needs of a node.
    pub requirements: &'a Requirements,
    /// The jobs, the first due first.
    pub jobs: Vec<Waiting<'a>>,
}

/// A queued job.
#[derive(Debug)]
pub struct Waiting<'a> {
    /// Its id.
    pub job: JobId,
    /// 0 to 100; the higher goes first.
    pub priority: u8,
    /// Its place in the order of submission.
    pub order: u64,
    /// The files that it needs.
    pub inputs: &'a [BlobHash],
    /// The nodes on which it failed, other than for want of memory.
    pub avoid: Vec<PeerId>,
    /// Where it ran out of memory.
    pub ran_out: Option<RanOut>,
}

/// A node, as the planner sees it.
#[derive(Debug)]
pub struct NodePicture<'a> {
    /// Who.
    pub peer: PeerId,
    /// Whether a session is open and the node is not about to go.
    pub connected: bool,
    /// Whether it takes no more runs.
    pub draining: bool,
    /// What it offers.
    pub offer: &'a Offer,
    /// Its free slots.
    pub free: Vec<FreeSlot<'a>>,
    /// The workflows that it ran.
    pub ran: &'a BTreeSet<WorkflowVersion>,
    /// The blobs that it holds.
    pub holds: &'a HashSet<BlobHash>,
    /// How far a managed node is with each workspace.
    pub workspaces: &'a BTreeMap<LockfileHash, WorkspaceState>,
    /// The lockfiles whose workspaces managed nodes are to have.
    pub wanted: Arc<BTreeSet<LockfileHash>>,
    /// The workflows for which it is set aside, each with the reason.
    pub aside: BTreeMap<&'a WorkflowVersion, &'a str>,
    /// The lockfiles in whose workspaces it is at work.
    pub at_work: BTreeSet<LockfileHash>,
}

/// A slot without a run.
#[derive(Clone, Copy, Debug)]
pub struct FreeSlot<'a> {
    /// Its number on the node.
    pub id: SlotId,
    /// Since when it is free.
    pub since: Duration,
    /// On a managed node, the lockfiles that its ComfyUI serves; `None` where it has none.
    pub serves: Option<&'a BTreeSet<LockfileHash>>,
    /// The memory of its device.
    pub memory: u64,
}

/// A job's way to a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The job.
    pub job: JobId,
    /// The node.
    pub node: PeerId,
    /// The slot on it.
    pub slot: SlotId,
}

/// Places as many jobs as there are fitting free slots. No job and no slot is in the answer twice.
pub fn plan(picture: &Picture<'_>) -> Vec<Placement> {
    debug_assert!(are_different(picture.nodes.iter().map(|node| node.peer)), "each node is there once");
    debug_assert!(
        are_different(picture.classes.iter().flat_map(|class| &class.jobs).map(|job| job.job)),
        "each job is there once"
    );
    let mut free = Open::all(picture);
    let mut left: usize = free.iter().map(Vec::len).sum();
    let mut placements = Vec::new();
    if left == 0 {
        return placements;
    }
    let mut fitting: Vec<Vec<usize>> =
        picture.classes.iter().map(|class| fitting(class.requirements, picture)).collect();
    let largest: Vec<u64> =
        picture.classes.iter().map(|class| largest(class.requirements, &picture.nodes)).collect();
    for (class, job) in in_order(picture) {
        if left == 0 {
            break;
        }
        let least = least(job, largest[class]);
        let chosen = choose(job, least, &picture.classes[class], &fitting[class], &free, &picture.nodes);
        let Some((index, place)) = chosen else { continue };
        if let Some(lockfile) = picture.classes[class].requirements.lockfile
            && is_trial(&lockfile, &picture.nodes[index])
        {
            let shares = |class: usize| picture.classes[class].requirements.lockfile == Some(lockfile);
            for (_, able) in fitting.iter_mut().enumerate().filter(|(class, _)| shares(*class)) {
                able.retain(|able| *able != index);
            }
        }
        let slot = free[index].swap_remove(place).slot.id;
        left -= 1;
        placements.push(Placement { job: job.job, node: picture.nodes[index].peer, slot });
    }
    placements
}

/// Why a queued job is on no node: first what is true of the farm as a whole, then node by node.
pub fn explain(
    workflow: &WorkflowVersion,
    requirements: &Requirements,
    job: &Waiting<'_>,
    nodes: &[NodePicture<'_>],
) -> Vec<WaitReason> {
    if nodes.is_empty() {
        let reason = "the farm has no nodes yet: invite one (`comfy-farm invite`)".to_owned();
        return vec![WaitReason { node: None, reason }];
    }
    let memory = least(job, largest(requirements, nodes));
    let obstacle =
        |node: &NodePicture<'_>| obstacle(requirements, node).or_else(|| is_too_small(job, memory, node));
    let able = nodes.iter().filter(|node| obstacle(node).is_none());
    let least = able.map(|node| doubt(job, workflow, node)).min().unwrap_or_default();
    let reason = |node: &NodePicture<'_>| {
        obstacle(node).unwrap_or_else(|| {
            let doubt = doubt(job, workflow, node);
            if doubt.failed_there && !least.failed_there {
                "the job failed there, so another node goes first".to_owned()
            } else if let Some(why) = node.aside.get(workflow).filter(|_| doubt > least) {
                format!("it is set aside for this workflow, so another node goes first: {why}")
            } else if node.free.is_empty() {
                "all its slots are busy".to_owned()
            } else if node.free.iter().all(|slot| slot.memory < memory) {
                "all its slots with enough memory are busy".to_owned()
            } else {
                "it is next in turn".to_owned()
            }
        })
    };
    let mut reasons = Vec::new();
    if nodes.iter().all(|node| obstacle(node).is_some()) {
        reasons.push(WaitReason { node: None, reason: "no node of the farm can run it now".to_owned() });
    }
    let lack = job.ran_out.as_ref().and_then(|ran_out| ran_out.lack(requirements, nodes));
    reasons.extend(lack.map(|lack| WaitReason { node: None, reason: lack.to_string() }));
    let listed = nodes.iter().take(MAX_REASONS);
    reasons.extend(listed.map(|node| WaitReason { node: Some(node.peer), reason: reason(node) }));
    if nodes.len() > MAX_REASONS {
        let reason = format!("{} more nodes are not listed", nodes.len() - MAX_REASONS);
        reasons.push(WaitReason { node: None, reason });
    }
    reasons
}

/// A rule that a node must pass: the reason in words where it does not.
type Rule = fn(&Requirements, &NodePicture<'_>) -> Option<String>;

/// The hard rules. Whether a slot is free is not among them: it changes while a plan is made.
const HARD: [Rule; 6] = [is_away, is_draining, proves_no_lock, has_no_workspace, lacks_classes, lacks_models];

fn is_away(_: &Requirements, node: &NodePicture<'_>) -> Option<String> {
    (!node.connected).then(|| "it is not connected".to_owned())
}

fn is_draining(_: &Requirements, node: &NodePicture<'_>) -> Option<String> {
    node.draining.then(|| "it is draining".to_owned())
}

fn proves_no_lock(requirements: &Requirements, node: &NodePicture<'_>) -> Option<String> {
    let attached = matches!(node.offer.engine, Engine::Attached { .. });
    (attached && !requirements.accept_attached)
        .then(|| "it has an attached ComfyUI, which proves no lock, and the workflow was not deployed with `--accept-attached`".to_owned())
}

/// A managed node runs a workflow in the workspace of its lockfile, once that is proven; before, one run at a
/// time may try it.
fn has_no_workspace(requirements: &Requirements, node: &NodePicture<'_>) -> Option<String> {
    if !is_managed(node) {
        return None;
    }
    let Some(lockfile) = requirements.lockfile else {
        return Some("it rebuilds workspaces, and the workflow's lockfile pins no ComfyUI".to_owned());
    };
    match node.workspaces.get(&lockfile) {
        Some(WorkspaceState::Proven) => None,
        Some(WorkspaceState::Loaded) if !node.at_work.contains(&lockfile) => None,
        Some(state) => Some(state.to_string()),
        None => Some("it has not begun with the workspace".to_owned()),
    }
}

fn is_managed(node: &NodePicture<'_>) -> bool {
    matches!(node.offer.engine, Engine::Managed)
}

/// Whether one run alone may try the workspace of a class on this node.
fn is_trial(lockfile: &LockfileHash, node: &NodePicture<'_>) -> bool {
    is_managed(node) && node.workspaces.get(lockfile) == Some(&WorkspaceState::Loaded)
}

fn lacks_classes(requirements: &Requirements, node: &NodePicture<'_>) -> Option<String> {
    lacks("op", &requirements.classes, &node.offer.classes, node)
}

fn lacks_models(requirements: &Requirements, node: &NodePicture<'_>) -> Option<String> {
    lacks("model", &requirements.models, &node.offer.models, node)
}

fn lacks(
    what: &str,
    required: &BTreeSet<String>,
    offered: &BTreeSet<String>,
    node: &NodePicture<'_>,
) -> Option<String> {
    // What a managed engine has was proven with the workspace.
    if is_managed(node) {
        return None;
    }
    lacking(required, offered).map(|names| format!("it lacks the {what} {names}"))
}

fn obstacle(requirements: &Requirements, node: &NodePicture<'_>) -> Option<String> {
    HARD.iter().find_map(|rule| rule(requirements, node))
}

/// The nodes that could take a class, by their place in the picture, busy ones among them.
fn fitting(requirements: &Requirements, picture: &Picture<'_>) -> Vec<usize> {
    let fits = |index: &usize| obstacle(requirements, &picture.nodes[*index]).is_none();
    (0..picture.nodes.len()).filter(fits).collect()
}

/// All jobs in the order in which they are due, each with the place of its class.
fn in_order<'a>(picture: &'a Picture<'a>) -> Vec<(usize, &'a Waiting<'a>)> {
    let of_class = |(index, class): (usize, &'a Class<'a>)| class.jobs.iter().map(move |job| (index, job));
    let mut jobs: Vec<_> = picture.classes.iter().enumerate().flat_map(of_class).collect();
    jobs.sort_by_key(|(_, job)| (Reverse(job.priority), job.order));
    jobs
}

fn are_different<T: std::hash::Hash + Eq>(mut items: impl Iterator<Item = T>) -> bool {
    let mut seen = HashSet::new();
    items.all(|item| seen.insert(item))
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
