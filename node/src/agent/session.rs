//! The one outbound session to the coordinator: dialled, read in a task of its own, written with a
//! time limit, and found again when it is lost.
//!
//! Not here: what is said on it.

use std::path::PathBuf;
use std::time::Duration;

use mesh::frames::{FrameReceiver, FrameSender};
use mesh::gate::Credentials;
use mesh::swarm::{Mesh, Session};
use protocol::message::{CoordinatorMessage, NodeMessage};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::join::Belonging;

/// The longest that one message may take to be written.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before the first retry; it doubles up to the last.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// What comes from the session's tasks.
pub(crate) enum SessionEvent {
    /// A session is open; it carries what the node must keep of renewals.
    Open(Box<OpenSession>),
    /// The coordinator said something.
    Message(CoordinatorMessage),
    /// The session is gone, and why.
    Lost(String),
}

/// A session and where the node belongs since it was opened.
pub(crate) struct OpenSession {
    pub(crate) session: Session<NodeMessage, CoordinatorMessage>,
    pub(crate) belonging: Belonging,
}

/// Dials until a session is open, renewing the certificate where it is due. The first try comes after
/// `pause`.
pub(crate) async fn dial_task(
    mesh: Mesh,
    credentials: Credentials,
    mut belonging: Belonging,
    belonging_path: PathBuf,
    mut pause: Duration,
    events: mpsc::Sender<SessionEvent>,
) {
    let mut reported = String::new();
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
        match belonging.renew_if_due(&belonging_path, &mesh).await {
            Ok(true) => {
                credentials.replace(belonging.membership.clone());
                info!("certificate renewed");
            }
            Ok(false) => {}
            Err(error) => warn!(%error, "certificate is not renewed yet"),
        }
        match mesh.open_session(belonging.coordinator, &belonging.addresses).await {
            Ok(session) => {
                // If the agent is gone, the session ends with this task.
                let _ = events.send(SessionEvent::Open(Box::new(OpenSession { session, belonging }))).await;
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

/// The writing half of an open session, and its reading task.
pub(crate) struct Writer {
    sender: FrameSender<NodeMessage>,
    reader: JoinHandle<()>,
}

impl Writer {
    /// Takes a session over.
    pub(crate) fn new(sender: FrameSender<NodeMessage>, reader: JoinHandle<()>) -> Self {
        Self { sender, reader }
    }

    /// Writes one message; an error means that the session is lost.
    pub(crate) async fn send(&mut self, message: &NodeMessage) -> Result<(), String> {
        match tokio::time::timeout(WRITE_TIMEOUT, self.sender.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("a message was not taken within {WRITE_TIMEOUT:?}")),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.reader.abort();
    }
}
