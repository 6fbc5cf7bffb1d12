//! Introductions on a link: as a coordinator, of the member at its other end to another one; as a member, by
//! the coordinator at its other end.
//!
//! The words are `protocol::introduction`'s. Not here: what a member then does, which is `punch`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use protocol::PeerId;
use protocol::introduction::{Meet, Ready};
use protocol::membership::Role;
use protocol::wire::{BlobAnswer, BlobRequest, MAX_BLOB_FRAME};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::Links;
use crate::frames::{FrameError, FrameReceiver, FrameSender};
use crate::plane::{Channel, Link};
use crate::swarm::bucket::Bucket;

/// How often a link is introduced at once, and then each second.
const BURST: u32 = 8;
const PER_SECOND: u32 = 1;
/// How long a member may take to open its side; it may have to make a link to us first.
const READY_TIMEOUT: Duration = Duration::from_secs(4);

/// Who calls on a link, and what it is called by.
#[derive(Clone)]
pub(crate) struct Caller {
    links: Weak<Links>,
    link: Arc<dyn Link>,
    bucket: Arc<Mutex<Bucket>>,
    since: Instant,
}

impl Caller {
    pub(super) fn new(links: &Arc<Links>, link: &Arc<dyn Link>) -> Self {
        let bucket = Arc::new(Mutex::new(Bucket::new(BURST, PER_SECOND)));
        Self { links: Arc::downgrade(links), link: Arc::clone(link), bucket, since: Instant::now() }
    }

    /// As a coordinator: has the other member open its side for the caller; where it is seen.
    pub(crate) async fn introduce(&self, other: PeerId) -> Option<SocketAddr> {
        let links = self.links.upgrade()?;
        let is_coordinator = links.credentials.membership().role() == Role::Coordinator;
        if !is_coordinator || other == self.link.peer() || links.credentials.is_revoked(other) {
            return None;
        }
        let address = self.link.seen_at()?;
        let link = links.get(other)?;
        if !self.take() {
            debug!("member asks for too many introductions");
            return None;
        }
        let meet = Meet { peer: self.link.peer(), address };
        let answered = timeout(READY_TIMEOUT, tell(&*link, meet)).await;
        let is_ready = answered.is_ok_and(|answer| answer.is_ok_and(|ready| ready));
        debug!(other = %other.fmt_short(), is_ready, "members introduced");
        if is_ready { links.seen_at(other) } else { None }
    }

    /// As a member: opens our side for somebody who is about to dial; whether that was done.
    pub(crate) fn meet(&self, meet: Meet) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            match self.links.upgrade() {
                Some(links) => links.open_side(self.link.peer(), meet).await,
                None => false,
            }
        })
    }

    fn take(&self) -> bool {
        self.bucket.lock().expect("nothing panics while it holds the bucket").take(self.since.elapsed())
    }
}

/// Has a member open its side.
async fn tell(link: &dyn Link, meet: Meet) -> Result<bool, FrameError> {
    let Channel { reader, writer } = link.open().await?;
    FrameSender::with_limit(writer, MAX_BLOB_FRAME).send(&BlobRequest::Meet(meet)).await?;
    let answer = FrameReceiver::with_limit(reader, MAX_BLOB_FRAME).recv().await?;
    Ok(matches!(answer, Some(BlobAnswer::Ready(Ready { ready: true }))))
}
