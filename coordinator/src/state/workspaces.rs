//! The workspaces that managed nodes are to have, and how far each node is with them.
//!
//! Wanted is what the current version of each workflow needs; workflows of one lockfile share a workspace.
//! Reports are no journal entries: a node tells them again on each session. Not here: how one is built.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;

use protocol::message::{CoordinatorMessage, MAX_PROVIDERS, Provider};
use protocol::{
    BlobRef, Engine, LockfileHash, MAX_PROVEN, MAX_RESOLUTION, MAX_WORKSPACES, PeerId, WantWorkspaces,
    WantedWorkspace, WarmSlots, WorkspaceReport, WorkspaceResolved, WorkspaceState,
};

use super::aside::wants_proof;
use super::nodes::{Node, Slot};
use super::{Action, State, Turn};
use crate::view::{DeployedWorkflow, FarmEventKind, WorkspaceView};

impl State {
    /// Tells every managed node what it is to have.
    pub(super) fn want_workspaces(&mut self, turn: &mut Turn) {
        let wanted = self.wanted();
        let managed = self.nodes.iter().filter(|(_, node)| is_managed(node) && node.session.is_some());
        for (peer, _) in managed {
            turn.send(peer, self.want(peer, &wanted));
        }
    }

    /// Tells a node what it is to have, if its engine is a managed one.
    pub(super) fn want_workspaces_of(&mut self, peer: PeerId, turn: &mut Turn) {
        if self.nodes.get(peer).is_some_and(is_managed) {
            turn.send(peer, self.want(peer, &self.wanted()));
        }
    }

    /// What is wanted, with who holds it for this node.
    fn want(&self, asking: PeerId, wanted: &[WantedWorkspace]) -> CoordinatorMessage {
        let mut wanted = wanted.to_vec();
        for wanted in &mut wanted {
            wanted.providers = self.builders(wanted.lockfile, asking);
            wanted.providers.push(self.settings.provider.clone());
        }
        CoordinatorMessage::WantWorkspaces(WantWorkspaces { publisher: self.settings.publisher, wanted })
    }

    /// The nodes that have built a workspace, and so hold all its parts.
    fn builders(&self, lockfile: LockfileHash, asking: PeerId) -> Vec<Provider> {
        let has_built = |node: &Node| {
            let state = node.workspaces.get(&lockfile);
            node.session.is_some() && matches!(state, Some(WorkspaceState::Loaded | WorkspaceState::Proven))
        };
        let built = self.nodes.iter().filter(|(peer, node)| *peer != asking && has_built(node));
        let provider =
            |(peer, node): (PeerId, &Node)| Provider { peer, addresses: node.data_addresses.clone() };
        built.map(provider).take(MAX_PROVIDERS - 1).collect()
    }

    /// The workspaces of all that is current, those of the latest deploys first, without who holds them.
    fn wanted(&self) -> Vec<WantedWorkspace> {
        let mut wanted: Vec<WantedWorkspace> = Vec::new();
        for (workflow, lockfile, document) in self.rebuilt() {
            let requirements = &workflow.requirements;
            let (classes, models) =
                (requirements.classes.iter().cloned(), requirements.models.iter().cloned());
            match wanted.iter().position(|wanted| wanted.lockfile == lockfile) {
                Some(at) => {
                    wanted[at].classes.extend(classes);
                    wanted[at].models.extend(models);
                }
                None if wanted.len() < MAX_WORKSPACES => wanted.push(WantedWorkspace {
                    workflow: workflow.id.clone(),
                    lockfile,
                    document,
                    resolution: self.resolutions.get(&lockfile).copied(),
                    classes: classes.collect(),
                    models: models.collect(),
                    providers: Vec::new(),
                }),
                None => {}
            }
        }
        for WantedWorkspace { classes, models, .. } in &mut wanted {
            *classes = std::mem::take(classes).into_iter().take(MAX_PROVEN).collect();
            *models = std::mem::take(models).into_iter().take(MAX_PROVEN).collect();
        }
        wanted
    }

    /// The lockfiles of the same.
    pub(super) fn wanted_lockfiles(&self) -> BTreeSet<LockfileHash> {
        let mut wanted = BTreeSet::new();
        for (_, lockfile, _) in self.rebuilt() {
            if wanted.len() < MAX_WORKSPACES {
                wanted.insert(lockfile);
            }
        }
        wanted
    }

    /// The current versions whose lockfiles can be rebuilt, the latest deploys first.
    fn rebuilt(&self) -> impl Iterator<Item = (&DeployedWorkflow, LockfileHash, BlobRef)> {
        let mut workflows: Vec<_> = self.catalog.all_current().collect();
        workflows.sort_by_key(|workflow| Reverse(workflow.deployed));
        workflows.into_iter().filter_map(|workflow| {
            let (lockfile, document) = workflow.requirements.lockfile.zip(workflow.document)?;
            Some((&**workflow, lockfile, document))
        })
    }

    /// Takes in how far a node is.
    pub(super) fn workspace_told(&mut self, peer: PeerId, report: WorkspaceReport, turn: &mut Turn) {
        let WorkspaceReport { lockfile, state, equivalent, notes } = report;
        let is_full = self.nodes.get(peer).is_some_and(|node| node.workspaces.len() >= MAX_WORKSPACES);
        let wanted = is_full.then(|| self.wanted_lockfiles());
        let Some(node) = self.nodes.get_mut(peer) else { return };
        if let Some(wanted) = wanted {
            // What older versions left makes room.
            node.workspaces.retain(|lockfile, _| wanted.contains(lockfile));
            node.equivalent.retain(|lockfile| wanted.contains(lockfile));
            node.notes.retain(|lockfile, _| wanted.contains(lockfile));
        }
        let has_room = node.workspaces.len() < MAX_WORKSPACES || node.workspaces.contains_key(&lockfile);
        if is_managed(node) && has_room {
            let wants_proof = wants_proof(node.workspaces.get(&lockfile), &state);
            node.workspaces.insert(lockfile, state.bounded());
            if equivalent {
                node.equivalent.insert(lockfile);
            } else {
                node.equivalent.remove(&lockfile);
            }
            if notes.is_empty() {
                node.notes.remove(&lockfile);
            } else {
                node.notes.insert(lockfile, notes);
            }
            self.plan_due = true;
            turn.notify(FarmEventKind::NodeChanged(peer));
            if wants_proof {
                self.prove_by_self_test(peer, lockfile, turn);
            }
        }
    }

    /// Takes in what the processes of a node serve. It lets no job go that could not go before.
    pub(super) fn warmth_told(&mut self, peer: PeerId, warm: WarmSlots) {
        let Some(node) = self.nodes.get_mut(peer).filter(|node| is_managed(node)) else { return };
        let known = warm.slots.into_iter().filter(|(slot, _)| node.slots.contains_key(slot));
        node.warm =
            known.map(|(slot, serves)| (slot, serves.into_iter().take(MAX_WORKSPACES).collect())).collect();
    }

    /// Takes in what a lockfile came to on a node.
    pub(super) fn workspace_resolved(&mut self, node: PeerId, resolved: WorkspaceResolved, turn: &mut Turn) {
        let of_lockfile = |workflow: &&Arc<DeployedWorkflow>| {
            workflow.requirements.lockfile == Some(resolved.lockfile) && workflow.document.is_some()
        };
        let workflow = self.catalog.all_current().find(of_lockfile);
        let is_taken =
            resolved.resolution.size <= MAX_RESOLUTION as u64 && self.nodes.get(node).is_some_and(is_managed);
        let Some(document) = workflow.and_then(|workflow| workflow.document).filter(|_| is_taken) else {
            return;
        };
        let known = self.resolutions.get(&resolved.lockfile).copied();
        turn.actions.push(Action::Resolve { node, resolved, document, known });
    }

    /// The lockfiles in whose workspaces a managed node is at work.
    pub(super) fn at_work_on(&self, node: &Node) -> BTreeSet<LockfileHash> {
        let lockfile = |slot: &Slot| {
            let run = self.runs.get(&slot.lease?)?;
            let job = self.jobs.get(run.lease.job)?;
            self.catalog.get(&job.new.workflow)?.requirements.lockfile
        };
        let slots = node.slots.values().filter(|_| is_managed(node));
        slots.filter_map(lockfile).collect()
    }

    /// The workspaces of a node as people see them.
    pub(super) fn workspace_views(&self, node: &Node) -> Vec<WorkspaceView> {
        let view = |(lockfile, state): (&LockfileHash, &WorkspaceState)| {
            let of_lockfile =
                |workflow: &&Arc<DeployedWorkflow>| workflow.requirements.lockfile == Some(*lockfile);
            let workflows = self.catalog.all_current().filter(of_lockfile);
            WorkspaceView {
                lockfile: *lockfile,
                workflows: workflows.map(|workflow| workflow.id.clone()).collect(),
                state: state.clone(),
                equivalent: node.equivalent.contains(lockfile),
                notes: node.notes.get(lockfile).cloned().unwrap_or_default(),
            }
        };
        node.workspaces.iter().map(view).collect()
    }
}

/// Whether a node builds workspaces.
pub(super) fn is_managed(node: &Node) -> bool {
    matches!(node.offer.engine, Engine::Managed)
}

#[cfg(test)]
mod tests {
    use protocol::message::NodeMessage;
    use protocol::{BlobHash, Notes, SlotId};

    use super::super::Event;
    use super::super::made_farm::{Farm, node, workflow, workflow_id};
    use super::super::record::Record;
    use super::*;
    use crate::state::Action;

    const LOCKFILE: LockfileHash = LockfileHash(BlobHash([9; 32]));

    /// A version whose lockfile can be rebuilt, and that needs these classes.
    fn lockable(version: u32, classes: &[&str]) -> Arc<DeployedWorkflow> {
        let mut workflow = DeployedWorkflow::clone(&workflow(version));
        workflow.document = Some(BlobRef::of(b"a signed lockfile"));
        workflow.requirements.lockfile = Some(LOCKFILE);
        workflow.requirements.classes = classes.iter().map(|class| (*class).to_owned()).collect();
        Arc::new(workflow)
    }

    /// What each node was told to have since this was last asked.
    fn wanted(farm: &mut Farm) -> Vec<(PeerId, Vec<WantedWorkspace>)> {
        let told = |action| match action {
            Action::Send(node, CoordinatorMessage::WantWorkspaces(want)) => Some((node, want.wanted)),
            _ => None,
        };
        farm.done().into_iter().filter_map(told).collect()
    }

    #[test]
    fn managed_nodes_hear_of_what_is_current_and_others_of_nothing() {
        let mut farm = Farm::new();
        farm.register(1);
        farm.register_managed(2);
        assert_eq!(wanted(&mut farm), [(node(2), vec![])], "nothing that is deployed can be rebuilt");
        farm.apply(Event::Deploy(lockable(2, &["KSampler"])));
        let told = wanted(&mut farm);
        assert_eq!(told.len(), 1);
        let WantedWorkspace { workflow, lockfile, classes, .. } = &told[0].1[0];
        assert_eq!((workflow, *lockfile), (&workflow_id(2), LOCKFILE));
        assert!(classes.contains("KSampler"));
        farm.apply(Event::Restore(workflow_id(1)));
        assert_eq!(wanted(&mut farm), [(node(2), vec![])], "the older version pins nothing");
        assert!(farm.written.entries.iter().any(|entry| entry.record == Record::Restored(workflow_id(1))));
    }

    #[test]
    fn job_goes_where_a_process_serves_it_as_long_as_the_node_last_said_so() {
        let mut farm = Farm::new();
        farm.apply(Event::Deploy(lockable(1, &[])));
        let warm = |lockfile: LockfileHash, slot: u16| {
            NodeMessage::WarmSlots(WarmSlots { slots: [(SlotId(slot), [lockfile].into())].into() })
        };
        for seed in [1, 2] {
            farm.register_managed(seed);
            let (lockfile, state) = (LOCKFILE, WorkspaceState::Proven);
            farm.say(
                seed,
                NodeMessage::WorkspaceReport(WorkspaceReport {
                    lockfile,
                    state,
                    equivalent: false,
                    notes: Notes::default(),
                }),
            );
        }
        let goes_to = |farm: &mut Farm, number: u64| {
            farm.submit(number);
            let (on, lease) = farm.granted();
            farm.succeed(on.0[0], lease);
            farm.done();
            on
        };
        assert_eq!(goes_to(&mut farm, 1), node(1), "it is idle as long as the other one");
        farm.say(2, warm(LOCKFILE, 0));
        assert_eq!(goes_to(&mut farm, 2), node(2), "though the first one ran it");
        farm.say(2, warm(LockfileHash(BlobHash([8; 32])), 0));
        farm.say(1, warm(LOCKFILE, 7));
        assert!(farm.state.nodes.get(node(1)).expect("registered").warm.is_empty(), "it has no such slot");
        assert_eq!(goes_to(&mut farm, 3), node(1), "nothing has to make way there");
        farm.say(2, warm(LOCKFILE, 0));
        farm.disconnect(2);
        farm.register_managed(2);
        let (lockfile, state) = (LOCKFILE, WorkspaceState::Proven);
        farm.say(
            2,
            NodeMessage::WorkspaceReport(WorkspaceReport {
                lockfile,
                state,
                equivalent: false,
                notes: Notes::default(),
            }),
        );
        assert_eq!(goes_to(&mut farm, 4), node(1), "a new session knows nothing of the old one");
    }

    #[test]
    fn whatever_a_node_reports_no_more_is_kept_of_it_than_of_as_many_workspaces() {
        let mut farm = Farm::new();
        farm.register_managed(1);
        for number in 0..3 * MAX_WORKSPACES as u64 {
            let lockfile = LockfileHash(BlobHash::of(&number.to_le_bytes()));
            let notes = Notes::new(["custom node `x` is left out".to_owned()]);
            let report = WorkspaceReport { lockfile, state: WorkspaceState::Loaded, equivalent: true, notes };
            farm.say(1, NodeMessage::WorkspaceReport(report));
        }
        let node = farm.state.nodes.get(node(1)).expect("registered");
        assert!(node.workspaces.len() <= MAX_WORKSPACES);
        assert!(node.equivalent.iter().eq(node.workspaces.keys()), "{}", node.equivalent.len());
        assert!(node.notes.keys().eq(node.workspaces.keys()), "{}", node.notes.len());
    }

    #[test]
    fn job_waits_until_a_managed_node_has_loaded_the_workspace() {
        let mut farm = Farm::new();
        farm.apply(Event::Deploy(lockable(1, &[])));
        farm.register_managed(1);
        farm.submit(1);
        assert_eq!(farm.grants(), []);
        let report = |state| {
            let lockfile = LOCKFILE;
            NodeMessage::WorkspaceReport(WorkspaceReport {
                lockfile,
                state,
                equivalent: true,
                notes: Notes::default(),
            })
        };
        farm.say(1, report(WorkspaceState::Refused { reason: "the publisher is not trusted".into() }));
        assert_eq!(farm.grants(), []);
        let waits = farm.view(1).waits;
        assert!(waits.iter().any(|wait| wait.reason.contains("the publisher is not trusted")), "{waits:?}");
        let NodeMessage::WorkspaceReport(loaded) = report(WorkspaceState::Loaded) else { unreachable!() };
        let notes = Notes::new(["custom node `x` is left out".to_owned()]);
        farm.say(1, NodeMessage::WorkspaceReport(WorkspaceReport { notes: notes.clone(), ..loaded }));
        let (on, lease) = farm.granted();
        assert_eq!(on, node(1));
        let view = farm.state.node_view(node(1)).expect("registered");
        assert!(view.workspaces[0].equivalent, "people see that torch is another build");
        assert_eq!(view.workspaces[0].notes, notes, "and what it is without");
        farm.submit(2);
        assert_eq!(farm.grants(), [], "one run tries it");
        farm.say(1, report(WorkspaceState::Proven));
        farm.succeed(1, lease);
        assert_eq!(farm.granted().0, node(1));
    }
}
