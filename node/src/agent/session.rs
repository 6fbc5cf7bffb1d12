//! The one outbound session to the coordinator: dialled, read in a task of its own, written with a
//! time limit, and found again when it is lost.
//!
//! Not here: what is said on it, and how the certificate that opens it stays fresh (`join`).

use std::time::Duration;

use mesh::frames::{FrameError, FrameReceiver, FrameSender};
use mesh::swarm::{Mesh, Session};
use protocol::PeerId;
use protocol::message::{CoordinatorMessage, NodeMessage};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, warn};

/// The longest that one message may take to be written.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that the last messages may take to arrive when the process ends.
pub(crate) const FAREWELL: Duration = Duration::from_secs(1);
/// The pause before the first retry; it doubles up to the last.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// What comes from the session's tasks.
pub(crate) enum SessionEvent {
    /// A session is open.
    Open(Box<Session<NodeMessage, CoordinatorMessage>>),
    /// The coordinator said something.
    Message(CoordinatorMessage),
    /// The session is gone, and why.
    Lost(String),
}

/// Where the coordinator is.
#[derive(Clone)]
pub(crate) struct Destination {
    pub(crate) coordinator: PeerId,
    pub(crate) addresses: Vec<String>,
}

/// Dials until a session is open. The first try comes after `pause`.
pub(crate) async fn dial_task(
    mesh: Mesh,
    destination: Destination,
    mut pause: Duration,
    events: mpsc::Sender<SessionEvent>,
) {
    let mut reported = String::new();
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
        match mesh.open_session(destination.coordinator, &destination.addresses).await {
            Ok(session) => {
                // If the agent is gone, the session ends with this task.
                let _ = events.send(SessionEvent::Open(Box::new(session))).await;
                return;
            }
            Err(error) => {
                // The same reason over and over is told once.
                let text = error.to_string();
                if text != reported {
                    warn!(error = text, "coordinator is out of reach; trying again");
                    reported = text;
                }
            }
        }
    }
}

/// Reads a session to its end.
pub(crate) async fn read_task(
    mut receiver: FrameReceiver<CoordinatorMessage>,
    events: mpsc::Sender<SessionEvent>,
) {
    let reason = loop {
        match receiver.recv().await {
            Ok(Some(message)) => {
                if events.send(SessionEvent::Message(message)).await.is_err() {
                    return;
                }
            }
            Ok(None) => break "the coordinator closed it".to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    let _ = events.send(SessionEvent::Lost(reason)).await;
}

/// The writing half of an open session, and its reading task, which ends with it.
pub(crate) struct Writer {
    sender: FrameSender<NodeMessage>,
    reader: AbortOnDropHandle<()>,
}

impl Writer {
    /// Takes a session over.
    pub(crate) fn new(sender: FrameSender<NodeMessage>, reader: AbortOnDropHandle<()>) -> Self {
        Self { sender, reader }
    }

    /// Writes one message; an error means that the session is lost. A message that no frame holds is left
    /// out: on a new session it would fit no better.
    pub(crate) async fn send(&mut self, message: &NodeMessage) -> Result<(), String> {
        match timeout(WRITE_TIMEOUT, self.sender.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(FrameError::Codec(reason))) => {
                error!(%reason, "message is left out");
                Ok(())
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("a message was not taken within {WRITE_TIMEOUT:?}")),
        }
    }

    /// Ends the session in good order: what was written arrives before the connection closes.
    pub(crate) async fn finish(self) {
        let Self { sender, reader } = self;
        let finished = timeout(FAREWELL, async {
            sender.finish().await?;
            // The coordinator closes its half once it has read ours to the end.
            let _ = reader.await;
            Ok::<(), FrameError>(())
        });
        if !matches!(finished.await, Ok(Ok(()))) {
            debug!("the session did not end in good order");
        }
    }
}
