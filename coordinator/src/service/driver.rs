//! The loop: commands, events of nodes, reports of tasks and time go into the state machine; what it
//! answers is committed as one batch and then carried out.
//!
//! All that waits at a moment is one batch, so the disk is flushed once for many events. The loop
//! waits for nothing but that. Not here: what a command means (`commands`), and the tasks (`work`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh::fetch::Exchange;
use mesh::gate::Credentials;
use mesh::store::BlobStore;
use protocol::message::{CoordinatorMessage, Located, NodeMessage, RunPreview, WatchRun};
use protocol::{BlobName, BlobRef, JobId, PeerId};
use time::OffsetDateTime;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info};

use super::CoordinatorConfig;
use super::resolve::{Reported, Resolutions, resolve};
use super::work::{self, Report};
use crate::admission::Admission;
use crate::handle::Command;
use crate::net::{NetEvent, SessionHandle, unix_time};
use crate::state::{Action, Event, Now, State};
use crate::store::{Batch, Store, StoreError};
use crate::view::{FarmEvent, FarmEventKind, PreviewView};

/// The most inputs that one batch takes.
const MAX_BATCH: usize = 1024;
/// The most tasks at a time; beyond that commands wait.
const MAX_TASKS: usize = 4096;
/// The most runs whose outputs are fetched at a time.
const MAX_COLLECTS: usize = 32;
/// How many events a slow listener may fall behind.
const LIVE_EVENTS: usize = 4096;
/// The same for previews, which are large and soon old.
const LIVE_PREVIEWS: usize = 32;
/// How many records at least lie between two snapshots.
const SNAPSHOT_EVERY: u64 = 10_000;

/// Both clocks, from the start of the coordinator.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(self) -> Now {
        Now { monotonic: self.0.elapsed(), wall: OffsetDateTime::now_utc() }
    }
}

/// What the loop works with.
pub(super) struct Parts {
    pub(super) store: Store,
    pub(super) blobs: BlobStore,
    pub(super) exchange: Exchange,
    pub(super) admission: Admission,
    pub(super) credentials: Credentials,
    /// Where the control plane is reached, for tickets.
    pub(super) addresses: Vec<String>,
}

/// Something to do once the batch is durable.
pub(super) type Afterwards = Box<dyn FnOnce(&mut Driver) + Send>;

/// The state machine and all that surrounds it.
pub(super) struct Driver {
    pub(super) state: State,
    pub(super) parts: Parts,
    pub(super) max_queued: usize,
    pub(super) newest: u64,
    pub(super) live: broadcast::Sender<FarmEvent>,
    previews: broadcast::Sender<Arc<PreviewView>>,
    clock: Clock,
    epoch: u64,
    snapshot_at: u64,
    tick: Duration,
    sessions: HashMap<PeerId, SessionHandle>,
    actions: Vec<Action>,
    afterwards: Vec<Afterwards>,
    tasks: JoinSet<()>,
    collects: Arc<Semaphore>,
    resolutions: Resolutions,
    reports: mpsc::Sender<Report>,
    reported: mpsc::Receiver<Report>,
}

impl Driver {
    pub(super) fn new(
        state: State,
        parts: Parts,
        clock: Clock,
        epoch: u64,
        newest: u64,
        config: &CoordinatorConfig,
    ) -> Self {
        let (reports, reported) = mpsc::channel(MAX_BATCH);
        Self {
            state,
            parts,
            max_queued: config.max_queued,
            newest,
            live: broadcast::channel(LIVE_EVENTS).0,
            previews: broadcast::channel(LIVE_PREVIEWS).0,
            clock,
            epoch,
            snapshot_at: newest,
            tick: (config.heartbeat / 4).clamp(Duration::from_millis(50), Duration::from_millis(500)),
            sessions: HashMap::new(),
            actions: Vec::new(),
            afterwards: Vec::new(),
            tasks: JoinSet::new(),
            collects: Arc::new(Semaphore::new(MAX_COLLECTS)),
            resolutions: Resolutions::default(),
            reports,
            reported,
        }
    }

    /// Serves until `stop`, or until the store fails.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut events: mpsc::Receiver<NetEvent>,
        stop: CancellationToken,
    ) -> Result<(), StoreError> {
        let mut tick = interval(self.tick);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_ready = self.tasks.len() < MAX_TASKS;
            tokio::select! {
                () = stop.cancelled() => break,
                Some(command) = commands.recv(), if is_ready => self.command(command),
                Some(event) = events.recv() => self.net(event),
                Some(report) = self.reported.recv() => self.report(report),
                Some(_) = self.tasks.join_next() => {}
                _ = tick.tick() => self.time_passed(),
            }
            for _ in 0..MAX_BATCH {
                if let Ok(event) = events.try_recv() {
                    self.net(event);
                } else if let Ok(report) = self.reported.try_recv() {
                    self.report(report);
                } else if let Some(command) = commands.try_recv().ok().filter(|_| is_ready) {
                    self.command(command);
                } else {
                    break;
                }
            }
            while self.tasks.try_join_next().is_some() {}
            self.flush().await?;
        }
        self.flush().await?;
        self.tasks.shutdown().await;
        Ok(())
    }

    pub(super) fn now(&self) -> Now {
        self.clock.now()
    }

    /// Feeds the state machine; what it answers waits for the commit of the batch.
    pub(super) fn apply(&mut self, event: Event) {
        let now = self.now();
        self.actions.extend(self.state.apply(event, now));
    }

    /// Does something once the batch is durable, so that nobody sees what a crash would undo.
    pub(super) fn after_commit(&mut self, action: impl FnOnce(&mut Self) + Send + 'static) {
        self.afterwards.push(Box::new(action));
    }

    /// Runs a task that the loop does not wait for.
    pub(super) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task.in_current_span());
    }

    /// Runs a task whose report comes back into the loop.
    pub(super) fn spawn_report(&mut self, task: impl Future<Output = Option<Report>> + Send + 'static) {
        let reports = self.reports.clone();
        self.spawn(async move {
            if let Some(report) = task.await {
                // The loop is gone only when the process ends.
                let _ = reports.send(report).await;
            }
        });
    }

    fn net(&mut self, event: NetEvent) {
        match event {
            NetEvent::Registered(mut registered, handle) => {
                let node = registered.node;
                registered.register.ended.iter_mut().for_each(|ended| self.blame(node, ended));
                self.sessions.insert(node, handle);
                self.apply(Event::Registered(registered));
            }
            NetEvent::Said { node, session, mut message } => match &mut *message {
                NodeMessage::RunPreview(preview) => self.show(node, session, preview),
                said => {
                    if let NodeMessage::RunEnded(ended) = said {
                        self.blame(node, ended);
                    }
                    self.apply(Event::Said { node, session, message });
                }
            },
            NetEvent::Closed { node, session } => {
                if self.sessions.get(&node).is_some_and(|handle| handle.number == session) {
                    self.sessions.remove(&node);
                }
                self.apply(Event::Disconnected { node, session });
            }
        }
    }

    /// Has a job's node send previews for a while, if one is at work on it.
    pub(super) fn previews(
        &mut self,
        job: JobId,
        answer: oneshot::Sender<broadcast::Receiver<Arc<PreviewView>>>,
    ) {
        if let Some((node, lease)) = self.state.lease_of_job(job) {
            self.send(node, CoordinatorMessage::WatchRun(WatchRun { lease }));
        }
        // Whoever asked may be gone.
        let _ = answer.send(self.previews.subscribe());
    }

    /// Passes a preview on to whoever watches. The state machine hears nothing of it.
    fn show(&mut self, node: PeerId, session: u64, RunPreview { lease, frame }: &RunPreview) {
        if self.sessions.get(&node).is_none_or(|handle| handle.number != session) {
            return;
        }
        if let Some((job, run)) = self.state.run_of_lease(node, *lease) {
            let (frame, at) = (frame.clone(), self.now().wall);
            // Nobody may be watching.
            let _ = self.previews.send(Arc::new(PreviewView { job, run, frame, at }));
        }
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Event(event) => self.apply(event),
            Report::Grant(order) => {
                // It may have been cancelled while its parameters were read.
                if self.state.is_at_work(order.grant.lease.id) {
                    self.send(order.node, CoordinatorMessage::Grant(Box::new(order.grant)));
                }
            }
            Report::Deploy(workflow, answer) => self.deploy(*workflow, answer),
            Report::Submit(job, answer) => self.submit(job, answer),
        }
    }

    fn time_passed(&mut self) {
        self.apply(Event::Tick);
        let now = unix_time();
        if self.parts.credentials.membership().is_past_half(now) {
            info!("the coordinator renews its own certificates");
            self.parts.credentials.replace(self.parts.admission.own_membership(now));
        }
    }

    /// Plans, commits the batch, and carries out what it came to.
    async fn flush(&mut self) -> Result<(), StoreError> {
        let now = self.now();
        self.actions.extend(self.state.grant(now));
        let actions = std::mem::take(&mut self.actions);
        let batch = Batch { actions: &actions, at: now.wall, epoch: self.epoch, newest: self.newest };
        if !batch.is_empty() {
            self.parts.store.commit(&batch).await?;
        }
        for action in actions {
            self.carry_out(action, now);
        }
        for afterwards in std::mem::take(&mut self.afterwards) {
            afterwards(self);
        }
        let due = SNAPSHOT_EVERY.max(self.state.waiting() as u64);
        if self.newest - self.snapshot_at >= due {
            self.parts.store.write_snapshot(self.newest, &self.state.snapshot()).await?;
            self.snapshot_at = self.newest;
        }
        Ok(())
    }

    fn carry_out(&mut self, action: Action, now: Now) {
        match action {
            Action::Record(record) => {
                self.newest += 1;
                self.publish(Some(self.newest), record.to_event(), now);
            }
            Action::Notify(kind) => self.publish(None, kind, now),
            Action::Send(node, message) => self.send(node, message),
            Action::Located { node, name, located } => self.tell_located(node, name, located),
            Action::Grant(order) => {
                let blobs = self.parts.blobs.clone();
                self.spawn_report(async move { Some(work::grant(order, blobs).await) });
            }
            Action::Collect { node, ended } => {
                let (exchange, collects) = (self.parts.exchange.clone(), self.collects.clone());
                let provider = self.state.provider(node);
                self.spawn_report(async move {
                    let _permit = collects.acquire_owned().await.ok()?;
                    Some(work::collect(provider, ended, exchange).await)
                });
            }
            Action::Resolve { node, resolved, document, known } => {
                let provider = self.state.provider(node);
                let reported = Reported { provider, resolved, document, known };
                let (resolutions, exchange) = (self.resolutions.clone(), self.parts.exchange.clone());
                let publisher = Arc::clone(self.parts.admission.publisher());
                self.spawn_report(async move {
                    resolve(reported, resolutions, exchange, publisher).await.map(Report::Event)
                });
            }
            // The commit was all that there is to do.
            Action::Keep(_) | Action::Archive(_) | Action::Leased(_) | Action::Unleased(_) => {}
        }
    }

    /// The blob of this name, which the farm knows as this one, if the coordinator's own store has it.
    pub(super) fn own_blob(&self, name: &BlobName, known: Option<BlobRef>) -> Option<BlobRef> {
        let hash = match name {
            BlobName::Blake3(hash) => *hash,
            BlobName::Sha256(_) => known?.hash,
        };
        self.parts.blobs.get(hash)
    }

    /// Adds the coordinator to those who hold a blob, where it does.
    fn tell_located(&mut self, node: PeerId, name: BlobName, mut located: Located) {
        let own = self.own_blob(&name, located.blob);
        if let Some(own) = own.filter(|own| !self.state.is_private(&own.hash.into())) {
            located.blob = Some(own);
            located.providers.push(self.state.own_provider().clone());
        }
        self.send(node, CoordinatorMessage::Located(located));
    }

    fn publish(&mut self, number: Option<u64>, kind: FarmEventKind, now: Now) {
        match &kind {
            FarmEventKind::Started { job, run } => {
                info!(job = %job.fmt_short(), run = %run.id.fmt_short(), node = %run.node.fmt_short(), "job started");
            }
            FarmEventKind::Requeued { job, reason } => {
                info!(job = %job.fmt_short(), reason, "job queued again");
            }
            FarmEventKind::Ended { job, state } => {
                info!(job = %job.fmt_short(), state = state.as_str(), "job ended");
            }
            _ => {}
        }
        // Nobody may be listening.
        let _ = self.live.send(FarmEvent { number, at: now.wall, kind });
    }

    fn send(&mut self, node: PeerId, message: CoordinatorMessage) {
        match self.sessions.get(&node) {
            Some(session) => session.send(message),
            // What matters is settled when the node registers again.
            None => debug!(node = %node.fmt_short(), "message for a node without a session"),
        }
    }
}
