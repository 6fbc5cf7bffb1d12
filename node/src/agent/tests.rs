//! A whole node on loopback sockets, with a coordinator that is played by the test.

use std::time::Duration;

use mesh::control::{Custodian, Request};
use mesh::finder::{FindError, Finder};
use mesh::swarm::{Incoming, Session};
use protocol::message::{
    Accepted, CoordinatorMessage, EndRecorded, Grant, JoinMessage, Keep, Located, NodeMessage, Outcome,
    Refusal, Register, RunEnded, Welcome,
};
use protocol::{BlobName, BlobRef, RunErrorKind, SelfTest, SelfTested, WorkflowVersion};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::testing::{Behaviour, FakeEngine, Farm, PATIENCE, grant, loopback, now};

/// The coordinator, and a node that joined it.
struct Played {
    incoming: mpsc::Receiver<Incoming>,
    tools: Arc<Tools>,
    engine: Arc<FakeEngine>,
    finder: SessionFinder,
    bundled: BlobRef,
    serving: JoinHandle<()>,
    stop: CancellationToken,
    _mesh: Mesh,
    folder: TempDir,
}

async fn play(behaviours: Vec<Behaviour>) -> Played {
    let (farm, folder) = (Farm::new(), tempfile::tempdir().expect("a temporary folder"));
    let identity = Arc::clone(&farm.coordinator);
    let config = MeshConfig { accept: true, ..MeshConfig::new(identity, vec![loopback()]) };
    let (mesh, mut incoming) = Mesh::start(config).await.expect("a mesh");
    mesh.set_credentials(farm.coordinator_credentials());
    let engine = FakeEngine::new(behaviours);
    let ticket = Ticket::new(farm.id(), farm.coordinator.peer(), mesh.addresses(), [7; 16], now() + 600);
    let config = AgentConfig {
        data: folder.path().to_owned(),
        ticket: Some(ticket),
        labels: BTreeMap::new(),
        data_listen: Some(loopback()),
        mesh_listen: Some(loopback()),
        mdns: false,
        quota: None,
        limits: Default::default(),
        relaying: Default::default(),
        models: vec![],
        tokens: Default::default(),
        private_origins: false,
        engine: engine.clone(),
        rebuilding: None,
        devices: vec![Device::Cpu { threads: 1, memory: 8 << 30 }],
    };
    let starting = tokio::spawn(Agent::start(config));
    let Some(Incoming::Join { peer, answer, .. }) = next(&mut incoming).await else { panic!("no join") };
    let accepted = Accepted { membership: farm.admit(peer, now()) };
    answer.send(JoinMessage::Accepted(Box::new(accepted))).expect("it waits");
    let agent = starting.await.expect("no panic").expect("it joined");
    let (tools, finder) = (Arc::clone(&agent.tools), agent.finder());
    let bundled = tools.blobs.import_bytes(b"pixels").await.expect("there is room");
    let stop = CancellationToken::new();
    let serving = tokio::spawn(agent.serve(stop.clone()));
    Played { incoming, tools, engine, finder, bundled, serving, stop, _mesh: mesh, folder }
}

async fn next<T>(queue: &mut mpsc::Receiver<T>) -> Option<T> {
    timeout(PATIENCE, queue.recv()).await.expect("soon")
}

type NodeSession = Session<CoordinatorMessage, NodeMessage>;

impl Played {
    /// The node's next session, welcomed, and what it registered with.
    async fn session(&mut self) -> (NodeSession, Register) {
        let Some(Incoming::Session(mut session)) = next(&mut self.incoming).await else {
            panic!("no session")
        };
        let NodeMessage::Register(register) = hear(&mut session).await else { panic!("no registration") };
        let welcome = Welcome {
            epoch: 1,
            heartbeat: Duration::from_secs(5),
            lease_duration: Duration::from_secs(30),
            data_addresses: vec![],
            unwanted: vec![],
            draining: false,
        };
        say(&mut session, CoordinatorMessage::Welcome(welcome)).await;
        (session, register)
    }

    async fn grant(&self, counter: u64) -> Box<Grant> {
        grant(&self.tools.blobs, self.bundled, counter).await
    }
}

async fn say(session: &mut NodeSession, message: CoordinatorMessage) {
    session.sender.send(&message).await.expect("the session is open");
}

async fn hear(session: &mut NodeSession) -> NodeMessage {
    let message = timeout(PATIENCE, session.receiver.recv()).await.expect("soon");
    message.expect("the session is open").expect("it does not end")
}

/// The next message that `wanted` takes; others are passed over.
async fn hear_until<T>(session: &mut NodeSession, wanted: impl Fn(NodeMessage) -> Option<T>) -> T {
    loop {
        if let Some(found) = wanted(hear(session).await) {
            return found;
        }
    }
}

fn ended(message: NodeMessage) -> Option<RunEnded> {
    if let NodeMessage::RunEnded(ended) = message { Some(ended) } else { None }
}

#[tokio::test]
async fn run_that_breaks_off_is_told_and_its_slot_is_free_again() {
    let mut played = play(vec![Behaviour::Panics, Behaviour::Copies]).await;
    let (mut session, register) = played.session().await;
    assert_eq!((register.offer.slots.len(), register.leases.len(), register.ended.len()), (1, 0, 0));

    let first = played.grant(1).await;
    say(&mut session, CoordinatorMessage::Grant(first)).await;
    let broken = hear_until(&mut session, ended).await;
    let Outcome::Failed(error) = &broken.outcome else { panic!("{:?}", broken.outcome) };
    assert_eq!(error.kind, RunErrorKind::NodeFault);

    let second = played.grant(2).await;
    say(&mut session, CoordinatorMessage::Grant(second)).await;
    let done = hear_until(&mut session, ended).await;
    assert!(matches!(done.outcome, Outcome::Succeeded(_)), "{:?}", done.outcome);
}

#[tokio::test]
async fn self_test_makes_way_for_a_run_and_is_done_after_it() {
    let mut played = play(vec![Behaviour::WaitsForCancel, Behaviour::Copies]).await;
    let (mut session, _) = played.session().await;
    let granted = played.grant(1).await;
    let Grant { lockfile, graph, interface, inputs, providers, .. } = (*granted).clone();
    let workflow = WorkflowVersion { name: "other".parse().expect("a name"), version: 1 };
    let test = SelfTest { workflow: workflow.clone(), lockfile, graph, interface, inputs, providers };
    say(&mut session, CoordinatorMessage::SelfTest(Box::new(test))).await;
    timeout(PATIENCE, async {
        while played.engine.left() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it begins, for there is nothing else to do");
    // Its slot is free for a run at once.
    say(&mut session, CoordinatorMessage::Grant(granted)).await;
    let done = hear_until(&mut session, ended).await;
    assert!(matches!(done.outcome, Outcome::Succeeded(_)), "{:?}", done.outcome);
    let tested = |message| if let NodeMessage::SelfTested(tested) = message { Some(tested) } else { None };
    assert_eq!(hear_until(&mut session, tested).await, SelfTested { workflow, failure: None });
    assert_eq!(std::fs::read_dir(&played.tools.scratch).expect("it is there").count(), 0);
}

#[tokio::test]
async fn end_is_presented_on_each_session_until_it_is_recorded() {
    let mut played = play(vec![Behaviour::Copies]).await;
    let (mut session, _) = played.session().await;
    let granted = played.grant(1).await;
    let (job, run) = (granted.lease.job, granted.lease.run);
    say(&mut session, CoordinatorMessage::Grant(granted)).await;
    let done = hear_until(&mut session, ended).await;

    drop(session);
    let (mut session, register) = played.session().await;
    assert_eq!(register.ended, [done]);
    say(&mut session, CoordinatorMessage::EndRecorded(EndRecorded { job, run })).await;
    timeout(PATIENCE, async {
        while !played.tools.ends.kept().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it is forgotten");
    drop(session);
    let (_session, register) = played.session().await;
    assert_eq!(register.ended, []);
}

#[tokio::test]
async fn stopping_node_gives_its_lease_back_and_leaves_nothing() {
    let mut played = play(vec![Behaviour::WaitsForCancel]).await;
    let (mut session, _) = played.session().await;
    let (first, second) = (played.grant(1).await, played.grant(2).await);
    let lease = first.lease.id;
    say(&mut session, CoordinatorMessage::Grant(first)).await;
    say(&mut session, CoordinatorMessage::Grant(second)).await;
    let refused = |message| if let NodeMessage::Refused(refused) = message { Some(refused) } else { None };
    assert!(matches!(hear_until(&mut session, refused).await.refusal, Refusal::SlotBusy(_)));

    played.stop.cancel();
    let leave = |message| if let NodeMessage::Leave(leave) = message { Some(leave) } else { None };
    assert_eq!(hear_until(&mut session, leave).await.leases, [lease]);
    let end = timeout(PATIENCE, session.receiver.recv()).await.expect("soon");
    assert!(matches!(end, Ok(None)), "it ends between two messages: {end:?}");
    drop(session);
    timeout(PATIENCE, played.serving).await.expect("it stops").expect("no panic");
    assert_eq!(played.tools.ends.kept(), [], "what was given back is not presented");
    assert_eq!(std::fs::read_dir(&played.tools.scratch).expect("it is there").count(), 0);
}

#[tokio::test]
async fn models_that_come_in_place_and_go_are_told_on_the_session() {
    let mut played = play(vec![]).await;
    let (mut session, _) = played.session().await;
    let inventory = |message| if let NodeMessage::Inventory(told) = message { Some(told) } else { None };
    let first = hear_until(&mut session, inventory).await;
    assert!(first.complete && first.added.is_empty());

    let model = played.folder.path().join("model.safetensors");
    std::fs::write(&model, vec![1; 1 << 20]).expect("own folder");
    let custodian = Custodian::find(played.folder.path()).await.expect("the node listens");
    let request = Request::Add { path: model.clone() };
    custodian.ask(request.clone(), |_| {}).await.expect("it can be read");
    let told = hear_until(&mut session, inventory).await;
    let first = BlobRef::of(&[1; 1 << 20]);
    assert!(!told.complete);
    assert_eq!(told.added, [first]);
    let aliases = |message| if let NodeMessage::Aliases(told) = message { Some(told.aliases) } else { None };
    let aliases = hear_until(&mut session, aliases).await;
    assert_eq!(aliases.iter().map(|alias| alias.blob).collect::<Vec<_>>(), told.added);

    std::fs::write(&model, vec![2; 1 << 20]).expect("own folder");
    custodian.ask(request, |_| {}).await.expect("it can be read");
    let (mut added, mut removed) = (vec![], vec![]);
    while added.is_empty() || removed.is_empty() {
        let told = hear_until(&mut session, inventory).await;
        added.extend(told.added);
        removed.extend(told.removed);
    }
    assert_eq!((added, removed), (vec![BlobRef::of(&[2; 1 << 20])], vec![first.hash]));
}

#[tokio::test]
async fn coordinator_is_asked_where_a_blob_is_and_a_lost_one_is_not_waited_for() {
    let mut played = play(vec![]).await;
    let name = BlobName::Blake3(BlobRef::of(b"model").hash);
    let finder = played.finder.clone();
    let (mut session, _) = played.session().await;
    let asking = tokio::spawn({
        let finder = finder.clone();
        async move { finder.locate(&name).await }
    });
    let locate = |message| if let NodeMessage::Locate(locate) = message { Some(locate) } else { None };
    let asked = hear_until(&mut session, locate).await;
    assert_eq!(asked.name, name);
    let (request, blob) = (asked.request, Some(BlobRef::of(b"model")));
    let located = Located { request, blob, providers: vec![], readers: vec![] };
    say(&mut session, CoordinatorMessage::Located(located)).await;
    let found = asking.await.expect("no panic").expect("it is answered");
    assert_eq!(found.blob, blob);

    let asking = tokio::spawn(async move { finder.locate(&name).await });
    hear_until(&mut session, locate).await;
    drop(session);
    assert_eq!(asking.await.expect("no panic"), Err(FindError::Offline));
}

#[tokio::test]
async fn blob_is_kept_as_asked_and_told_with_the_room_that_is_left() {
    let mut played = play(vec![]).await;
    let (mut session, _) = played.session().await;
    let storage = |message| if let NodeMessage::Storage(storage) = message { Some(storage) } else { None };
    let first = hear_until(&mut session, storage).await;
    assert!(first.room > 0 && first.pinned.is_empty());

    let blob = played.tools.blobs.import_bytes(&[7; 1 << 20]).await.expect("there is room");
    say(&mut session, CoordinatorMessage::Keep(Keep { blob, providers: vec![] })).await;
    let inventory =
        |message| if let NodeMessage::Inventory(told) = message { Some(told.added) } else { None };
    while !hear_until(&mut session, inventory).await.contains(&blob) {}
    assert_eq!(hear_until(&mut session, storage).await.pinned, [blob.hash]);
    let entry = played.tools.blobs.list().into_iter().find(|entry| entry.hash == blob.hash);
    assert!(entry.expect("it is here").pinned);

    let refused =
        |message| if let NodeMessage::KeepRefused(refused) = message { Some(refused) } else { None };
    let huge = BlobRef { hash: BlobRef::of(b"huge").hash, size: u64::MAX };
    say(&mut session, CoordinatorMessage::Keep(Keep { blob: huge, providers: vec![] })).await;
    let told = hear_until(&mut session, refused).await;
    assert!(told.blob == huge.hash && told.reason.contains("room"), "{}", told.reason);
    let nobody = BlobRef::of(b"held by nobody");
    say(&mut session, CoordinatorMessage::Keep(Keep { blob: nobody, providers: vec![] })).await;
    let told = hear_until(&mut session, refused).await;
    assert!(told.blob == nobody.hash && told.reason.contains("nobody"), "{}", told.reason);
}
