//! A whole coordinator on loopback sockets, with a node that is played by the test: it speaks the real
//! session and serves real blobs, and executes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use mesh::identity::Identity;
use mesh::plane::QuinnPlane;
use mesh::store::BlobEntry;
use mesh::swarm::Session;
use protocol::membership::Role;
use protocol::message::{
    CoordinatorMessage, Grant, JoinRequest, NodeMessage, Outcome, Register, RunEnded, Welcome,
};
use protocol::ticket::Ticket;
use protocol::{
    BlobRef, Bundle, Device, Engine, ExposedInput, Interface, JobId, JobState, LockedModel, Offer,
    OutputFile, Parameters, RunError, RunErrorKind, SlotId, SlotOffer, WorkflowVersion,
};
use tokio::time::timeout;

use super::*;
use crate::handle::{CommandError, Deployment, EventFeed, Invitation, JobsFilter, Submission};
use crate::view::{FarmEventKind, JobView};

/// How long anything may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

const GRAPH: &[u8] = br#"{
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
}"#;

async fn start(data: &std::path::Path) -> Coordinator {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = CoordinatorConfig {
        mesh_listen: vec![loopback],
        data_listen: loopback,
        ..CoordinatorConfig::new(data.to_owned())
    };
    Coordinator::start(config).await.expect("starts")
}

async fn deploy(coordinator: &Coordinator) -> WorkflowVersion {
    deploy_with(coordinator, vec![]).await
}

async fn deploy_with(coordinator: &Coordinator, models: Vec<LockedModel>) -> WorkflowVersion {
    let graph = coordinator.handle.blobs().import_bytes(GRAPH).await.expect("stored");
    let mut bundle = Bundle::from_workflow(GRAPH, &mut |_, reader| {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        Ok(BlobRef::of(&bytes))
    })
    .expect("a good graph");
    assert_eq!(bundle.manifest.workflow, graph);
    bundle.lockfile.models = models;
    let width: ExposedInput = "width=1.width".parse().expect("well written");
    let interface = Interface::expose(&bundle.workflow, &[width], &["9".to_owned()], None).expect("exposed");
    let name = "blank".parse().expect("valid");
    let (accept_attached, keep_signature) = (false, false);
    let deployment = Deployment { name, bundle, interface, accept_attached, keep_signature, notes: vec![] };
    coordinator.handle.deploy(deployment).await.expect("deployed").id.clone()
}

async fn submit(coordinator: &Coordinator, workflow: &WorkflowVersion) -> JobId {
    let parameters = Parameters::parse(br#"{"width": 16}"#).expect("well written");
    let submission = Submission { workflow: workflow.clone(), parameters, priority: 50, time_to_live: None };
    coordinator.handle.submit(submission).await.expect("submitted")
}

/// Waits until a job is as it should be.
async fn wait_for(coordinator: &Coordinator, job: JobId, state: JobState) -> JobView {
    let EventFeed { mut live, .. } = coordinator.handle.events(None).await.expect("a feed");
    let wait = async {
        loop {
            let view = coordinator.handle.job(job).await.expect("answers").expect("known");
            if view.state == state {
                return view;
            }
            live.recv().await.expect("events go on");
        }
    };
    timeout(PATIENCE, wait).await.expect("in time")
}

/// A node that is played by the test.
struct Player {
    mesh: Mesh,
    exchange: Exchange,
    session: Session<NodeMessage, CoordinatorMessage>,
    _folder: tempfile::TempDir,
}

impl Player {
    async fn join(ticket: &Ticket, ended: Vec<RunEnded>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let identity = Arc::new(Identity::generate().expect("random bytes"));
        let mesh_config = MeshConfig::new(identity.clone(), vec![]);
        let (mesh, _) = Mesh::start(mesh_config).await.expect("starts");
        let request = JoinRequest {
            farm: ticket.farm,
            secret: Some(ticket.secret()),
            role: Role::Node,
            labels: BTreeMap::new(),
        };
        let accepted = mesh.join(ticket.coordinator, &ticket.addresses, request).await.expect("joins");
        let credentials = Credentials::new(ticket.farm, identity.peer(), accepted.membership);
        mesh.set_credentials(credentials.clone());
        let plane =
            QuinnPlane::bind(&identity, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.expect("binds");
        let blobs = BlobStore::open(folder.path()).await.expect("opens");
        let exchange = Exchange::start(ExchangeConfig::new(blobs, Arc::new(plane), credentials));
        let session = mesh.open_session(ticket.coordinator, &ticket.addresses).await.expect("opens");
        let mut player = Self { mesh, exchange, session, _folder: folder };
        player.register(ended).await;
        player
    }

    /// Registers without any data address: nobody can dial this node, so it dials out.
    async fn register(&mut self, ended: Vec<RunEnded>) {
        let offer = Offer {
            host_name: "player".to_owned(),
            agent_version: String::new(),
            platform: String::new(),
            engine: Engine::Builtin,
            classes: BTreeSet::from(["EmptyImage".to_owned(), "SaveImage".to_owned()]),
            models: BTreeSet::new(),
            slots: vec![SlotOffer { id: SlotId(0), device: Device::Cpu { threads: 1, memory: 8 << 30 } }],
        };
        let register = Register { offer, data_addresses: vec![], leases: vec![], ended, draining: false };
        self.session.sender.send(&NodeMessage::Register(register)).await.expect("sent");
        let CoordinatorMessage::Welcome(Welcome { data_addresses, .. }) = self.hear().await else {
            panic!("no welcome")
        };
        self.exchange.keep_link(self.session.peer, data_addresses);
    }

    async fn hear(&mut self) -> CoordinatorMessage {
        let message = timeout(PATIENCE, self.session.receiver.recv()).await.expect("in time");
        message.expect("a good frame").expect("the session is open")
    }

    async fn granted(&mut self) -> Grant {
        match self.hear().await {
            CoordinatorMessage::Grant(grant) => *grant,
            other => panic!("no grant: {other:?}"),
        }
    }

    /// Tells that a run failed, and hears that this is recorded.
    async fn fail(&mut self, grant: &Grant, kind: RunErrorKind) {
        let outcome = Outcome::Failed(RunError::new(kind, "it came from nobody"));
        let ended = RunEnded { lease: grant.lease, outcome, fetched: vec![], executed: Duration::ZERO };
        self.session.sender.send(&NodeMessage::RunEnded(ended)).await.expect("sent");
        let CoordinatorMessage::EndRecorded(_) = self.hear().await else { panic!("not recorded") };
    }

    /// Makes an output, as an engine would.
    async fn made(&self, grant: &Grant) -> RunEnded {
        let blob = self.exchange.store().import_bytes(&vec![7; 3_000_000]).await.expect("stored");
        let interface = grant.providers.iter().find(|providers| providers.hash == grant.interface.hash);
        self.exchange
            .fetch(grant.interface, &interface.expect("named").providers, None)
            .await
            .expect("the coordinator serves it");
        let document = self.exchange.store().read_all(grant.interface.hash, 1 << 20).await.expect("is here");
        let interface: Interface = serde_json::from_slice(&document).expect("an interface");
        let file = OutputFile {
            output: interface.outputs[0].name.clone(),
            index: 0,
            file_name: "out.png".to_owned(),
            media_type: "image/png".to_owned(),
            blob,
        };
        let outcome = Outcome::Succeeded(vec![file]);
        RunEnded { lease: grant.lease, outcome, fetched: vec![], executed: Duration::from_secs(1) }
    }

    async fn stop(self) {
        self.exchange.shutdown().await;
        self.mesh.shutdown();
    }
}

async fn ticket(coordinator: &Coordinator) -> Ticket {
    let invitation = Invitation { uses: 5, lifetime: Duration::from_secs(600) };
    coordinator.handle.invite(invitation).await.expect("a ticket")
}

#[tokio::test(flavor = "multi_thread")]
async fn job_goes_to_a_node_and_its_outputs_come_back_over_the_link_that_the_node_dialled() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let coordinator = start(folder.path()).await;
    let workflow = deploy(&coordinator).await;
    let job = submit(&coordinator, &workflow).await;
    let mut player = Player::join(&ticket(&coordinator).await, vec![]).await;

    let grant = player.granted().await;
    assert_eq!((grant.lease.job, &grant.parameters[..]), (job, &br#"{"width":16}"#[..]));
    let ended = player.made(&grant).await;
    player.session.sender.send(&NodeMessage::RunEnded(ended.clone())).await.expect("sent");
    let CoordinatorMessage::EndRecorded(recorded) = player.hear().await else { panic!("not recorded") };
    assert_eq!(recorded.run, grant.lease.run);

    let view = wait_for(&coordinator, job, JobState::Succeeded).await;
    let Outcome::Succeeded(outputs) = ended.outcome else { panic!("it succeeded") };
    assert_eq!(view.outputs, outputs);
    assert!(coordinator.handle.blobs().contains(outputs[0].blob.hash));

    let feed = coordinator.handle.events(Some(0)).await.expect("a feed");
    let missed = feed.missed.expect("nothing is dropped yet");
    let numbers: Vec<Option<u64>> = missed.iter().map(|event| event.number).collect();
    assert_eq!((numbers, feed.newest), (vec![Some(1), Some(2), Some(3)], 3));
    let state = JobState::Succeeded;
    assert_eq!(missed[2].kind, FarmEventKind::Ended { job, state });
    player.stop().await;
    coordinator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_that_the_coordinator_lost_is_its_own_fault_and_one_that_it_has_is_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let coordinator = start(folder.path()).await;
    let workflow = deploy(&coordinator).await;
    let job = submit(&coordinator, &workflow).await;
    let mut player = Player::join(&ticket(&coordinator).await, vec![]).await;
    let blobs = coordinator.handle.blobs();

    let grant = player.granted().await;
    blobs.remove(grant.graph.hash).await.expect("removed");
    player.fail(&grant, RunErrorKind::MissingBlob).await;
    let grant = player.granted().await;
    blobs.import_bytes(GRAPH).await.expect("stored");
    // Who is to blame is not for a node to say.
    player.fail(&grant, RunErrorKind::LostBlob).await;
    let grant = player.granted().await;
    let failures = coordinator.handle.job(job).await.expect("answers").expect("known").failures;
    let kinds: Vec<_> = failures.iter().map(|failed| failed.error.kind).collect();
    assert_eq!(kinds, [RunErrorKind::LostBlob, RunErrorKind::MissingBlob]);
    let detail = &failures[0].error.detail;
    assert!(
        detail.contains(&grant.graph.hash.to_string()) && detail.ends_with("it came from nobody"),
        "{detail}"
    );
    player.stop().await;
    coordinator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_coordinator_takes_the_end_of_a_run_that_it_granted_before() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let coordinator = start(folder.path()).await;
    assert!(coordinator.first_key.is_some());
    let workflow = deploy(&coordinator).await;
    let job = submit(&coordinator, &workflow).await;
    let mut player = Player::join(&ticket(&coordinator).await, vec![]).await;
    let grant = player.granted().await;
    let ended = player.made(&grant).await;
    coordinator.shutdown().await;

    let coordinator = start(folder.path()).await;
    assert_eq!((&coordinator.first_key, coordinator.handle.farm().await.expect("answers").epoch), (&None, 2));
    let view = coordinator.handle.job(job).await.expect("answers").expect("kept");
    assert_eq!((view.state, view.waits.len()), (JobState::Queued, 1), "it is held for its node");
    let addresses = ticket(&coordinator).await.addresses;
    player.session = player.mesh.open_session(coordinator.peer, &addresses).await.expect("opens again");
    player.register(vec![ended]).await;
    let view = wait_for(&coordinator, job, JobState::Succeeded).await;
    assert_eq!(view.run.map(|run| run.id), Some(grant.lease.run));
    player.stop().await;
    coordinator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_coordinator_keeps_private_what_was_deployed_so_though_its_blobs_were_lost() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let coordinator = start(folder.path()).await;
    let model = BlobRef::of(b"a private model");
    let private = LockedModel {
        path: "models/loras/mine.safetensors".parse().expect("a path"),
        size: model.size,
        sha256: None,
        blob: Some(model.hash),
        sources: vec![],
        disabled: false,
        share: false,
    };
    deploy_with(&coordinator, vec![private]).await;
    coordinator.shutdown().await;
    std::fs::remove_dir_all(folder.path().join("blobs")).expect("removed");

    let coordinator = start(folder.path()).await;
    let other = coordinator.handle.blobs().import_bytes(b"another model").await.expect("stored");
    coordinator.handle.blobs().import_bytes(b"a private model").await.expect("stored");
    let shared = |entry: &BlobEntry| entry.shared;
    let shared: Vec<_> = coordinator.handle.blobs().list().into_iter().filter(shared).collect();
    assert_eq!(shared.iter().map(|entry| entry.hash).collect::<Vec<_>>(), [other.hash]);
    coordinator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn coordinator_whose_store_fails_promises_nothing_and_stops() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let coordinator = start(folder.path()).await;
    let workflow = deploy(&coordinator).await;
    let kept = submit(&coordinator, &workflow).await;
    let EventFeed { mut live, .. } = coordinator.handle.events(None).await.expect("a feed");
    coordinator.store.close().await;
    let parameters = Parameters::parse(br#"{"width": 16}"#).expect("well written");
    let submission = Submission { workflow, parameters, priority: 50, time_to_live: None };
    let refused = coordinator.handle.submit(submission).await;
    assert!(matches!(refused, Err(CommandError::Stopping(_))), "{refused:?}");
    timeout(PATIENCE, coordinator.failed()).await.expect("it stops by itself");
    while let Ok(event) = live.recv().await {
        assert!(event.number.is_none(), "told of what was not written: {event:?}");
    }
    coordinator.shutdown().await;

    let again = start(folder.path()).await;
    let list = again.handle.jobs(JobsFilter { limit: 10, ..JobsFilter::default() }).await.expect("answers");
    assert_eq!(list.iter().map(|job| job.id).collect::<Vec<_>>(), [kept]);
    again.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_queue_refuses_until_there_is_room() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = CoordinatorConfig {
        mesh_listen: vec![loopback],
        data_listen: loopback,
        max_queued: 3,
        ..CoordinatorConfig::new(folder.path().to_owned())
    };
    let coordinator = Coordinator::start(config).await.expect("starts");
    let workflow = deploy(&coordinator).await;
    let parameters = Parameters::parse(br#"{"width": 16}"#).expect("well written");
    let submission = Submission { workflow, parameters, priority: 50, time_to_live: None };
    let submissions = (0..8).map(|_| coordinator.handle.submit(submission.clone()));
    let answers = futures::future::join_all(submissions).await;
    let taken: Vec<JobId> = answers.iter().filter_map(|answer| answer.clone().ok()).collect();
    assert_eq!(taken.len(), 3);
    assert!(answers.iter().any(|answer| matches!(answer, Err(CommandError::QueueFull(3)))));
    coordinator.handle.cancel(taken[0]).await.expect("answers");
    assert!(coordinator.handle.submit(submission).await.is_ok());
    coordinator.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_answer_what_there_is_and_refuse_what_there_is_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let coordinator = start(folder.path()).await;
    let handle = coordinator.handle.clone();
    let workflow = deploy(&coordinator).await;
    let second = deploy(&coordinator).await;
    assert_eq!((workflow.version, second.version), (1, 2));
    assert_eq!(handle.restore(workflow.clone()).await.expect("restored").id, workflow);
    let current = handle.workflow("blank".parse().expect("valid")).await.expect("answers");
    assert_eq!(current.expect("deployed").id, workflow);
    let requirements = &handle.workflows().await.expect("answers")[0].requirements;
    assert!(requirements.classes.contains("SaveImage"));

    let missing = WorkflowVersion { version: 9, ..workflow.clone() };
    let parameters = Parameters::default();
    let submission = Submission { workflow: missing, parameters, priority: 1, time_to_live: None };
    assert!(matches!(handle.submit(submission).await, Err(CommandError::UnknownWorkflow(_))));

    let jobs = [submit(&coordinator, &workflow).await, submit(&coordinator, &workflow).await];
    let cancelled = handle.cancel(jobs[0]).await.expect("answers").expect("known");
    assert_eq!(cancelled.state, JobState::Canceled);
    assert_eq!(handle.cancel(JobId(uuid::Uuid::nil())).await.expect("answers"), None);
    let filter = JobsFilter { limit: 10, ..JobsFilter::default() };
    let list = handle.jobs(filter.clone()).await.expect("answers");
    let states: Vec<_> = list.iter().map(|job| (job.id, job.state)).collect();
    assert_eq!(states, [(jobs[1], JobState::Queued), (jobs[0], JobState::Canceled)]);
    let queued = JobsFilter { state: Some(JobState::Queued), ..filter };
    assert_eq!(handle.jobs(queued).await.expect("answers").len(), 1);

    let key = coordinator.first_key.clone().expect("the first start");
    assert!(handle.authenticate(&key).await.expect("answers").is_some());
    assert_eq!(handle.authenticate("cfk_wrong").await.expect("answers"), None);
    assert_eq!(handle.set_draining(coordinator.peer, true).await.expect("answers"), None);
    let other = Coordinator::start(CoordinatorConfig::new(folder.path().to_owned())).await.err();
    assert!(other.is_some_and(|error| error.is_in_use()));

    coordinator.shutdown().await;
    assert!(handle.farm().await.is_err(), "nothing answers any more");
}
