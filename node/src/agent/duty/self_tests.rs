//! The workflows that the coordinator wants tried here, one at a time, whenever a slot has nothing else to do.
//!
//! A run that comes for the slot ends the test, which is done again later. Not here: doing one (`run`).

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::message::NodeMessage;
use protocol::{MAX_WORKSPACES, SelfTest, SelfTested, SlotId, WorkflowVersion};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::Duty;
use crate::run::Tools;
use crate::run::self_test::self_test_task;
use crate::slots::Slots;

/// The self-tests of a node.
#[derive(Default)]
pub(super) struct SelfTests {
    asked: BTreeMap<WorkflowVersion, SelfTest>,
    at_work: Option<AtWork>,
    done: JoinSet<Option<SelfTested>>,
}

/// The one that is being done.
struct AtWork {
    workflow: WorkflowVersion,
    slot: SlotId,
    cancel: CancellationToken,
}

impl SelfTests {
    /// The next one that came to its end.
    pub(super) async fn next(&mut self) -> Option<Result<Option<SelfTested>, JoinError>> {
        self.done.join_next().await
    }

    /// A new session: the coordinator asks again for what it wants.
    pub(super) fn forget_asked(&mut self) {
        self.asked.clear();
    }

    /// A run of this workflow has shown what a test would.
    pub(super) fn forget(&mut self, workflow: &WorkflowVersion) {
        self.asked.remove(workflow);
    }

    /// Ends the test that is on a slot, for a run.
    pub(super) fn make_way(&self, slot: SlotId) {
        if let Some(at_work) = self.at_work.as_ref().filter(|at_work| at_work.slot == slot) {
            at_work.cancel.cancel();
        }
    }

    /// One that can be done now, and the slot for it.
    async fn possible(&self, slots: &Slots, tools: &Tools) -> Option<(SelfTest, SlotId)> {
        for test in self.asked.values() {
            let shelf = tools.shelf.as_ref();
            let whole = shelf.and_then(|shelf| shelf.usable(test.lockfile));
            if shelf.is_some() && whole.is_none() {
                continue;
            }
            let workspace = whole.as_ref().map(|whole| &whole.workspace);
            for slot in slots.free() {
                if tools.engine.is_free_for(slot, workspace).await {
                    return Some((test.clone(), slot));
                }
            }
        }
        None
    }

    /// Ends what is at work, because the process ends.
    pub(super) async fn stop(&mut self) {
        if let Some(at_work) = &self.at_work {
            at_work.cancel.cancel();
        }
        while self.done.join_next().await.is_some() {}
    }
}

impl Duty {
    /// Notes that a workflow is to be tried.
    pub(super) fn on_self_test(&mut self, test: SelfTest) {
        let asked = &mut self.self_tests.asked;
        if asked.len() < MAX_WORKSPACES || asked.contains_key(&test.workflow) {
            asked.insert(test.workflow.clone(), test);
        }
    }

    /// Begins one, if there is one to do and a slot that it takes nothing from.
    pub(super) async fn begin_self_test(&mut self) {
        if self.self_tests.at_work.is_some() || self.writer.is_none() || self.slots.is_draining() {
            return;
        }
        let possible = self.self_tests.possible(&self.slots, &self.tools).await;
        let Some((test, slot)) = possible else { return };
        let cancel = CancellationToken::new();
        let at_work = AtWork { workflow: test.workflow.clone(), slot, cancel: cancel.clone() };
        self.self_tests.at_work = Some(at_work);
        self.self_tests.done.spawn(self_test_task(test, slot, Arc::clone(&self.tools), cancel));
    }

    /// Tells what came of one. One that was broken off is done again.
    pub(super) async fn on_self_tested(&mut self, done: Result<Option<SelfTested>, JoinError>) {
        let Some(AtWork { workflow, cancel, .. }) = self.self_tests.at_work.take() else { return };
        if let Err(error) = &done {
            error!(%error, "a self-test broke off");
        }
        if !cancel.is_cancelled() {
            self.self_tests.forget(&workflow);
        }
        if let Ok(Some(tested)) = done {
            self.self_tests.forget(&workflow);
            // Before its end, as with a run: the workspace may be proven now.
            self.send_workspaces().await;
            self.send(NodeMessage::SelfTested(tested)).await;
        }
    }
}
