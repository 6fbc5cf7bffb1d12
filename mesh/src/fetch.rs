//! Blobs between this process and its peers: fetched by hash from all who hold them at once, and served.
//!
//! An [`Exchange`] fetches each blob once, however many ask for it, and remembers who sent wrong bytes.
//!
//! A fetch is a `gather::Gathering`: it fills a **target** from **sources**.
//! - A `target::Target` is what is made whole: it says which pieces are here, how a conversation about it
//!   begins, and takes pieces in any order, each with a verdict. Today a partial blob of the store, whose
//!   outboard comes first.
//! - A `source::Supplier` is somebody who may have some of it. Opened, it is a `source::Source`: asked
//!   for ranges, it sends their pieces, and tells of pieces that it gained and of other providers. Today
//!   the peers, `peer::PeerSupplier`. Something else than a peer is given to `Gathering::run` beside them;
//!   what it may be asked for at the moment it tells as what it holds and gains.
//! - `schedule::Schedule`, pure, decides which source is asked for what; one `gather::worker::Worker` for
//!   each source carries that out.
//!
//! Not here: who holds what; the coordinator knows that.

mod faults;
mod file;
mod gather;
mod learned;
mod many;
mod peer;
mod progress;
mod schedule;
mod source;
mod target;

pub use self::file::{FetchFileError, FetchedFile, OriginFile, OriginSizeError};
pub use self::progress::Progress;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, Weak};
use std::time::Duration;

use protocol::message::Provider;
use protocol::{BlobHash, BlobName, BlobRef, Fetched, PeerId, SourceName, Transfer};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument, debug, debug_span};

use self::faults::Faults;
use self::gather::{GatherError, Gathering};
use self::peer::PeerSupplier;
use self::source::Supplier;
use crate::finder::Finder;
use crate::gate::Credentials;
use crate::limits::{Limits, Throttle};
use crate::links::Links;
use crate::origin::OriginReader;
use crate::plane::Plane;
use crate::store::{BlobStore, StoreError};
use crate::tree::MAX_BLOB_SIZE;

/// How long a provider may take for the next piece, unless the config says otherwise.
const PIECE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a provider without an address is waited for.
const LINK_WAIT: Duration = Duration::from_secs(5);
/// How long farewells and conversations may take at the end; a peer that is gone takes none.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

/// What an exchange works with.
#[derive(Clone)]
pub struct ExchangeConfig {
    /// Where blobs are kept.
    pub store: BlobStore,
    /// How links are made.
    pub plane: Arc<dyn Plane>,
    /// What is shown at the gate.
    pub credentials: Credentials,
    /// How long a provider may take for the next piece before another is asked. Defaults to 20 s.
    pub piece_timeout: Duration,
    /// How long a provider that has no address may take to make a link to us. Defaults to 5 s.
    pub link_wait: Duration,
    /// How much may cross, and when. Defaults to no caps.
    pub limits: Limits,
}

impl ExchangeConfig {
    /// A config with the default times.
    pub fn new(store: BlobStore, plane: Arc<dyn Plane>, credentials: Credentials) -> Self {
        Self {
            store,
            plane,
            credentials,
            piece_timeout: PIECE_TIMEOUT,
            link_wait: LINK_WAIT,
            limits: Limits::default(),
        }
    }
}

/// A handle to the data plane of this process; it stops with its last clone.
#[derive(Clone)]
pub struct Exchange {
    inner: Arc<Inner>,
}

struct Inner {
    config: ExchangeConfig,
    links: Arc<Links>,
    throttle: Arc<Throttle>,
    /// Blobs that are being fetched: whoever wants one of them waits for that.
    fetching: Mutex<HashMap<BlobName, Weak<tokio::sync::Mutex<()>>>>,
    gatherings: Mutex<Vec<Weak<Gathering>>>,
    faults: Mutex<Faults>,
    finder: RwLock<Option<Arc<dyn Finder>>>,
    origins: RwLock<Option<OriginReader>>,
    stop: CancellationToken,
    _guard: DropGuard,
}

/// Why a blob did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No provider gave what is missing.
    #[error("blob `{}` came from nobody: {}", blob.hash, list(tried))]
    NoProvider {
        /// The blob.
        blob: BlobRef,
        /// Whom we asked, and why it did not help.
        tried: Vec<(SourceName, String)>,
    },
    /// The reference names a size that no blob here may have, or another one than the blob has.
    #[error("blob `{}` cannot have {} bytes", .0.hash, .0.size)]
    Size(BlobRef),
    /// It cannot be stored.
    #[error("the blob cannot be stored")]
    Store(#[from] StoreError),
    /// The process is shutting down.
    #[error("the data plane of this process has stopped")]
    Stopped,
}

fn list(tried: &[(SourceName, String)]) -> String {
    if tried.is_empty() {
        return "no peer is known to hold it".to_owned();
    }
    let text = |(name, reason): &(SourceName, String)| format!("{name}: {reason}");
    tried.iter().map(text).collect::<Vec<_>>().join("; ")
}

impl Exchange {
    /// Begins to take links and to serve.
    pub fn start(config: ExchangeConfig) -> Self {
        let stop = CancellationToken::new();
        let throttle = Throttle::new(config.limits.clone());
        let links = Links::start(
            Arc::clone(&config.plane),
            config.credentials.clone(),
            config.store.clone(),
            Arc::clone(&throttle),
            stop.clone(),
        );
        let clock = Arc::clone(&throttle).follow_the_clock();
        tokio::spawn(stop.clone().run_until_cancelled_owned(clock));
        let inner = Inner {
            config,
            links,
            throttle,
            fetching: Mutex::default(),
            gatherings: Mutex::default(),
            faults: Mutex::default(),
            finder: RwLock::default(),
            origins: RwLock::default(),
            stop: stop.clone(),
            _guard: stop.drop_guard(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Where it listens: an address for each interface, the loopback last.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.inner.links.addresses()
    }

    /// The store that it fills and serves.
    pub fn store(&self) -> &BlobStore {
        &self.inner.config.store
    }

    /// Keeps a link to this peer open, dialling again whenever it breaks, until it is released. A peer that
    /// cannot be dialled does this, so that others can fetch from it.
    pub fn keep_link(&self, peer: PeerId, addresses: Vec<SocketAddr>) {
        self.inner.links.keep(peer, addresses);
    }

    /// No longer keeps a link to this peer; one that is open stays until it breaks.
    pub fn release_link(&self, peer: PeerId) {
        self.inner.links.release(peer);
    }

    /// Has this coordinator introduce us to members that cannot be dialled, so that both sides open a direct
    /// path; before that, and where it does not come about, such members are reached through relays alone.
    pub fn set_introducer(&self, coordinator: Provider) {
        self.inner.links.set_introducer(coordinator);
    }

    /// The plane of the link to this peer that is used, if one is open.
    pub fn plane_to(&self, peer: PeerId) -> Option<&'static str> {
        self.inner.links.get(peer).map(|link| link.plane())
    }

    /// Whether a link to this peer is open.
    pub fn is_linked(&self, peer: PeerId) -> bool {
        self.inner.links.get(peer).is_some()
    }

    /// Makes a blob whole in the store, from these providers, the preferred first, and from whoever they
    /// name. It says from whom how many bytes came: nothing, if the blob was here or another caller fetched
    /// it meanwhile. It may be cancelled; what verified is kept.
    pub async fn fetch(
        &self,
        blob: BlobRef,
        providers: &[Provider],
        progress: Option<&watch::Sender<Progress>>,
    ) -> Result<Vec<Fetched>, FetchError> {
        let fetching = self.fetch_once(blob, providers, None, false, progress);
        let span = debug_span!("fetch", blob = %blob.hash.fmt_short());
        let fetched = self.inner.stop.run_until_cancelled(fetching.instrument(span)).await;
        Ok(fetched.unwrap_or(Err(FetchError::Stopped))?.fetched)
    }

    /// The same, from another supplier as well where the providers are slow.
    async fn fetch_once(
        &self,
        blob: BlobRef,
        providers: &[Provider],
        besides: Option<Arc<dyn Supplier>>,
        in_order: bool,
        progress: Option<&watch::Sender<Progress>>,
    ) -> Result<Gave, FetchError> {
        let is_wrong_empty = blob.size == 0 && blob.hash != BlobHash::of(b"");
        if blob.size > MAX_BLOB_SIZE || is_wrong_empty {
            return Err(FetchError::Size(blob));
        }
        let turn = self.turn(blob.hash.into());
        let _turn = turn.lock().await;
        let store = self.store();
        if let Some(found) = store.check(blob.hash).await? {
            return if found == blob { Ok(Gave::default()) } else { Err(FetchError::Size(blob)) };
        }
        let partial = store.partial(blob).await?;
        let ourselves = self.inner.config.credentials.peer();
        let others = providers.iter().filter(|provider| provider.peer != ourselves).cloned();
        let suppliers = others.map(|provider| Arc::new(PeerSupplier(provider)) as Arc<dyn Supplier>);
        let suppliers = suppliers.chain(besides);
        let target = Arc::clone(&partial) as _;
        let gathering = Gathering::new(Arc::clone(&self.inner), target, in_order, progress.cloned());
        self.show(&gathering);
        let gathered = gathering.run(suppliers.collect()).await;
        gathered.map_err(|error| match error {
            GatherError::NoSource(tried) => FetchError::NoProvider { blob, tried },
            GatherError::Store(error) => FetchError::Store(error),
        })?;
        partial.finish().await?;
        let mut gave = Gave::default();
        gathering.gave().into_iter().for_each(|(name, bytes)| gave.count(blob, name, bytes));
        Ok(gave)
    }

    /// What it is held to at the moment.
    #[cfg(test)]
    pub(crate) fn throttle(&self) -> &Throttle {
        &self.inner.throttle
    }

    /// Other limits hold from now on, also for what crosses at the moment.
    pub fn set_limits(&self, limits: Limits) {
        self.inner.throttle.set(limits);
    }

    /// The fetches that go on.
    pub fn transfers(&self) -> Vec<Transfer> {
        self.inner.gatherings().iter().map(|gathering| gathering.view()).collect()
    }

    /// Lets [`Self::transfers`] know of a fetch for as long as it goes on.
    fn show(&self, gathering: &Arc<Gathering>) {
        let mut gatherings = self.inner.lock_gatherings();
        gatherings.retain(|gathering| gathering.strong_count() > 0);
        gatherings.push(Arc::downgrade(gathering));
    }

    /// Who sent wrong bytes of which blob, and what was wrong, the latest last.
    pub fn faults(&self) -> Vec<(PeerId, BlobName, String)> {
        self.inner.faults().all()
    }

    /// Closes every link, ends every fetch, and listens no more.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        if timeout(SHUTDOWN_TIMEOUT, self.inner.links.shutdown()).await.is_err() {
            debug!("links did not close in time");
        }
    }

    fn turn(&self, name: BlobName) -> Arc<tokio::sync::Mutex<()>> {
        let mut fetching = self.inner.fetching.lock().expect("nothing panics while it holds them");
        if let Some(turn) = fetching.get(&name).and_then(Weak::upgrade) {
            return turn;
        }
        fetching.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        fetching.insert(name, Arc::downgrade(&turn));
        turn
    }
}

/// From whom how much of a blob came.
#[derive(Debug, Default)]
struct Gave {
    fetched: Vec<Fetched>,
    origin_bytes: u64,
}

impl Gave {
    fn count(&mut self, blob: BlobRef, from: SourceName, bytes: u64) {
        match from {
            SourceName::Peer(from) => self.fetched.push(Fetched { blob, from, bytes }),
            SourceName::Origin(_) => self.origin_bytes += bytes,
        }
    }
}

impl Inner {
    /// The fetches that go on.
    fn gatherings(&self) -> Vec<Arc<Gathering>> {
        self.lock_gatherings().iter().filter_map(Weak::upgrade).collect()
    }

    fn lock_gatherings(&self) -> MutexGuard<'_, Vec<Weak<Gathering>>> {
        self.gatherings.lock().expect("nothing panics while it holds them")
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().expect("nothing panics while it holds them")
    }
}
