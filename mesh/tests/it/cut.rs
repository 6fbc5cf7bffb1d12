//! A plane that dies: every link it accepts falls silent after so many bytes were sent on it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use mesh::frames::Writer;
use mesh::plane::{Channel, DialError, Link, Plane};
use protocol::PeerId;
use tokio::io::AsyncWrite;

pub(crate) struct CutPlane {
    pub(crate) inner: Arc<dyn Plane>,
    pub(crate) after: usize,
}

#[async_trait]
impl Plane for CutPlane {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    async fn dial(&self, peer: PeerId, address: SocketAddr) -> Result<Arc<dyn Link>, DialError> {
        self.inner.dial(peer, address).await
    }

    async fn accept(&self) -> Option<Arc<dyn Link>> {
        let inner = self.inner.accept().await?;
        Some(Arc::new(CutLink { inner, left: Arc::new(AtomicUsize::new(self.after)) }))
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.inner.addresses()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

struct CutLink {
    inner: Arc<dyn Link>,
    left: Arc<AtomicUsize>,
}

#[async_trait]
impl Link for CutLink {
    fn plane(&self) -> &'static str {
        self.inner.plane()
    }

    fn peer(&self) -> PeerId {
        self.inner.peer()
    }

    fn remote(&self) -> SocketAddr {
        self.inner.remote()
    }

    fn admit(&self) {
        self.inner.admit();
    }

    async fn open(&self) -> Result<Channel, io::Error> {
        self.inner.open().await
    }

    async fn accept(&self) -> Option<Channel> {
        let channel = self.inner.accept().await?;
        let writer = CutWriter { inner: channel.writer, left: Arc::clone(&self.left) };
        Some(Channel { reader: channel.reader, writer: Box::new(writer) })
    }

    fn close(&self, reason: &'static str) {
        self.inner.close(reason);
    }

    fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }

    async fn closed(&self) {
        self.inner.closed().await;
    }
}

struct CutWriter {
    inner: Writer,
    left: Arc<AtomicUsize>,
}

impl AsyncWrite for CutWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            // Nobody wakes this task again.
            return Poll::Pending;
        }
        let written = Pin::new(&mut self.inner).poll_write(context, &bytes[..bytes.len().min(left)]);
        if let Poll::Ready(Ok(written)) = written {
            self.left.fetch_sub(written, Ordering::Relaxed);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
