//! Nodes that are set aside for a workflow, and the self-tests that they are asked for.
//!
//! A node on which a job failed that succeeded on another one, or whose self-test failed where that of another one
//! succeeded, is set aside for that workflow: other nodes go first. A success there releases it, of a run or of a
//! self-test, which is asked for at once and then less and less often; and so does time where no self-test tells
//! anything, so that a job tries the node again. No journal entries: after a restart of the coordinator all nodes are
//! equal. Not here: what being set aside means for a job (`schedule`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::message::CoordinatorMessage;
use protocol::{
    Engine, LockfileHash, PeerId, RunError, RunErrorKind, SelfTest, SelfTested, WorkflowVersion,
    WorkspaceState,
};

use super::claims::bounded_reason;
use super::nodes::Node;
use super::{State, Turn};
use crate::view::{AsideView, DeployedWorkflow, FailedRun, FarmEventKind};

/// The most workflows for which one node is set aside; of further failures nothing is remembered.
const MAX_ASIDE: usize = 64;
/// How long after a failed self-test the next one is asked for; each time twice as long, up to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(5 * 60);
const LAST_PAUSE: Duration = Duration::from_secs(2 * 3600);
/// How long a node that was asked for a self-test stays set aside without a verdict: some workflows have no inputs that
/// a test could give, some nodes are never idle, and an attached ComfyUI is never asked.
const VERDICT: Duration = Duration::from_secs(30 * 60);

/// Why and until when a node is set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Aside {
    /// What went wrong there.
    pub(crate) reason: String,
    /// Whether that was a self-test alone. It counts where one of the same workflow succeeded: before, its inputs may
    /// be to blame.
    is_test: bool,
    /// When the next self-test is asked for.
    next: Duration,
    pause: Duration,
    /// When it is released; `None` until it is asked for a self-test, and again from when one failed.
    ends: Option<Duration>,
}

impl Aside {
    fn new(reason: String, is_test: bool, next: Duration) -> Self {
        Self { reason, is_test, next, pause: FIRST_PAUSE, ends: None }
    }

    /// Has the next self-test asked for at once, on a new session.
    pub(super) fn ask_again(&mut self) {
        (self.next, self.ends) = (Duration::ZERO, None);
    }
}

impl State {
    /// A job succeeded on a node: it is good for the workflow, and those on which the job failed are set aside.
    pub(super) fn succeeded_on(
        &mut self,
        good: PeerId,
        workflow: &WorkflowVersion,
        failures: &[FailedRun],
        turn: &mut Turn,
    ) {
        self.release(good, workflow, turn);
        // How much memory a run needs depends on its parameters: others may fit where one did not.
        let is_its_own = |failed: &&FailedRun| {
            let kind = failed.error.kind;
            failed.node != good && kind != RunErrorKind::OutOfMemory && !is_nobodys_fault(kind)
        };
        for failed in failures.iter().filter(is_its_own) {
            let aside = Aside::new(failed.error.detail.clone(), false, turn.now.monotonic);
            self.set_aside(failed.node, workflow, aside, turn);
        }
    }

    /// A node told what came of a self-test.
    pub(super) fn self_tested(&mut self, peer: PeerId, tested: SelfTested, turn: &mut Turn) {
        match tested.failure {
            None => {
                if self.catalog.get(&tested.workflow).is_some() {
                    self.tested.insert(tested.workflow.clone());
                }
                self.release(peer, &tested.workflow, turn);
            }
            Some(RunError { kind, .. }) if is_nobodys_fault(kind) => {}
            Some(error) => {
                let reason = format!("its self-test failed: {}", bounded_reason(error.detail));
                let aside = Aside::new(reason, true, turn.now.monotonic + FIRST_PAUSE);
                self.set_aside(peer, &tested.workflow, aside, turn);
            }
        }
    }

    /// A node has loaded a workspace: one workflow of it is to prove it, unless a job does so before.
    pub(super) fn prove_by_self_test(&mut self, peer: PeerId, lockfile: LockfileHash, turn: &mut Turn) {
        let needs_it = |workflow: &&Arc<DeployedWorkflow>| workflow.requirements.lockfile == Some(lockfile);
        let workflow = self.catalog.all_current().find(needs_it).map(|workflow| workflow.id.clone());
        if let Some(workflow) = workflow {
            self.ask_self_test(peer, &workflow, turn);
        }
    }

    /// Asks for the self-tests that are due, and releases those that told nothing for too long.
    pub(super) fn ask_due_self_tests(&mut self, turn: &mut Turn) {
        let now = turn.now.monotonic;
        let (mut due, mut over) = (Vec::new(), Vec::new());
        for (peer, node) in self.nodes.iter_mut().filter(|(_, node)| node.session.is_some()) {
            let is_over = |aside: &Aside| aside.ends.is_some_and(|ends| ends <= now);
            let ended = node.aside.iter().filter(|(_, aside)| is_over(aside));
            over.extend(ended.map(|(workflow, _)| (peer, workflow.clone())));
            for (workflow, aside) in node.aside.iter_mut().filter(|(_, aside)| aside.next <= now) {
                aside.next = now + aside.pause;
                aside.pause = (aside.pause * 2).min(LAST_PAUSE);
                aside.ends.get_or_insert(now + VERDICT);
                due.push((peer, workflow.clone()));
            }
        }
        for (peer, workflow) in due {
            self.ask_self_test(peer, &workflow, turn);
        }
        for (peer, workflow) in over {
            self.release(peer, &workflow, turn);
        }
    }

    /// Asks a node for one, except of an attached ComfyUI: that is its owner's, who does not want it busy for nobody.
    fn ask_self_test(&mut self, peer: PeerId, workflow: &WorkflowVersion, turn: &mut Turn) {
        let engine = self.nodes.get(peer).map(|node| &node.offer.engine);
        if engine.is_none_or(|engine| matches!(engine, Engine::Attached { .. })) {
            return;
        }
        let Some(workflow) = self.catalog.get(workflow).cloned() else { return };
        let documents = [workflow.graph.hash, workflow.interface_blob.hash];
        let needed = documents.into_iter().chain(workflow.inputs.values().map(|blob| blob.hash));
        let test = SelfTest {
            workflow: workflow.id.clone(),
            lockfile: workflow.lockfile,
            graph: workflow.graph,
            interface: workflow.interface_blob,
            inputs: workflow.inputs.clone(),
            providers: needed.map(|hash| self.providers(hash, peer)).collect(),
        };
        turn.send(peer, CoordinatorMessage::SelfTest(Box::new(test)));
    }

    /// Sets a node aside, or adds to why it is.
    fn set_aside(&mut self, peer: PeerId, workflow: &WorkflowVersion, aside: Aside, turn: &mut Turn) {
        let Some(node) = self.nodes.get_mut(peer) else { return };
        if let Some(earlier) = node.aside.get_mut(workflow) {
            (earlier.reason, earlier.is_test) = (aside.reason, earlier.is_test && aside.is_test);
            earlier.ends = None;
        } else if node.aside.len() < MAX_ASIDE {
            node.aside.insert(workflow.clone(), aside);
        }
        self.plan_due = true;
        turn.notify(FarmEventKind::NodeChanged(peer));
    }

    /// The workflows for which other nodes than this one go first, each with the reason.
    pub(super) fn counting_asides<'a>(&self, node: &'a Node) -> BTreeMap<&'a WorkflowVersion, &'a str> {
        let counting = node.aside.iter().filter(|(workflow, aside)| self.counts(workflow, aside));
        counting.map(|(workflow, aside)| (workflow, aside.reason.as_str())).collect()
    }

    /// What went wrong on a node, as people see it.
    pub(super) fn aside_views(&self, node: &Node) -> Vec<AsideView> {
        let view = |(workflow, aside): (&WorkflowVersion, &Aside)| AsideView {
            workflow: workflow.clone(),
            reason: aside.reason.clone(),
            others_first: self.counts(workflow, aside),
        };
        node.aside.iter().map(view).collect()
    }

    fn counts(&self, workflow: &WorkflowVersion, aside: &Aside) -> bool {
        !aside.is_test || self.tested.contains(workflow)
    }

    fn release(&mut self, peer: PeerId, workflow: &WorkflowVersion, turn: &mut Turn) {
        if self.nodes.get_mut(peer).is_some_and(|node| node.aside.remove(workflow).is_some()) {
            self.plan_due = true;
            turn.notify(FarmEventKind::NodeChanged(peer));
        }
    }
}

/// Whether a run or a self-test that failed so says nothing of its node: the job or the bundle is to blame, or those
/// who were to send a blob, the coordinator among them.
fn is_nobodys_fault(kind: RunErrorKind) -> bool {
    use RunErrorKind::{Canceled, InvalidInput, LostBlob, MissingBlob, NodeStopping, UndeclaredFile};
    matches!(kind, InvalidInput | UndeclaredFile | MissingBlob | LostBlob | Canceled | NodeStopping)
}

/// Whether a self-test is to be asked for as a workspace comes to this state.
pub(super) fn wants_proof(before: Option<&WorkspaceState>, now: &WorkspaceState) -> bool {
    *now == WorkspaceState::Loaded && before != Some(&WorkspaceState::Loaded)
}

#[cfg(test)]
mod tests {
    use protocol::message::NodeMessage;
    use protocol::{BlobHash, Lease, Notes, WorkspaceReport};

    use super::super::made_farm::{Farm, failed, node, succeeded, workflow, workflow_id};
    use super::super::{Action, Event};
    use super::*;

    /// The nodes that were asked for a self-test of the one workflow since this was last asked.
    fn asked(farm: &mut Farm) -> Vec<PeerId> {
        let asked = |action| match action {
            Action::Send(node, CoordinatorMessage::SelfTest(test)) => Some((node, test.workflow)),
            _ => None,
        };
        let asked: Vec<_> = farm.done().into_iter().filter_map(asked).collect();
        assert!(asked.iter().all(|(_, workflow)| *workflow == workflow_id(1)));
        asked.into_iter().map(|(node, _)| node).collect()
    }

    fn tested(kind: Option<RunErrorKind>) -> NodeMessage {
        let failure = kind.map(|kind| RunError::new(kind, "no such class"));
        NodeMessage::SelfTested(SelfTested { workflow: workflow_id(1), failure })
    }

    fn asides(farm: &Farm, seed: u8) -> Vec<(String, bool)> {
        let view = farm.state.node_view(node(seed)).expect("registered");
        view.aside.into_iter().map(|aside| (aside.reason, aside.others_first)).collect()
    }

    /// A farm on whose node 1 a job failed that succeeded on node 2, and the nodes asked for a self-test.
    fn one_aside() -> (Farm, Vec<PeerId>) {
        one_failed(&Engine::Builtin, |farm, lease| farm.end(1, failed(lease, RunErrorKind::OpFailed)))
    }

    /// The same, with a job that came to grief on node 1 in this way.
    fn one_failed(engine: &Engine, fail: impl FnOnce(&mut Farm, Lease)) -> (Farm, Vec<PeerId>) {
        let mut farm = Farm::new();
        let mut attachable = DeployedWorkflow::clone(&workflow(1));
        attachable.requirements.accept_attached = true;
        farm.apply(Event::Deploy(Arc::new(attachable)));
        farm.register_engine(1, engine.clone(), vec![], vec![]);
        farm.submit(1);
        let (_, lease) = farm.granted();
        farm.register_engine(2, engine.clone(), vec![], vec![]);
        fail(&mut farm, lease);
        let (on, lease) = farm.granted();
        assert_eq!(on, node(2));
        farm.succeed(2, lease);
        farm.pass(1);
        let asked = asked(&mut farm);
        (farm, asked)
    }

    #[test]
    fn node_is_not_set_aside_for_what_is_not_its_own_fault() {
        let check = |fail: fn(&mut Farm, Lease), expected: usize| {
            let (farm, asked) = one_failed(&Engine::Builtin, fail);
            assert_eq!((asides(&farm, 1).len(), asked.len()), (expected, expected));
        };
        check(|farm, lease| farm.end(1, failed(lease, RunErrorKind::NodeFault)), 1);
        check(|farm, lease| farm.end(1, failed(lease, RunErrorKind::MissingBlob)), 0);
        check(
            |farm, lease| {
                farm.end(1, succeeded(lease));
                for _ in 0..5 {
                    farm.apply(Event::CollectFailed { lease: lease.id, reason: "cut off".into() });
                }
            },
            0,
        );
    }

    #[test]
    fn node_that_fails_where_another_succeeds_is_set_aside_until_a_self_test_succeeds() {
        let (mut farm, asked_first) = one_aside();
        assert_eq!(asked_first, [node(1)]);
        assert_eq!(asides(&farm, 1), [("it broke".to_owned(), true)]);
        farm.say(1, tested(Some(RunErrorKind::OpFailed)));
        assert_eq!(asked(&mut farm), []);
        farm.pass(FIRST_PAUSE.as_secs());
        assert_eq!(asked(&mut farm), [node(1)], "it is tried again");
        farm.submit(2);
        farm.submit(3);
        assert_eq!(farm.granted().0, node(2), "the other one goes first");
        let waits = farm.view(3).waits;
        let is_told = |reason: &str| reason.contains("set aside") && reason.ends_with("no such class");
        assert!(waits.iter().any(|wait| is_told(&wait.reason)), "{waits:?}");
        farm.say(1, tested(None));
        assert_eq!((farm.granted().0, asides(&farm, 1)), (node(1), vec![]));
    }

    #[test]
    fn node_whose_self_test_tells_nothing_is_tried_again_by_a_job() {
        let check = |said: Option<RunErrorKind>, stays_aside: bool| {
            let (mut farm, _) = one_aside();
            farm.pass(VERDICT.as_secs() - 1);
            assert_eq!(asides(&farm, 1).len(), 1, "it is given time");
            if let Some(kind) = said {
                farm.say(1, tested(Some(kind)));
            }
            farm.pass(1);
            assert_eq!(asides(&farm, 1).len(), usize::from(stays_aside), "{said:?}");
            farm.submit(2);
            farm.submit(3);
            let granted: Vec<_> = farm.grants().into_iter().map(|(on, _)| on).collect();
            assert_eq!(granted.contains(&node(1)), !stays_aside, "{said:?}: {granted:?}");
        };
        check(None, false);
        check(Some(RunErrorKind::InvalidInput), false);
        check(Some(RunErrorKind::OpFailed), true);
    }

    #[test]
    fn attached_comfyui_is_never_asked_and_released_by_time() {
        let attached = Engine::Attached { comfyui_version: "0.8.0".into() };
        let (mut farm, asked_first) = one_failed(&attached, |farm, lease| {
            farm.end(1, failed(lease, RunErrorKind::OpFailed));
        });
        assert_eq!((asked_first, asides(&farm, 1).len()), (vec![], 1));
        farm.pass(VERDICT.as_secs());
        assert_eq!((asked(&mut farm), asides(&farm, 1)), (vec![], vec![]));
    }

    #[test]
    fn node_that_is_set_aside_takes_what_no_other_one_can() {
        let (mut farm, _) = one_aside();
        farm.disconnect(2);
        farm.submit(2);
        let (on, lease) = farm.granted();
        assert_eq!(on, node(1));
        farm.succeed(1, lease);
        assert_eq!(asides(&farm, 1), [], "a run shows it as well");
    }

    #[test]
    fn failed_self_test_counts_once_that_of_another_node_succeeded() {
        let mut farm = Farm::new();
        let mut lockable = DeployedWorkflow::clone(&workflow(1));
        lockable.document = Some(protocol::BlobRef::of(b"a signed lockfile"));
        lockable.requirements.lockfile = Some(LockfileHash(BlobHash([9; 32])));
        farm.apply(Event::Deploy(Arc::new(lockable)));
        let report = |state| {
            let lockfile = LockfileHash(BlobHash([9; 32]));
            NodeMessage::WorkspaceReport(WorkspaceReport {
                lockfile,
                state,
                equivalent: false,
                notes: Notes::default(),
            })
        };
        for seed in [1, 2] {
            farm.register_managed(seed);
            farm.done();
            farm.say(seed, report(WorkspaceState::Loaded));
            assert_eq!(asked(&mut farm), [node(seed)], "it is to prove itself, once");
            farm.say(seed, report(WorkspaceState::Loaded));
            assert_eq!(asked(&mut farm), []);
        }
        farm.say(1, tested(Some(RunErrorKind::InvalidInput)));
        assert_eq!(asides(&farm, 1), [], "that is nobody's fault");
        farm.say(1, tested(Some(RunErrorKind::OpFailed)));
        let reason = "its self-test failed: no such class".to_owned();
        assert_eq!(asides(&farm, 1), [(reason.clone(), false)]);
        farm.say(2, tested(None));
        assert_eq!(asides(&farm, 1), [(reason, true)]);
        // On its next session it is asked again.
        farm.disconnect(1);
        farm.register_managed(1);
        farm.pass(1);
        assert_eq!(asked(&mut farm), [node(1)]);
    }
}
