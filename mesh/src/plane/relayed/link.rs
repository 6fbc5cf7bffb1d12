//! A link of streams, as either side sees it: each opens its own channels, and the control stream, on which
//! nothing more is said, ends the link with it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use protocol::PeerId;
use tokio::io::AsyncReadExt;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use super::NAME;
use super::pace::{Paced, SharedPace};
use crate::frames::{Reader, Writer};
use crate::plane::tls::preface::{LinkId, Preface, Purpose};
use crate::plane::{Channel, Link};
use crate::swarm::streams::PeerStreams;

/// How many channels of the peer may wait to be taken.
const MAX_CHANNELS: usize = 64;
/// How long a link may carry nothing: a relay has few circuits.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

pub(super) struct RelayedLink {
    peer: PeerId,
    id: LinkId,
    streams: PeerStreams,
    paces: [SharedPace; 2],
    /// Whether the peer passed the gate; before that it has one channel.
    admitted: AtomicBool,
    greeted: AtomicBool,
    channels: (mpsc::Sender<Channel>, Mutex<mpsc::Receiver<Channel>>),
    closed: CancellationToken,
}

impl RelayedLink {
    pub(super) fn new(
        peer: PeerId,
        id: LinkId,
        streams: PeerStreams,
        paces: [SharedPace; 2],
        closed: CancellationToken,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(MAX_CHANNELS);
        let (admitted, greeted) = (AtomicBool::new(false), AtomicBool::new(false));
        let channels = (sender, Mutex::new(receiver));
        Self { peer, id, streams, paces, admitted, greeted, channels, closed }
    }

    pub(super) fn id(&self) -> LinkId {
        self.id
    }

    /// What it keeps to together with others of the peer.
    pub(super) fn pace(&self) -> SharedPace {
        self.paces[0].clone()
    }

    /// Takes a channel that the peer opened. One too many is let go.
    pub(super) fn take(&self, reader: Reader, writer: Writer) {
        let is_first = !self.greeted.swap(true, Ordering::Relaxed);
        if is_first || self.admitted.load(Ordering::Relaxed) {
            // The peer sees the channel close and may try again.
            let _ = self.channels.0.try_send(self.channel(reader, writer));
        }
    }

    /// Holds the control stream until either side lets go of it, or nothing crossed for long. The link itself is not held: whoever uses
    /// it closes it by letting go.
    pub(super) fn hold(&self, mut reader: Reader, writer: Writer) {
        let (closed, pace) = (self.closed.clone(), self.pace());
        tokio::spawn(async move {
            let over = async {
                tokio::select! {
                    _ = reader.read_u8() => {}
                    () = pace.idle(IDLE_TIMEOUT) => {}
                }
            };
            closed.run_until_cancelled(over).await;
            closed.cancel();
            drop(writer);
        });
    }

    fn channel(&self, reader: Reader, writer: Writer) -> Channel {
        let paced = |pace: &[SharedPace; 2]| (pace.clone(), self.closed.clone());
        let ((reading, read_end), (writing, write_end)) = (paced(&self.paces), paced(&self.paces));
        Channel {
            reader: Box::new(Paced::new(reader, reading, read_end)),
            writer: Box::new(Paced::new(writer, writing, write_end)),
        }
    }
}

#[async_trait]
impl Link for RelayedLink {
    fn plane(&self) -> &'static str {
        NAME
    }

    fn peer(&self) -> PeerId {
        self.peer
    }

    /// Nowhere that could be dialled.
    fn remote(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
    }

    fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }

    async fn open(&self) -> Result<Channel, io::Error> {
        let opening = async {
            let (reader, mut writer) = self.streams.open_to_connected(self.peer).await?;
            Preface { purpose: Purpose::Asked, link: self.id }.write(&mut writer).await?;
            Ok(self.channel(reader, writer))
        };
        self.closed.run_until_cancelled(opening).await.ok_or(io::ErrorKind::ConnectionReset)?
    }

    async fn accept(&self) -> Option<Channel> {
        self.closed.run_until_cancelled(async { self.channels.1.lock().await.recv().await }).await?
    }

    fn close(&self, _: &'static str) {
        self.closed.cancel();
    }

    fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl Drop for RelayedLink {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}
