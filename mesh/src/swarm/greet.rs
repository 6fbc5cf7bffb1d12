//! The Hello between any two members: each checks the other at the gate, says where it is reached, and only
//! then lets the behaviours inside speak.
//!
//! Not here: who is greeted and when, which is `discovery`'s.

use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use libp2p::{PeerId, Stream};
use libp2p_stream::IncomingStreams;
use protocol::codec::MAX_HELLO;
use protocol::contact::{Contact, ContactMessage, HELLO_PROTOCOL};
use protocol::membership::Membership;
use protocol::message::HELLO_TIMEOUT;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tracing::{Instrument, debug, debug_span};

use crate::frames::{FrameError, FrameReceiver, FrameSender};
use crate::gate::{GateError, Side, exchange_hellos, remaining};
use crate::identity::from_libp2p;
use crate::swarm::event_loop::Command;
use crate::swarm::{Shared, accepting, split};

/// How many Hellos there may be at once, of ours and of others each.
const MAX_GREETINGS: usize = 64;

/// Why a peer is not met.
#[derive(Debug, thiserror::Error)]
enum GreetError {
    #[error("this process has no membership yet")]
    NoCredentials,
    #[error("no stream to the peer could be opened: {0}")]
    Stream(String),
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error("the connection broke during the Hello")]
    Frame(#[from] FrameError),
    #[error("the peer says more than a member may")]
    TooMuch,
    #[error("the connection is gone")]
    Gone,
    #[error("the peer took too long")]
    Timeout,
}

/// Begins to take Hellos and to say those that are `wanted`; ends with the mesh.
pub(super) fn start(shared: &Arc<Shared>, wanted: mpsc::Receiver<PeerId>) {
    let greeter = Greeter { shared: Arc::clone(shared) };
    tokio::spawn(greeter.clone().take_all(accepting(shared, HELLO_PROTOCOL)));
    tokio::spawn(greeter.greet_all(wanted));
}

#[derive(Clone)]
struct Greeter {
    shared: Arc<Shared>,
}

impl Greeter {
    async fn greet_all(self, mut wanted: mpsc::Receiver<PeerId>) {
        let greetings = Arc::new(Semaphore::new(MAX_GREETINGS));
        let stop = self.shared.stop.clone();
        while let Some(Some(peer)) = stop.run_until_cancelled(wanted.recv()).await {
            let Ok(permit) = Arc::clone(&greetings).acquire_owned().await else { return };
            let greeter = self.clone();
            let greeting = async move {
                let greeted = timeout(HELLO_TIMEOUT * 3, greeter.greet(peer)).await;
                if let Err(error) = greeted.unwrap_or(Err(GreetError::Timeout)) {
                    debug!(%error, "peer is not met");
                    // A loop that has stopped meets nobody.
                    let _ = greeter.shared.commands.send(Command::NotMet { peer }).await;
                }
                drop(permit);
            };
            tokio::spawn(greeting.instrument(debug_span!("greet", %peer)));
        }
    }

    /// Says Hello first.
    async fn greet(&self, peer: PeerId) -> Result<(), GreetError> {
        let credentials = self.shared.credentials().ok_or(GreetError::NoCredentials)?;
        let name = from_libp2p(peer).ok_or(GreetError::Gone)?;
        let stream = self.shared.open_stream(name, HELLO_PROTOCOL).await;
        let stream = stream.map_err(|error| GreetError::Stream(error.to_string()))?;
        let (reader, writer) = split(stream);
        let passed = exchange_hellos(reader, writer, &credentials, name, Side::Dialled).await?;
        let (mut receiver, mut sender) = framed(passed.0, passed.1);
        sender.send(&ContactMessage::Contact(self.shared.contact())).await?;
        let contact = self.hear(&mut receiver).await?;
        self.open(peer, contact, Side::Dialled, &passed.2).await
    }

    async fn take_all(self, streams: IncomingStreams) {
        let at_gate = Arc::new(Semaphore::new(MAX_GREETINGS));
        let mut streams = pin!(streams.take_until(self.shared.stop.clone().cancelled_owned()));
        while let Some((peer, stream)) = streams.next().await {
            let Ok(permit) = Arc::clone(&at_gate).try_acquire_owned() else { continue };
            let greeter = self.clone();
            let taking = async move {
                let taken = timeout(HELLO_TIMEOUT * 3, greeter.take(peer, stream)).await;
                if let Err(error) = taken.unwrap_or(Err(GreetError::Timeout)) {
                    debug!(%error, "peer did not pass");
                }
                drop(permit);
            };
            tokio::spawn(taking.instrument(debug_span!("gate", %peer)));
        }
    }

    /// Answers a Hello.
    async fn take(&self, peer: PeerId, stream: Stream) -> Result<(), GreetError> {
        let credentials = self.shared.credentials().ok_or(GreetError::NoCredentials)?;
        let name = from_libp2p(peer).ok_or(GreetError::Gone)?;
        let (reader, writer) = split(stream);
        let passed = exchange_hellos(reader, writer, &credentials, name, Side::Accepted).await?;
        let (mut receiver, mut sender) = framed(passed.0, passed.1);
        let contact = self.hear(&mut receiver).await?;
        // Open here first: the peer speaks to those inside as soon as it has our answer.
        self.open(peer, contact, Side::Accepted, &passed.2).await?;
        sender.send(&ContactMessage::Contact(self.shared.contact())).await?;
        sender.finish().await?;
        // The answer is through when the other side closes; dropping the stream earlier could cut it.
        let _ = receiver.recv().await;
        Ok(())
    }

    async fn hear(&self, receiver: &mut FrameReceiver<ContactMessage>) -> Result<Contact, GreetError> {
        let heard = timeout(HELLO_TIMEOUT, receiver.recv()).await.map_err(|_| GreetError::Timeout)?;
        let ContactMessage::Contact(contact) = heard?.ok_or(FrameError::Cut)?;
        contact.dialable().ok_or(GreetError::TooMuch)
    }

    /// Lets the behaviours inside speak with the peer, and waits until they answer it.
    async fn open(
        &self,
        peer: PeerId,
        contact: Contact,
        side: Side,
        membership: &Membership,
    ) -> Result<(), GreetError> {
        let (opened, is_open) = oneshot::channel();
        let until = Instant::now() + remaining(membership);
        let command = Command::Open { peer, contact, side, until, opened };
        self.shared.commands.send(command).await.map_err(|_| GreetError::Gone)?;
        is_open.await.map_err(|_| GreetError::Gone)
    }
}

fn framed(
    reader: crate::frames::Reader,
    writer: crate::frames::Writer,
) -> (FrameReceiver<ContactMessage>, FrameSender<ContactMessage>) {
    (FrameReceiver::with_limit(reader, MAX_HELLO), FrameSender::with_limit(writer, MAX_HELLO))
}
