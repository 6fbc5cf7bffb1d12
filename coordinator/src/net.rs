//! The coordinator's face to the mesh: join requests go to admission, sessions become a stream of
//! events and a bounded queue of messages each.
//!
//! Not here: what nodes say to each other's faces, and any decision about a job. A node that does not
//! read what it is sent is dropped: its queue is bounded, and it will come back and register anew.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh::frames::{FrameReceiver, FrameSender};
use mesh::swarm::{Incoming, Session};
use protocol::PeerId;
use protocol::membership::Role;
use protocol::message::{CoordinatorMessage, HELLO_TIMEOUT, NodeMessage};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span};

use crate::admission::Admission;
use crate::state::Registered;

/// The most messages that wait for one node.
const QUEUE: usize = 512;
/// The longest that a node may take to read one message.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// The most sessions and join requests at a time.
const MAX_TASKS: usize = 4096;

/// What comes from the mesh.
pub(crate) enum NetEvent {
    /// A node opened a session and registered.
    Registered(Box<Registered>, SessionHandle),
    /// A node said something.
    Said { node: PeerId, session: u64, message: Box<NodeMessage> },
    /// A session is gone.
    Closed { node: PeerId, session: u64 },
}

/// The way to a node on one session. Dropping it closes the session.
#[derive(Debug)]
pub(crate) struct SessionHandle {
    /// The session's number.
    pub(crate) number: u64,
    queue: mpsc::Sender<CoordinatorMessage>,
    closing: CancellationToken,
}

impl SessionHandle {
    /// Queues a message; a node that has too many unread ones loses its session.
    pub(crate) fn send(&self, message: CoordinatorMessage) {
        if self.queue.try_send(message).is_err() {
            self.closing.cancel();
        }
    }
}

impl Drop for SessionHandle {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// Serves what comes in until `stop`.
pub(crate) async fn serve(
    mut incoming: mpsc::Receiver<Incoming>,
    admission: Admission,
    events: mpsc::Sender<NetEvent>,
    stop: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    let mut sessions = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = tasks.join_next() => {}
            next = incoming.recv(), if tasks.len() < MAX_TASKS => match next {
                None => break,
                Some(Incoming::Join { peer, request, answer }) => {
                    let admission = admission.clone();
                    tasks.spawn(async move {
                        // Whoever asked may be gone by now.
                        let _ = answer.send(admission.answer(peer, request, unix_time()).await);
                    });
                }
                Some(Incoming::Session(session)) => {
                    sessions += 1;
                    let span = info_span!("session", node = %session.peer.fmt_short(), number = sessions);
                    tasks.spawn(session_task(session, sessions, events.clone()).instrument(span));
                }
            },
        }
    }
    tasks.shutdown().await;
}

/// One session from its first message to its end.
async fn session_task(
    session: Session<CoordinatorMessage, NodeMessage>,
    number: u64,
    events: mpsc::Sender<NetEvent>,
) {
    let Session { peer, membership, remote, sender, mut receiver } = session;
    if membership.role() != Role::Node {
        return debug!("only nodes have sessions");
    }
    let labels = membership.member.body.labels;
    let Some(registered) = first_message(&mut receiver, peer, number, remote, labels).await else {
        return debug!("session without a registration");
    };
    let (queue, queued) = mpsc::channel(QUEUE);
    let closing = CancellationToken::new();
    let handle = SessionHandle { number, queue, closing: closing.clone() };
    if events.send(NetEvent::Registered(Box::new(registered), handle)).await.is_err() {
        return;
    }
    info!("node registered");
    tokio::select! {
        () = closing.cancelled() => {}
        () = write_all(sender, queued) => {}
        () = read_all(receiver, peer, number, &events) => {}
    }
    info!("session is over");
    // At the very end of the process nobody listens any more.
    let _ = events.send(NetEvent::Closed { node: peer, session: number }).await;
}

async fn first_message(
    receiver: &mut FrameReceiver<NodeMessage>,
    node: PeerId,
    session: u64,
    address: Option<IpAddr>,
    labels: BTreeMap<String, String>,
) -> Option<Registered> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, receiver.recv()).await.ok()?.ok()??;
    let NodeMessage::Register(register) = first else { return None };
    Some(Registered { node, session, address, labels, register })
}

async fn read_all(
    mut receiver: FrameReceiver<NodeMessage>,
    node: PeerId,
    session: u64,
    events: &mpsc::Sender<NetEvent>,
) {
    loop {
        match receiver.recv().await {
            Ok(Some(message)) => {
                let message = Box::new(message);
                if events.send(NetEvent::Said { node, session, message }).await.is_err() {
                    return;
                }
            }
            Ok(None) => return debug!("the node closed the session"),
            Err(error) => return debug!(%error, "session broke off"),
        }
    }
}

async fn write_all(
    mut sender: FrameSender<CoordinatorMessage>,
    mut queued: mpsc::Receiver<CoordinatorMessage>,
) {
    while let Some(message) = queued.recv().await {
        match tokio::time::timeout(WRITE_TIMEOUT, sender.send(&message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return debug!(%error, "message could not be written"),
            Err(_) => return info!("node does not read what it is sent"),
        }
    }
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
