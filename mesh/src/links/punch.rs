//! A direct path to a member that cannot be dialled: both sides send to where the other's UDP port is seen, so
//! that the translator in front of each lets the other in.
//!
//! The coordinator introduces them; `protocol::introduction` has the words, and the bounds. A path that came
//! about carries every conversation that begins from then on. A link over a relay is not closed for it, since
//! a conversation may be on it: it ends once it carried nothing for long. Not here: the coordinator's part,
//! which is `introduce`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use protocol::PeerId;
use protocol::introduction::{Introduce, Meet};
use protocol::message::Provider;
use protocol::wire::{BlobAnswer, BlobRequest};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, debug_span, info};

use super::introduce::answer_to;
use super::{LinkError, Links};
use crate::frames::FrameError;
use crate::gate::Side;
use crate::plane::{DialError, Link};

/// How many members may have us open our side at once.
pub(super) const MAX_MEETINGS: usize = 8;
/// How long an introduction may take.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one side dials before it is the other's turn.
const TURN: Duration = Duration::from_millis(2500);
/// How much longer the other's turn may seem: it began when the other heard of it.
const SLACK: Duration = Duration::from_secs(1);
/// When the datagrams that open our side are repeated.
const REPEATS: [Duration; 2] = [Duration::from_millis(150), Duration::from_millis(450)];
/// When what did not come about is tried again, if somebody wants it then; the pause doubles up to the last.
const RETRY_FIRST: Duration = Duration::from_secs(60);
const RETRY_LONGEST: Duration = Duration::from_secs(30 * 60);
/// The most peers whose tries are remembered.
const MAX_REMEMBERED: usize = 4096;
/// Why no path came about.
#[derive(Debug, thiserror::Error)]
enum PunchError {
    #[error("no link by UDP to the coordinator: {0}")]
    Unseen(LinkError),
    #[error("the coordinator could not be asked")]
    Frame(#[from] FrameError),
    #[error("the coordinator took too long")]
    Timeout,
    #[error("the coordinator cannot introduce it")]
    NotIntroduced,
    #[error("datagrams do not get through")]
    NotThrough,
}

impl Links {
    /// Has this coordinator introduce us to members that cannot be dialled.
    pub(crate) fn set_introducer(&self, introducer: Provider) {
        *self.introducer.lock().expect("nothing panics while it holds it") = Some(introducer);
    }

    fn introducer(&self) -> Option<Provider> {
        self.introducer.lock().expect("nothing panics while it holds it").clone()
    }

    /// Begins to make a direct path unless it is too early for another try; the token is cancelled when it is
    /// decided.
    pub(super) fn begin_punch(self: &Arc<Self>, peer: PeerId) -> Option<CancellationToken> {
        let introducer = self.introducer().filter(|introducer| introducer.peer != peer)?;
        let (over, is_new) = self.punches().begin(peer, Instant::now())?;
        if is_new {
            let (links, decided) = (Arc::clone(self), over.clone().drop_guard());
            let punching = async move {
                let made = links.stop.run_until_cancelled(links.punch(peer, &introducer)).await;
                match &made {
                    Some(Err(error)) => debug!(%error, "no direct path came about"),
                    Some(Ok(())) => info!(peer = %peer.fmt_short(), "a direct path came about"),
                    None => {}
                }
                links.punches().end(peer, matches!(made, Some(Ok(()))), Instant::now());
                drop(decided);
            };
            self.tasks.spawn(punching.instrument(debug_span!("punch", peer = %peer.fmt_short())));
        }
        Some(over)
    }

    async fn punch(self: &Arc<Self>, peer: PeerId, introducer: &Provider) -> Result<(), PunchError> {
        let link = self.be_seen_by(introducer).await.map_err(PunchError::Unseen)?;
        let asked = timeout(INTRODUCTION_TIMEOUT, ask(&*link, peer)).await;
        let address = asked.map_err(|_| PunchError::Timeout)??.ok_or(PunchError::NotIntroduced)?;
        if self.dial_seen(peer, address).await.is_ok() || self.await_direct(peer, TURN + SLACK).await {
            return Ok(());
        }
        Err(PunchError::NotThrough)
    }

    /// Somebody is about to dial us, says a peer: opens our side, and dials where nothing comes of it. Whether
    /// that was begun.
    pub(super) async fn open_side(self: &Arc<Self>, from: PeerId, meet: Meet) -> bool {
        let Some(introducer) = self.introducer().filter(|introducer| introducer.peer == from) else {
            debug!(from = %from.fmt_short(), "somebody else than the coordinator would introduce us");
            return false;
        };
        let Ok(permit) = Arc::clone(&self.meetings).try_acquire_owned() else { return false };
        if !meet.is_dialable() {
            return false;
        }
        if let Err(error) = self.be_seen_by(&introducer).await {
            debug!(%error, "no link by UDP to the coordinator");
            return false;
        }
        let Meet { peer, address } = meet;
        self.plane.knock(address);
        let links = Arc::clone(self);
        let meeting = async move {
            let began = Instant::now();
            for repeat in REPEATS {
                if links.await_direct(peer, repeat.saturating_sub(began.elapsed())).await {
                    return;
                }
                links.plane.knock(address);
            }
            if !links.await_direct(peer, TURN.saturating_sub(began.elapsed())).await {
                // Whether it comes about is the asker's to tell.
                let _ = links.dial_seen(peer, address).await;
            }
            drop(permit);
        };
        let (stop, span) = (self.stop.clone(), debug_span!("meet", peer = %peer.fmt_short()));
        self.tasks.spawn(async move { stop.run_until_cancelled(meeting.instrument(span)).await });
        true
    }

    /// A link by UDP to the coordinator, over which it sees the port from which we dial.
    async fn be_seen_by(self: &Arc<Self>, introducer: &Provider) -> Result<Arc<dyn Link>, LinkError> {
        let _turn = self.being_seen.lock().await;
        let is_seen = |link: &&Arc<dyn Link>| !link.is_closed() && link.seen_at().is_some();
        let seen = self.lock().get(&introducer.peer).and_then(|links| links.iter().find(is_seen).cloned());
        match seen {
            Some(link) => Ok(link),
            None => {
                self.dial_by(introducer.peer, &introducer.addresses, |peer, at| self.plane.dial_udp(peer, at))
                    .await
            }
        }
    }

    /// Dials a port as it was seen, for one turn.
    async fn dial_seen(self: &Arc<Self>, peer: PeerId, address: SocketAddr) -> Result<(), LinkError> {
        let silent = || DialError::NoAnswer {
            address,
            plane: self.plane.name(),
            source: std::io::ErrorKind::TimedOut.into(),
        };
        let dialled = timeout(TURN, self.plane.dial_udp(peer, address)).await;
        let link = dialled.unwrap_or_else(|_| Err(silent()));
        let link = link.map_err(|error| LinkError::Unreachable(vec![error]))?;
        self.admit(&link, Side::Dialled).await.inspect_err(|_| link.close(""))
    }

    /// Whether there is a direct link to the peer, waiting for one so long.
    async fn await_direct(&self, peer: PeerId, longest: Duration) -> bool {
        self.wait_until(longest, || self.has_direct(peer).then_some(())).await.is_some()
    }

    /// Whether there is a direct link to the peer.
    pub(crate) fn has_direct(&self, peer: PeerId) -> bool {
        self.get(peer).is_some_and(|link| !is_relayed(&*link))
    }

    /// Where a peer's UDP port is seen, by its newest link.
    pub(super) fn seen_at(&self, peer: PeerId) -> Option<SocketAddr> {
        let open = self.lock();
        let mut links = open.get(&peer)?.iter().rev().filter(|link| !link.is_closed());
        links.find_map(|link| link.seen_at())
    }

    fn punches(&self) -> std::sync::MutexGuard<'_, Punches> {
        self.punches.lock().expect("nothing panics while it holds them")
    }
}

/// Whether the bytes of a link go through others.
pub(crate) fn is_relayed(link: &dyn Link) -> bool {
    link.remote().ip().is_unspecified()
}

/// Asks a coordinator to introduce us.
async fn ask(link: &dyn Link, peer: PeerId) -> Result<Option<SocketAddr>, FrameError> {
    match answer_to(link, BlobRequest::Introduce(Introduce { peer })).await? {
        Some(BlobAnswer::Introduced(introduced)) => Ok(introduced.dialable()),
        _ => Err(FrameError::Cut),
    }
}

/// Whom we try to reach, and when it may be tried again. It reads no clock.
#[derive(Debug, Default)]
pub(super) struct Punches(HashMap<PeerId, Punch>);

#[derive(Debug)]
struct Punch {
    under_way: Option<CancellationToken>,
    again: Instant,
    pause: Duration,
}

impl Punches {
    /// What is cancelled when this try is over, and whether it is a new one; `None` where it is too early.
    fn begin(&mut self, peer: PeerId, now: Instant) -> Option<(CancellationToken, bool)> {
        if self.0.len() >= MAX_REMEMBERED {
            self.0.retain(|_, punch| punch.under_way.is_some() || punch.again > now);
        }
        if self.0.len() >= MAX_REMEMBERED && !self.0.contains_key(&peer) {
            return None;
        }
        let fresh = || Punch { under_way: None, again: now, pause: RETRY_FIRST };
        let punch = self.0.entry(peer).or_insert_with(fresh);
        if let Some(over) = &punch.under_way {
            return Some((over.clone(), false));
        }
        if now < punch.again {
            return None;
        }
        let over = CancellationToken::new();
        punch.under_way = Some(over.clone());
        Some((over, true))
    }

    fn end(&mut self, peer: PeerId, came_about: bool, now: Instant) {
        if came_about {
            self.0.remove(&peer);
        } else if let Some(punch) = self.0.get_mut(&peer) {
            punch.under_way = None;
            punch.again = now + punch.pause;
            punch.pause = (punch.pause * 2).min(RETRY_LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vain_tries_become_rarer_and_one_that_came_about_may_be_made_again_at_once() {
        let (mut punches, peer, mut now) = (Punches::default(), PeerId([1; 32]), Instant::now());
        let is_new = |began: Option<(CancellationToken, bool)>| began.map(|(_, is_new)| is_new);
        let mut pause = RETRY_FIRST;
        for _ in 0..8 {
            assert_eq!(is_new(punches.begin(peer, now)), Some(true));
            assert_eq!(is_new(punches.begin(peer, now)), Some(false), "it is under way");
            punches.end(peer, false, now);
            assert_eq!(is_new(punches.begin(peer, now + pause - Duration::from_secs(1))), None);
            now += pause;
            pause = (pause * 2).min(RETRY_LONGEST);
        }
        assert_eq!(is_new(punches.begin(peer, now)), Some(true));
        punches.end(peer, true, now);
        assert_eq!(is_new(punches.begin(peer, now)), Some(true));
        assert_eq!(is_new(punches.begin(PeerId([2; 32]), now)), Some(true), "others are others");
    }
}
