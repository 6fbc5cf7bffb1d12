//! Takes the streams that peers open: joins, rate-limited, and sessions, through the gate.
//!
//! libp2p-stream drops what is not taken at once, so the loops here only hand over; each stream has a
//! task of its own, and there is a bound on those.

use std::collections::HashSet;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use libp2p::Stream;
use libp2p_stream::IncomingStreams;
use protocol::PeerId;
use protocol::codec::MAX_HELLO;
use protocol::message::{HELLO_TIMEOUT, JOIN_PROTOCOL, JoinMessage, JoinRefusal, SESSION_PROTOCOL};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tracing::{Instrument, debug, debug_span};

use crate::frames::{FrameReceiver, FrameSender};
use crate::gate::{Side, exchange_hellos};
use crate::identity::{from_libp2p, to_libp2p};
use crate::swarm::bucket::Bucket;
use crate::swarm::event_loop::Command;
use crate::swarm::{Incoming, Session, Shared, accepting, split};

/// How many streams may be at the gate or joining at once.
const MAX_AT_GATE: usize = 256;
/// How many join requests are taken at once, and how many a second after that.
const JOIN_BURST: u32 = 20;
const JOINS_PER_SECOND: u32 = 5;

/// Begins to take joins and sessions; ends with the mesh.
pub(super) fn start(shared: &Arc<Shared>, incoming: mpsc::Sender<Incoming>) {
    let (joins, sessions) = (accepting(shared, JOIN_PROTOCOL), accepting(shared, SESSION_PROTOCOL));
    let acceptor = Acceptor {
        shared: Arc::clone(shared),
        incoming,
        at_gate: Arc::new(Semaphore::new(MAX_AT_GATE)),
        joining: Arc::default(),
    };
    tokio::spawn(acceptor.clone().take_joins(joins));
    tokio::spawn(acceptor.take_sessions(sessions));
}

#[derive(Clone)]
struct Acceptor {
    shared: Arc<Shared>,
    incoming: mpsc::Sender<Incoming>,
    at_gate: Arc<Semaphore>,
    /// Peers with a join request under way: one each.
    joining: Arc<Mutex<HashSet<PeerId>>>,
}

impl Acceptor {
    async fn take_joins(self, streams: IncomingStreams) {
        let start = Instant::now();
        let mut bucket = Bucket::new(JOIN_BURST, JOINS_PER_SECOND);
        let mut streams = pin!(streams.take_until(self.shared.stop.clone().cancelled_owned()));
        while let Some((peer, stream)) = streams.next().await {
            let Some(peer) = from_libp2p(peer) else { continue };
            let Ok(permit) = Arc::clone(&self.at_gate).try_acquire_owned() else { continue };
            let is_busy = !bucket.take(start.elapsed());
            let acceptor = self.clone();
            let join = async move {
                if timeout(HELLO_TIMEOUT * 2, acceptor.join(peer, stream, is_busy)).await.is_err() {
                    debug!("join took too long");
                }
                drop(permit);
            };
            tokio::spawn(join.instrument(debug_span!("join", peer = %peer.fmt_short())));
        }
    }

    async fn join(&self, peer: PeerId, stream: Stream, is_busy: bool) {
        let (reader, writer) = split(stream);
        let mut sender = FrameSender::with_limit(writer, MAX_HELLO);
        let mut receiver = FrameReceiver::with_limit(reader, MAX_HELLO);
        let answer = match Joining::begin(&self.joining, peer).filter(|_| !is_busy) {
            None => Some(JoinMessage::Refused(JoinRefusal::Busy)),
            Some(joining) => self.answer(&joining, &mut receiver).await,
        };
        let Some(answer) = answer else { return };
        if matches!(answer, JoinMessage::Accepted(_)) {
            self.admit(peer).await;
        }
        if let Err(error) = sender.send(&answer).await {
            debug!(%error, "answer to a join request did not go out");
            return;
        }
        // The answer is through when the other side closes; dropping the stream earlier could cut it.
        if sender.finish().await.is_ok() {
            let _ = receiver.recv().await;
        }
    }

    async fn answer(
        &self,
        joining: &Joining,
        receiver: &mut FrameReceiver<JoinMessage>,
    ) -> Option<JoinMessage> {
        let Ok(Ok(Some(JoinMessage::Request(request)))) = timeout(HELLO_TIMEOUT, receiver.recv()).await
        else {
            debug!("stream of joining holds no request");
            return None;
        };
        let (answer, answered) = oneshot::channel();
        let join = Incoming::Join { peer: joining.peer, request, answer };
        // Nobody takes joins any more when the process stops.
        self.incoming.send(join).await.ok()?;
        answered.await.ok()
    }

    async fn take_sessions(self, streams: IncomingStreams) {
        let mut streams = pin!(streams.take_until(self.shared.stop.clone().cancelled_owned()));
        while let Some((peer, stream)) = streams.next().await {
            let Some(peer) = from_libp2p(peer) else { continue };
            let Ok(permit) = Arc::clone(&self.at_gate).try_acquire_owned() else { continue };
            let acceptor = self.clone();
            let session = async move {
                if let Some(session) = acceptor.session(peer, stream).await {
                    // Nobody takes sessions any more when the process stops.
                    let _ = acceptor.incoming.send(Incoming::Session(session)).await;
                }
                // Only now: sessions that wait to be taken are bounded as well.
                drop(permit);
            };
            tokio::spawn(session.instrument(debug_span!("gate", peer = %peer.fmt_short())));
        }
    }

    async fn session(
        &self,
        peer: PeerId,
        stream: Stream,
    ) -> Option<Session<protocol::message::CoordinatorMessage, protocol::message::NodeMessage>> {
        let credentials = self.shared.credentials()?;
        let (reader, writer) = split(stream);
        match exchange_hellos(reader, writer, &credentials, peer, Side::Accepted).await {
            Ok((reader, writer, membership)) => {
                let remote = self.admit(peer).await;
                Some(Session::new(peer, membership, remote, reader, writer))
            }
            Err(error) => {
                debug!(%error, "peer was refused at the gate");
                None
            }
        }
    }

    /// Takes the peer's connections off probation; says where it is seen.
    async fn admit(&self, peer: PeerId) -> Option<IpAddr> {
        let (answer, remote) = oneshot::channel();
        let command = Command::Admit { peer: to_libp2p(peer)?, answer };
        self.shared.commands.send(command).await.ok()?;
        remote.await.ok()?
    }
}

/// A peer whose join request is under way; it ends when this is dropped.
struct Joining {
    peer: PeerId,
    peers: Arc<Mutex<HashSet<PeerId>>>,
}

impl Joining {
    /// `None` while another request of the peer is under way.
    fn begin(peers: &Arc<Mutex<HashSet<PeerId>>>, peer: PeerId) -> Option<Self> {
        let is_first = peers.lock().expect("nothing panics while it holds them").insert(peer);
        is_first.then(|| Self { peer, peers: Arc::clone(peers) })
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        self.peers.lock().expect("nothing panics while it holds them").remove(&self.peer);
    }
}
