//! For the tests of this crate: a farm's keys, a small workflow, and an engine that does as it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use mesh::fetch::{Exchange, ExchangeConfig};
use mesh::gate::Credentials;
use mesh::identity::Identity;
use mesh::plane::QuinnPlane;
use mesh::store::BlobStore;
use protocol::membership::{Membership, Role};
use protocol::message::Grant;
use protocol::{
    BlobRef, FarmId, Interface, JobId, Lease, LeaseId, PeerId, RunError, RunErrorKind, RunId, SlotId,
    Workflow, WorkflowVersion,
};
use tokio_util::sync::CancellationToken;

use crate::engine::{Description, Engine, EngineError, Execution, ProducedFile, ProgressSink};

/// How long a test waits for what should come soon.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The name under which the graph of [`workflow`] knows its bundled picture.
pub(crate) const BUNDLED: &str = "cat.png";

/// A farm's keys.
pub(crate) struct Farm {
    root: Identity,
    pub(crate) coordinator: Arc<Identity>,
}

impl Farm {
    pub(crate) fn new() -> Self {
        Self { root: key(), coordinator: Arc::new(key()) }
    }

    pub(crate) fn id(&self) -> FarmId {
        FarmId(self.root.peer().0)
    }

    pub(crate) fn coordinator_credentials(&self) -> Credentials {
        let keys = (self.root.signing_key(), self.coordinator.signing_key());
        Credentials::new(
            self.id(),
            self.coordinator.peer(),
            Membership::for_coordinator(keys.0, keys.1, now()),
        )
    }

    /// The membership of a node that was admitted at `issued`.
    pub(crate) fn admit(&self, peer: PeerId, issued: u64) -> Membership {
        let keys = (self.root.signing_key(), self.coordinator.signing_key());
        let coordinator = Membership::for_coordinator(keys.0, keys.1, issued).coordinator;
        Membership::issue(&coordinator, keys.1, peer, Role::Node, BTreeMap::new(), issued)
    }

    /// The data plane of a member, with its store in this folder.
    pub(crate) async fn exchange(&self, folder: &Path) -> (PeerId, Exchange) {
        let identity = key();
        let peer = identity.peer();
        let credentials = Credentials::new(self.id(), peer, self.admit(peer, now()));
        let blobs = BlobStore::open(folder).await.expect("a store");
        let plane = QuinnPlane::bind(&identity, loopback()).await.expect("a plane");
        let mut config = ExchangeConfig::new(blobs, Arc::new(plane), credentials);
        config.link_wait = PATIENCE;
        (peer, Exchange::start(config))
    }
}

pub(crate) fn key() -> Identity {
    Identity::generate().expect("a key")
}

pub(crate) fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A grant of a workflow that loads a bundled picture and saves it as the output `images`.
pub(crate) async fn grant(blobs: &BlobStore, bundled: BlobRef, counter: u64) -> Box<Grant> {
    let graph = br#"{
        "1": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
    }"#;
    let workflow = Workflow::parse(graph).expect("a good graph");
    let interface = Interface::expose(&workflow, &[], &["9".to_owned()], None).expect("it has op 9");
    let interface = serde_json::to_vec(&interface).expect("only text keys");
    let id = LeaseId { epoch: 1, counter };
    let run = RunId(uuid::Uuid::from_u128(counter.into()));
    Box::new(Grant {
        lease: Lease { id, job: JobId(uuid::Uuid::from_u128(1)), run },
        slot: SlotId(0),
        workflow: WorkflowVersion { name: "copy".parse().expect("a name"), version: 1 },
        lockfile: protocol::LockfileHash(BlobRef::of(b"a lockfile").hash),
        graph: blobs.import_bytes(graph).await.expect("there is room"),
        interface: blobs.import_bytes(&interface).await.expect("there is room"),
        inputs: [(BUNDLED.to_owned(), bundled)].into(),
        parameters: b"{}".to_vec(),
        providers: vec![],
    })
}

/// What a [`FakeEngine`] does with each execution.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Behaviour {
    /// Saves what it loads.
    Copies,
    /// Makes no file.
    MakesNothing,
    /// Works until it is cancelled.
    WaitsForCancel,
    /// Has a bug.
    Panics,
}

/// An engine that does the next of what it was told, and the last for ever.
pub(crate) struct FakeEngine(std::sync::Mutex<Vec<Behaviour>>);

impl FakeEngine {
    pub(crate) fn new(mut behaviours: Vec<Behaviour>) -> Arc<Self> {
        behaviours.reverse();
        Arc::new(Self(std::sync::Mutex::new(behaviours)))
    }

    /// How many executions it was told of that it did not begin with.
    pub(crate) fn left(&self) -> usize {
        self.0.lock().expect("nothing panics while it holds them").len()
    }

    fn next(&self) -> Behaviour {
        let mut behaviours = self.0.lock().expect("nothing panics while it holds them");
        if behaviours.len() > 1 { behaviours.pop().expect("there are several") } else { behaviours[0] }
    }
}

#[async_trait]
impl Engine for FakeEngine {
    async fn describe(&self) -> Result<Description, EngineError> {
        let classes = ["LoadImage".to_owned(), "SaveImage".to_owned()].into();
        Ok(Description { engine: protocol::Engine::Builtin, classes, models: BTreeSet::new() })
    }

    async fn execute(
        &self,
        execution: Execution,
        _progress: &ProgressSink,
        cancel: &CancellationToken,
    ) -> Result<Vec<ProducedFile>, RunError> {
        match self.next() {
            Behaviour::Copies => {
                let path = execution.scratch.join("made.png");
                std::fs::copy(&execution.files[0].path, &path).expect("the input is here");
                let (op, file_name) = ("9".to_owned(), "made.png".to_owned());
                Ok(vec![ProducedFile { op, file_name, media_type: "image/png".to_owned(), path }])
            }
            Behaviour::MakesNothing => Ok(vec![]),
            Behaviour::WaitsForCancel => {
                cancel.cancelled().await;
                Err(RunError::new(RunErrorKind::Canceled, "as asked"))
            }
            Behaviour::Panics => panic!("a bug of the engine"),
        }
    }
}
