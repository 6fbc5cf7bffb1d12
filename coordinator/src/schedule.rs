//! Which queued job goes on which slot: a pure function over a picture of the farm.
//!
//! Hard rules say whether a node can take a workflow at all ([`HARD`], in the order in which people are
//! told of them). Soft rules choose among the nodes that can ([`preference`]). Jobs are served by
//! priority, then by submission; one that nothing can take does not hold up the others. All that is
//! the same for every job of a class (a workflow version) is worked out once a class, so a long queue
//! costs no more than the jobs that find a slot.
//!
//! Not here: leases, time, and what a job is. Nothing waits or reads a clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use protocol::{
    BlobHash, Engine, JobId, LockfileHash, Offer, PeerId, SlotId, WorkflowVersion, WorkspaceState, lacking,
};

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
    /// The nodes on which it failed.
    pub avoid: Vec<PeerId>,
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
    /// Its free slots, with the time since when each is free.
    pub free: Vec<(SlotId, Duration)>,
    /// The workflows that it ran.
    pub ran: &'a BTreeSet<WorkflowVersion>,
    /// The blobs that it holds.
    pub holds: &'a HashSet<BlobHash>,
    /// How far a managed node is with each workspace.
    pub workspaces: &'a BTreeMap<LockfileHash, WorkspaceState>,
    /// The workflows for which it is set aside, each with the reason.
    pub aside: BTreeMap<&'a WorkflowVersion, &'a str>,
    /// The lockfiles in whose workspaces it is at work.
    pub at_work: BTreeSet<LockfileHash>,
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
    let mut free: Vec<Vec<(SlotId, Duration)>> = picture.nodes.iter().map(|node| node.free.clone()).collect();
    let mut left: usize = free.iter().map(Vec::len).sum();
    let mut placements = Vec::new();
    if left == 0 {
        return placements;
    }
    let mut fitting: Vec<Vec<usize>> =
        picture.classes.iter().map(|class| fitting(class.requirements, picture)).collect();
    for (class, job) in in_order(picture) {
        if left == 0 {
            break;
        }
        let workflow = picture.classes[class].workflow;
        let Some(index) = choose(job, workflow, &fitting[class], &free, picture) else { continue };
        if let Some(lockfile) = picture.classes[class].requirements.lockfile
            && is_trial(&lockfile, &picture.nodes[index])
        {
            let shares = |class: usize| picture.classes[class].requirements.lockfile == Some(lockfile);
            for (_, able) in fitting.iter_mut().enumerate().filter(|(class, _)| shares(*class)) {
                able.retain(|able| *able != index);
            }
        }
        let slot = longest_idle(&mut free[index]).expect("only nodes with a free slot are chosen");
        left -= 1;
        placements.push(Placement { job: job.job, node: picture.nodes[index].peer, slot });
    }
    placements
}

/// Why a queued job is on no node: first what is true of the farm as a whole, then node by node.
pub fn explain(
    workflow: &WorkflowVersion,
    requirements: &Requirements,
    avoid: &[PeerId],
    nodes: &[NodePicture<'_>],
) -> Vec<WaitReason> {
    if nodes.is_empty() {
        let reason = "the farm has no nodes yet: invite one (`comfy-farm invite`)".to_owned();
        return vec![WaitReason { node: None, reason }];
    }
    let able = nodes.iter().filter(|node| obstacle(requirements, node).is_none());
    let least = able.map(|node| doubt(avoid, workflow, node)).min().unwrap_or_default();
    let reason = |node: &NodePicture<'_>| {
        obstacle(requirements, node).unwrap_or_else(|| {
            let doubt = doubt(avoid, workflow, node);
            if doubt.failed_there && !least.failed_there {
                "the job failed there, so another node goes first".to_owned()
            } else if let Some(why) = node.aside.get(workflow).filter(|_| doubt > least) {
                format!("it is set aside for this workflow, so another node goes first: {why}")
            } else if node.free.is_empty() {
                "all its slots are busy".to_owned()
            } else {
                "it is next in turn".to_owned()
            }
        })
    };
    let mut reasons = Vec::new();
    if nodes.iter().all(|node| obstacle(requirements, node).is_some()) {
        reasons.push(WaitReason { node: None, reason: "no node of the farm can run it now".to_owned() });
    }
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

/// The best node for a job among those of its class with a free slot.
fn choose(
    job: &Waiting<'_>,
    workflow: &WorkflowVersion,
    able: &[usize],
    free: &[Vec<(SlotId, Duration)>],
    picture: &Picture<'_>,
) -> Option<usize> {
    let doubt = |index: usize| doubt(&job.avoid, workflow, &picture.nodes[index]);
    // A busy node is waited for rather than one of more doubt used.
    let least = able.iter().map(|&index| doubt(index)).min()?;
    able.iter()
        .copied()
        .filter(|&index| !free[index].is_empty() && doubt(index) == least)
        .min_by_key(|&index| preference(job, workflow, &picture.nodes[index], &free[index]))
}

/// Why a node is used only where no other one could ever take the job, the stronger reason first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Doubt {
    failed_there: bool,
    is_aside: bool,
}

fn doubt(avoid: &[PeerId], workflow: &WorkflowVersion, node: &NodePicture<'_>) -> Doubt {
    Doubt { failed_there: avoid.contains(&node.peer), is_aside: node.aside.contains_key(workflow) }
}

/// The soft rules, the strongest first; the least value wins.
fn preference(
    job: &Waiting<'_>,
    workflow: &WorkflowVersion,
    node: &NodePicture<'_>,
    free: &[(SlotId, Duration)],
) -> impl Ord + use<> {
    let is_cold = !node.ran.contains(workflow);
    let missing_inputs = job.inputs.iter().filter(|hash| !node.holds.contains(hash)).count();
    let idle_since = free.iter().map(|(_, since)| *since).min();
    (is_cold, missing_inputs, idle_since, node.peer)
}

/// Takes the slot that has been idle the longest.
fn longest_idle(free: &mut Vec<(SlotId, Duration)>) -> Option<SlotId> {
    let place = (0..free.len()).min_by_key(|&place| (free[place].1, free[place].0))?;
    Some(free.swap_remove(place).0)
}

fn are_different<T: std::hash::Hash + Eq>(mut items: impl Iterator<Item = T>) -> bool {
    let mut seen = HashSet::new();
    items.all(|item| seen.insert(item))
}

#[cfg(test)]
mod tests;
