//! The workspaces that are being prepared: one is built, others wait for their proof, or for its end.
//!
//! Not here: which is begun when.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use protocol::{LockfileHash, PrepareStep, PublisherKey, WantedWorkspace, WorkspaceState};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use super::{BuildError, Builder};
use crate::workspace::progress::Steps;
use crate::workspace::shelf::{Shelf, Whole};

/// All that are being prepared.
pub(super) struct AtWork {
    preparer: Preparer,
    builds: Arc<Semaphore>,
    tasks: JoinSet<WorkspaceState>,
    begun: HashMap<Id, Begun>,
}

/// One of them.
struct Begun {
    wanted: WantedWorkspace,
    cancel: CancellationToken,
}

impl AtWork {
    pub(super) fn new(builder: Arc<dyn Builder>, shelf: Shelf) -> Self {
        let preparer = Preparer { builder, shelf, proofs: Arc::new(Semaphore::new(1)) };
        let (tasks, begun) = (JoinSet::new(), HashMap::new());
        Self { preparer, builds: Arc::new(Semaphore::new(1)), tasks, begun }
    }

    /// Waits until none is being built; the next one is not before the answer is given to it.
    pub(super) fn turn(&self) -> impl Future<Output = OwnedSemaphorePermit> + use<> {
        let builds = Arc::clone(&self.builds);
        async { builds.acquire_owned().await.expect("it is never closed") }
    }

    /// Begins with one, whose turn it is.
    pub(super) fn begin(&mut self, wanted: WantedWorkspace, farm: PublisherKey, turn: OwnedSemaphorePermit) {
        let cancel = CancellationToken::new();
        let span =
            info_span!("workspace", workflow = %wanted.workflow, lockfile = %wanted.lockfile.0.fmt_short());
        let preparing = self.preparer.clone().prepare_task(wanted.clone(), farm, turn, cancel.clone());
        let task = self.tasks.spawn(preparing.instrument(span));
        self.begun.insert(task.id(), Begun { wanted, cancel });
    }

    /// Whether that one is being prepared, also where it was broken off and is about to end.
    pub(super) fn has(&self, lockfile: LockfileHash) -> bool {
        self.begun.values().any(|begun| begun.wanted.lockfile == lockfile)
    }

    /// Breaks off all but these.
    pub(super) fn keep_only(&self, wanted: &BTreeSet<LockfileHash>) {
        let unwanted = self.begun.values().filter(|begun| !wanted.contains(&begun.wanted.lockfile));
        unwanted.for_each(|begun| begun.cancel.cancel());
    }

    /// The next one that came to its end; `None` where there is none.
    pub(super) async fn next(&mut self) -> Option<(WantedWorkspace, WorkspaceState)> {
        let (id, ended) = match self.tasks.join_next_with_id().await? {
            Ok((id, state)) => (id, Ok(state)),
            Err(error) => (error.id(), Err(error)),
        };
        let Begun { wanted, .. } = self.begun.remove(&id).expect("each has one that was begun");
        let state = ended.unwrap_or_else(|error| {
            let reason = format!("its preparation broke off by a bug: {error}");
            warn!(reason, "workspace failed");
            let state = WorkspaceState::Failed { step: PrepareStep::Lockfile, reason };
            self.preparer.shelf.set(wanted.lockfile, state.clone());
            state
        });
        Some((wanted, state))
    }

    /// Breaks all off, and waits until they have ended; not all of them by that, so how they did is for the caller.
    pub(super) async fn stop(&mut self) -> Vec<(WantedWorkspace, WorkspaceState)> {
        self.keep_only(&BTreeSet::new());
        let mut ended = Vec::new();
        while let Some(next) = self.next().await {
            ended.push(next);
        }
        ended
    }
}

/// What prepares one.
#[derive(Clone)]
struct Preparer {
    builder: Arc<dyn Builder>,
    shelf: Shelf,
    /// Had by who is being proven.
    proofs: Arc<Semaphore>,
}

impl Preparer {
    /// Prepares one, and says how far it came. The turn is the next one's as soon as this one is built.
    async fn prepare_task(
        self,
        wanted: WantedWorkspace,
        farm: PublisherKey,
        turn: OwnedSemaphorePermit,
        cancel: CancellationToken,
    ) -> WorkspaceState {
        let lockfile = wanted.lockfile;
        let work = self.shelf.work().await;
        let steps = Steps::new(self.shelf.clone(), lockfile);
        let begun = Instant::now();
        let built = self.builder.build(&wanted, farm, &steps, &cancel).await;
        // Lent, nobody removes it; and its proof may wait for the end of a run, for which nobody else is to wait.
        let built = built.map(|whole| self.shelf.lend(lockfile, whole));
        drop((work, turn));
        let state = match built {
            Ok(whole) => {
                let state = self.prove(lockfile, &whole, &steps, &cancel).await;
                if matches!(state, WorkspaceState::Loaded | WorkspaceState::Proven) {
                    info!(seconds = begun.elapsed().as_secs_f64(), "workspace is ready");
                    self.builder.forget_log(lockfile);
                    self.shelf.put(lockfile, whole, state.clone());
                    return state;
                }
                state
            }
            Err(BuildError::Canceled) => WorkspaceState::Waiting,
            Err(BuildError::Refused(reason)) => WorkspaceState::Refused { reason },
            Err(BuildError::Failed(reason)) => WorkspaceState::Failed { step: steps.step(), reason },
        };
        let keep_log = |reason| self.builder.keep_log(lockfile, reason).map(|log| log.display().to_string());
        match &state {
            WorkspaceState::Failed { step, reason } => {
                let log = keep_log(reason);
                warn!(%step, reason, log, "workspace failed");
            }
            WorkspaceState::Refused { reason } => {
                let log = keep_log(reason);
                warn!(reason, log, "workspace is refused");
            }
            _ => {}
        }
        self.shelf.set(lockfile, state.clone());
        state
    }

    /// Proves one that is whole, unless a run has, once those before it are through.
    async fn prove(
        &self,
        lockfile: LockfileHash,
        whole: &Whole,
        steps: &Steps,
        cancel: &CancellationToken,
    ) -> WorkspaceState {
        if Shelf::was_proven(&self.shelf.folder_of(lockfile), whole.workspace.environment) {
            return WorkspaceState::Proven;
        }
        steps.enter(PrepareStep::Proof);
        let _turn = cancel.run_until_cancelled(self.proofs.acquire()).await;
        // Also where its turn came as others were broken off with it.
        if cancel.is_cancelled() {
            return WorkspaceState::Waiting;
        }
        match self.builder.prove(&whole.workspace, cancel).await {
            Ok(()) => WorkspaceState::Loaded,
            Err(_) if cancel.is_cancelled() => WorkspaceState::Waiting,
            Err(reason) => WorkspaceState::Failed { step: PrepareStep::Proof, reason },
        }
    }
}
