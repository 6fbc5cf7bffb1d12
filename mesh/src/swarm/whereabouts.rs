//! The question between two members: do you hold this blob, and how large is it? Kademlia knows no size and
//! believes what was true an hour ago.
//!
//! Behind the gate, on a stream of its own. Not here: who is asked, which is `find`'s.

use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use libp2p::Stream;
use libp2p_stream::IncomingStreams;
use protocol::codec::MAX_HELLO;
use protocol::contact::{Held, WHERE_PROTOCOL, Where, WhereMessage};
use protocol::message::HELLO_TIMEOUT;
use protocol::{BlobName, BlobRef, PeerId};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{Instrument, debug, debug_span};

use crate::frames::{FrameError, FrameReceiver, FrameSender};
use crate::gate::{GateError, Side, exchange_hellos};
use crate::identity::from_libp2p;
use crate::swarm::{Shared, accepting, split};

/// How many questions are answered at once.
const MAX_QUESTIONS: usize = 64;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum WhereError {
    #[error("this process has no membership yet")]
    NoCredentials,
    #[error("no stream to the peer could be opened: {0}")]
    Stream(String),
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error("the connection broke during the question")]
    Frame(#[from] FrameError),
    #[error("the peer says something else")]
    OutOfTurn,
    #[error("the peer took too long")]
    Timeout,
}

/// Asks a member that is connected for a blob.
pub(super) async fn ask(
    shared: &Shared,
    peer: PeerId,
    name: BlobName,
) -> Result<Option<BlobRef>, WhereError> {
    let asking = async {
        let credentials = shared.credentials().ok_or(WhereError::NoCredentials)?;
        let stream = shared.open_stream(peer, WHERE_PROTOCOL).await;
        let (reader, writer) = split(stream.map_err(|error| WhereError::Stream(error.to_string()))?);
        let passed = exchange_hellos(reader, writer, &credentials, peer, Side::Dialled).await?;
        let mut receiver = FrameReceiver::with_limit(passed.0, MAX_HELLO);
        let mut sender = FrameSender::with_limit(passed.1, MAX_HELLO);
        sender.send(&WhereMessage::Where(Where { name })).await?;
        match receiver.recv().await?.ok_or(FrameError::Cut)? {
            WhereMessage::Held(Held { blob }) => Ok(blob.filter(|blob| is_of(blob, &name))),
            WhereMessage::Where(_) => Err(WhereError::OutOfTurn),
        }
    };
    timeout(HELLO_TIMEOUT, asking).await.unwrap_or(Err(WhereError::Timeout))
}

/// Whether an answer can be one to the question.
fn is_of(blob: &BlobRef, name: &BlobName) -> bool {
    match name {
        BlobName::Blake3(hash) => blob.hash == *hash,
        BlobName::Sha256(_) => true,
    }
}

/// Begins to answer members; ends with the mesh.
pub(super) fn start(shared: &Arc<Shared>) {
    tokio::spawn(take_all(Arc::clone(shared), accepting(shared, WHERE_PROTOCOL)));
}

async fn take_all(shared: Arc<Shared>, streams: IncomingStreams) {
    let questions = Arc::new(Semaphore::new(MAX_QUESTIONS));
    let mut streams = pin!(streams.take_until(shared.stop.clone().cancelled_owned()));
    while let Some((peer, stream)) = streams.next().await {
        let Some(peer) = from_libp2p(peer) else { continue };
        let Ok(permit) = Arc::clone(&questions).try_acquire_owned() else { continue };
        let shared = Arc::clone(&shared);
        let answering = async move {
            let answered = timeout(HELLO_TIMEOUT * 2, answer(&shared, peer, stream)).await;
            if let Err(error) = answered.unwrap_or(Err(WhereError::Timeout)) {
                debug!(%error, "question for a blob is not answered");
            }
            drop(permit);
        };
        tokio::spawn(answering.instrument(debug_span!("where", peer = %peer.fmt_short())));
    }
}

async fn answer(shared: &Shared, peer: PeerId, stream: Stream) -> Result<(), WhereError> {
    let credentials = shared.credentials().ok_or(WhereError::NoCredentials)?;
    let (reader, writer) = split(stream);
    let passed = exchange_hellos(reader, writer, &credentials, peer, Side::Accepted).await?;
    let mut receiver = FrameReceiver::with_limit(passed.0, MAX_HELLO);
    let mut sender = FrameSender::with_limit(passed.1, MAX_HELLO);
    let WhereMessage::Where(Where { name }) = receiver.recv().await?.ok_or(FrameError::Cut)? else {
        return Err(WhereError::OutOfTurn);
    };
    let blob = shared.store().and_then(|store| store.find_offered(&name));
    sender.send(&WhereMessage::Held(Held { blob })).await?;
    sender.finish().await?;
    // The answer is through when the other side closes; dropping the stream earlier could cut it.
    let _ = receiver.recv().await;
    Ok(())
}
