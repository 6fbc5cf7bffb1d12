//! A link of TLS connections, as either side sees it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use protocol::PeerId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::control::{Control, MAX_REQUESTS};
use super::preface::{LinkId, Preface, Purpose};
use super::{Connection, Dialler, NAME};
use crate::plane::{Channel, Link};

/// How many channels of the peer may wait to be taken.
const MAX_CHANNELS: usize = 64;
/// How long the dialling side may take to open a channel that was requested.
const LEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The side that dialled: it opens every connection.
pub(super) struct DialledLink {
    peer: PeerId,
    id: LinkId,
    dialler: Dialler,
    requested: Mutex<mpsc::Receiver<()>>,
    closed: CancellationToken,
}

impl DialledLink {
    pub(super) fn start(
        peer: PeerId,
        id: LinkId,
        dialler: Dialler,
        control: Connection,
        closed: CancellationToken,
    ) -> Arc<dyn Link> {
        let (requested, requests) = mpsc::channel(MAX_REQUESTS);
        // Nothing is requested of the side that was dialled, so the other end is let go.
        let (_, nothing) = mpsc::channel(1);
        let control_task = Control { requested: Some(requested), requests: nothing, closed: closed.clone() };
        tokio::spawn(control_task.run(control));
        Arc::new(Self { peer, id, dialler, requested: Mutex::new(requests), closed })
    }

    async fn connect(&self, purpose: Purpose) -> io::Result<Channel> {
        let connecting = self.dialler.connect(Preface { purpose, link: self.id });
        let connected = self.closed.run_until_cancelled(connecting).await;
        Ok(channel(connected.ok_or(io::ErrorKind::ConnectionReset)??, &self.closed))
    }
}

#[async_trait]
impl Link for DialledLink {
    fn plane(&self) -> &'static str {
        NAME
    }

    fn peer(&self) -> PeerId {
        self.peer
    }

    fn remote(&self) -> SocketAddr {
        self.dialler.address
    }

    fn admit(&self) {}

    async fn open(&self) -> Result<Channel, io::Error> {
        self.connect(Purpose::Asked).await
    }

    async fn accept(&self) -> Option<Channel> {
        self.closed.run_until_cancelled(async { self.requested.lock().await.recv().await }).await??;
        match self.connect(Purpose::Lent).await {
            Ok(channel) => Some(channel),
            // What the peer requested cannot be had: the link is of no use to it any more.
            Err(_) => {
                self.closed.cancel();
                None
            }
        }
    }

    fn close(&self, _reason: &'static str) {
        self.closed.cancel();
    }

    fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl Drop for DialledLink {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// The side that was dialled: its own channels it requests.
pub(super) struct AcceptedLink {
    peer: PeerId,
    remote: SocketAddr,
    /// Whether the peer passed the gate; before that it has one channel.
    admitted: AtomicBool,
    greeted: AtomicBool,
    asked: (mpsc::Sender<Channel>, Mutex<mpsc::Receiver<Channel>>),
    lent: (mpsc::Sender<Channel>, Mutex<mpsc::Receiver<Channel>>),
    requests: mpsc::Sender<()>,
    closed: CancellationToken,
}

impl AcceptedLink {
    /// The link, and what its control connection is to work with.
    pub(super) fn new(peer: PeerId, remote: SocketAddr, closed: CancellationToken) -> (Arc<Self>, Control) {
        let (requests, wanted) = mpsc::channel(MAX_REQUESTS);
        let control = Control { requested: None, requests: wanted, closed: closed.clone() };
        let queue = || {
            let (sender, receiver) = mpsc::channel(MAX_CHANNELS);
            (sender, Mutex::new(receiver))
        };
        let (admitted, greeted) = (AtomicBool::new(false), AtomicBool::new(false));
        let (asked, lent) = (queue(), queue());
        let link = Self { peer, remote, admitted, greeted, asked, lent, requests, closed };
        (Arc::new(link), control)
    }

    /// Takes a further connection of the peer. One too many is let go.
    pub(super) fn take(&self, stream: Connection, purpose: Purpose) {
        let is_first = !self.greeted.swap(true, Ordering::Relaxed);
        let is_hello = is_first && purpose == Purpose::Asked;
        if !is_hello && !self.admitted.load(Ordering::Relaxed) {
            return;
        }
        let queue = if purpose == Purpose::Lent { &self.lent.0 } else { &self.asked.0 };
        // The peer sees the connection close and may try again.
        let _ = queue.try_send(channel(stream, &self.closed));
    }
}

#[async_trait]
impl Link for AcceptedLink {
    fn plane(&self) -> &'static str {
        NAME
    }

    fn peer(&self) -> PeerId {
        self.peer
    }

    fn remote(&self) -> SocketAddr {
        self.remote
    }

    fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }

    async fn open(&self) -> Result<Channel, io::Error> {
        let lending = async {
            // Whoever requests first takes first, so that each request has its channel.
            let mut lent = self.lent.1.lock().await;
            self.requests.send(()).await.map_err(|_| io::ErrorKind::ConnectionReset)?;
            lent.recv().await.ok_or_else(|| io::ErrorKind::ConnectionReset.into())
        };
        let lent = self.closed.run_until_cancelled(timeout(LEND_TIMEOUT, lending)).await;
        lent.ok_or(io::ErrorKind::ConnectionReset)??
    }

    async fn accept(&self) -> Option<Channel> {
        self.closed.run_until_cancelled(async { self.asked.1.lock().await.recv().await }).await?
    }

    fn close(&self, _reason: &'static str) {
        self.closed.cancel();
    }

    fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

impl Drop for AcceptedLink {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

/// A channel that ends with its link.
fn channel(stream: Connection, closed: &CancellationToken) -> Channel {
    let (reader, writer) = tokio::io::split(stream);
    let tie = || Box::pin(closed.clone().cancelled_owned());
    Channel {
        reader: Box::new(Tied { half: reader, closed: tie() }),
        writer: Box::new(Tied { half: writer, closed: tie() }),
    }
}

/// Half of a connection that breaks when its link is closed.
struct Tied<H> {
    half: H,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<H> Tied<H> {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.closed.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionReset.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl<H: AsyncRead + Unpin> AsyncRead for Tied<H> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.half).poll_read(context, buffer)
    }
}

impl<H: AsyncWrite + Unpin> AsyncWrite for Tied<H> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.half).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.half).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_shutdown(context)
    }
}
