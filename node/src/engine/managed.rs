//! A ComfyUI of the node's own for each slot, in the locked workspace that a run needs.
//!
//! A slot has at most one process, so at most one holds its device's memory: it is started for the first run of a
//! workspace, or for its proof, stays for the next ones, also for those of other workspaces with the same environment
//! and code, of which each sees its own models alone, makes way for all others, and ends after a while without work. One
//! that died or hangs is started anew and its run is tried once more. Not here: the requests that a run consists of
//! (`comfyui`), and how a workspace is made (`workspace`).

mod door;
mod download;
mod folders;
mod imports;
mod log;
mod memory;
mod process;
mod pulse;
mod served;
mod warmth;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::select_all;
use protocol::{Device, LockfileHash, Phase, Progress, RunError, RunErrorKind, SlotId};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use self::memory::{Card, NotBack};
use self::process::{Launch, Process, StartError, blocking};
use self::served::Served;
use self::warmth::Warmth;
use crate::engine::comfyui::ComfyUiOptions;
use crate::engine::{Description, Engine, EngineError, Execution, ProducedFile, ProgressSink, canceled};
use crate::os::sandbox::Sandbox;
use crate::workspace::Workspace;

/// How a node runs its ComfyUI processes.
#[derive(Clone, Debug)]
pub struct ManagedConfig {
    /// Where each slot has its folder.
    pub folder: PathBuf,
    /// What the slots compute on, in their order.
    pub devices: Vec<Device>,
    /// The owner's own flags for ComfyUI, such as `--lowvram`. Defaults to none.
    pub arguments: Vec<String>,
    /// What a process has of its environment beside what every one has. Defaults to none.
    pub environment: Vec<(String, OsString)>,
    /// How long a process without work stays. Defaults to 10 minutes.
    pub idle: Duration,
    /// How long one may take to answer first. Defaults to 5 minutes.
    pub start_within: Duration,
    /// Where the byte code of what processes import is kept, for each workspace.
    pub byte_code: PathBuf,
    /// What puts walls around each process; `None` where there is no such thing, or the owner does not want it.
    pub sandbox: Option<Sandbox>,
    /// Whether what a process left stays when it ends. Defaults to no: the next one starts with nothing of it.
    pub keeps_folders: bool,
    /// How patient the node is with a run, and how much it may make.
    pub comfyui: ComfyUiOptions,
}

impl ManagedConfig {
    /// The defaults, for slots on these devices.
    pub fn new(folder: PathBuf, devices: Vec<Device>) -> Self {
        // Nobody else is in its queue, and what does not stop is killed.
        let comfyui = ComfyUiOptions { stop_within: Duration::from_secs(5), ..ComfyUiOptions::default() };
        Self {
            byte_code: folder.join("byte-code"),
            sandbox: None,
            keeps_folders: false,
            folder,
            devices,
            arguments: Vec::new(),
            environment: Vec::new(),
            idle: Duration::from_secs(10 * 60),
            start_within: Duration::from_secs(5 * 60),
            comfyui,
        }
    }
}

/// The ComfyUI processes of a node.
#[derive(Debug)]
pub struct Managed {
    config: ManagedConfig,
    slots: StdMutex<BTreeMap<SlotId, Arc<Slot>>>,
}

/// One slot.
#[derive(Debug)]
struct Slot {
    process: Mutex<Place>,
    warmth: Warmth,
    launch: Launch,
    card: Option<Card>,
}

/// The process of a slot, if it has one.
#[derive(Debug, Default)]
struct Place {
    process: Option<Process>,
    /// Ends the process when it had no work for a while.
    unloading: Option<AbortOnDropHandle<()>>,
    /// How much of the card's memory was in use before the process started.
    before: Option<u64>,
    /// What did not come back of it when the last one ended.
    not_back: Option<NotBack>,
}

impl Place {
    /// The process, unless it ended by itself or can only be ended.
    fn up(&mut self) -> Option<&mut Process> {
        self.process.as_mut().and_then(|process| process.is_sound().then_some(process))
    }
}

impl Managed {
    /// No process is started yet.
    pub fn new(config: ManagedConfig) -> Self {
        Self { config, slots: StdMutex::default() }
    }

    /// Sees that ComfyUI comes up in a workspace with all that it must have. The reason in words where it has not. A
    /// process that is idle and can serve the workspace too shows it; else one is started in a slot, which stays for the
    /// first run: in one that has none, or where the process that is there has nothing to do, or, as soon as one is, in
    /// the first whose run is over. Never beside a run, which needs the device's memory.
    pub async fn prove(&self, workspace: &Arc<Workspace>, cancel: &CancellationToken) -> Result<(), String> {
        let slots: Vec<Arc<Slot>> = self.slot_ids().map(|id| self.slot(id)).collect();
        for slot in &slots {
            let Ok(mut place) = slot.process.try_lock() else { continue };
            let Some(process) = place.up() else { continue };
            if process.join(workspace).await {
                self.unload_later(slot, &mut place);
                return Ok(());
            }
        }
        let idle = slots.iter().filter_map(|slot| Some((slot, slot.process.try_lock().ok()?)));
        let idle = idle.map(|(slot, mut place)| (place.up().is_some(), slot, place));
        let idle = idle.min_by_key(|(is_warm, ..)| *is_warm).map(|(_, slot, place)| (slot, place));
        let (slot, mut place) = match idle {
            Some(idle) => idle,
            None => first_free(&slots, cancel).await?,
        };
        place.unloading = None;
        slot.stop(&mut place).await;
        slot.prove(&mut place, workspace, cancel).await?;
        self.unload_later(slot, &mut place);
        Ok(())
    }

    /// Ends the process of each slot, and waits until it has ended and its last lines are written.
    pub async fn close(self) {
        let slots = self.slots.into_inner().unwrap_or_else(PoisonError::into_inner);
        for slot in slots.into_values() {
            let mut place = slot.process.lock().await;
            place.unloading = None;
            slot.stop(&mut place).await;
        }
    }

    fn slot_ids(&self) -> impl Iterator<Item = SlotId> {
        (0..u16::try_from(self.config.devices.len()).unwrap_or(u16::MAX)).map(SlotId)
    }

    /// Ends the slot's process after its idle time, unless a run comes before.
    fn unload_later(&self, slot: &Arc<Slot>, place: &mut Place) {
        let unloading = unload_task(Arc::downgrade(slot), self.config.idle);
        place.unloading = Some(AbortOnDropHandle::new(tokio::spawn(unloading)));
    }

    fn slot(&self, id: SlotId) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || {
            let folder = self.config.folder.join(format!("slot-{}", id.0));
            let device = self.config.devices.get(usize::from(id.0));
            let launch = Launch::new(&self.config, folder, device);
            let card = Card::of(device);
            Arc::new(Slot { process: Mutex::default(), warmth: Warmth::default(), launch, card })
        };
        Arc::clone(slots.entry(id).or_insert_with(fresh))
    }
}

#[async_trait]
impl Engine for Managed {
    async fn describe(&self) -> Result<Description, EngineError> {
        // What it has depends on the workspace, and is told with that.
        let engine = protocol::Engine::Managed;
        Ok(Description { engine, classes: Default::default(), models: Default::default() })
    }

    async fn is_free_for(&self, slot: SlotId, workspace: Option<&Arc<Workspace>>) -> bool {
        let slot = self.slot(slot);
        let Ok(mut place) = slot.process.try_lock() else { return false };
        let (Some(process), Some(workspace)) = (place.up(), workspace) else { return true };
        let (served, workspace) = (process.served().clone(), Arc::clone(workspace));
        blocking(move || served.with(&workspace)).await.is_ok_and(|both| both.is_some())
    }

    async fn warm(&self, workspaces: &[Arc<Workspace>]) -> BTreeMap<SlotId, BTreeSet<LockfileHash>> {
        let mut warm = BTreeMap::new();
        for id in self.slot_ids() {
            let serves = self.slot(id).warm(workspaces).await;
            warm.extend(serves.map(|serves| (id, serves)));
        }
        warm
    }

    async fn execute(
        &self,
        execution: Execution,
        progress: &ProgressSink,
        cancel: &CancellationToken,
    ) -> Result<Vec<ProducedFile>, RunError> {
        let slot = self.slot(execution.slot);
        let place = cancel.run_until_cancelled(slot.process.lock()).await;
        let mut place = place.ok_or_else(canceled)?;
        place.unloading = None;
        let executed = slot.execute(&mut place, execution, progress, cancel).await;
        if place.process.is_some() {
            self.unload_later(&slot, &mut place);
        }
        executed
    }
}

impl Slot {
    async fn execute(
        &self,
        place: &mut Place,
        execution: Execution,
        progress: &ProgressSink,
        cancel: &CancellationToken,
    ) -> Result<Vec<ProducedFile>, RunError> {
        let Some(workspace) = execution.workspace.clone() else {
            let detail = "this node runs workflows in locked workspaces alone, and this one names none";
            return Err(RunError::new(RunErrorKind::EngineUnavailable, detail));
        };
        let mut is_last_attempt = false;
        loop {
            let process = self.ready(place, &workspace, progress, cancel).await?;
            let executed = process.execute(execution.clone(), progress, cancel).await;
            let is_full = process.is_full().await;
            if is_full {
                info!("what runs left fills the slot's folders; its ComfyUI starts anew with the next run");
            }
            let failed = match executed {
                Ok(produced) => {
                    if is_full {
                        self.stop(place).await;
                    }
                    return Ok(produced);
                }
                Err(failed) => failed,
            };
            let log = process.log_file();
            if failed.kind != RunErrorKind::Canceled {
                info!(kind = ?failed.kind, log = %log.display(), "a run failed; the log has all that comfyui said");
            }
            match failed.kind {
                // What does not stop when it is told to is killed, and nothing of the run goes on.
                RunErrorKind::Canceled if !process.is_idle().await => self.stop(place).await,
                // The disk may be full of what it left. The next one starts with nothing of that.
                RunErrorKind::NodeFault => self.stop(place).await,
                RunErrorKind::OutOfMemory => process.free().await,
                // An op of it may have looked for models once, as the process started.
                RunErrorKind::MissingModel
                    if process.is_late_for(&failed, &execution.workflow)
                        && !is_last_attempt
                        && !cancel.is_cancelled() =>
                {
                    self.stop(place).await;
                    is_last_attempt = true;
                    continue;
                }
                // It is up and dead, or just dead.
                RunErrorKind::EngineUnavailable | RunErrorKind::Stalled => {
                    self.stop(place).await;
                    if !is_last_attempt && !cancel.is_cancelled() {
                        warn!(reason = failed.detail, log = %log.with_extension("1.log").display(), "comfyui is started anew and the run tried once more");
                        is_last_attempt = true;
                        continue;
                    }
                }
                _ => {}
            }
            if is_full {
                self.stop(place).await;
            }
            return Err(with_memory(failed, place.not_back));
        }
    }

    /// The slot's process, which serves this workspace; started unless it is there and well, and can.
    async fn ready<'a>(
        &self,
        place: &'a mut Place,
        workspace: &Arc<Workspace>,
        progress: &ProgressSink,
        cancel: &CancellationToken,
    ) -> Result<&'a mut Process, RunError> {
        let mut served = None;
        let can_serve = match place.up() {
            None => false,
            Some(process) => {
                served = Some(process.served().clone());
                process.join(workspace).await
            }
        };
        if !can_serve {
            self.stop(place).await;
            let detail = Some("starting ComfyUI".to_owned());
            progress.tell(Progress { phase: Phase::Preparing, fraction: 0.0, detail });
            let wanted = Arc::clone(workspace);
            let reading = blocking(move || {
                // Those of before as well, where nothing contradicts: so that they need no start of their own again.
                let both = served.map(|served| served.with(&wanted)).transpose()?.flatten();
                both.map_or_else(|| Served::alone(&wanted), Ok)
            });
            let served = reading.await.map_err(|error| {
                let detail = format!("the files of the workspace cannot be read: {error}");
                RunError::new(RunErrorKind::NodeFault, detail)
            })?;
            self.start(place, served, cancel).await.map_err(|error| match error {
                StartError::Canceled => canceled(),
                StartError::Undeclared { ref wanted, .. } => RunError {
                    url: wanted.url(),
                    ..RunError::new(RunErrorKind::UndeclaredFile, error.to_string())
                },
                error => {
                    let detail = protocol::error_chain(&error);
                    with_memory(RunError::new(RunErrorKind::EngineUnavailable, detail), place.not_back)
                }
            })?;
        }
        Ok(place.process.as_mut().expect("it was just started, or was there"))
    }

    /// Starts a process, which has all that its workspace must have.
    async fn prove(
        &self,
        place: &mut Place,
        workspace: &Arc<Workspace>,
        cancel: &CancellationToken,
    ) -> Result<(), String> {
        let wanted = Arc::clone(workspace);
        let served = blocking(move || Served::alone(&wanted)).await;
        let served = served.map_err(|error| format!("the files of the workspace cannot be read: {error}"))?;
        self.start(place, served, cancel).await.map_err(|error| protocol::error_chain(&error))?;
        let process = place.process.as_ref().expect("it was just started");
        let proven = process.prove(workspace).await;
        if proven.is_err() {
            self.stop(place).await;
        }
        proven
    }

    async fn start(
        &self,
        place: &mut Place,
        served: Served,
        cancel: &CancellationToken,
    ) -> Result<(), StartError> {
        if let Some(card) = &self.card {
            place.before = card.used().await;
            place.not_back = place.not_back.and_then(|not_back| not_back.still(place.before));
        }
        match self.launch.start(served, cancel).await {
            Ok(process) => place.process = Some(process),
            Err(error) => {
                self.launch.clear().await;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Ends the process, and sees that its memory comes back.
    async fn stop(&self, place: &mut Place) {
        let Some(process) = place.process.take() else { return };
        process.stop().await;
        self.launch.clear().await;
        let Some((card, before)) = self.card.as_ref().zip(place.before) else { return };
        place.not_back = card.until_back(before).await.err();
        if let Some(not_back) = &place.not_back {
            warn!(%not_back, "the memory of a card does not come back");
        }
    }
}

/// The first slot whose run is over, for whoever waits longest.
async fn first_free<'a>(
    slots: &'a [Arc<Slot>],
    cancel: &CancellationToken,
) -> Result<(&'a Arc<Slot>, MutexGuard<'a, Place>), String> {
    let free = slots.iter().map(|slot| Box::pin(async move { (slot, slot.process.lock().await) }));
    let free: Vec<_> = free.collect();
    if free.is_empty() {
        return Err("this node has no slot in which ComfyUI could start".to_owned());
    }
    let first = cancel.run_until_cancelled(select_all(free)).await;
    first.map(|(first, ..)| first).ok_or_else(|| "it was broken off".to_owned())
}

/// A failure for which the card's memory may be to blame, with what is known of that.
fn with_memory(failed: RunError, not_back: Option<NotBack>) -> RunError {
    use RunErrorKind::{EngineUnavailable, OutOfMemory};
    match not_back.filter(|_| matches!(failed.kind, OutOfMemory | EngineUnavailable)) {
        Some(not_back) => RunError { detail: format!("{}; {not_back}", failed.detail), ..failed },
        None => failed,
    }
}

/// Ends the process of a slot that had no work for so long.
async fn unload_task(slot: Weak<Slot>, idle: Duration) {
    sleep(idle).await;
    let Some(slot) = slot.upgrade() else { return };
    let mut place = slot.process.lock().await;
    if place.process.is_some() {
        info!("comfyui had no work for a while and is stopped");
        slot.stop(&mut place).await;
    }
}

#[cfg(test)]
mod tests;
