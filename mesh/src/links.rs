//! The links that are open: dialled or accepted, each through the gate, each served from then on.
//!
//! Links are symmetric: whoever dialled, either side may ask over it, so a peer that nobody can dial is
//! reached over the link that it keeps. Not here: what is asked.

mod introduce;
mod punch;

pub(crate) use self::introduce::Caller;
pub(crate) use self::punch::is_relayed;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use protocol::PeerId;
use protocol::membership::Membership;
use protocol::message::{HELLO_TIMEOUT, Provider};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, debug_span, info, info_span};

use self::introduce::Introductions;
use self::punch::{MAX_MEETINGS, Punches};
use crate::gate::{Credentials, GateError, Side, exchange_hellos_and, remaining};
use crate::limits::Throttle;
use crate::plane::{DialError, Link, Plane};
use crate::serve;
use crate::store::BlobStore;

/// How many accepted links may be at the gate at once.
const MAX_AT_GATE: usize = 64;
/// How many links there may be, and how many with one peer.
const MAX_LINKS: usize = 4096;
const MAX_LINKS_PER_PEER: usize = 4;
/// The most addresses of a peer that are dialled.
const MAX_ADDRESSES: usize = 16;
/// How much earlier a peer that has no address may make a link to us than we go the longest way to it, and how
/// long addresses have to answer before another way is begun.
const DIRECT_HEAD_START: Duration = Duration::from_secs(1);
/// How much earlier than the longest way a direct path is begun that both sides open.
const PUNCH_HEAD_START: Duration = Duration::from_secs(2);
/// How long a direct path may take that both sides open.
const PUNCH_LONGEST: Duration = Duration::from_secs(20);
const REDIAL_FIRST: Duration = Duration::from_millis(250);
const REDIAL_LONGEST: Duration = Duration::from_secs(15);

/// Why there is no link to a peer.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// None of its addresses answers.
    #[error("{}", list(.0))]
    Unreachable(Vec<DialError>),
    /// It has no address, and no link is open.
    #[error("no link to it is open, and no address of it is known")]
    NoAddress,
    /// One side was not let through.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The peer opened or took no channel for its Hello.
    #[error("the link broke before its Hello")]
    Broken,
    /// There are too many links.
    #[error("this process has as many links as it keeps")]
    TooMany,
}

fn list(errors: &[DialError]) -> String {
    let text = |error: &DialError| match error {
        DialError::NoAnswer { source, .. } | DialError::NoWay { source, .. } => format!("{error}: {source}"),
        DialError::WrongPeer { .. } => error.to_string(),
    };
    errors.iter().map(text).collect::<Vec<_>>().join("; ")
}

pub(crate) struct Links {
    plane: Arc<dyn Plane>,
    credentials: Credentials,
    store: BlobStore,
    open: Mutex<HashMap<PeerId, Vec<Arc<dyn Link>>>>,
    /// Peers that are being dialled: whoever wants one of them waits for that.
    dialling: Mutex<HashMap<PeerId, Arc<tokio::sync::Mutex<()>>>>,
    kept: Mutex<HashMap<PeerId, CancellationToken>>,
    appeared: Notify,
    /// Who introduces us to members that cannot be dialled.
    introducer: Mutex<Option<Provider>>,
    punches: Mutex<Punches>,
    introductions: Mutex<Introductions>,
    /// Members for whom we open our side at the moment.
    meetings: Arc<Semaphore>,
    /// Held by whoever makes a link over which the introducer sees us.
    being_seen: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    serving: serve::Bounds,
    askers: Arc<serve::Askers>,
    stop: CancellationToken,
}

impl Links {
    /// Begins to take links; ends with `stop`.
    pub(crate) fn start(
        plane: Arc<dyn Plane>,
        credentials: Credentials,
        store: BlobStore,
        throttle: Arc<Throttle>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let links = Arc::new(Self {
            plane,
            credentials,
            store,
            open: Mutex::default(),
            dialling: Mutex::default(),
            kept: Mutex::default(),
            appeared: Notify::new(),
            introducer: Mutex::default(),
            punches: Mutex::default(),
            introductions: Mutex::new(Introductions::from(Instant::now())),
            meetings: Arc::new(Semaphore::new(MAX_MEETINGS)),
            being_seen: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
            serving: serve::Bounds::new(throttle),
            askers: Arc::default(),
            stop,
        });
        links.tasks.spawn(Arc::clone(&links).take_links());
        links
    }

    /// Who asks us for blobs.
    pub(crate) fn askers(&self) -> &serve::Askers {
        &self.askers
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.plane.addresses()
    }

    /// An open link to the peer.
    pub(crate) fn get(&self, peer: PeerId) -> Option<Arc<dyn Link>> {
        let open = self.lock();
        let links = open.get(&peer)?.iter().filter(|link| !link.is_closed());
        // A direct one, even if it came later.
        links.min_by_key(|link| is_relayed(&***link)).cloned()
    }

    /// A link to the peer by whatever way there is: one that is open, one that is dialled, one that the peer
    /// makes to us within `longest` where it has no address, one that both sides open the way for; and else the
    /// plane's last resort.
    pub(crate) async fn get_by_any_way(
        self: &Arc<Self>,
        peer: PeerId,
        addresses: &[SocketAddr],
        longest: Duration,
    ) -> Result<Arc<dyn Link>, LinkError> {
        if let Some(link) = self.get(peer) {
            if is_relayed(&*link) {
                // For those who ask after us.
                self.begin_punch(peer);
            }
            return Ok(link);
        }
        let besides = async {
            sleep(DIRECT_HEAD_START).await;
            self.begin_punch(peer);
            self.wait_for(peer, PUNCH_LONGEST).await
        };
        let dialled = tokio::select! {
            dialled = self.get_or_dial(peer, addresses) => dialled,
            Some(link) = besides => Ok(link),
        };
        let error = match dialled {
            Err(error @ (LinkError::NoAddress | LinkError::Unreachable(_))) => error,
            // It may have dialled us meanwhile.
            Err(error) => return self.get(peer).ok_or(error),
            linked => return linked,
        };
        let is_expected = matches!(error, LinkError::NoAddress);
        let punching = self.begin_punch(peer);
        let appears = async {
            match &punching {
                _ if is_expected => self.wait_for(peer, longest).await,
                Some(over) => tokio::select! {
                    link = self.wait_for(peer, PUNCH_LONGEST) => link,
                    () = over.cancelled() => self.get(peer),
                },
                None => self.get(peer),
            }
        };
        let reach = async {
            match &punching {
                // Where it comes about, there is a link by then.
                Some(over) => drop(timeout(PUNCH_HEAD_START, over.cancelled()).await),
                None if is_expected => sleep(DIRECT_HEAD_START).await,
                None => {}
            }
            self.reach(peer).await
        };
        tokio::pin!(appears, reach);
        let (mut error, mut is_over) = (error, [false; 2]);
        while is_over != [true; 2] {
            tokio::select! {
                biased;
                link = &mut appears, if !is_over[0] => match link {
                    Some(link) => return Ok(link),
                    None => is_over[0] = true,
                },
                link = &mut reach, if !is_over[1] => match (link, &mut error) {
                    (Ok(link), _) => return Ok(link),
                    // It was there, and it or we were not let through.
                    (Err(refused @ LinkError::Gate(_)), _) => return Err(refused),
                    (Err(LinkError::Unreachable(reasons)), LinkError::Unreachable(errors)) => {
                        errors.extend(reasons);
                        is_over[1] = true;
                    }
                    _ => is_over[1] = true,
                },
            }
        }
        Err(error)
    }

    /// A link by the plane's last resort.
    async fn reach(self: &Arc<Self>, peer: PeerId) -> Result<Arc<dyn Link>, LinkError> {
        let turn = self.turn(peer);
        let _turn = turn.lock().await;
        if let Some(link) = self.get(peer) {
            return Ok(link);
        }
        let link = self.plane.reach(peer).await.map_err(|error| LinkError::Unreachable(vec![error]))?;
        self.admit(&link, Side::Dialled).await.inspect_err(|_| link.close(""))?;
        Ok(link)
    }

    /// An open link to the peer, by dialling if need be.
    pub(crate) async fn get_or_dial(
        self: &Arc<Self>,
        peer: PeerId,
        addresses: &[SocketAddr],
    ) -> Result<Arc<dyn Link>, LinkError> {
        if let Some(link) = self.get(peer) {
            return Ok(link);
        }
        if addresses.is_empty() {
            return Err(LinkError::NoAddress);
        }
        let turn = self.turn(peer);
        let _turn = turn.lock().await;
        match self.get(peer) {
            Some(link) => Ok(link),
            None => self.dial_by(peer, addresses, |peer, address| self.plane.dial(peer, address)).await,
        }
    }

    /// Whoever wants a link to the peer waits for who wanted one before.
    fn turn(&self, peer: PeerId) -> Arc<tokio::sync::Mutex<()>> {
        let mut dialling = self.dialling.lock().expect("nothing panics while it holds them");
        dialling.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(dialling.entry(peer).or_default())
    }

    /// Waits until there is a link to the peer, whoever made it.
    pub(crate) async fn wait_for(&self, peer: PeerId, longest: Duration) -> Option<Arc<dyn Link>> {
        self.wait_until(longest, || self.get(peer)).await
    }

    async fn wait_until<T>(&self, longest: Duration, find: impl Fn() -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + longest;
        loop {
            // Asked for before looking, so that a link between the two is not missed.
            let appeared = self.appeared.notified();
            if let Some(found) = find() {
                return Some(found);
            }
            timeout_at(deadline, appeared).await.ok()?;
        }
    }

    /// Keeps a link to the peer open until it is released, in place of what was asked for it before.
    pub(crate) fn keep(self: &Arc<Self>, peer: PeerId, addresses: Vec<SocketAddr>) {
        let stop = self.stop.child_token();
        let mut kept = self.kept.lock().expect("nothing panics while it holds them");
        if let Some(earlier) = kept.insert(peer, stop.clone()) {
            earlier.cancel();
        }
        let links = Arc::clone(self);
        let keeping = async move { stop.run_until_cancelled(links.keep_task(peer, addresses)).await };
        self.tasks.spawn(keeping.instrument(debug_span!("keep", peer = %peer.fmt_short())));
    }

    /// Lets a kept link go when it next breaks.
    pub(crate) fn release(&self, peer: PeerId) {
        if let Some(kept) = self.kept.lock().expect("nothing panics while it holds them").remove(&peer) {
            kept.cancel();
        }
    }

    async fn keep_task(self: Arc<Self>, peer: PeerId, addresses: Vec<SocketAddr>) {
        let mut pause = REDIAL_FIRST;
        loop {
            match self.get_or_dial(peer, &addresses).await {
                Ok(link) => {
                    let opened = Instant::now();
                    link.closed().await;
                    debug!("link closed, dialling again");
                    if opened.elapsed() > REDIAL_LONGEST {
                        pause = REDIAL_FIRST;
                    }
                }
                Err(error) => debug!(%error, "peer gives no link, trying again"),
            }
            // Also after a link: a peer that closes each one at once must not keep us busy.
            sleep(pause).await;
            pause = (pause * 2).min(REDIAL_LONGEST);
        }
    }

    /// Dials every address at once, in this way, and takes the first that answers.
    async fn dial_by<'a>(
        self: &'a Arc<Self>,
        peer: PeerId,
        addresses: &[SocketAddr],
        dial: impl Fn(PeerId, SocketAddr) -> BoxFuture<'a, Result<Arc<dyn Link>, DialError>>,
    ) -> Result<Arc<dyn Link>, LinkError> {
        let dials = addresses.iter().take(MAX_ADDRESSES).map(|address| dial(peer, *address));
        let mut dials: FuturesUnordered<_> = dials.collect();
        let mut errors = Vec::new();
        while let Some(dialled) = dials.next().await {
            match dialled {
                Ok(link) => {
                    self.admit(&link, Side::Dialled).await.inspect_err(|_| link.close(""))?;
                    return Ok(link);
                }
                Err(error) => errors.push(error),
            }
        }
        Err(LinkError::Unreachable(errors))
    }

    async fn take_links(self: Arc<Self>) {
        let at_gate = Arc::new(Semaphore::new(MAX_AT_GATE));
        while let Some(Some(link)) = self.stop.run_until_cancelled(self.plane.accept()).await {
            let Ok(permit) = Arc::clone(&at_gate).try_acquire_owned() else {
                link.close("");
                continue;
            };
            let links = Arc::clone(&self);
            let span = debug_span!("gate", peer = %link.peer().fmt_short());
            let admitting = async move {
                if let Err(error) = links.admit(&link, Side::Accepted).await {
                    debug!(%error, "link was refused at the gate");
                    link.close("");
                }
                drop(permit);
            };
            self.tasks.spawn(admitting.instrument(span));
        }
    }

    /// Passes the gate on a fresh link, and serves it from then on.
    async fn admit(self: &Arc<Self>, link: &Arc<dyn Link>, side: Side) -> Result<(), LinkError> {
        let first = async {
            match side {
                Side::Dialled => link.open().await.ok(),
                Side::Accepted => link.accept().await,
            }
        };
        let channel = timeout(HELLO_TIMEOUT, first).await.ok().flatten().ok_or(LinkError::Broken)?;
        let (peer, credentials) = (link.peer(), &self.credentials);
        // Limits for strangers end before the peer hears that it may open channels.
        let passed = || link.admit();
        let (reader, writer) = (channel.reader, channel.writer);
        let (_, _, membership) = exchange_hellos_and(reader, writer, credentials, peer, side, passed).await?;
        {
            let mut open = self.lock();
            open.retain(|_, links| {
                links.retain(|link| !link.is_closed());
                !links.is_empty()
            });
            if open.len() >= MAX_LINKS {
                return Err(LinkError::TooMany);
            }
            let links = open.entry(peer).or_default();
            if links.len() >= MAX_LINKS_PER_PEER {
                links.remove(0).close("newer links took its place");
            }
            links.push(Arc::clone(link));
        }
        self.appeared.notify_waiters();
        info!(peer = %peer.fmt_short(), plane = link.plane(), ?side, "link opened");
        // Whoever reads of a fault in it wants to know whose it is.
        let span = info_span!("link", peer = %peer.fmt_short());
        self.tasks.spawn(Arc::clone(self).serve(Arc::clone(link), membership).instrument(span));
        Ok(())
    }

    /// Serves what the peer asks for, as long as it is a member.
    async fn serve(self: Arc<Self>, link: Arc<dyn Link>, membership: Membership) {
        let mut expired = std::pin::pin!(sleep(remaining(&membership)));
        let (serving, caller) = (self.serving.for_link(), Caller::new(&self, &link));
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = &mut expired => break,
                () = serving.broken() => break,
                channel = link.accept() => match channel {
                    Some(channel) if !self.credentials.is_revoked(link.peer()) => {
                        let (peer, askers) = (link.peer(), Arc::clone(&self.askers));
                        let asker = serve::Asker { peer, askers, caller: caller.clone() };
                        let (store, bounds) = (self.store.clone(), serving.clone());
                        let conversation = serve::serve_task(channel, store, bounds, asker);
                        self.tasks.spawn(conversation.in_current_span());
                    }
                    _ => break,
                },
            }
        }
        link.close("");
        if let Some(links) = self.lock().get_mut(&link.peer()) {
            links.retain(|other| !Arc::ptr_eq(other, &link));
        }
        if self.get(link.peer()).is_none() {
            self.askers.forget(link.peer());
        }
        debug!("link closed");
    }

    /// Closes every link and waits for its tasks.
    pub(crate) async fn shutdown(&self) {
        for links in self.lock().values() {
            links.iter().for_each(|link| link.close("stopping"));
        }
        self.plane.close().await;
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Vec<Arc<dyn Link>>>> {
        self.open.lock().expect("nothing panics while it holds the links")
    }
}
