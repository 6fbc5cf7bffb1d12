//! Introductions on a link: as a coordinator, of the member at its other end to another one; as a member, by
//! the coordinator at its other end.
//!
//! The words are `protocol::introduction`'s. Not here: what a member then does, which is `punch`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
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

/// How often a member is introduced at once, and then each second, however many links it has.
const BURST: u32 = 8;
const PER_SECOND: u32 = 1;
/// The most members whose introductions are counted at once.
const MAX_COUNTED: usize = 4096;
/// How long a member may take to open its side; it may have to make a link to us first.
const READY_TIMEOUT: Duration = Duration::from_secs(4);

/// Who calls on a link, and what it is called by.
#[derive(Clone)]
pub(crate) struct Caller {
    links: Weak<Links>,
    link: Arc<dyn Link>,
}

impl Caller {
    pub(super) fn new(links: &Arc<Links>, link: &Arc<dyn Link>) -> Self {
        Self { links: Arc::downgrade(links), link: Arc::clone(link) }
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
        if !links.may_be_introduced(self.link.peer()) {
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
}

impl Links {
    fn may_be_introduced(&self, peer: PeerId) -> bool {
        let mut introductions = self.introductions.lock().expect("nothing panics while it holds them");
        introductions.take(peer, Instant::now())
    }
}

/// How often each member was introduced lately. It reads no clock.
pub(super) struct Introductions {
    since: Instant,
    buckets: HashMap<PeerId, Bucket>,
}

impl Introductions {
    pub(super) fn from(since: Instant) -> Self {
        Self { since, buckets: HashMap::new() }
    }

    /// Whether this member may be introduced once more; not where too many others are just being introduced.
    fn take(&mut self, peer: PeerId, now: Instant) -> bool {
        let now = now.duration_since(self.since);
        if self.buckets.len() >= MAX_COUNTED && !self.buckets.contains_key(&peer) {
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
            if self.buckets.len() >= MAX_COUNTED {
                return false;
            }
        }
        self.buckets.entry(peer).or_insert_with(|| Bucket::new(BURST, PER_SECOND)).take(now)
    }
}

/// Has a member open its side.
async fn tell(link: &dyn Link, meet: Meet) -> Result<bool, FrameError> {
    let answer = answer_to(link, BlobRequest::Meet(meet)).await?;
    Ok(matches!(answer, Some(BlobAnswer::Ready(Ready { ready: true }))))
}

/// The answer to a question that has a channel to itself.
pub(super) async fn answer_to(
    link: &dyn Link,
    question: BlobRequest,
) -> Result<Option<BlobAnswer>, FrameError> {
    let Channel { reader, writer } = link.open().await?;
    let mut asking = FrameSender::with_limit(writer, MAX_BLOB_FRAME);
    asking.send(&question).await?;
    FrameReceiver::with_limit(reader, MAX_BLOB_FRAME).recv().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: usize) -> PeerId {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
        PeerId(bytes)
    }

    #[test]
    fn members_are_counted_each_for_itself_and_forgotten_when_they_may_do_all_again() {
        let began = Instant::now();
        let mut introductions = Introductions::from(began);
        assert_eq!((0..20).filter(|_| introductions.take(peer(0), began)).count(), BURST as usize);
        assert!((1..MAX_COUNTED).all(|number| introductions.take(peer(number), began)));
        assert!(!introductions.take(peer(MAX_COUNTED), began), "more are not counted");
        let later = began + Duration::from_secs(2);
        assert!(introductions.take(peer(MAX_COUNTED), later));
        assert_eq!(introductions.buckets.len(), 2, "who asked too often is remembered");
        assert_eq!((0..20).filter(|_| introductions.take(peer(0), later)).count(), 2);
    }
}
