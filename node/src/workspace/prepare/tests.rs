//! Preparing with a builder that does as it is told, on a clock that waits for nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use protocol::{BlobHash, BlobRef, CodeHash, EnvironmentKey, PrepareStep, WorkflowVersion, WorkspaceState};

use super::attempts::FIRST_RETRY;
use super::*;

/// Builds as it is told, each workspace by its number.
#[derive(Default)]
struct Made {
    answers: Mutex<BTreeMap<u8, Vec<Result<(), BuildError>>>>,
    built: Mutex<Vec<u8>>,
    missing: Mutex<BTreeSet<u8>>,
    /// Which fail as they are broken off, the first time.
    failing: Mutex<BTreeSet<u8>>,
    /// Whose proof waits until it is broken off.
    unproven: Mutex<BTreeSet<u8>>,
    /// Of which a log of a failure is kept.
    kept: Mutex<Vec<u8>>,
    trusted: Mutex<TrustedPublishers>,
    tidied: Mutex<usize>,
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
                match self.failing.lock().expect("no panic").remove(&number) {
                    true => Err(BuildError::Failed("the origin does not answer".to_owned())),
                    false => Err(BuildError::Canceled),
                }
            }
            Some(Err(error)) => Err(error),
        }
    }

    async fn prove(&self, workspace: &Arc<Workspace>, cancel: &CancellationToken) -> Result<(), String> {
        let number = workspace.lockfile.0.0[0];
        let waits = self.unproven.lock().expect("no panic").contains(&number);
        if waits {
            cancel.cancelled().await;
            return Err("it was broken off".to_owned());
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

    async fn tidy(&self) {
        *self.tidied.lock().expect("no panic") += 1;
    }
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
    Some(WantWorkspaces { publisher: PublisherKey([0; 32]), wanted: numbers.iter().map(wanted).collect() })
}

struct Preparing {
    builder: Arc<Made>,
    shelf: Shelf,
    wanted: watch::Sender<Option<WantWorkspaces>>,
    folder: tempfile::TempDir,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Preparing {
    fn start(builder: Made) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (builder, shelf) = (Arc::new(builder), Shelf::new(folder.path().to_owned()));
        let (wanted, receiver) = watch::channel(None);
        let stop = CancellationToken::new();
        let preparing = prepare_task(builder.clone(), shelf.clone(), receiver, stop.clone());
        Self { builder, shelf, wanted, folder, stop, task: tokio::spawn(preparing) }
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

fn is_at_proof(state: &WorkspaceState) -> bool {
    matches!(state, WorkspaceState::Preparing(preparing) if preparing.step == PrepareStep::Proof)
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
    assert!(!Shelf::was_proven(&folder, EnvironmentKey(BlobHash([9; 32]))), "another one is to be proven");
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
async fn nothing_goes_round_while_nothing_is_wanted() {
    let farm = Preparing::start(Made::default());
    // No sleep, which would not end while something goes round.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(*farm.builder.tidied.lock().expect("no panic"), 1);
    farm.wanted.send_replace(want(&[1]));
    farm.until(1, is_loaded).await;
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
    farm.until(1, is_at_proof).await;
    assert!(farm.shelf.try_work().is_some(), "others can be removed");
    assert!(!farm.shelf.take_out(hash(1)), "a proof is at work in it");
    farm.wanted.send_replace(want(&[2]));
    farm.until(2, is_loaded).await;
    assert!(farm.shelf.take_out(hash(1)));
}

#[tokio::test(start_paused = true)]
async fn others_are_built_while_a_proof_waits_and_are_proven_after_it() {
    let builder = Made::default();
    builder.unproven.lock().expect("no panic").insert(1);
    let farm = Preparing::start(builder);
    let proven = farm.shelf.folder_of(hash(3));
    std::fs::create_dir_all(&proven).expect("made");
    std::fs::write(proven.join("proven"), EnvironmentKey(BlobHash([0; 32])).to_string()).expect("written");
    farm.wanted.send_replace(want(&[1, 2, 3]));
    farm.until(3, |state| *state == WorkspaceState::Proven).await;
    for number in [1, 2] {
        farm.until(number, is_at_proof).await;
        assert!(!farm.shelf.take_out(hash(number)), "it is to be proven yet");
    }
    farm.wanted.send_replace(want(&[2, 3]));
    farm.until(2, is_loaded).await;
    assert_eq!(*farm.builder.built.lock().expect("no panic"), [1, 2, 3], "none is built twice");
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_on_once_the_node_stops() {
    let builder = Made::default();
    builder.unproven.lock().expect("no panic").insert(1);
    builder.answers.lock().expect("no panic").insert(3, vec![Ok(())]);
    let mut farm = Preparing::start(builder);
    farm.wanted.send_replace(want(&[1, 2, 3]));
    farm.until(2, is_at_proof).await;
    farm.until(3, |state| matches!(state, WorkspaceState::Preparing(_))).await;
    farm.stop.cancel();
    (&mut farm.task).await.expect("it ends");
    for number in [1, 2, 3] {
        assert_eq!(farm.shelf.state(hash(number)), Some(WorkspaceState::Waiting), "{number}");
    }
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

#[tokio::test(start_paused = true)]
async fn what_fails_as_a_publisher_is_trusted_no_more_is_not_tried_again_at_once() {
    let builder = Made::default();
    builder.trusted.lock().expect("no panic").insert(PublisherKey([1; 32]));
    builder.answers.lock().expect("no panic").insert(1, vec![Ok(())]);
    builder.failing.lock().expect("no panic").insert(1);
    let farm = Preparing::start(builder);
    farm.wanted.send_replace(want(&[1]));
    farm.until(1, |state| matches!(state, WorkspaceState::Preparing(_))).await;
    farm.builder.trusted.lock().expect("no panic").remove(&PublisherKey([1; 32]));
    farm.until(1, |state| matches!(state, WorkspaceState::Failed { .. })).await;
    let failed = Instant::now();
    farm.until(1, is_loaded).await;
    assert!(failed.elapsed() >= FIRST_RETRY, "{:?}", failed.elapsed());
}
