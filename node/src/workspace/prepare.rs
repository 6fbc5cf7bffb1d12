//! Preparing the workspaces that are wanted, one after another, in the order in which they are wanted.
//!
//! A failed one is tried again later, a refused one when it is wanted otherwise or the owner trusts others, and all
//! are where the owner trusts somebody no more. What is no longer wanted is broken off; what was built of it
//! stays, and is found by whoever needs it next. Not here: the steps themselves, which a [`Builder`] does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protocol::{
    BlobRef, LockfileHash, PrepareStep, PublisherKey, WantWorkspaces, WantedWorkspace, WorkspaceState,
};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

use super::Workspace;
use super::progress::Steps;
use super::shelf::{Shelf, Whole};
use crate::policy::TrustedPublishers;

/// How long after its failure a workspace is tried again; each time twice as long, up to the last.
const FIRST_RETRY: Duration = Duration::from_secs(30);
const LAST_RETRY: Duration = Duration::from_secs(30 * 60);
/// How often it is looked whether the owner trusts others.
const LOOK: Duration = Duration::from_secs(5);

/// What a workspace is built with.
#[async_trait]
pub trait Builder: Send + Sync + 'static {
    /// Builds a workspace from what is here and what others have, step by step. Called again after a failure or
    /// a cancel it goes on where it stopped.
    async fn build(
        &self,
        wanted: &WantedWorkspace,
        farm: PublisherKey,
        steps: &Steps,
        cancel: &CancellationToken,
    ) -> Result<Whole, BuildError>;

    /// Starts ComfyUI in it and sees that it has all that it must have. Who keeps the workspace is at work in it.
    async fn prove(&self, workspace: &Arc<Workspace>, cancel: &CancellationToken) -> Result<(), String>;

    /// Keeps the log of a preparation that failed with this reason; says where it is.
    fn keep_log(&self, lockfile: LockfileHash, reason: &str) -> Option<PathBuf>;

    /// Forgets what was kept of those that failed, because one succeeded.
    fn forget_log(&self, lockfile: LockfileHash);

    /// Whom the owner trusts at the moment. Once they are others, what is wanted is judged again.
    fn trusted(&self) -> TrustedPublishers;

    /// Keeps what was built within the disk that it may take. Called when nothing is at work.
    async fn tidy(&self);
}

/// Why a workspace was not built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The owner's policy does not allow it.
    #[error("{0}")]
    Refused(String),
    /// The step that it was at failed.
    #[error("{0}")]
    Failed(String),
    /// It was broken off as asked.
    #[error("it was broken off")]
    Canceled,
}

/// Prepares whatever is wanted, until `stop`.
pub async fn prepare_task(
    builder: Arc<dyn Builder>,
    shelf: Shelf,
    mut wanted: watch::Receiver<Option<WantWorkspaces>>,
    stop: CancellationToken,
) {
    let mut attempts = Attempts::default();
    while !stop.is_cancelled() {
        let want = wanted.borrow_and_update().clone();
        let hashes = want.iter().flat_map(|want| &want.wanted).map(|wanted| wanted.lockfile).collect();
        shelf.keep_only(&hashes);
        attempts.keep_only(&hashes);
        if attempts.distrust_any(builder.trusted()) {
            shelf.doubt_all();
        }
        let next = want.as_ref().map(|want| (want.publisher, attempts.next(&shelf, &want.wanted)));
        match next {
            Some((farm, Next::Now(next))) => {
                let cancel = stop.child_token();
                let span = info_span!("workspace", workflow = %next.workflow, lockfile = %next.lockfile.0.fmt_short());
                let preparing = prepare(&*builder, &shelf, &next, farm, &cancel).instrument(span);
                tokio::pin!(preparing);
                let state = loop {
                    tokio::select! {
                        state = &mut preparing => break state,
                        () = until_unwanted(&mut wanted, next.lockfile) => {
                            cancel.cancel();
                            break preparing.await;
                        }
                        () = tokio::time::sleep(LOOK) => {}
                    }
                    if attempts.distrust_any(builder.trusted()) {
                        cancel.cancel();
                        let state = preparing.await;
                        shelf.doubt_all();
                        break state;
                    }
                };
                attempts.note(&next, &state);
                builder.tidy().await;
            }
            Some((_, Next::At(pause))) => tokio::select! {
                () = stop.cancelled() => return,
                changed = wanted.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(pause) => {}
            },
            None => tokio::select! {
                () = stop.cancelled() => return,
                changed = wanted.changed() => if changed.is_err() { return },
            },
        }
    }
}

/// Waits until a workspace is not wanted any more.
async fn until_unwanted(wanted: &mut watch::Receiver<Option<WantWorkspaces>>, lockfile: LockfileHash) {
    let is_unwanted = |want: &Option<WantWorkspaces>| {
        !want.iter().flat_map(|want| &want.wanted).any(|wanted| wanted.lockfile == lockfile)
    };
    // Where nobody wants anything any more, the process ends.
    let _ = wanted.wait_for(is_unwanted).await;
}

/// What became of earlier attempts.
#[derive(Default)]
struct Attempts {
    retries: BTreeMap<LockfileHash, Retry>,
    refused: BTreeMap<LockfileHash, WantedWorkspace>,
    /// Whom the owner trusted when they were refused.
    trusted: TrustedPublishers,
}

/// When a failed one is tried again.
struct Retry {
    pause: Duration,
    at: Instant,
    /// What was known of its parts then; where more is known, it is tried at once.
    resolution: Option<BlobRef>,
}

/// What is to be prepared next.
enum Next {
    Now(Box<WantedWorkspace>),
    At(Instant),
}

impl Attempts {
    fn keep_only(&mut self, wanted: &BTreeSet<LockfileHash>) {
        self.retries.retain(|lockfile, _| wanted.contains(lockfile));
        self.refused.retain(|lockfile, _| wanted.contains(lockfile));
    }

    /// Notes whom the owner trusts now; says whether anybody is trusted no more.
    fn distrust_any(&mut self, trusted: TrustedPublishers) -> bool {
        if self.trusted == trusted {
            return false;
        }
        self.refused.clear();
        let earlier = std::mem::replace(&mut self.trusted, trusted);
        earlier.iter().any(|key| !self.trusted.contains(key))
    }

    fn next(&self, shelf: &Shelf, wanted: &[WantedWorkspace]) -> Next {
        let is_ready = |wanted: &WantedWorkspace| {
            matches!(shelf.state(wanted.lockfile), Some(WorkspaceState::Loaded | WorkspaceState::Proven))
        };
        let is_refused = |wanted: &WantedWorkspace| self.refused.get(&wanted.lockfile) == Some(wanted);
        let open = wanted.iter().filter(|wanted| !is_ready(wanted) && !is_refused(wanted));
        let at = |wanted: &WantedWorkspace| {
            let retry = self.retries.get(&wanted.lockfile)?;
            (retry.resolution == wanted.resolution).then_some(retry.at)
        };
        if let Some(due) = open.clone().find(|wanted| at(wanted).is_none_or(|at| at <= Instant::now())) {
            return Next::Now(Box::new(due.clone()));
        }
        let look = Instant::now() + LOOK;
        Next::At(open.filter_map(at).fold(look, Instant::min))
    }

    fn note(&mut self, wanted: &WantedWorkspace, state: &WorkspaceState) {
        let lockfile = wanted.lockfile;
        match state {
            WorkspaceState::Failed { .. } => {
                let earlier = self.retries.get(&lockfile).map(|retry| retry.pause * 2);
                let pause = earlier.unwrap_or(FIRST_RETRY).min(LAST_RETRY);
                let retry = Retry { pause, at: Instant::now() + pause, resolution: wanted.resolution };
                self.retries.insert(lockfile, retry);
            }
            WorkspaceState::Refused { .. } => {
                self.refused.insert(lockfile, wanted.clone());
            }
            _ => {
                self.retries.remove(&lockfile);
            }
        }
    }
}

/// Prepares one, and says how far it came.
async fn prepare(
    builder: &dyn Builder,
    shelf: &Shelf,
    wanted: &WantedWorkspace,
    farm: PublisherKey,
    cancel: &CancellationToken,
) -> WorkspaceState {
    let lockfile = wanted.lockfile;
    let work = shelf.work().await;
    let steps = Steps::new(shelf.clone(), lockfile);
    let begun = Instant::now();
    let state = match builder.build(wanted, farm, &steps, cancel).await {
        Ok(whole) => {
            // Lent, nobody removes it; and its proof may wait for the end of a run, for which nobody else is to wait.
            let whole = shelf.lend(lockfile, whole);
            drop(work);
            let was_proven = Shelf::was_proven(&shelf.folder_of(lockfile), whole.workspace.environment);
            let state = if was_proven {
                WorkspaceState::Proven
            } else {
                steps.enter(PrepareStep::Proof);
                match builder.prove(&whole.workspace, cancel).await {
                    Ok(()) => WorkspaceState::Loaded,
                    Err(_) if cancel.is_cancelled() => WorkspaceState::Waiting,
                    Err(reason) => WorkspaceState::Failed { step: PrepareStep::Proof, reason },
                }
            };
            if matches!(state, WorkspaceState::Loaded | WorkspaceState::Proven) {
                info!(seconds = begun.elapsed().as_secs_f64(), "workspace is ready");
                builder.forget_log(lockfile);
                shelf.put(lockfile, whole, state.clone());
                return state;
            }
            state
        }
        Err(BuildError::Canceled) => WorkspaceState::Waiting,
        Err(BuildError::Refused(reason)) => WorkspaceState::Refused { reason },
        Err(BuildError::Failed(reason)) => WorkspaceState::Failed { step: steps.step(), reason },
    };
    let keep_log = |reason| builder.keep_log(lockfile, reason).map(|log| log.display().to_string());
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
    shelf.set(lockfile, state.clone());
    state
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use protocol::{BlobHash, CodeHash, EnvironmentKey, WorkflowVersion};

    use super::*;

    /// Builds as it is told, each workspace by its number.
    #[derive(Default)]
    struct Made {
        answers: Mutex<BTreeMap<u8, Vec<Result<(), BuildError>>>>,
        built: Mutex<Vec<u8>>,
        missing: Mutex<BTreeSet<u8>>,
        /// Whose proof waits until it is broken off.
        unproven: Mutex<BTreeSet<u8>>,
        /// Of which a log of a failure is kept.
        kept: Mutex<Vec<u8>>,
        trusted: Mutex<TrustedPublishers>,
    }

    #[async_trait]
    impl Builder for Made {
        async fn build(
            &self,
            wanted: &WantedWorkspace,
            _farm: PublisherKey,
            steps: &Steps,
            cancel: &CancellationToken,
        ) -> Result<Whole, BuildError> {
            let number = wanted.lockfile.0.0[0];
            self.built.lock().expect("no panic").push(number);
            steps.enter(PrepareStep::Code);
            let answer = self.answers.lock().expect("no panic").get_mut(&number).and_then(Vec::pop);
            match answer {
                None => {
                    let workspace = Arc::new(workspace(wanted));
                    Ok(Whole { workspace, holds: vec![], resolution: None })
                }
                Some(Ok(())) => {
                    cancel.cancelled().await;
                    Err(BuildError::Canceled)
                }
                Some(Err(error)) => Err(error),
            }
        }

        async fn prove(&self, workspace: &Arc<Workspace>, cancel: &CancellationToken) -> Result<(), String> {
            let number = workspace.lockfile.0.0[0];
            let waits = self.unproven.lock().expect("no panic").contains(&number);
            if waits {
                cancel.cancelled().await;
            }
            match self.missing.lock().expect("no panic").contains(&number) {
                true => Err("class `KSampler` is not in it".to_owned()),
                false => Ok(()),
            }
        }

        fn keep_log(&self, lockfile: LockfileHash, _reason: &str) -> Option<PathBuf> {
            self.kept.lock().expect("no panic").push(lockfile.0.0[0]);
            None
        }

        fn forget_log(&self, lockfile: LockfileHash) {
            self.kept.lock().expect("no panic").retain(|kept| *kept != lockfile.0.0[0]);
        }

        fn trusted(&self) -> TrustedPublishers {
            self.trusted.lock().expect("no panic").clone()
        }

        async fn tidy(&self) {}
    }

    fn hash(number: u8) -> LockfileHash {
        LockfileHash(BlobHash([number; 32]))
    }

    fn workspace(wanted: &WantedWorkspace) -> Workspace {
        Workspace {
            lockfile: wanted.lockfile,
            environment: EnvironmentKey(BlobHash([0; 32])),
            code: CodeHash(BlobHash([0; 32])),
            python: PathBuf::new(),
            comfyui: PathBuf::new(),
            files: PathBuf::new(),
            classes: wanted.classes.clone(),
            model_names: wanted.models.clone(),
            equivalent: false,
            left_out: vec![],
        }
    }

    fn want(numbers: &[u8]) -> Option<WantWorkspaces> {
        let wanted = |number: &u8| WantedWorkspace {
            workflow: WorkflowVersion { name: "pixel-art".parse().expect("a name"), version: 1 },
            lockfile: hash(*number),
            document: BlobRef::of(b""),
            resolution: None,
            classes: BTreeSet::new(),
            models: BTreeSet::new(),
            providers: vec![],
        };
        Some(WantWorkspaces {
            publisher: PublisherKey([0; 32]),
            wanted: numbers.iter().map(wanted).collect(),
        })
    }

    struct Preparing {
        builder: Arc<Made>,
        shelf: Shelf,
        wanted: watch::Sender<Option<WantWorkspaces>>,
        folder: tempfile::TempDir,
        stop: CancellationToken,
    }

    impl Preparing {
        fn start(builder: Made) -> Self {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let (builder, shelf) = (Arc::new(builder), Shelf::new(folder.path().to_owned()));
            let (wanted, receiver) = watch::channel(None);
            let stop = CancellationToken::new();
            tokio::spawn(prepare_task(builder.clone(), shelf.clone(), receiver, stop.clone()));
            Self { builder, shelf, wanted, folder, stop }
        }

        async fn until(&self, number: u8, is_it: impl Fn(&WorkspaceState) -> bool) -> WorkspaceState {
            let mut changes = self.shelf.changes();
            loop {
                if let Some(state) = self.shelf.state(hash(number)).filter(&is_it) {
                    return state;
                }
                let changed = tokio::time::timeout(Duration::from_secs(24 * 3600), changes.changed()).await;
                changed.expect("it comes in time").expect("the shelf is there");
            }
        }
    }

    impl Drop for Preparing {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    fn is_loaded(state: &WorkspaceState) -> bool {
        *state == WorkspaceState::Loaded
    }

    #[tokio::test(start_paused = true)]
    async fn wanted_workspaces_are_built_in_order_and_proven_by_a_run_for_good() {
        let farm = Preparing::start(Made::default());
        farm.wanted.send_replace(want(&[2, 1]));
        farm.until(1, is_loaded).await;
        assert_eq!(*farm.builder.built.lock().expect("no panic"), [2, 1]);
        assert!(farm.shelf.usable(hash(1)).is_some());
        std::fs::create_dir_all(farm.shelf.folder_of(hash(1))).expect("made");
        farm.shelf.prove(hash(1));
        assert_eq!(farm.shelf.state(hash(1)), Some(WorkspaceState::Proven));
        let workspace = Arc::clone(&farm.shelf.usable(hash(1)).expect("it is proven").workspace);
        let folder = farm.folder.path().join(hash(1).to_string());
        assert!(Shelf::was_proven(&folder, workspace.environment));
        assert!(
            !Shelf::was_proven(&folder, EnvironmentKey(BlobHash([9; 32]))),
            "another one is to be proven"
        );
        drop(workspace);
        farm.wanted.send_replace(want(&[2]));
        let mut changes = farm.shelf.changes();
        while farm.shelf.state(hash(1)).is_some() {
            changes.changed().await.expect("the shelf is there");
        }
        assert!(farm.shelf.usable(hash(1)).is_none(), "it is not wanted any more");
        farm.wanted.send_replace(want(&[2, 1]));
        farm.until(1, |state| *state == WorkspaceState::Proven).await;
    }

    #[tokio::test(start_paused = true)]
    async fn failed_one_is_tried_again_later_and_holds_up_no_other() {
        let failed = || Err(BuildError::Failed("the origin does not answer".to_owned()));
        let builder = Made::default();
        builder.answers.lock().expect("no panic").insert(1, vec![failed(), failed()]);
        let farm = Preparing::start(builder);
        let begun = Instant::now();
        farm.wanted.send_replace(want(&[1, 2]));
        let reason = "the origin does not answer".to_owned();
        let state = farm.until(1, |state| matches!(state, WorkspaceState::Failed { .. })).await;
        assert_eq!(state, WorkspaceState::Failed { step: PrepareStep::Code, reason });
        let kept = || farm.builder.kept.lock().expect("no panic").clone();
        assert_eq!(kept(), [1], "whatever of it is logged");
        farm.until(2, is_loaded).await;
        farm.until(1, is_loaded).await;
        assert!(kept().is_empty());
        assert!(begun.elapsed() >= FIRST_RETRY * 3, "{:?}", begun.elapsed());
        assert_eq!(*farm.builder.built.lock().expect("no panic"), [1, 2, 1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn refused_one_is_judged_again_once_others_are_trusted_and_a_ready_one_too() {
        let builder = Made::default();
        let refused = Err(BuildError::Refused("the publisher is not trusted".to_owned()));
        builder.answers.lock().expect("no panic").insert(1, vec![refused]);
        builder.missing.lock().expect("no panic").insert(2);
        let farm = Preparing::start(builder);
        farm.wanted.send_replace(want(&[1, 2]));
        let state = farm.until(2, |state| matches!(state, WorkspaceState::Failed { .. })).await;
        let WorkspaceState::Failed { step, reason } = state else { panic!("{state:?}") };
        assert!(step == PrepareStep::Proof && reason.contains("KSampler"), "{reason}");
        assert!(matches!(farm.shelf.state(hash(1)), Some(WorkspaceState::Refused { .. })));
        assert!(farm.shelf.usable(hash(2)).is_none());
        let builds =
            || farm.builder.built.lock().expect("no panic").iter().filter(|number| **number == 1).count();
        tokio::time::sleep(LOOK * 100).await;
        assert_eq!(builds(), 1, "nothing has changed that it was refused for");
        farm.builder.trusted.lock().expect("no panic").insert(PublisherKey([1; 32]));
        farm.until(1, is_loaded).await;
        assert_eq!(builds(), 2);
        let refused = Err(BuildError::Refused("the publisher is trusted no more".to_owned()));
        farm.builder.answers.lock().expect("no panic").insert(1, vec![refused]);
        farm.builder.trusted.lock().expect("no panic").remove(&PublisherKey([1; 32]));
        farm.until(1, |state| matches!(state, WorkspaceState::Refused { .. })).await;
        assert!(farm.shelf.usable(hash(1)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn workspace_whose_proof_waits_is_removed_by_nobody_and_holds_up_no_removal() {
        let builder = Made::default();
        builder.unproven.lock().expect("no panic").insert(1);
        let farm = Preparing::start(builder);
        farm.wanted.send_replace(want(&[1]));
        let is_at_proof = |state: &WorkspaceState| match state {
            WorkspaceState::Preparing(preparing) => preparing.step == PrepareStep::Proof,
            _ => false,
        };
        farm.until(1, is_at_proof).await;
        assert!(farm.shelf.try_work().is_some(), "others can be removed");
        assert!(!farm.shelf.take_out(hash(1)), "a proof is at work in it");
        farm.wanted.send_replace(want(&[2]));
        farm.until(2, is_loaded).await;
        assert!(farm.shelf.take_out(hash(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_longer_wanted_is_broken_off() {
        let builder = Made::default();
        builder.answers.lock().expect("no panic").insert(1, vec![Ok(())]);
        let farm = Preparing::start(builder);
        farm.wanted.send_replace(want(&[1]));
        farm.until(1, |state| matches!(state, WorkspaceState::Preparing(_))).await;
        farm.wanted.send_replace(want(&[2]));
        farm.until(2, is_loaded).await;
        assert_eq!(farm.shelf.state(hash(1)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_being_built_is_judged_again_where_a_publisher_is_trusted_no_more() {
        let builder = Made::default();
        builder.trusted.lock().expect("no panic").insert(PublisherKey([1; 32]));
        let refused = Err(BuildError::Refused("the publisher is not trusted".to_owned()));
        builder.answers.lock().expect("no panic").insert(2, vec![refused, Ok(())]);
        let farm = Preparing::start(builder);
        farm.wanted.send_replace(want(&[1, 2]));
        farm.until(2, |state| matches!(state, WorkspaceState::Preparing(_))).await;
        farm.builder.trusted.lock().expect("no panic").remove(&PublisherKey([1; 32]));
        farm.until(2, |state| matches!(state, WorkspaceState::Refused { .. })).await;
        farm.until(1, is_loaded).await;
        assert_eq!(*farm.builder.built.lock().expect("no panic"), [1, 2, 1, 2]);
    }
}
