//! A farm for the API's own tests: the routes over a real blob store, and a small task that answers the
//! commands from plain tables, in place of the coordinator's service.
//!
//! Not here: any rule of the state machine; a test moves jobs by hand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, Response, StatusCode, header};
use mesh::store::BlobStore;
use protocol::{
    BlobHash, BlobRef, BundleHash, FarmId, Interface, JobId, JobState, LockfileHash, OutputFile, PeerId,
    Workflow, WorkflowSelector, WorkflowVersion,
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

use crate::api::guard::Guard;
use crate::handle::{Command, CommandError, CoordinatorHandle, Deployment, EventFeed, KeepWish, Submission};
use crate::view::{
    BlobView, DeployedWorkflow, FarmEvent, FarmEventKind, FarmView, JobView, KeyScope, KeyView, NodeView,
    PreviewView, Requirements,
};

/// The one key that the farm knows.
pub(crate) const KEY: &str = "cfk_test";
/// The most bytes of an upload.
pub(crate) const UPLOAD_LIMIT: u64 = 100_000;
/// The coordinator's own name.
pub(crate) const COORDINATOR: PeerId = PeerId([7; 32]);

/// The routes, and what stands behind them.
pub(crate) struct TestFarm {
    router: Router,
    pub(crate) handle: CoordinatorHandle,
    pub(crate) store: BlobStore,
    tables: Arc<Mutex<Tables>>,
    _folder: tempfile::TempDir,
}

/// What the commands are answered from.
pub(crate) struct Tables {
    pub(crate) workflows: Vec<Arc<DeployedWorkflow>>,
    pub(crate) jobs: BTreeMap<JobId, JobView>,
    pub(crate) nodes: Vec<NodeView>,
    pub(crate) submissions: Vec<Submission>,
    /// What is answered about any blob.
    pub(crate) blob: BlobView,
    pub(crate) wishes: Vec<KeepWish>,
    journal: Vec<FarmEvent>,
    /// Numbers up to this one are no longer kept.
    pub(crate) forgotten: u64,
    live: broadcast::Sender<FarmEvent>,
    previews: broadcast::Sender<Arc<PreviewView>>,
    /// Whose previews were asked for.
    pub(crate) watched: Vec<JobId>,
}

impl TestFarm {
    /// A farm with the workflow `paint` and no jobs.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).await.unwrap();
        let (commands, mut asked) = mpsc::channel(16);
        let tables = Tables {
            workflows: vec![Arc::new(deployed("paint", 1))],
            jobs: BTreeMap::new(),
            nodes: Vec::new(),
            submissions: Vec::new(),
            blob: BlobView::default(),
            wishes: Vec::new(),
            journal: Vec::new(),
            forgotten: 0,
            live: broadcast::channel(16).0,
            previews: broadcast::channel(16).0,
            watched: Vec::new(),
        };
        let tables = Arc::new(Mutex::new(tables));
        let answering = tables.clone();
        tokio::spawn(async move {
            while let Some(command) = asked.recv().await {
                answering.lock().unwrap().answer(command);
            }
        });
        let guard = Guard::new(
            "127.0.0.1:8288".parse().unwrap(),
            &["farm.example".to_owned()],
            &["https://studio.example".to_owned()],
        );
        let handle = CoordinatorHandle::new(commands, store.clone());
        let router =
            super::router(guard, handle.clone(), COORDINATOR, UPLOAD_LIMIT, CancellationToken::new());
        Self { router, handle, store, tables, _folder: folder }
    }

    pub(crate) fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap()
    }

    /// Sends a request as it is.
    pub(crate) async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// A GET with the key; gives status and JSON.
    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        let response = self.send(request(Method::GET, path).body(Body::empty()).unwrap()).await;
        (response.status(), json_of(response).await)
    }

    /// A POST of JSON with the key; gives status and JSON.
    pub(crate) async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        let request = request(Method::POST, path).header(header::CONTENT_TYPE, "application/json");
        let response = self.send(request.body(Body::from(body.to_string())).unwrap()).await;
        (response.status(), json_of(response).await)
    }

    /// Submits a job to `paint`.
    pub(crate) async fn submit(&self) -> JobId {
        let picture = self.store.import_bytes(b"GIF89a").await.unwrap();
        let body = json!({ "input": { "picture": { "$asset": picture.hash } } });
        let (status, job) = self.post("/v1/workflows/paint/jobs", body).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{job}");
        job["id"].as_str().unwrap().parse().unwrap()
    }
}

/// The builder of a request that passes the guard.
pub(crate) fn request(method: Method, path: &str) -> axum::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "127.0.0.1:8288")
        .header(header::AUTHORIZATION, format!("Bearer {KEY}"))
}

/// All bytes of an answer.
pub(crate) async fn bytes_of(response: Response<Body>) -> Vec<u8> {
    to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()
}

/// An answer as JSON; null where it is empty.
pub(crate) async fn json_of(response: Response<Body>) -> Value {
    let bytes = bytes_of(response).await;
    if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() }
}

/// A workflow with a text, a number, a picture, and a picture that comes back.
pub(crate) fn graph() -> Value {
    let op = |class: &str, title: &str, inputs: Value| json!({ "class_type": class, "inputs": inputs, "_meta": { "title": title } });
    json!({
        "1": op("CPackInputString", "prompt", json!({ "value": "a cat" })),
        "2": op("CPackInputInt", "seed", json!({ "value": 7, "min": 0, "max": 100 })),
        "3": op("CPackInputImage", "picture", json!({ "image": "x.png", "upload": "image" })),
        "4": op("CPackOutputImage", "image", json!({ "images": ["3", 0], "filename_prefix": "x" })),
    })
}

/// A deployed version of [`graph`].
pub(crate) fn deployed(name: &str, version: u32) -> DeployedWorkflow {
    let graph = graph().to_string().into_bytes();
    let interface = Interface::of(&Workflow::parse(&graph).unwrap()).unwrap();
    DeployedWorkflow {
        id: WorkflowVersion { name: name.parse().unwrap(), version },
        bundle: BundleHash(BlobHash::of(b"bundle")),
        lockfile: LockfileHash(BlobHash::of(b"lockfile")),
        document: None,
        graph: BlobRef::of(&graph),
        inputs: Default::default(),
        interface_blob: BlobRef::of(b"interface"),
        interface: Arc::new(interface),
        models: vec![],
        private: vec![],
        requirements: Requirements { classes: ["SaveImage".to_owned()].into(), ..Requirements::default() },
        notes: Vec::new(),
        deployed: OffsetDateTime::UNIX_EPOCH,
    }
}

impl Tables {
    /// Ends a job as succeeded, with these outputs.
    pub(crate) fn succeed(&mut self, job: JobId, outputs: Vec<OutputFile>) {
        let view = self.jobs.get_mut(&job).unwrap();
        view.state = JobState::Succeeded;
        view.ended = Some(OffsetDateTime::now_utc());
        view.outputs = outputs;
        self.happen(true, FarmEventKind::Ended { job, state: JobState::Succeeded });
    }

    /// How many callers follow the events.
    pub(crate) fn listeners(&self) -> usize {
        self.live.receiver_count()
    }

    /// Tells an event, and journals it if it is durable.
    pub(crate) fn happen(&mut self, is_durable: bool, kind: FarmEventKind) {
        let number = is_durable.then_some(self.journal.len() as u64 + 1);
        let event = FarmEvent { number, at: OffsetDateTime::now_utc(), kind };
        if is_durable {
            self.journal.push(event.clone());
        }
        // Nobody may be listening.
        let _ = self.live.send(event);
    }

    /// Shows a picture in the making, of these bytes.
    pub(crate) fn show(&mut self, job: JobId, bytes: &[u8]) {
        let frame = protocol::PreviewFrame::of(bytes).expect("a picture");
        let (run, at) = (protocol::RunId(Uuid::nil()), OffsetDateTime::UNIX_EPOCH);
        let _ = self.previews.send(Arc::new(PreviewView { job, run, frame, at }));
    }

    fn answer(&mut self, command: Command) {
        // Whoever asked may have hung up, so that an answer's fate does not matter.
        match command {
            Command::Deploy(deployment, answer) => drop(answer.send(Ok(self.deploy(*deployment)))),
            Command::Restore(version, answer) => drop(answer.send(self.restore(&version))),
            Command::Workflows(answer) => drop(answer.send(self.workflows.clone())),
            Command::Workflow(selector, answer) => drop(answer.send(self.find(&selector))),
            Command::Submit(submission, answer) => drop(answer.send(Ok(self.submit(*submission)))),
            Command::Job(job, answer) => drop(answer.send(Ok(self.jobs.get(&job).cloned()))),
            Command::Jobs(filter, answer) => {
                let before = |job: &&JobView| filter.before.is_none_or(|before| job.id < before);
                let state = |job: &&JobView| filter.state.is_none_or(|state| job.state == state);
                let jobs = self.jobs.values().rev().filter(before).filter(state);
                drop(answer.send(Ok(jobs.take(filter.limit as usize).cloned().collect())));
            }
            Command::Cancel(job, answer) => {
                if let Some(view) = self.jobs.get_mut(&job) {
                    view.state = JobState::Canceled;
                }
                drop(answer.send(Ok(self.jobs.get(&job).cloned())));
            }
            Command::Nodes(answer) => drop(answer.send(self.nodes.clone())),
            Command::Blob(_, answer) => drop(answer.send(self.blob.clone())),
            Command::Keep(wish, answer) => {
                self.wishes.push(wish);
                drop(answer.send(self.blob.clone()));
            }
            Command::SetDraining(peer, draining, answer) => {
                let node = self.nodes.iter_mut().find(|node| node.peer == peer);
                let node = node.map(|node| {
                    node.draining = draining;
                    node.clone()
                });
                drop(answer.send(Ok(node)));
            }
            Command::Invite(invitation, answer) => {
                let addresses = vec!["/ip4/127.0.0.1/udp/4288/quic-v1".to_owned()];
                let expires = 1_800_000_000 + invitation.lifetime.as_secs();
                let farm = FarmId([1; 32]);
                let ticket = protocol::ticket::Ticket::new(farm, COORDINATOR, addresses, [3; 16], expires);
                drop(answer.send(Ok(ticket)));
            }
            Command::Farm(answer) => drop(answer.send(self.farm())),
            Command::Events(after, answer) => drop(answer.send(Ok(self.events(after)))),
            Command::Previews(job, answer) => {
                self.watched.push(job);
                drop(answer.send(self.previews.subscribe()));
            }
            Command::Authenticate(key, answer) => {
                let known = KeyView { name: "test".to_owned(), scope: KeyScope::Admin };
                drop(answer.send((key == KEY).then_some(known)));
            }
        }
    }

    fn deploy(&mut self, deployment: Deployment) -> Arc<DeployedWorkflow> {
        let versions = self.workflows.iter().filter(|one| one.id.name == deployment.name).count();
        let new = DeployedWorkflow {
            id: WorkflowVersion { name: deployment.name, version: versions as u32 + 1 },
            interface: Arc::new(deployment.interface),
            notes: deployment.notes,
            bundle: deployment.bundle.hash(),
            ..deployed("paint", 1)
        };
        let new = Arc::new(new);
        self.workflows.insert(0, new.clone());
        new
    }

    fn restore(&mut self, version: &WorkflowVersion) -> Result<Arc<DeployedWorkflow>, CommandError> {
        let place = self.workflows.iter().position(|one| one.id == *version);
        let place = place.ok_or_else(|| CommandError::UnknownWorkflow(version.to_string()))?;
        let restored = self.workflows.remove(place);
        self.workflows.insert(0, restored.clone());
        Ok(restored)
    }

    fn find(&self, selector: &WorkflowSelector) -> Option<Arc<DeployedWorkflow>> {
        let meant = |id: &WorkflowVersion| {
            id.name == selector.name && selector.version.is_none_or(|version| id.version == version)
        };
        self.workflows.iter().find(|one| meant(&one.id)).cloned()
    }

    fn submit(&mut self, submission: Submission) -> JobId {
        let id = JobId(Uuid::now_v7());
        let workflow = submission.workflow.clone();
        let view = JobView {
            id,
            workflow: workflow.clone(),
            state: JobState::Queued,
            priority: submission.priority,
            parameters: BlobRef::of(b"parameters"),
            submitted: OffsetDateTime::now_utc(),
            expires: submission.time_to_live.map(|time| OffsetDateTime::now_utc() + time),
            started: None,
            ended: None,
            queue_position: Some(0),
            waits: Vec::new(),
            run: None,
            failures: Vec::new(),
            outputs: Vec::new(),
            error: None,
            fetched: Vec::new(),
        };
        self.jobs.insert(id, view);
        self.submissions.push(submission);
        self.happen(true, FarmEventKind::Submitted { job: id, workflow });
        id
    }

    fn farm(&self) -> FarmView {
        let queued = self.jobs.values().filter(|job| job.state == JobState::Queued).count() as u64;
        let farm = FarmId([1; 32]);
        FarmView { farm, coordinator: COORDINATOR, epoch: 1, queued, running: 0, nodes: 0, slots: 0 }
    }

    fn events(&self, after: Option<u64>) -> EventFeed {
        let newest = self.journal.len() as u64;
        let kept = after.filter(|after| (self.forgotten..=newest).contains(after));
        let missed = kept.map(|after| self.journal[after as usize..].to_vec());
        EventFeed { missed, newest, live: self.live.subscribe() }
    }
}
