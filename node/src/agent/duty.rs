//! The node's loop: what the coordinator asks, what the runs tell, and what time brings.
//!
//! Everything that changes the node's state happens in here, one event after another. Not here: doing
//! a run (`run`), and the rules of the slots (`slots`).

mod inventory;
mod self_tests;
mod stock;
mod workspaces;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesh::swarm::{Mesh, Session};
use protocol::message::{
    CoordinatorMessage, Grant, Heartbeat, Leave, NodeMessage, Outcome, PhaseChanged, Provider, Refused,
    Register, RunEnded, RunPreview, RunProgress, WATCH, Welcome,
};
use protocol::{
    Device, HEARTBEAT, Lease, LeaseId, Offer, Phase, PreviewFrame, Progress, RunId, SlotId, WorkflowVersion,
};
use tokio::sync::{mpsc, watch};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug, error, info, info_span, warn};

use self::inventory::Told;
use self::self_tests::SelfTests;
use self::stock::Stock;
use self::workspaces::Wants;
use super::Agent;
use super::offer::describe_task;
use super::session::{Destination, FAREWELL, FIRST_PAUSE, SessionEvent, Writer, dial_task, read_task};
use crate::engine::ProgressSink;
use crate::finder::{OpenQuestions, Question};
use crate::join::renew_task;
use crate::run::{Telling, Tools, keep_broken_end, run_task};
use crate::slots::Slots;

/// How often progress is passed on, at most.
const PROGRESS: Duration = Duration::from_millis(250);
/// The longest between two heartbeats, whatever the coordinator wishes.
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(60);
/// How often a change of what the store holds is told, at most.
const INVENTORY: Duration = Duration::from_secs(2);
/// How often it is looked whether the store has other room, or other pins.
const STORAGE: Duration = Duration::from_secs(5);
/// How often transfers are told, at most.
const TRANSFERS: Duration = Duration::from_secs(1);
/// How long runs get to stop when the process ends.
const STOP: Duration = Duration::from_secs(5);
/// The most ends in one `Register`, so that it fits its frame; further ones follow it.
const MAX_ENDED: usize = 8;

/// A node on duty.
pub(super) struct Duty {
    mesh: Mesh,
    destination: Destination,
    tools: Arc<Tools>,
    /// What the engine says that it can do; `None` until it said so first.
    offers: watch::Receiver<Option<Offer>>,
    /// What the coordinator was told of it.
    told: Option<Offer>,
    /// Counts what the store lost and found.
    blobs_changed: watch::Receiver<u64>,
    told_blobs: Told,
    /// What the data plane asks the coordinator, and what of that is not answered yet.
    questions: mpsc::Receiver<Question>,
    open_questions: OpenQuestions,
    stock: Stock,
    wants: Wants,
    self_tests: SelfTests,
    slots: Slots,
    runs: JoinSet<(LeaseId, Option<RunEnded>)>,
    running: BTreeMap<LeaseId, Running>,
    writer: Option<Writer>,
    /// Whatever goes on beside the loop; it ends with the duty.
    tasks: JoinSet<()>,
    heartbeat: Interval,
    events: mpsc::Sender<SessionEvent>,
}

/// A run at work.
struct Running {
    lease: Lease,
    workflow: WorkflowVersion,
    task: task::Id,
    cancel: CancellationToken,
    progress: watch::Receiver<Option<Progress>>,
    frames: watch::Receiver<Option<PreviewFrame>>,
    /// Until when somebody watches it.
    watched: Option<Instant>,
}

impl Duty {
    /// A node that has not dialled yet, and what its sessions will tell.
    pub(super) fn new(agent: Agent) -> (Self, mpsc::Receiver<SessionEvent>) {
        let Agent { mesh, credentials, belonging, belonging_path, tools, devices, questions, wants, .. } =
            agent;
        let destination =
            Destination { coordinator: belonging.coordinator, addresses: belonging.addresses.clone() };
        let (offered, offers) = watch::channel(None);
        let (events, session_events) = mpsc::channel(64);
        let slots = Slots::new(slot_ids(&devices));
        let mut tasks = JoinSet::new();
        tasks.spawn(describe_task(Arc::clone(&tools.engine), devices, offered));
        tasks.spawn(renew_task(mesh.clone(), credentials, belonging, belonging_path));
        let blobs_changed = tools.blobs.changes();
        let duty = Self {
            mesh,
            destination,
            tools,
            offers,
            told: None,
            blobs_changed,
            told_blobs: Told::default(),
            questions,
            open_questions: OpenQuestions::default(),
            stock: Stock::new(),
            wants: Wants::new(wants),
            self_tests: SelfTests::default(),
            slots,
            runs: JoinSet::new(),
            running: BTreeMap::new(),
            writer: None,
            tasks,
            heartbeat: ticks(HEARTBEAT),
            events,
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
        let mut progress = ticks(PROGRESS);
        let mut inventory = ticks(INVENTORY);
        let mut storage = ticks(STORAGE);
        let mut transfers = ticks(TRANSFERS);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(event) = session_events.recv() => self.on_session(event, &phases).await,
                Some(question) = self.questions.recv() => self.ask(question).await,
                Some((lease, phase)) = entered.recv() => self.on_phase(lease, phase).await,
                Some(kept) = self.stock.next() => self.on_kept(kept).await,
                Some(done) = self.runs.join_next() => self.on_run_done(done).await,
                Some(done) = self.self_tests.next() => self.on_self_tested(done).await,
                Some(done) = self.tasks.join_next() => report_panic(&done),
                Ok(()) = self.offers.changed() => self.on_offer().await,
                _ = self.heartbeat.tick() => self.send_heartbeat().await,
                _ = progress.tick() => self.send_progress().await,
                _ = inventory.tick() => self.send_changed_inventory().await,
                _ = storage.tick() => self.send_storage().await,
                _ = transfers.tick() => {
                    self.send_transfers().await;
                    self.send_workspaces().await;
                    self.begin_self_test().await;
                }
            }
        }
        // Nobody listens any more: runs and the session's reader must not wait for that.
        drop((session_events, entered));
        self.leave().await;
    }

    fn dial(&mut self, pause: Duration) {
        let (mesh, destination) = (self.mesh.clone(), self.destination.clone());
        self.tasks.spawn(dial_task(mesh, destination, pause, self.events.clone()));
    }

    async fn on_session(&mut self, event: SessionEvent, phases: &mpsc::Sender<(LeaseId, Phase)>) {
        match event {
            SessionEvent::Open(session) => self.open(*session).await,
            SessionEvent::Message(message) => self.on_message(message, phases).await,
            SessionEvent::Lost(reason) => self.lose(&reason),
        }
    }

    /// Registers on a fresh session: all that the node offers and holds.
    async fn open(&mut self, session: Session<NodeMessage, CoordinatorMessage>) {
        // It was dialled after the first offer came.
        let Some(offer) = self.offer_of_now() else { return };
        let peer = session.peer.fmt_short();
        let reader = read_task(session.receiver, self.events.clone()).instrument(info_span!("session", peer));
        self.writer = Some(Writer::new(session.sender, AbortOnDropHandle::new(tokio::spawn(reader))));
        self.told = Some(offer.clone());
        // The latest in the `Register`: those are the ones that the coordinator waits for.
        let mut earlier = self.tools.ends.kept();
        let ended = earlier.split_off(earlier.len().saturating_sub(MAX_ENDED));
        let register = Register {
            offer,
            data_addresses: self.tools.exchange.addresses(),
            leases: self.slots.held(),
            ended,
            draining: self.slots.is_draining(),
        };
        self.send(NodeMessage::Register(register)).await;
        for ended in earlier {
            self.send(NodeMessage::RunEnded(ended)).await;
        }
    }

    fn lose(&mut self, reason: &str) {
        self.open_questions.close();
        if self.writer.take().is_some() {
            warn!(reason, "session lost; work goes on");
            self.dial(FIRST_PAUSE);
        }
    }

    /// Sends a question on; without a session it is dropped, which answers it.
    async fn ask(&mut self, question: Question) {
        if self.writer.is_some() {
            let message = self.open_questions.open(question);
            self.send(message).await;
        }
    }

    async fn on_message(&mut self, message: CoordinatorMessage, phases: &mpsc::Sender<(LeaseId, Phase)>) {
        match message {
            CoordinatorMessage::Welcome(welcome) => self.on_welcome(welcome).await,
            CoordinatorMessage::Grant(grant) => self.on_grant(grant, phases).await,
            CoordinatorMessage::CancelRun(cancel) => self.cancel(cancel.lease),
            CoordinatorMessage::WatchRun(watch) => self.watch(watch.lease),
            CoordinatorMessage::EndRecorded(recorded) => {
                // Beside the loop, because it waits while the outputs of another run are stored.
                self.tasks.spawn(forget_task(Arc::clone(&self.tools), recorded.run));
            }
            CoordinatorMessage::SetDraining(draining) => {
                info!(draining = draining.draining, "draining was set");
                self.slots.set_draining(draining.draining);
            }
            CoordinatorMessage::Keep(keep) => self.on_keep(keep).await,
            CoordinatorMessage::KeepPrivate(private) => self.on_keep_private(private).await,
            CoordinatorMessage::Located(located) => self.open_questions.located(located),
            CoordinatorMessage::OriginLease(lease) => self.open_questions.origin_lease(lease),
            CoordinatorMessage::WantWorkspaces(want) => self.on_want_workspaces(want),
            CoordinatorMessage::SelfTest(test) => self.on_self_test(*test),
        }
    }

    async fn on_welcome(&mut self, welcome: Welcome) {
        info!(epoch = welcome.epoch, "session with the coordinator is open");
        self.heartbeat = ticks(welcome.heartbeat.min(LONGEST_HEARTBEAT));
        self.slots.set_draining(welcome.draining);
        for lease in welcome.unwanted {
            self.cancel(lease);
        }
        let (coordinator, addresses) = (self.destination.coordinator, welcome.data_addresses);
        self.tools.exchange.set_introducer(Provider { peer: coordinator, addresses: addresses.clone() });
        // Over this link the coordinator takes outputs, also from a node that nobody can dial.
        self.tools.exchange.keep_link(coordinator, addresses);
        self.send_inventory(true).await;
        self.stock.forget_told();
        self.wants.forget_told();
        self.self_tests.forget_asked();
        self.send_storage().await;
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
        self.self_tests.make_way(grant.slot);
        let workflow = grant.workflow.clone();
        let (sink, progress) = ProgressSink::new();
        let frames = sink.frames();
        let cancel = CancellationToken::new();
        let telling = Telling { phases: phases.clone(), progress: sink };
        let (tools, token) = (Arc::clone(&self.tools), cancel.clone());
        let run = async move { (lease.id, run_task(grant, tools, telling, token).await) };
        let task = self.runs.spawn(run).id();
        self.running
            .insert(lease.id, Running { lease, workflow, task, cancel, progress, frames, watched: None });
        self.on_phase(lease.id, Phase::Leased).await;
    }

    /// Sends previews of a run for a while; the one that is there at once.
    fn watch(&mut self, lease: LeaseId) {
        let Some(running) = self.running.get_mut(&lease) else { return };
        if running.watched.replace(Instant::now() + WATCH).is_none() {
            running.frames.mark_changed();
        }
    }

    fn cancel(&mut self, lease: LeaseId) {
        if let Some(running) = self.running.get(&lease) {
            info!(lease = %lease, run = %running.lease.run.fmt_short(), "run is cancelled");
            running.cancel.cancel();
        }
    }

    async fn on_phase(&mut self, lease: LeaseId, phase: Phase) {
        // The end of a run may overtake its last phases.
        if !self.running.contains_key(&lease) {
            return;
        }
        self.slots.enter(lease, phase);
        self.send(NodeMessage::PhaseChanged(PhaseChanged { lease, phase })).await;
    }

    async fn on_run_done(&mut self, done: Result<(LeaseId, Option<RunEnded>), JoinError>) {
        let (lease, ended) = match done {
            Ok(done) => done,
            Err(error) => {
                // The node lives on, its slot is free again, and the coordinator hears of it.
                error!(%error, "run broke off");
                let broken = self.running.values().find(|running| running.task == error.id());
                let Some(lease) = broken.map(|running| running.lease) else { return };
                (lease.id, keep_broken_end(lease, &self.tools).await)
            }
        };
        let running = self.running.remove(&lease);
        self.slots.release(lease);
        if let Some(ended) = ended {
            if let (Outcome::Succeeded(_), Some(running)) = (&ended.outcome, running) {
                self.self_tests.forget(&running.workflow);
            }
            // Before the end of the run, so that the next one finds the workspace proven.
            self.send_workspaces().await;
            self.send(NodeMessage::RunEnded(ended)).await;
        }
        self.on_offer().await;
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
        self.send_previews().await;
    }

    async fn send_previews(&mut self) {
        let now = Instant::now();
        let mut latest = Vec::new();
        for (lease, running) in &mut self.running {
            running.watched = running.watched.filter(|until| *until > now);
            if running.watched.is_some() && running.frames.has_changed().unwrap_or(false) {
                let frame = running.frames.borrow_and_update().clone();
                latest.extend(frame.map(|frame| RunPreview { lease: *lease, frame }));
            }
        }
        for preview in latest {
            self.send(NodeMessage::RunPreview(preview)).await;
        }
    }

    /// Tells an offer that the coordinator does not know yet; the first one lets the node dial.
    async fn on_offer(&mut self) {
        let Some(offer) = self.offer_of_now() else { return };
        match self.told.replace(offer.clone()) {
            None => self.dial(Duration::ZERO),
            Some(told) if told != offer => self.send(NodeMessage::OfferChanged(offer)).await,
            Some(_) => {}
        }
    }

    /// What is offered now. An engine that falls silent over a run keeps its slots until the run ended:
    /// who withdraws the slot of a lease gives up the lease.
    fn offer_of_now(&self) -> Option<Offer> {
        let offer = self.offers.borrow().clone()?;
        let is_silent = offer.slots.is_empty() && !self.running.is_empty();
        if is_silent { self.told.clone().or(Some(offer)) } else { Some(offer) }
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
        for running in self.running.values() {
            running.cancel.cancel();
        }
        let leases = self.slots.held().iter().map(|held| held.lease.id).collect();
        if timeout(FAREWELL, self.send(NodeMessage::Leave(Leave { leases }))).await.is_err() {
            warn!("the coordinator does not take our farewell; the leases run out");
        }
        let writer = self.writer.take();
        let stopped = async {
            self.self_tests.stop().await;
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
        if timeout(STOP, stopped).await.is_err() {
            warn!("runs did not stop in time");
        }
        if let Some(writer) = writer {
            writer.finish().await;
        }
        info!("node has left the farm's work");
    }
}

/// The slots of these devices, one each.
fn slot_ids(devices: &[Device]) -> impl Iterator<Item = SlotId> {
    (0..devices.len()).filter_map(|index| u16::try_from(index).ok().map(SlotId))
}

/// Forgets an end that is recorded.
async fn forget_task(tools: Arc<Tools>, run: RunId) {
    if let Err(error) = tools.ends.forget(run).await {
        warn!(%error, run = %run.fmt_short(), "recorded end stays on disk");
    }
}

fn report_panic(done: &Result<(), JoinError>) {
    if let Err(error) = done {
        error!(%error, "a task of the node broke off");
    }
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
