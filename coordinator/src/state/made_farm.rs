//! The farm of this module's tests: the machine with a made-up time, and what it wrote and did.

use std::collections::BTreeSet;

use protocol::message::{Heartbeat, HeldLease, Outcome as RunOutcome};
use protocol::{
    BlobHash, Device, Engine, Fetched, Interface, LockfileHash, Offer, Output, OutputFile, OutputKind, Phase,
    RunError, RunErrorKind, SlotId, SlotOffer,
};
use uuid::Uuid;

use super::record::{Entry, Found};
use super::*;
use crate::view::{JobView, Requirements};

/// A farm in a test: the machine, its time, and what it did.
pub(super) struct Farm {
    pub(super) state: State,
    pub(super) now: Duration,
    sessions: u64,
    /// All that was written, from which a restart begins.
    pub(super) written: Found,
    /// What was done since it was last looked at, without what was written.
    done: Vec<Action>,
}

pub(super) fn node(seed: u8) -> PeerId {
    PeerId([seed; 32])
}

pub(super) fn job(number: u64) -> JobId {
    JobId(Uuid::from_u128(u128::from(number)))
}

pub(super) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) fn coordinator() -> PeerId {
    PeerId([200; 32])
}

pub(super) fn settings() -> Settings {
    Settings {
        lease_duration: seconds(30),
        heartbeat: seconds(5),
        reattach_grace: seconds(30),
        provider: Provider { peer: coordinator(), addresses: vec![] },
        publisher: PublisherKey([201; 32]),
    }
}

pub(super) fn workflow_id(version: u32) -> WorkflowVersion {
    WorkflowVersion { name: "pixel-art".parse().expect("valid"), version }
}

pub(super) fn workflow(version: u32) -> Arc<DeployedWorkflow> {
    let output = Output {
        name: "picture".into(),
        op: "9".into(),
        class_type: "SaveImage".into(),
        kind: OutputKind::Image,
    };
    let interface = Interface { outputs: vec![output], ..Interface::default() };
    Arc::new(DeployedWorkflow {
        id: workflow_id(version),
        bundle: protocol::BundleHash(BlobHash([1; 32])),
        lockfile: LockfileHash(BlobHash([2; 32])),
        document: None,
        graph: BlobRef::of(b"graph"),
        interface_blob: BlobRef::of(b"interface"),
        inputs: BTreeMap::new(),
        interface: Arc::new(interface),
        models: vec![],
        private: vec![],
        requirements: Requirements::default(),
        notes: vec![],
        deployed: OffsetDateTime::UNIX_EPOCH,
    })
}

pub(super) fn input() -> BlobRef {
    BlobRef::of(b"a picture")
}

pub(super) fn output() -> OutputFile {
    let blob = BlobRef::of(b"another picture");
    let (file_name, media_type) = ("out.png".to_owned(), "image/png".to_owned());
    OutputFile { output: "picture".into(), index: 0, file_name, media_type, blob }
}

pub(super) fn succeeded(lease: Lease) -> RunEnded {
    let fetched = vec![Fetched { blob: input(), from: coordinator(), bytes: input().size }];
    RunEnded { lease, outcome: RunOutcome::Succeeded(vec![output()]), fetched, executed: seconds(1) }
}

pub(super) fn failed(lease: Lease, kind: RunErrorKind) -> RunEnded {
    let outcome = RunOutcome::Failed(RunError::new(kind, "it broke"));
    RunEnded { lease, outcome, fetched: vec![], executed: seconds(1) }
}

/// A run that a node is at work on, as it registers.
pub(super) fn held(lease: Lease) -> HeldLease {
    HeldLease { lease, slot: SlotId(0), phase: Phase::Executing }
}

/// A farm with one job running on node 1, and its lease.
pub(super) fn running() -> (Farm, Lease) {
    let mut farm = Farm::new();
    farm.register(1);
    farm.submit(1);
    let (on, lease) = farm.granted();
    assert_eq!((on, farm.view(1).state), (node(1), JobState::Running));
    (farm, lease)
}

impl Farm {
    /// A farm with one workflow and no nodes.
    pub(super) fn new() -> Self {
        let now = Now { monotonic: Duration::ZERO, wall: OffsetDateTime::UNIX_EPOCH };
        let state = State::restore(settings(), 1, Found::default(), now);
        let mut farm = Self { state, now: seconds(0), sessions: 0, written: Found::default(), done: vec![] };
        farm.apply(Event::Deploy(workflow(1)));
        farm
    }

    pub(super) fn now(&self) -> Now {
        Now { monotonic: self.now, wall: OffsetDateTime::UNIX_EPOCH + self.now }
    }

    /// Lets time pass, with the ticks that come with it.
    pub(super) fn pass(&mut self, time: u64) {
        for _ in 0..time {
            self.now += seconds(1);
            self.apply(Event::Tick);
        }
    }

    /// Applies an event as the service does: the durable part is written, the rest is done.
    pub(super) fn apply(&mut self, event: Event) {
        let now = self.now();
        let mut actions = self.state.apply(event, now);
        actions.extend(self.state.grant(now));
        for action in actions {
            match action {
                Action::Record(record) => self.written.entries.push(Entry { at: now.wall, record }),
                Action::Keep(workflow) => self.written.workflows.push(workflow),
                Action::Leased(known) => self.written.leases.push(known),
                Action::Unleased(lease) => self.written.leases.retain(|known| known.lease.id != lease),
                Action::Archive(ended) => {
                    self.written.leases.retain(|known| known.lease.job != ended.job.id);
                    self.done.push(Action::Archive(ended));
                }
                action => self.done.push(action),
            }
        }
    }

    pub(super) fn submit(&mut self, number: u64) {
        self.submit_for(number, None);
    }

    /// Submits a job that expires after this many seconds.
    pub(super) fn submit_for(&mut self, number: u64, time_to_live: Option<u64>) {
        let new = NewJob {
            id: job(number),
            workflow: workflow_id(1),
            priority: 50,
            parameters: BlobRef::of(b"{}"),
            inputs: vec![input().hash],
            submitted: self.now().wall,
            expires: time_to_live.map(|time| self.now().wall + seconds(time)),
        };
        self.apply(Event::Submit(Box::new(new)));
    }

    /// A node with one slot registers with what it holds.
    pub(super) fn register_with(&mut self, seed: u8, leases: Vec<HeldLease>, ended: Vec<RunEnded>) {
        self.register_engine(seed, Engine::Builtin, leases, ended);
    }

    /// A node that builds workspaces registers.
    pub(super) fn register_managed(&mut self, seed: u8) {
        self.register_engine(seed, Engine::Managed, vec![], vec![]);
    }

    /// A node with this engine registers.
    pub(super) fn register_engine(
        &mut self,
        seed: u8,
        engine: Engine,
        leases: Vec<HeldLease>,
        ended: Vec<RunEnded>,
    ) {
        let devices = vec![Device::Cpu { threads: 1, memory: 8 << 30 }];
        self.register_devices(seed, engine, devices, leases, ended);
    }

    /// A node registers with a card for each of these memories, in GiB.
    pub(super) fn register_cards(&mut self, seed: u8, memories: &[u64]) {
        let card =
            |memory: &u64| Device::Gpu { name: String::new(), uuid: String::new(), memory: memory << 30 };
        let cards = memories.iter().map(card).collect();
        self.register_devices(seed, Engine::Builtin, cards, vec![], vec![]);
    }

    /// A node registers with a slot for each of these.
    pub(super) fn register_devices(
        &mut self,
        seed: u8,
        engine: Engine,
        devices: Vec<Device>,
        leases: Vec<HeldLease>,
        ended: Vec<RunEnded>,
    ) {
        self.sessions += 1;
        let offer = Offer {
            host_name: format!("host-{seed}"),
            agent_version: String::new(),
            platform: String::new(),
            engine,
            classes: BTreeSet::new(),
            models: BTreeSet::new(),
            slots: (0..).map(SlotId).zip(devices).map(|(id, device)| SlotOffer { id, device }).collect(),
        };
        let register = Register { offer, data_addresses: vec![], leases, ended, draining: false };
        let (session, labels) = (self.sessions, BTreeMap::new());
        let registered = Registered { node: node(seed), session, address: None, labels, register };
        self.apply(Event::Registered(Box::new(registered)));
    }

    pub(super) fn register(&mut self, seed: u8) {
        self.register_with(seed, vec![], vec![]);
    }

    pub(super) fn session(&self, seed: u8) -> Option<u64> {
        self.state.nodes.get(node(seed))?.session
    }

    pub(super) fn say(&mut self, seed: u8, message: NodeMessage) {
        let (session, message) = (self.session(seed).unwrap_or(0), Box::new(message));
        self.apply(Event::Said { node: node(seed), session, message });
    }

    pub(super) fn disconnect(&mut self, seed: u8) {
        let session = self.session(seed).unwrap_or(0);
        self.apply(Event::Disconnected { node: node(seed), session });
    }

    /// What was done since this was last asked.
    pub(super) fn done(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.done)
    }

    /// The grants since this was last asked, each with its node.
    pub(super) fn grants(&mut self) -> Vec<(PeerId, Lease)> {
        let grant = |action| match action {
            Action::Grant(order) => Some((order.node, order.grant.lease)),
            _ => None,
        };
        self.done().into_iter().filter_map(grant).collect()
    }

    /// The one grant since this was last asked.
    pub(super) fn granted(&mut self) -> (PeerId, Lease) {
        let grants = self.grants();
        assert_eq!(grants.len(), 1, "{grants:?}");
        grants[0]
    }

    /// Which nodes were told these since this was last asked: to cancel, and to forget an end.
    pub(super) fn told(&mut self) -> (Vec<PeerId>, Vec<PeerId>) {
        let (mut cancel, mut forget) = (vec![], vec![]);
        for action in self.done() {
            match action {
                Action::Send(node, CoordinatorMessage::CancelRun(_)) => cancel.push(node),
                Action::Send(node, CoordinatorMessage::EndRecorded(_)) => forget.push(node),
                _ => {}
            }
        }
        (cancel, forget)
    }

    pub(super) fn end(&mut self, seed: u8, ended: RunEnded) {
        self.say(seed, NodeMessage::RunEnded(ended));
    }

    /// A success, and its outputs arrive.
    pub(super) fn succeed(&mut self, seed: u8, lease: Lease) {
        self.end(seed, succeeded(lease));
        self.apply(Event::OutputsStored { node: node(seed), ended: Box::new(succeeded(lease)) });
    }

    pub(super) fn heartbeat(&mut self, seed: u8, leases: Vec<LeaseId>) {
        self.say(seed, NodeMessage::Heartbeat(Heartbeat { leases }));
    }

    pub(super) fn view(&self, number: u64) -> JobView {
        self.state.job_view(job(number), self.now()).expect("unfinished")
    }

    /// The ends that were recorded so far.
    pub(super) fn ends(&self) -> Vec<(JobId, JobState)> {
        let end = |entry: &Entry| match entry.record {
            Record::Ended { job, state } => Some((job, state)),
            _ => None,
        };
        self.written.entries.iter().filter_map(end).collect()
    }

    /// The coordinator is killed and starts again from what was written.
    pub(super) fn restart(&mut self) {
        self.now = seconds(0);
        let now = self.now();
        self.state = State::restore(settings(), self.state.epoch + 1, self.written.clone(), now);
        self.done.clear();
    }

    /// The lease that a node is at work on.
    pub(super) fn lease_on(&self, seed: u8) -> Lease {
        self.state.runs.values().find(|run| run.node == node(seed)).expect("at work").lease
    }
}
