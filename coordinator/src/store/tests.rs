//! What is found again after a start, in files of temporary folders.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::{
    BlobHash, BlobRef, BundleHash, Interface, JobId, JobState, Lease, LeaseId, LockfileHash, PeerId, RunId,
    SlotId, WorkflowVersion,
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::*;
use crate::handle::JobsFilter;
use crate::state::Action;
use crate::state::record::{EndedJob, KnownLease, NewJob, Record, Snapshot};
use crate::view::{DeployedWorkflow, Requirements};

struct File {
    folder: tempfile::TempDir,
}

impl File {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("coordinator.sqlite")
    }

    async fn open(&self) -> Store {
        Store::open(&self.path()).await.expect("opens")
    }
}

fn version() -> WorkflowVersion {
    WorkflowVersion { name: "pixel-art".parse().expect("valid"), version: 1 }
}

fn job_id(number: u64) -> JobId {
    JobId(Uuid::from_u128(u128::from(number)))
}

fn new_job(number: u64) -> NewJob {
    NewJob {
        id: job_id(number),
        workflow: version(),
        priority: 50,
        parameters: BlobRef::of(b"{}"),
        inputs: vec![BlobHash([3; 32])],
        submitted: OffsetDateTime::UNIX_EPOCH,
        expires: None,
    }
}

fn ended(number: u64, state: JobState) -> EndedJob {
    EndedJob {
        job: new_job(number),
        state,
        started: None,
        ended: OffsetDateTime::UNIX_EPOCH,
        run: None,
        failures: vec![],
        outputs: vec![],
        error: None,
        fetched: vec![],
    }
}

fn submitted(number: u64) -> Action {
    Action::Record(Record::Submitted(Box::new(new_job(number))))
}

fn end(number: u64, state: JobState) -> [Action; 2] {
    let record = Record::Ended { job: job_id(number), state };
    [Action::Archive(Box::new(ended(number, state))), Action::Record(record)]
}

fn known(number: u64) -> KnownLease {
    let id = LeaseId { epoch: 1, counter: number };
    let lease = Lease { id, job: job_id(number), run: RunId(Uuid::from_u128(9)) };
    KnownLease { lease, node: PeerId([1; 32]), slot: SlotId(0) }
}

async fn commit(store: &Store, newest: u64, actions: &[Action]) {
    let batch = Batch { actions, at: OffsetDateTime::UNIX_EPOCH, epoch: 1, newest };
    store.commit(&batch).await.expect("commits");
}

#[tokio::test]
async fn what_was_committed_is_found_by_the_next_start() {
    let file = File::new();
    let store = file.open().await;
    let workflow = Arc::new(DeployedWorkflow {
        id: version(),
        bundle: BundleHash(BlobHash([1; 32])),
        lockfile: LockfileHash(BlobHash([2; 32])),
        document: None,
        graph: BlobRef::of(b"graph"),
        interface_blob: BlobRef::of(b"interface"),
        inputs: BTreeMap::new(),
        interface: Arc::new(Interface::default()),
        models: vec![],
        private: vec![],
        requirements: Requirements::default(),
        notes: vec!["a note".into()],
        deployed: OffsetDateTime::UNIX_EPOCH,
    });
    let deploy = [Action::Keep(workflow.clone()), Action::Record(Record::Deployed(version()))];
    commit(&store, 0, &deploy).await;
    let leases = [Action::Leased(known(1)), Action::Leased(known(2)), Action::Leased(known(3))];
    commit(&store, 1, &[submitted(1), submitted(2)]).await;
    commit(&store, 3, &leases).await;
    commit(&store, 3, &end(1, JobState::Succeeded)).await;
    commit(&store, 4, &[Action::Unleased(known(3).lease.id)]).await;
    store.close().await;

    let store = file.open().await;
    let (found, newest) = store.load().await.expect("loads");
    assert_eq!((newest, found.entries.len()), (4, 4));
    assert_eq!((found.workflows, found.leases), (vec![workflow], vec![known(2)]));
    let row = store.ended_job(job_id(1)).await.expect("reads");
    assert_eq!(row, Some(ended(1, JobState::Succeeded)));
    assert_eq!(store.ended_job(job_id(2)).await.expect("reads"), None);
}

#[tokio::test]
async fn batch_is_written_as_a_whole_or_not_at_all() {
    let file = File::new();
    let store = file.open().await;
    commit(&store, 0, &end(1, JobState::Failed)).await;
    // The second end of the same job is an error, and takes the rest of its batch with it.
    let actions = [vec![submitted(2)], end(1, JobState::Succeeded).to_vec()].concat();
    let batch = Batch { actions: &actions, at: OffsetDateTime::UNIX_EPOCH, epoch: 1, newest: 1 };
    assert!(matches!(store.commit(&batch).await, Err(StoreError::Database { .. })));
    let (found, newest) = store.load().await.expect("loads");
    assert_eq!((found.entries.len(), newest), (1, 1));
}

#[tokio::test]
async fn epoch_rises_with_each_start() {
    let file = File::new();
    for expected in 1..4 {
        let store = file.open().await;
        assert_eq!(store.raise_epoch().await.expect("raises"), expected);
        store.close().await;
    }
}

#[tokio::test]
async fn snapshot_replaces_what_is_before_it_and_events_far_behind_are_a_gap() {
    let file = File::new();
    let store = file.open().await;
    let many: Vec<Action> = (1..=10_005).map(submitted).collect();
    commit(&store, 0, &many).await;
    let snapshot = Snapshot { next_order: 10_005, ..Snapshot::default() };
    store.write_snapshot(10_005, &snapshot).await.expect("writes");
    commit(&store, 10_005, &[submitted(20_000)]).await;
    let (found, newest) = store.load().await.expect("loads");
    assert_eq!((found.snapshot, found.entries.len(), newest), (snapshot, 1, 10_006));

    let after = async |number| store.events_after(number, newest).await.expect("reads");
    let Missed::Events(events) = after(10_004).await else { panic!("they are kept") };
    assert_eq!(events.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [10_005, 10_006]);
    assert_eq!(after(10_006).await, Missed::Events(vec![]));
    assert_eq!(after(3).await, Missed::Gap, "dropped by the snapshot");
    assert_eq!(after(10_007).await, Missed::Gap, "of another store");
}

#[tokio::test]
async fn ended_jobs_are_listed_newest_first_by_state_and_in_pages() {
    let file = File::new();
    let store = file.open().await;
    for number in 1..=6 {
        let state = if number % 2 == 0 { JobState::Succeeded } else { JobState::Failed };
        commit(&store, number, &end(number, state)).await;
    }
    let list = async |filter: JobsFilter| {
        let rows = store.ended_jobs(&filter).await.expect("lists");
        rows.iter().map(|row| row.job.id.0.as_u128()).collect::<Vec<_>>()
    };
    let filter = JobsFilter { limit: 2, ..JobsFilter::default() };
    assert_eq!(list(filter.clone()).await, [6, 5]);
    assert_eq!(list(JobsFilter { before: Some(job_id(5)), ..filter.clone() }).await, [4, 3]);
    assert_eq!(
        list(JobsFilter { state: Some(JobState::Failed), limit: 9, ..filter.clone() }).await,
        [5, 3, 1]
    );
    let other = Some("other".parse().expect("valid"));
    assert_eq!(list(JobsFilter { workflow: other, ..filter }).await, [0_u128; 0]);
}

#[tokio::test]
async fn file_of_a_later_release_is_refused_in_words() {
    let file = File::new();
    let store = file.open().await;
    sqlx::query("PRAGMA user_version = 7").execute(&store.pool).await.expect("sets");
    store.close().await;
    let error = Store::open(&file.path()).await.expect_err("too new").to_string();
    assert!(error.contains("schema 7") && error.contains("update comfy-farm"), "{error}");
}
