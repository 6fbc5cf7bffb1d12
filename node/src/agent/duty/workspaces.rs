//! The workspaces that the coordinator wants here, how far each is told to be, and which slots are warm for it.
//!
//! Not here: preparing them (`workspace::prepare`).

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::message::NodeMessage;
use protocol::{
    LockfileHash, MAX_PROVEN, MAX_WORKSPACES, Notes, WantWorkspaces, WarmSlots, WorkspaceReport,
    WorkspaceResolved, WorkspaceState,
};
use tokio::sync::watch;
use tracing::debug;

use super::Duty;
use crate::workspace::Workspace;

/// What the coordinator wants and knows of workspaces.
pub(super) struct Wants {
    wanted: watch::Sender<Option<WantWorkspaces>>,
    told: BTreeMap<LockfileHash, WorkspaceState>,
    told_warm: WarmSlots,
}

impl Wants {
    pub(super) fn new(wanted: watch::Sender<Option<WantWorkspaces>>) -> Self {
        Self { wanted, told: BTreeMap::new(), told_warm: WarmSlots::default() }
    }

    /// A new session: the coordinator may know nothing.
    pub(super) fn forget_told(&mut self) {
        self.told.clear();
        self.told_warm = WarmSlots::default();
    }
}

impl Duty {
    /// Takes over a new list of workspaces.
    pub(super) fn on_want_workspaces(&mut self, mut want: WantWorkspaces) {
        if self.tools.shelf.is_none() {
            debug!("workspaces are wanted of a node that builds none");
            return;
        }
        want.wanted.truncate(MAX_WORKSPACES);
        want.wanted.retain(|wanted| wanted.classes.len() <= MAX_PROVEN && wanted.models.len() <= MAX_PROVEN);
        self.wants.wanted.send_if_modified(|known| {
            let is_new = known.as_ref() != Some(&want);
            if is_new {
                *known = Some(want);
            }
            is_new
        });
    }

    /// Tells what a usable workspace was built from, where others do not know it yet.
    async fn send_resolved(&mut self, lockfile: LockfileHash) {
        let whole = self.tools.shelf.as_ref().and_then(|shelf| shelf.usable(lockfile));
        if let Some(resolution) = whole.and_then(|whole| whole.resolution) {
            self.send(NodeMessage::WorkspaceResolved(WorkspaceResolved { lockfile, resolution })).await;
        }
    }

    /// Tells in which workspaces slots can work at once, where that has changed.
    async fn send_warm_slots(&mut self, usable: &[Arc<Workspace>]) {
        let warm = WarmSlots { slots: self.tools.engine.warm(usable).await };
        if self.wants.told_warm != warm {
            self.wants.told_warm = warm.clone();
            self.send(NodeMessage::WarmSlots(warm)).await;
        }
    }

    /// Tells how far workspaces are, where that has changed.
    pub(super) async fn send_workspaces(&mut self) {
        let Some(shelf) = self.tools.shelf.as_ref().filter(|_| self.writer.is_some()) else { return };
        let (states, usable) = (shelf.states(), shelf.all_usable());
        // First, so that nothing is granted for a workspace before it is known where it is warm.
        self.send_warm_slots(&usable).await;
        let known = |workspace: Arc<Workspace>| {
            let notes = Notes::new(workspace.left_out.iter().cloned());
            (workspace.lockfile, (workspace.equivalent, notes))
        };
        let mut known: BTreeMap<_, _> = usable.into_iter().map(known).collect();
        self.wants.told.retain(|lockfile, _| states.contains_key(lockfile));
        for (lockfile, state) in states {
            let state = state.bounded();
            if self.wants.told.get(&lockfile) != Some(&state) {
                self.wants.told.insert(lockfile, state.clone());
                let (equivalent, notes) = known.remove(&lockfile).unwrap_or_default();
                let report = WorkspaceReport { lockfile, state, equivalent, notes };
                self.send(NodeMessage::WorkspaceReport(report)).await;
                self.send_resolved(lockfile).await;
            }
        }
    }
}
