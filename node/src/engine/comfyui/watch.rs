//! Following a queued prompt to its end: over the WebSocket, and over the queue and history wherever
//! the WebSocket says nothing.
//!
//! ComfyUI can be up and dead, so progress is watched and not the port. Not here: what the end means
//! (`failure.rs`, `outputs.rs`).

use std::time::Duration;

use protocol::{RunError, RunErrorKind, Workflow, error_chain};
use serde_json::{Map, Value};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::answer::{HistoryEntry, Position};
use super::client::{Client, RequestError};
use super::life::Life;
use super::session::{Happened, Session, Verdict};
use super::socket::{ConnectError, Socket};
use super::{ComfyUiOptions, failure};
use crate::engine::{ProgressSink, canceled};

/// How often the queue is looked at.
const POLL: Duration = Duration::from_secs(5);
/// How soon, once the end is decided; the history follows it within milliseconds.
const POLL_AT_END: Duration = Duration::from_millis(100);
/// How long between two attempts to connect again.
const RECONNECT: Duration = Duration::from_millis(500);
/// How long nothing may run while a prompt waits: between two prompts ComfyUI tidies its memory.
const UNSERVED: Duration = Duration::from_secs(2 * 60);

/// A prompt that is followed.
pub(super) struct Watch<'a> {
    pub(super) client: &'a Client,
    pub(super) options: &'a ComfyUiOptions,
    pub(super) prompt: &'a str,
    pub(super) workflow: &'a Workflow,
    pub(super) session: Session,
    pub(super) life: Life,
    pub(super) progress: &'a ProgressSink,
}

/// How a prompt ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) verdict: Verdict,
    /// What each output op reported.
    pub(super) outputs: Map<String, Value>,
}

impl Watch<'_> {
    /// Returns when ComfyUI has nothing left to do for the prompt. After an error it may have.
    pub(super) async fn until_end(
        mut self,
        mut socket: Socket,
        cancel: &CancellationToken,
    ) -> Result<Ended, RunError> {
        let mut poll = interval(POLL.min(self.options.stall_after / 2).max(POLL_AT_END));
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        poll.reset();
        let mut moved = Instant::now();
        let mut patience = self.options.stall_after;
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(canceled()),
                message = socket.next() => match message.map(|message| self.session.apply(message)) {
                    Some(Happened::Nothing) => {}
                    Some(Happened::Moved) => {
                        moved = Instant::now();
                        self.tell();
                    }
                    Some(Happened::Decided) => poll.reset_after(POLL_AT_END),
                    Some(Happened::Ended) => poll.reset_immediately(),
                    None => {
                        let connecting = self.connect_again();
                        socket = cancel.run_until_cancelled(connecting).await.ok_or_else(canceled)??;
                        poll.reset_immediately();
                    }
                },
                _ = poll.tick() => match self.look().await {
                    Ok(Look::Ended(entry)) => return Ok(self.conclude(entry)),
                    Ok(Look::Pending) => moved = Instant::now(),
                    Ok(Look::Unserved) => patience = self.options.stall_after.min(UNSERVED),
                    Ok(Look::Running) => {
                        patience = self.options.stall_after;
                        if self.life.shows().await {
                            moved = Instant::now();
                        }
                    }
                    Ok(Look::Gone) => return Err(self.gone()),
                    // The WebSocket notices a dead connection, and the watchdog below a dead process.
                    Err(error) => tracing::debug!(%error, "comfyui did not tell its queue"),
                },
            }
            if moved.elapsed() >= patience {
                return Err(self.stalled(patience));
            }
        }
    }

    fn tell(&mut self) {
        if let Some(frame) = self.session.take_frame() {
            self.progress.show(frame);
        }
        let op = self.session.current().and_then(|id| self.workflow.get(id));
        self.progress.executing(self.session.fraction(), op.map(|op| op.class_type.as_str()));
    }

    /// Asks the history and the queue. A prompt that is in neither may just have moved from the one to
    /// the other, so the history has the last word.
    async fn look(&self) -> Result<Look, RequestError> {
        if let Some(entry) = self.client.history(self.prompt).await? {
            return Ok(Look::Ended(entry));
        }
        match self.client.position(self.prompt).await? {
            Position::Pending => Ok(Look::Pending),
            Position::Unserved => Ok(Look::Unserved),
            Position::Running => Ok(Look::Running),
            Position::Absent => Ok(self.client.history(self.prompt).await?.map_or(Look::Gone, Look::Ended)),
        }
    }

    async fn connect_again(&self) -> Result<Socket, RunError> {
        let lost = Instant::now();
        loop {
            match Socket::connect(self.client, self.prompt).await {
                Ok(socket) => return Ok(socket),
                Err(error) if lost.elapsed() >= self.options.unreachable_after => {
                    return Err(unreachable(&error));
                }
                Err(_) => sleep(RECONNECT).await,
            }
        }
    }

    fn conclude(self, entry: HistoryEntry) -> Ended {
        let (told, mut outputs) = self.session.into_parts();
        outputs.extend(entry.outputs);
        let verdict = failure::verdict(&entry.status).or(told).unwrap_or(Verdict::Succeeded);
        Ended { verdict, outputs }
    }

    fn gone(&self) -> RunError {
        let detail = format!(
            "ComfyUI at `{}` no longer knows the prompt: it was restarted, or its owner cleared its queue",
            self.client.address()
        );
        RunError::new(RunErrorKind::EngineUnavailable, detail)
    }

    fn stalled(&self, patience: Duration) -> RunError {
        let at = match self.session.current() {
            Some(op) => format!(" at op `{op}`"),
            None => String::new(),
        };
        let detail = format!(
            "ComfyUI at `{}` made no progress{at} for {patience:?}: look at its log, and restart it if it hangs; \
             `--comfyui-stall` gives it more time",
            self.client.address(),
        );
        RunError::new(RunErrorKind::Stalled, detail)
    }
}

/// What the queue and the history say of a prompt.
enum Look {
    Pending,
    Unserved,
    Running,
    Ended(HistoryEntry),
    Gone,
}

/// The error of a run whose ComfyUI cannot be connected to.
pub(super) fn unreachable(error: &ConnectError) -> RunError {
    RunError::new(RunErrorKind::EngineUnavailable, error_chain(error))
}
