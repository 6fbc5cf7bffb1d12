//! Blobs between this process and its peers: fetched by hash from whoever holds them, and served.
//!
//! An [`Exchange`] fetches each blob once, however many ask for it; goes from one provider to the next
//! and keeps what verified; and remembers who sent wrong bytes. Not here: who holds what; the
//! coordinator knows that.

mod faults;
mod many;
mod learned;
mod transfer;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use protocol::message::Provider;
use protocol::{BlobHash, BlobRef, Fetched, PeerId, error_chain};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument, debug, debug_span, warn};

use crate::fetch::faults::Faults;
use crate::fetch::learned::Learned;
use crate::fetch::transfer::{Transfer, TransferError};
use crate::gate::Credentials;
use crate::links::{LinkError, Links};
use crate::plane::{Link, Plane};
use crate::store::{BlobStore, PartialBlob, StoreError};
use crate::tree::MAX_BLOB_SIZE;

/// How long a provider may take for the next piece, unless the config says otherwise.
const PIECE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a provider without an address is waited for.
const LINK_WAIT: Duration = Duration::from_secs(5);
/// How often busy providers are asked again, and the first pause before that; each is twice as long.
const BUSY_PASSES: u32 = 5;
const BUSY_PAUSE: Duration = Duration::from_millis(250);
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
}

impl ExchangeConfig {
    /// A config with the default times.
    pub fn new(store: BlobStore, plane: Arc<dyn Plane>, credentials: Credentials) -> Self {
        Self { store, plane, credentials, piece_timeout: PIECE_TIMEOUT, link_wait: LINK_WAIT }
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
    /// Blobs that are being fetched: whoever wants one of them waits for that.
    fetching: Mutex<HashMap<BlobHash, Weak<tokio::sync::Mutex<()>>>>,
    faults: Mutex<Faults>,
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
        tried: Vec<(PeerId, String)>,
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

fn list(tried: &[(PeerId, String)]) -> String {
    if tried.is_empty() {
        return "no peer is known to hold it".to_owned();
    }
    let text = |(peer, reason): &(PeerId, String)| format!("{}: {reason}", peer.fmt_short());
    tried.iter().map(text).collect::<Vec<_>>().join("; ")
}

impl Exchange {
    /// Begins to take links and to serve.
    pub fn start(config: ExchangeConfig) -> Self {
        let stop = CancellationToken::new();
        let links = Links::start(
            Arc::clone(&config.plane),
            config.credentials.clone(),
            config.store.clone(),
            stop.clone(),
        );
        let inner = Inner {
            config,
            links,
            fetching: Mutex::default(),
            faults: Mutex::default(),
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

    /// Whether a link to this peer is open.
    pub fn is_linked(&self, peer: PeerId) -> bool {
        self.inner.links.get(peer).is_some()
    }

    /// Makes a blob whole in the store, from these providers, the preferred first. It says from whom how
    /// many bytes came: nothing, if the blob was here or another caller fetched it meanwhile. Progress is
    /// in bytes that are here and verified. It may be cancelled; what verified is kept.
    pub async fn fetch(
        &self,
        blob: BlobRef,
        providers: &[Provider],
        progress: Option<&watch::Sender<u64>>,
    ) -> Result<Vec<Fetched>, FetchError> {
        let fetching = self.fetch_once(blob, providers, progress);
        let span = debug_span!("fetch", blob = %blob.hash.fmt_short());
        let fetched = self.inner.stop.run_until_cancelled(fetching.instrument(span)).await;
        fetched.unwrap_or(Err(FetchError::Stopped))
    }

    async fn fetch_once(
        &self,
        blob: BlobRef,
        providers: &[Provider],
        progress: Option<&watch::Sender<u64>>,
    ) -> Result<Vec<Fetched>, FetchError> {
        if blob.size > MAX_BLOB_SIZE {
            return Err(FetchError::Size(blob));
        }
        let turn = self.turn(blob.hash);
        let _turn = turn.lock().await;
        let store = self.store();
        if let Some(found) = store.check(blob.hash).await? {
            return if found == blob { Ok(Vec::new()) } else { Err(FetchError::Size(blob)) };
        }
        let partial = store.partial(blob).await?;
        let fetched = self.fill(&partial, providers, progress).await?;
        partial.finish().await?;
        Ok(fetched)
    }

    /// Fetches every piece that is missing.
    async fn fill(
        &self,
        partial: &Arc<PartialBlob>,
        providers: &[Provider],
        progress: Option<&watch::Sender<u64>>,
    ) -> Result<Vec<Fetched>, FetchError> {
        let blob = partial.blob();
        let mut fetched: Vec<Fetched> = Vec::new();
        let mut tried: Vec<(PeerId, String)> = Vec::new();
        let ourselves = self.inner.config.credentials.peer();
        let mut asking: VecDeque<Provider> =
            providers.iter().filter(|provider| provider.peer != ourselves).cloned().collect();
        let known = asking.iter().map(|provider| provider.peer).chain([ourselves]);
        let learned = Learned::besides(known);
        let mut pause = BUSY_PAUSE;
        for _ in 0..BUSY_PASSES {
            let mut busy = VecDeque::new();
            while let Some(provider) = asking.pop_front() {
                if is_complete(partial) {
                    return Ok(fetched);
                }
                let before = partial.bytes();
                let asked = self.ask(partial, &provider, &learned, progress).await;
                asking.extend(learned.take());
                let bytes = partial.bytes() - before;
                if bytes > 0 {
                    fetched.push(Fetched { blob, from: provider.peer, bytes });
                }
                match asked {
                    Ok(()) => {}
                    Err(AskError::Transfer(TransferError::Store(error))) => return Err(error.into()),
                    Err(error) => {
                        debug!(provider = %provider.peer.fmt_short(), %error, "provider did not give the blob");
                        tried.retain(|(peer, _)| *peer != provider.peer);
                        tried.push((provider.peer, error_chain(&error)));
                        if matches!(error, AskError::Transfer(TransferError::Busy)) {
                            busy.push_back(provider);
                        }
                    }
                }
            }
            if is_complete(partial) {
                return Ok(fetched);
            }
            if busy.is_empty() {
                break;
            }
            asking = busy;
            sleep(pause).await;
            pause *= 2;
        }
        Err(FetchError::NoProvider { blob, tried })
    }

    /// Takes what one provider has of what is missing.
    async fn ask(
        &self,
        partial: &Arc<PartialBlob>,
        provider: &Provider,
        learned: &Learned,
        progress: Option<&watch::Sender<u64>>,
    ) -> Result<(), AskError> {
        let (peer, hash) = (provider.peer, partial.blob().hash);
        if let Some(reason) = self.lock_faults().of(peer, hash) {
            return Err(AskError::Fault(reason));
        }
        let link = self.link(provider).await?;
        let piece_timeout = self.inner.config.piece_timeout;
        let listening = self.addresses();
        let transfer = Transfer { partial, piece_timeout, progress, listening: &listening, learned };
        let result = transfer.run(&*link).await;
        if let Err(error) = &result
            && error.is_fault()
        {
            warn!(provider = %peer.fmt_short(), %error, "provider sent wrong bytes, not asked for this blob again");
            self.lock_faults().add(peer, hash, error_chain(error));
        }
        Ok(result?)
    }

    async fn link(&self, provider: &Provider) -> Result<Arc<dyn Link>, LinkError> {
        let Inner { links, config, .. } = &*self.inner;
        match links.get_or_dial(provider.peer, &provider.addresses).await {
            Err(LinkError::NoAddress) => {
                links.wait_for(provider.peer, config.link_wait).await.ok_or(LinkError::NoAddress)
            }
            // It may have dialled us meanwhile.
            Err(error) => links.get(provider.peer).ok_or(error),
            linked => linked,
        }
    }

    /// Who sent wrong bytes of which blob, and what was wrong, the latest last.
    pub fn faults(&self) -> Vec<(PeerId, BlobHash, String)> {
        self.lock_faults().all()
    }

    /// Closes every link, ends every fetch, and listens no more.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        if timeout(SHUTDOWN_TIMEOUT, self.inner.links.shutdown()).await.is_err() {
            debug!("links did not close in time");
        }
    }

    fn lock_faults(&self) -> MutexGuard<'_, Faults> {
        self.inner.faults.lock().expect("nothing panics while it holds them")
    }

    fn turn(&self, hash: BlobHash) -> Arc<tokio::sync::Mutex<()>> {
        let mut fetching = self.inner.fetching.lock().expect("nothing panics while it holds them");
        if let Some(turn) = fetching.get(&hash).and_then(Weak::upgrade) {
            return turn;
        }
        fetching.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        fetching.insert(hash, Arc::downgrade(&turn));
        turn
    }
}

fn is_complete(partial: &PartialBlob) -> bool {
    !partial.needs_outboard() && partial.pieces().is_full()
}

/// Why one provider did not help.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("it sent wrong bytes before: {0}")]
    Fault(String),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
}
