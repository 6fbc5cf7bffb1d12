//! The data plane of last resort: channels are streams on the control connection, or on a circuit through a
//! relay, at a capped rate.
//!
//! For peers that can be dialled neither by TCP nor by UDP. What crosses is the same as on the other planes,
//! the gate included. Not here: how a circuit is made, which is the swarm's.

mod link;
mod pace;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use async_trait::async_trait;
use protocol::PeerId;
use protocol::contact::RELAYED_BLOB_PROTOCOL;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use self::link::RelayedLink;
use self::pace::SharedPace;
use super::tls::preface::{LinkId, Preface, Purpose};
use super::{DialError, Link, Plane};
use crate::frames::{Reader, Writer};
use crate::store::ByteSize;
use crate::swarm::streams::{OpenedStreams, PeerStreams};
use crate::swarm::{CIRCUIT_RATE, Mesh};

const NAME: &str = "relay";
/// How long a peer may take to be met and to take a link.
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the first bytes of a stream may take.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);
/// How many streams may be at their first bytes at once.
const MAX_PREFACES: usize = 64;
/// How many links may wait to be taken.
const LINK_QUEUE: usize = 64;
/// What the side that was dialled says on the control stream once the link is known.
const READY: u8 = b'.';

/// How much may cross, so that a relay is not drowned.
#[derive(Clone, Copy, Debug)]
pub struct RelayedRate {
    /// Bytes per second of all links with one peer: a relay counts on it. Defaults to [`CIRCUIT_RATE`].
    pub of_peer: u64,
    /// Bytes per second of all links of this process. Defaults to 16 MiB.
    pub in_all: u64,
}

impl Default for RelayedRate {
    fn default() -> Self {
        Self { of_peer: CIRCUIT_RATE, in_all: 16 << 20 }
    }
}

impl RelayedRate {
    /// The defaults, or this rate in all.
    pub fn within(in_all: Option<ByteSize>) -> Self {
        let default = Self::default();
        let in_all = in_all.map_or(default.in_all, |ByteSize(rate)| rate);
        Self { of_peer: default.of_peer.min(in_all), in_all }
    }
}

/// Links over streams of the control plane.
pub struct RelayedPlane {
    door: Door,
    links: tokio::sync::Mutex<mpsc::Receiver<Arc<dyn Link>>>,
    _guard: DropGuard,
}

impl RelayedPlane {
    /// The plane over this control plane; one for each.
    pub fn new(mesh: &Mesh, rate: RelayedRate) -> Self {
        let (streams, opened) = mesh.streams(RELAYED_BLOB_PROTOCOL);
        let (found, links) = mpsc::channel(LINK_QUEUE);
        let stop = CancellationToken::new();
        let in_all = SharedPace::new(rate.in_all);
        let door = Door { streams, found, known: Known::default(), rate, in_all, stop: stop.clone() };
        tokio::spawn(door.clone().take_all(opened));
        Self { door, links: tokio::sync::Mutex::new(links), _guard: stop.drop_guard() }
    }
}

#[async_trait]
impl Plane for RelayedPlane {
    fn name(&self) -> &'static str {
        NAME
    }

    /// The address is of no use here.
    async fn dial(&self, peer: PeerId, _: SocketAddr) -> Result<Arc<dyn Link>, DialError> {
        self.reach(peer).await
    }

    async fn reach(&self, peer: PeerId) -> Result<Arc<dyn Link>, DialError> {
        let dialled = timeout(DIAL_TIMEOUT, self.door.dial(peer)).await;
        let dialled = dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        dialled.map_err(|source| DialError::NoWay { plane: NAME, source })
    }

    async fn accept(&self) -> Option<Arc<dyn Link>> {
        self.links.lock().await.recv().await
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        Vec::new()
    }

    async fn close(&self) {
        self.door.stop.cancel();
    }
}

/// The links that are open; a link is kept by whoever uses it.
#[derive(Clone, Default)]
struct Known(Arc<Mutex<KnownLinks>>);

type KnownLinks = HashMap<(PeerId, LinkId), Weak<RelayedLink>>;

impl Known {
    fn get(&self, peer: PeerId, id: LinkId) -> Option<Arc<RelayedLink>> {
        self.0.lock().expect("nothing panics while it holds them").get(&(peer, id))?.upgrade()
    }

    /// What links with a peer keep to together.
    fn pace_of(&self, peer: PeerId) -> Option<SharedPace> {
        let known = self.0.lock().expect("nothing panics while it holds them");
        let mut links = known.iter().filter(|((other, _), _)| *other == peer);
        links.find_map(|(_, link)| Some(link.upgrade()?.pace()))
    }

    /// Adds a link; `false` where the peer has one of that name already.
    fn add(&self, link: &Arc<RelayedLink>) -> bool {
        let mut known = self.0.lock().expect("nothing panics while it holds them");
        known.retain(|_, link| link.upgrade().is_some_and(|link| !link.is_closed()));
        let key = (link.peer(), link.id());
        let is_new = !known.contains_key(&key);
        if is_new {
            known.insert(key, Arc::downgrade(link));
        }
        is_new
    }
}

/// Makes links, and sorts streams by theirs.
#[derive(Clone)]
struct Door {
    streams: PeerStreams,
    found: mpsc::Sender<Arc<dyn Link>>,
    known: Known,
    rate: RelayedRate,
    in_all: SharedPace,
    stop: CancellationToken,
}

impl Door {
    async fn dial(&self, peer: PeerId) -> io::Result<Arc<dyn Link>> {
        let mut id = LinkId::default();
        getrandom::fill(&mut id).map_err(io::Error::other)?;
        let (mut reader, mut writer) = self.streams.open(peer).await?;
        Preface { purpose: Purpose::Control, link: id }.write(&mut writer).await?;
        // Before that, a channel would come to a link that is not known yet.
        if reader.read_u8().await? != READY {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let link = self.link(peer, id);
        // Whoever was dialled has passed no gate for us yet, but it is who we dialled.
        link.admit();
        if !self.known.add(&link) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        link.hold(reader, writer);
        Ok(link)
    }

    fn link(&self, peer: PeerId, id: LinkId) -> Arc<RelayedLink> {
        let of_peer = self.known.pace_of(peer).unwrap_or_else(|| SharedPace::new(self.rate.of_peer));
        let paces = [of_peer, self.in_all.clone()];
        Arc::new(RelayedLink::new(peer, id, self.streams.clone(), paces, self.stop.child_token()))
    }

    async fn take_all(self, mut opened: OpenedStreams) {
        let prefaces = Arc::new(Semaphore::new(MAX_PREFACES));
        while let Some(Some((peer, reader, writer))) = self.stop.run_until_cancelled(opened.next()).await {
            // What is too much is dropped; its peer may try again.
            let Ok(permit) = Arc::clone(&prefaces).try_acquire_owned() else { continue };
            let door = self.clone();
            tokio::spawn(async move {
                if let Err(error) = door.take(peer, reader, writer).await {
                    debug!(peer = %peer.fmt_short(), %error, "stream of the data plane is let go");
                }
                drop(permit);
            });
        }
    }

    async fn take(&self, peer: PeerId, mut reader: Reader, mut writer: Writer) -> io::Result<()> {
        let Preface { purpose, link: id } = timeout(PREFACE_TIMEOUT, Preface::read(&mut reader)).await??;
        match purpose {
            Purpose::Control => {
                let link = self.link(peer, id);
                let is_taken = self.known.add(&link) && self.found.try_send(Arc::clone(&link) as _).is_ok();
                if !is_taken {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                timeout(PREFACE_TIMEOUT, writer.write_all(&[READY])).await??;
                writer.flush().await?;
                link.hold(reader, writer);
            }
            Purpose::Asked | Purpose::Lent => {
                let link = self.known.get(peer, id).ok_or(io::ErrorKind::NotFound)?;
                link.take(reader, writer);
            }
        }
        Ok(())
    }
}
