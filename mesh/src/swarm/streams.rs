//! Streams of one protocol between two processes, over whatever control connection leads to the other: a
//! direct one, or a circuit through a relay.
//!
//! Not here: what crosses them, and their gate.

use std::io;
use std::sync::Arc;

use futures::StreamExt;
use libp2p_stream::IncomingStreams;
use protocol::PeerId;
use tokio::sync::oneshot;

use crate::frames::{Reader, Writer};
use crate::identity::{from_libp2p, to_libp2p};
use crate::swarm::event_loop::Command;
use crate::swarm::{Mesh, Shared, accepting, split};

/// Opens streams of one protocol.
#[derive(Clone)]
pub(crate) struct PeerStreams {
    shared: Arc<Shared>,
    protocol: &'static str,
}

/// The streams of that protocol that others open.
pub(crate) struct OpenedStreams(IncomingStreams);

impl Mesh {
    /// The two ends of a protocol; once for each.
    pub(crate) fn streams(&self, protocol: &'static str) -> (PeerStreams, OpenedStreams) {
        let streams = PeerStreams { shared: Arc::clone(&self.shared), protocol };
        (streams, OpenedStreams(accepting(&self.shared, protocol)))
    }
}

impl PeerStreams {
    /// Opens a stream to a member, which is met first.
    pub(crate) async fn open(&self, peer: PeerId) -> io::Result<(Reader, Writer)> {
        let target = to_libp2p(peer).ok_or(io::ErrorKind::InvalidInput)?;
        let (answer, met) = oneshot::channel();
        let command = Command::Meet { peer: target, addresses: Vec::new(), answer };
        self.shared.commands.send(command).await.map_err(|_| io::ErrorKind::NotConnected)?;
        met.await
            .map_err(|_| io::Error::new(io::ErrorKind::HostUnreachable, "no relay leads to the peer"))?;
        self.open_to_connected(peer).await
    }

    /// Opens a stream to a peer that is connected, whoever it is.
    pub(crate) async fn open_to_connected(&self, peer: PeerId) -> io::Result<(Reader, Writer)> {
        let stream = self.shared.open_stream(peer, self.protocol).await;
        Ok(split(stream.map_err(io::Error::other)?))
    }
}

impl OpenedStreams {
    /// The next one, and who opened it; `None` at the end of the mesh.
    pub(crate) async fn next(&mut self) -> Option<(PeerId, Reader, Writer)> {
        loop {
            let (peer, stream) = self.0.next().await?;
            // A peer whose key is not ed25519 is no member's.
            if let Some(peer) = from_libp2p(peer) {
                let (reader, writer) = split(stream);
                return Some((peer, reader, writer));
            }
        }
    }
}
