//! Runs over a real store and a real data plane, with an engine that does as it is told.

use protocol::{BlobHash, SelfTest};
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::testing::{Behaviour, FakeEngine, Farm, PATIENCE, grant};

struct Machine {
    farm: Farm,
    tools: Arc<Tools>,
    folder: TempDir,
}

async fn machine(behaviour: Behaviour) -> Machine {
    let (farm, folder) = (Farm::new(), tempfile::tempdir().expect("a temporary folder"));
    let (_, exchange) = farm.exchange(&folder.path().join("blobs")).await;
    let blobs = exchange.store().clone();
    let ends = Ends::open(&folder.path().join("ends"), blobs.clone()).await.expect("opens");
    let scratch = folder.path().join("scratch");
    let tools =
        Tools { engine: FakeEngine::new(vec![behaviour]), exchange, blobs, ends, scratch, shelf: None };
    Machine { farm, tools: Arc::new(tools), folder }
}

impl Machine {
    /// A grant whose picture is with another peer, and that peer.
    async fn grant(&self, picture: &[u8]) -> (Box<Grant>, Exchange) {
        let (peer, other) = self.farm.exchange(&self.folder.path().join("other")).await;
        let bundled = other.store().import_bytes(picture).await.expect("there is room");
        let mut grant = grant(&self.tools.blobs, bundled, 1).await;
        let providers = vec![Provider { peer, addresses: other.addresses() }];
        grant.providers = vec![BlobProviders { hash: bundled.hash, providers }];
        (grant, other)
    }

    async fn run(&self, grant: Box<Grant>) -> RunEnded {
        let (phases, _entered) = mpsc::channel(64);
        let telling = Telling { phases, progress: ProgressSink::new().0 };
        let running = run_task(grant, Arc::clone(&self.tools), telling, CancellationToken::new());
        timeout(PATIENCE, running).await.expect("it ends").expect("its end is kept")
    }

    fn scratch_is_empty(&self) -> bool {
        std::fs::read_dir(&self.tools.scratch).map_or(true, |mut entries| entries.next().is_none())
    }
}

fn failure(ended: &RunEnded) -> RunErrorKind {
    match &ended.outcome {
        Outcome::Failed(error) => error.kind,
        Outcome::Succeeded(files) => panic!("succeeded with {files:?}"),
    }
}

#[tokio::test]
async fn run_fetches_a_bundled_picture_and_keeps_what_was_made_of_it() {
    let machine = machine(Behaviour::Copies).await;
    let (grant, _other) = machine.grant(b"pixels").await;
    let ended = machine.run(grant).await;
    let Outcome::Succeeded(files) = &ended.outcome else { panic!("{:?}", ended.outcome) };
    assert_eq!(files.len(), 1);
    assert_eq!((files[0].file_name.as_str(), files[0].blob.hash), ("made.png", BlobHash::of(b"pixels")));
    assert_eq!(ended.fetched.iter().map(|fetched| fetched.bytes).sum::<u64>(), 6);
    assert_eq!(machine.tools.ends.kept(), [ended]);
    assert!(machine.scratch_is_empty());
}

#[tokio::test]
async fn output_without_a_file_is_named_and_its_end_kept() {
    let machine = machine(Behaviour::MakesNothing).await;
    let (grant, _other) = machine.grant(b"pixels").await;
    let ended = machine.run(grant).await;
    assert_eq!(failure(&ended), RunErrorKind::NoOutput);
    assert_eq!(machine.tools.ends.kept(), [ended]);
    assert!(machine.scratch_is_empty());
}

#[tokio::test]
async fn blob_that_nobody_holds_ends_the_run() {
    let machine = machine(Behaviour::Copies).await;
    let (mut grant, _other) = machine.grant(b"pixels").await;
    grant.providers.clear();
    assert_eq!(failure(&machine.run(grant).await), RunErrorKind::MissingBlob);
}

#[tokio::test]
async fn document_beyond_its_limit_is_not_fetched() {
    let machine = machine(Behaviour::Copies).await;
    let (mut grant, _other) = machine.grant(b"pixels").await;
    grant.graph.size = MAX_DOCUMENT + 1;
    assert_eq!(failure(&machine.run(grant).await), RunErrorKind::InvalidInput);
}

#[tokio::test]
async fn run_is_cancelled_while_it_fetches() {
    let machine = machine(Behaviour::Copies).await;
    let (mut grant, _other) = machine.grant(b"pixels").await;
    // Waited for, because it may make a link to us; it never does.
    grant.providers[0].providers[0].addresses.clear();
    let (phases, mut entered) = mpsc::channel(64);
    let (progress, cancel) = (ProgressSink::new().0, CancellationToken::new());
    let telling = Telling { phases, progress };
    let running = tokio::spawn(run_task(grant, Arc::clone(&machine.tools), telling, cancel.clone()));
    let (_, phase) = timeout(PATIENCE, entered.recv()).await.expect("soon").expect("it runs");
    assert_eq!(phase, Phase::Fetching);
    cancel.cancel();
    let ended = timeout(PATIENCE, running).await.expect("it ends").expect("no panic").expect("it is kept");
    assert_eq!(failure(&ended), RunErrorKind::Canceled);
    assert_eq!(machine.tools.ends.kept(), [ended]);
}

#[tokio::test]
async fn self_test_runs_with_what_the_bundle_recorded_and_keeps_nothing() {
    let check = async |behaviour: Behaviour, expected: Option<RunErrorKind>| {
        let machine = machine(behaviour).await;
        let (grant, _other) = machine.grant(b"pixels").await;
        let Grant { workflow, lockfile, graph, interface, inputs, providers, .. } = *grant;
        let test = SelfTest { workflow: workflow.clone(), lockfile, graph, interface, inputs, providers };
        let (tools, cancel) = (Arc::clone(&machine.tools), CancellationToken::new());
        let testing = self_test::self_test_task(test, protocol::SlotId(0), tools, cancel.clone());
        let tested = match behaviour {
            Behaviour::WaitsForCancel => tokio::join!(testing, async { cancel.cancel() }).0,
            _ => timeout(PATIENCE, testing).await.expect("it ends"),
        };
        assert_eq!(tested.is_none(), cancel.is_cancelled(), "one that is broken off says nothing");
        assert_eq!(tested.and_then(|tested| tested.failure).map(|failure| failure.kind), expected);
        assert!(machine.tools.ends.kept().is_empty() && machine.scratch_is_empty());
    };
    check(Behaviour::Copies, None).await;
    check(Behaviour::MakesNothing, Some(RunErrorKind::NoOutput)).await;
    check(Behaviour::WaitsForCancel, None).await;
}
