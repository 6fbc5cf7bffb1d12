//! The node's loop: what the coordinator asks, what the runs tell, and what time brings.
//!
//! Everything that changes the node's state happens in here, one event after another. Not here: doing
//! a run (`run`), and the rules of the slots (`slots`).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh::gate::Credentials;
use mesh::swarm::Mesh;
use protocol::message::{
    CoordinatorMessage, Grant, Heartbeat, Inventory, Leave, MAX_LIST, NodeMessage, Outcome, PhaseChanged,
    Refused, Register, RunEnded, RunProgress, Welcome,
};
use protocol::{BlobRef, Device, HEARTBEAT, LeaseId, Offer, PIECE_SIZE, Phase, Progress, RunId, SlotId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use super::Agent;
use super::offer::offer;
use super::session::{FIRST_PAUSE, OpenSession, SessionEvent, Writer, dial_task, read_task};
use crate::engine::ProgressSink;
use crate::join::Belonging;
use crate::run::{Telling, Tools, run_task};
use crate::slots::Slots;

/// How often progress is passed on, at most.
const PROGRESS: Duration = Duration::from_millis(250);
/// How often the engine is asked what it can do.
const DESCRIBE: Duration = Duration::from_secs(30);
/// How often the certificate is looked at.
const RENEW: Duration = Duration::from_secs(60);
/// How long runs get to stop when the process ends.
const STOP: Duration = Duration::from_secs(10);

/// A node on duty.
pub(super) struct Duty {
    mesh: Mesh,
    credentials: Credentials,
    belonging: Belonging,
    belonging_path: PathBuf,
    tools: Arc<Tools>,
    devices: Vec<Device>,
    offer: Option<Offer>,
    slots: Slots,
    runs: JoinSet<(LeaseId, Option<RunEnded>)>,
    running: BTreeMap<LeaseId, Running>,
    writer: Option<Writer>,
    tasks: JoinSet<()>,
    heartbeat: Interval,
    events: mpsc::Sender<SessionEvent>,
    /// On the data folder, for as long as anything is written into it.
    _lock: File,
}

/// A run at work.
struct Running {
    run: RunId,
    cancel: CancellationToken,
    progress: watch::Receiver<Option<Progress>>,
}

impl Duty {
    /// A node that has not dialled yet, and what its sessions will tell.
    pub(super) fn new(agent: Agent) -> (Self, mpsc::Receiver<SessionEvent>) {
        let Agent { peer: _, mesh, credentials, belonging, belonging_path, tools, devices, lock } = agent;
        let ids = (0..devices.len()).filter_map(|index| u16::try_from(index).ok().map(SlotId));
        let (events, session_events) = mpsc::channel(64);
        let duty = Self {
            slots: Slots::new(ids),
            mesh,
            credentials,
            belonging,
            belonging_path,
            tools,
            devices,
            offer: None,
            runs: JoinSet::new(),
            running: BTreeMap::new(),
            writer: None,
            tasks: JoinSet::new(),
            heartbeat: ticks(HEARTBEAT),
            events,
            _lock: lock,
        };
        (duty, session_events)
    }

    /// Serves until `stop`, then gives back every lease.
    pub(super) async fn serve(
        mut self,
        mut session_events: mpsc::Receiver<SessionEvent>,
        stop: CancellationToken,
    ) {
        let (phases, mut entered) = mpsc::channel(64);
        self.dial(Duration::ZERO);
        let (mut progress, mut describe, mut renew) = (ticks(PROGRESS), ticks(DESCRIBE), ticks(RENEW));
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(event) = session_events.recv() => self.on_session(event, &phases).await,
                Some((lease, phase)) = entered.recv() => self.on_phase(lease, phase).await,
                Some(done) = self.runs.join_next() => self.on_run_done(done).await,
                _ = self.heartbeat.tick() => self.send_heartbeat().await,
                _ = progress.tick() => self.send_progress().await,
                _ = describe.tick() => self.describe().await,
                _ = renew.tick() => self.renew().await,
            }
        }
        self.leave().await;
    }

    fn dial(&mut self, pause: Duration) {
        let (mesh, credentials) = (self.mesh.clone(), self.credentials.clone());
        let (belonging, path) = (self.belonging.clone(), self.belonging_path.clone());
        self.tasks.spawn(dial_task(mesh, credentials, belonging, path, pause, self.events.clone()));
    }

    async fn on_session(&mut self, event: SessionEvent, phases: &mpsc::Sender<(LeaseId, Phase)>) {
        match event {
            SessionEvent::Open(open) => self.open(*open).await,
            SessionEvent::Message(message) => self.on_message(message, phases).await,
            SessionEvent::Lost(reason) => self.lose(&reason),
        }
    }

    /// Registers on a fresh session: all that the node offers and holds.
    async fn open(&mut self, open: OpenSession) {
        let OpenSession { session, belonging } = open;
        self.belonging = belonging;
        let peer = session.peer.fmt_short();
        let reader = read_task(session.receiver, self.events.clone()).instrument(info_span!("session", peer));
        self.writer = Some(Writer::new(session.sender, tokio::spawn(reader)));
        let offer = offer(&*self.tools.engine, &self.devices).await;
        self.offer = Some(offer.clone());
        let register = Register {
            offer,
            data_addresses: self.tools.exchange.addresses(),
            leases: self.slots.held(),
            ended: self.tools.ends.kept().await,
            draining: self.slots.is_draining(),
        };
        self.send(NodeMessage::Register(register)).await;
    }

    fn lose(&mut self, reason: &str) {
        if self.writer.take().is_some() {
            warn!(reason, "session lost; work goes on");
            self.dial(FIRST_PAUSE);
        }
    }

    async fn on_message(&mut self, message: CoordinatorMessage, phases: &mpsc::Sender<(LeaseId, Phase)>) {
        match message {
            CoordinatorMessage::Welcome(welcome) => self.on_welcome(welcome).await,
            CoordinatorMessage::Grant(grant) => self.on_grant(grant, phases).await,
            CoordinatorMessage::CancelRun(cancel) => self.cancel(cancel.lease),
            CoordinatorMessage::EndRecorded(recorded) => {
                if let Err(error) = self.tools.ends.forget(recorded.run).await {
                    warn!(%error, run = %recorded.run.fmt_short(), "recorded end stays on disk");
                }
            }
            CoordinatorMessage::SetDraining(draining) => {
                info!(draining = draining.draining, "draining was set");
                self.slots.set_draining(draining.draining);
            }
        }
    }

    async fn on_welcome(&mut self, welcome: Welcome) {
        info!(epoch = welcome.epoch, "session with the coordinator is open");
        self.heartbeat = ticks(welcome.heartbeat);
        self.slots.set_draining(welcome.draining);
        for lease in welcome.unwanted {
            self.cancel(lease);
        }
        // Over this link the coordinator takes outputs, also from a node that nobody can dial.
        self.tools.exchange.keep_link(self.belonging.coordinator, welcome.data_addresses);
        self.send_inventory().await;
    }

    /// Tells which large blobs this node holds; small ones are told by the runs that fetched them.
    async fn send_inventory(&mut self) {
        let held: Vec<BlobRef> = self.tools.blobs.complete();
        let large: Vec<BlobRef> = held.into_iter().filter(|blob| blob.size >= PIECE_SIZE).collect();
        let mut complete = true;
        let mut chunks = large.chunks(MAX_LIST);
        loop {
            let added = chunks.next().unwrap_or_default().to_vec();
            if added.is_empty() && !complete {
                return;
            }
            self.send(NodeMessage::Inventory(Inventory { complete, added, removed: vec![] })).await;
            complete = false;
        }
    }

    async fn on_grant(&mut self, grant: Box<Grant>, phases: &mpsc::Sender<(LeaseId, Phase)>) {
        let lease = grant.lease;
        if self.running.contains_key(&lease.id) {
            debug!(lease = %lease.id, "grant came twice");
            return;
        }
        if let Err(refusal) = self.slots.take(lease, grant.slot) {
            warn!(lease = %lease.id, %refusal, "grant refused");
            self.send(NodeMessage::Refused(Refused { lease, refusal })).await;
            return;
        }
        let (progress, watched) = ProgressSink::new();
        let cancel = CancellationToken::new();
        let telling = Telling { phases: phases.clone(), progress };
        let running = Running { run: lease.run, cancel: cancel.clone(), progress: watched };
        self.running.insert(lease.id, running);
        let tools = self.tools.clone();
        self.runs.spawn(async move { (lease.id, run_task(grant, tools, telling, cancel).await) });
        self.on_phase(lease.id, Phase::Leased).await;
    }

    fn cancel(&mut self, lease: LeaseId) {
        if let Some(running) = self.running.get(&lease) {
            info!(lease = %lease, run = %running.run.fmt_short(), "run is cancelled");
            running.cancel.cancel();
        }
    }

    async fn on_phase(&mut self, lease: LeaseId, phase: Phase) {
        self.slots.enter(lease, phase);
        self.send(NodeMessage::PhaseChanged(PhaseChanged { lease, phase })).await;
    }

    async fn on_run_done(&mut self, done: Result<(LeaseId, Option<RunEnded>), tokio::task::JoinError>) {
        let (lease, ended) = match done {
            Ok(done) => done,
            // The lease of a run that panicked runs out; the node lives on.
            Err(error) => return tracing::error!(%error, "run broke off"),
        };
        self.running.remove(&lease);
        self.slots.release(lease);
        if let Some(ended) = ended {
            self.send(NodeMessage::RunEnded(ended)).await;
        }
    }

    async fn send_heartbeat(&mut self) {
        let leases = self.slots.held().iter().map(|held| held.lease.id).collect();
        self.send(NodeMessage::Heartbeat(Heartbeat { leases })).await;
    }

    async fn send_progress(&mut self) {
        let mut latest = Vec::new();
        for (lease, running) in &mut self.running {
            if running.progress.has_changed().unwrap_or(false) {
                let progress = running.progress.borrow_and_update().clone();
                latest.extend(progress.map(|progress| RunProgress { lease: *lease, progress }));
            }
        }
        for progress in latest {
            self.send(NodeMessage::RunProgress(progress)).await;
        }
    }

    async fn describe(&mut self) {
        if self.writer.is_none() {
            return;
        }
        let offer = offer(&*self.tools.engine, &self.devices).await;
        if self.offer.as_ref() != Some(&offer) {
            self.offer = Some(offer.clone());
            self.send(NodeMessage::OfferChanged(offer)).await;
        }
    }

    async fn renew(&mut self) {
        // Without a session the dialling task does it.
        if self.writer.is_none() {
            return;
        }
        match self.belonging.renew_if_due(&self.belonging_path, &self.mesh).await {
            Ok(true) => self.credentials.replace(self.belonging.membership.clone()),
            Ok(false) => {}
            Err(error) => warn!(%error, "certificate is not renewed yet"),
        }
    }

    /// Sends where a session is open; what matters is told again by the next `Register`.
    async fn send(&mut self, message: NodeMessage) {
        let Some(writer) = &mut self.writer else { return };
        if let Err(reason) = writer.send(&message).await {
            self.lose(&reason);
        }
    }

    /// Gives back every lease and stops the runs.
    async fn leave(mut self) {
        self.slots.stop();
        let leases = self.slots.held().iter().map(|held| held.lease.id).collect();
        self.send(NodeMessage::Leave(Leave { leases })).await;
        for running in self.running.values() {
            running.cancel.cancel();
        }
        let stopped = async {
            while let Some(done) = self.runs.join_next().await {
                // What a given-back run came to is nobody's business any more, unless it succeeded.
                let Ok((_, Some(RunEnded { lease, outcome: Outcome::Failed(_), .. }))) = done else {
                    continue;
                };
                if let Err(error) = self.tools.ends.forget(lease.run).await {
                    warn!(%error, "end of a given-back run stays on disk");
                }
            }
        };
        if tokio::time::timeout(STOP, stopped).await.is_err() {
            warn!("runs did not stop in time");
        }
        info!("node has left the farm's work");
    }
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
