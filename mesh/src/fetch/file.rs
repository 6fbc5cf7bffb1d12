//! Files that the world knows by SHA-256 and URLs: from peers and from the internet at once, each byte read
//! from there by one of the farm.
//!
//! Where the BLAKE3 hash is known and somebody holds it, it is an ordinary fetch in which the internet is one
//! source more, asked while peers are slow: the hash tree, which only peers have, proves its pieces too. The
//! SHA-256 is computed beside it. Else it is put together: whoever reads it from the internet serves what it has, which
//! ranges are whose is leased by the [`Finder`], and everything else comes from the other readers. Without
//! a finder, or while it does not answer, it is read alone. Nothing proves a piece but the whole: where
//! that is wrong, the pieces of peers come again from the origin alone, which shows who lied.
//!
//! Not here: how a range is read, which is `origin`'s, and who leases them.

mod leases;
mod supply;
mod target;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use protocol::message::Provider;
use protocol::{
    Alias, BlobHash, BlobName, BlobRef, Fetched, FileRef, PeerId, PieceRange, Sha256, SourceName,
};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{Instrument, debug, debug_span, warn};

use self::leases::held;
use self::supply::OriginSupplier;
use self::target::FileTarget;
use super::gather::{GatherError, Gathering};
use super::peer::PeerSupplier;
use super::source::Supplier;
use super::{Exchange, FetchError, Gave, Progress, list};
use crate::finder::{Finder, Found};
use crate::origin::{Origin, OriginConfig, OriginFailed, OriginReader, OriginSetupError};
use crate::store::{Giver, Pieces, Proof, Sha256Beside, StoreError, UnprovenFile};
use crate::tree::MAX_BLOB_SIZE;

/// How long it may take to give back what was leased.
const FAREWELL: Duration = Duration::from_secs(1);

/// A file as a lockfile or a person names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginFile {
    /// Its SHA-256 and size.
    pub file: FileRef,
    /// Its BLAKE3 hash, if that is known, or as somebody says who is not trusted for it: then it is asked for by that
    /// first, and by its SHA-256 alone where that leads to another file or to nobody.
    pub blob: Option<BlobHash>,
    /// Whether somebody who is trusted signed that both hashes are of one file: then the SHA-256 is not
    /// computed, and the blob is found under it from then on. What a peer or a coordinator says is never that.
    pub trusted_blake3: bool,
    /// Where it is on the internet, the preferred first.
    pub urls: Vec<String>,
    /// Whether peers may have it. One that is not shared is read from the internet by us alone, and never
    /// served to anybody from then on.
    pub share: bool,
    /// Whether somebody reads it while it comes: it is asked for from its beginning where that costs others nothing.
    pub in_order: bool,
}

/// A file that is here and proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedFile {
    /// The blob that it is.
    pub blob: BlobRef,
    /// From which peers how many bytes came.
    pub fetched: Vec<Fetched>,
    /// How many bytes came from the internet.
    pub origin_bytes: u64,
}

/// Why a file did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchFileError {
    /// Nobody gave what is missing.
    #[error("file `sha256:{}` came from nobody: {}", file.sha256, list(tried))]
    NoSource {
        /// The file.
        file: FileRef,
        /// Whom we asked, and why it did not help.
        tried: Vec<(SourceName, String)>,
    },
    /// No file here may have that size.
    #[error("file `sha256:{}` cannot have {} bytes", .0.sha256, .0.size)]
    Size(FileRef),
    /// All of it came, and it is another file.
    #[error("wrong SHA-256 `{found}` in place of `{}` from {}", file.sha256, from.join(", "))]
    WrongSha256 {
        /// The file that was wanted.
        file: FileRef,
        /// What came.
        found: Sha256,
        /// The URLs, or the peers, that gave it.
        from: Vec<String>,
    },
    /// All of it came, and it is another blob than the one that was named.
    #[error("wrong BLAKE3 hash `{found}` in place of `{expected}` from {}", from.join(", "))]
    WrongBlake3 {
        /// The blob that was wanted.
        expected: BlobHash,
        /// What came.
        found: BlobHash,
        /// The URLs, or the peers, that gave it.
        from: Vec<String>,
    },
    /// The internet cannot be read at all.
    #[error(transparent)]
    Setup(#[from] OriginSetupError),
    /// It cannot be stored.
    #[error("the file cannot be stored")]
    Store(#[from] StoreError),
    /// The process is shutting down.
    #[error("the data plane of this process has stopped")]
    Stopped,
}

/// Why a file did not come as the blob that it is said to be.
#[derive(Debug, thiserror::Error)]
enum KnownError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    File(#[from] FetchFileError),
}

/// Why the size of a file is not known.
#[derive(Debug, thiserror::Error)]
pub enum OriginSizeError {
    /// The internet cannot be read at all.
    #[error(transparent)]
    Setup(#[from] OriginSetupError),
    /// No URL says so.
    #[error("no URL says how many bytes the file has")]
    Failed(#[from] OriginFailed),
}

impl Exchange {
    /// Sets whom the exchange asks who holds what, and which ranges may be read from the internet.
    pub fn set_finder(&self, finder: Arc<dyn Finder>) {
        *self.inner.finder.write().unwrap_or_else(PoisonError::into_inner) = Some(finder);
    }

    /// Sets how files are read from the internet. Without it nothing but public https hosts is asked, and
    /// no token is known.
    pub fn set_origins(&self, reader: OriginReader) {
        let reader = reader.throttled(Arc::clone(&self.inner.throttle));
        *self.inner.origins.write().unwrap_or_else(PoisonError::into_inner) = Some(reader);
    }

    /// How many bytes the file at the first of these URLs that answers has.
    pub async fn origin_size(&self, urls: &[String]) -> Result<u64, OriginSizeError> {
        Ok(self.origins()?.size(urls).await?)
    }

    /// Makes a file whole in the store and proves it: from these providers, from those who are found, and
    /// from the internet. It may be cancelled; what came is kept.
    pub async fn fetch_file(
        &self,
        wanted: &OriginFile,
        providers: &[Provider],
        progress: Option<&watch::Sender<Progress>>,
    ) -> Result<FetchedFile, FetchFileError> {
        let fetching = async {
            match self.fetch_file_once(wanted, providers, progress).await {
                Err(FetchFileError::WrongSha256 { .. } | FetchFileError::NoSource { .. })
                    if wanted.blob.is_some() && !wanted.trusted_blake3 =>
                {
                    debug!("the file is not to be had as the blob that it is said to be");
                    let wanted = OriginFile { blob: None, ..wanted.clone() };
                    self.fetch_file_once(&wanted, providers, progress).await
                }
                fetched => fetched,
            }
        };
        let span = debug_span!("fetch_file", sha256 = %wanted.file.sha256);
        let fetched = self.inner.stop.run_until_cancelled(fetching.instrument(span)).await;
        fetched.unwrap_or(Err(FetchFileError::Stopped))
    }

    /// The same, which goes on whenever a disk that was full or read-only takes writes again; for so long in all
    /// that is waited for. What came until then is kept.
    pub async fn fetch_file_when_there_is_room(
        &self,
        wanted: &OriginFile,
        providers: &[Provider],
        progress: Option<&watch::Sender<Progress>>,
        patience: Duration,
    ) -> Result<FetchedFile, FetchFileError> {
        let until = Instant::now() + patience;
        loop {
            let fetched = self.fetch_file(wanted, providers, progress).await;
            match &fetched {
                Err(FetchFileError::Store(error))
                    if timeout_at(until, error.room_comes()).await == Ok(true) => {}
                _ => return fetched,
            }
        }
    }

    async fn fetch_file_once(
        &self,
        wanted: &OriginFile,
        providers: &[Provider],
        progress: Option<&watch::Sender<Progress>>,
    ) -> Result<FetchedFile, FetchFileError> {
        // What was made private stays so, whoever asks for it now.
        let share = wanted.share && !self.store().is_private(wanted.file.sha256, wanted.blob);
        let wanted = &OriginFile { share, ..wanted.clone() };
        let OriginFile { file, .. } = wanted;
        if file.size > MAX_BLOB_SIZE {
            return Err(FetchFileError::Size(*file));
        }
        let turn = self.turn(file.sha256.into());
        let _turn = turn.lock().await;
        let named = wanted.blob.map(|hash| BlobRef { hash, size: file.size });
        let known = named.or_else(|| self.store().alias(&file.sha256));
        if !wanted.share {
            let by_hash = known.map(|blob| blob.hash.into());
            self.store().keep_private(by_hash.into_iter().chain([file.sha256.into()]).collect()).await?;
        }
        if let Some(blob) = known
            && self.store().check(blob.hash).await? == Some(blob)
        {
            self.prove(wanted, blob, None, Vec::new()).await?;
            return Ok(FetchedFile { blob, fetched: Vec::new(), origin_bytes: 0 });
        }
        // Of what only a publisher signed for somebody else, the bytes decide.
        if known.is_none()
            && let Some(blob) = self.store().proven(&file.sha256).await?.filter(|blob| blob.size == file.size)
        {
            return Ok(FetchedFile { blob, fetched: Vec::new(), origin_bytes: 0 });
        }
        let found = self.locate(wanted).await;
        let mut peers = if wanted.share { providers.to_vec() } else { Vec::new() };
        let is_new = |peer: &Provider| !providers.iter().any(|provider| provider.peer == peer.peer);
        peers.extend(found.providers.into_iter().filter(is_new));
        let (mut tried, mut taken_over) = (Vec::new(), None);
        let hint = self.store().named(&file.sha256).or(found.blob).filter(|blob| blob.size == file.size);
        if let Some(blob) = known.or(hint).filter(|blob| !peers.is_empty() || self.store().has_tree(*blob)) {
            let origin = Origin::new(self.origins()?, &wanted.urls, file.size);
            match self.fetch_known(wanted, blob, known.is_none(), &origin, &peers, progress).await {
                Ok(fetched) => return Ok(fetched),
                // What others say of a SHA-256 is only a hint.
                Err(KnownError::File(FetchFileError::WrongSha256 { .. })) if known.is_none() => {
                    warn!(blob = %blob.hash.fmt_short(), "blob is not the file that others say it is");
                }
                Err(KnownError::File(error)) => return Err(error),
                Err(KnownError::Fetch(FetchError::NoProvider { tried: by_hash, .. })) => {
                    tried = by_hash;
                    // The pieces of a blob that is only said to be the file may be what a good URL contradicts.
                    let origin_goes_on = origin.is_usable() || (known.is_none() && !origin.is_empty());
                    if self.store().has_tree(blob) && !origin_goes_on && found.readers.is_empty() {
                        // What came waits with its tree for those who have the rest.
                        return Err(FetchFileError::NoSource { file: *file, tried });
                    }
                    let turn = self.turn(blob.hash.into()).lock_owned().await;
                    // As long as these bytes are the file's, whoever wants the blob waits for them.
                    taken_over = self.store().take_over(blob, *file).await?.then_some(turn);
                }
                Err(KnownError::Fetch(FetchError::Size(_))) => {}
                Err(KnownError::Fetch(FetchError::Store(error))) => return Err(error.into()),
                Err(KnownError::Fetch(FetchError::Stopped)) => return Err(FetchFileError::Stopped),
            }
        }
        peers.extend(found.readers);
        let unproven = self.store().unproven(*file).await?;
        let fetched = self.put_together(wanted, &unproven, peers, tried, progress).await;
        let holds = if fetched.is_ok() { held(&unproven.pieces()) } else { Vec::new() };
        drop(unproven);
        if taken_over.is_some() && fetched.is_err() {
            // Whoever waits for the blob takes them back.
            self.store().let_go(file.sha256).await;
        }
        drop(taken_over);
        if wanted.share {
            self.give_back(*file, holds).await;
        }
        fetched
    }

    /// Takes the file as the blob that it is known, or by a hint only said to be, from peers and, where they are
    /// slow, from the internet.
    async fn fetch_known(
        &self,
        wanted: &OriginFile,
        blob: BlobRef,
        is_hint: bool,
        origin: &Origin,
        peers: &[Provider],
        progress: Option<&watch::Sender<Progress>>,
    ) -> Result<FetchedFile, KnownError> {
        // It stays until it is proven.
        let _hold = self.store().hold(blob.hash);
        let beside = (!self.is_proven(wanted, blob)).then(|| self.store().sha256_beside(blob));
        // Under its SHA-256 others get nothing of a blob that may be another file: we would be the liar. So we lease
        // no range of it either.
        let finder = self.finder().filter(|_| wanted.share && !is_hint);
        let supplier = OriginSupplier::new(origin.clone(), wanted.file, finder).spared();
        let besides = supplier.has_urls().then(|| Arc::new(supplier.clone()) as Arc<dyn Supplier>);
        // Whoever else reads it from the internet may not know the blob, and asks for the file.
        let _said = (besides.is_some() && !is_hint).then(|| self.store().say(wanted.file.sha256, blob));
        // The SHA-256 follows from the beginning.
        let in_order = wanted.in_order || beside.is_some();
        let fetching = async {
            let gave = self.fetch_once(blob, peers, besides, in_order, progress).await?;
            let Gave { fetched, origin_bytes } = gave;
            let from = fetched.iter().map(|fetched| fetched.from.to_string()).collect();
            self.prove(wanted, blob, beside, from).await?;
            Ok(FetchedFile { blob, fetched, origin_bytes })
        };
        let fetched = fetching.await;
        if supplier.has_leased() {
            let pieces =
                if fetched.is_ok() { Pieces::all(blob.pieces()) } else { Pieces::none(blob.pieces()) };
            self.give_back(wanted.file, held(&pieces)).await;
        }
        fetched
    }

    /// Fills the file from everybody until it is proven.
    async fn put_together(
        &self,
        wanted: &OriginFile,
        unproven: &Arc<UnprovenFile>,
        mut peers: Vec<Provider>,
        mut tried: Vec<(SourceName, String)>,
        progress: Option<&watch::Sender<Progress>>,
    ) -> Result<FetchedFile, FetchFileError> {
        let file = wanted.file;
        let origin = Origin::new(self.origins()?, &wanted.urls, file.size);
        if !wanted.is_trusted() {
            unproven.hash_beside();
        }
        let finder = self.finder().filter(|_| wanted.share);
        let mut supplier = OriginSupplier::new(origin.clone(), file, finder);
        let mut gave = BTreeMap::new();
        let proof = loop {
            let gathered = self.gather(wanted, unproven, &supplier, &peers, progress, &mut gave).await;
            if let Some(mirrors) = supplier.take_changed() {
                debug!("origin changed the file, what it gave before is read again");
                let given = supplier.take_given(&mirrors);
                unproven.distrust(move |piece, _| !given.contains(&piece)).await?;
                continue;
            }
            match gathered {
                Ok(()) => {}
                Err(GatherError::Store(error)) => return Err(error.into()),
                Err(GatherError::NoSource(now)) => {
                    tried.retain(|(name, _)| !now.iter().any(|(later, _)| later == name));
                    tried.extend(now);
                    return Err(FetchFileError::NoSource { file, tried });
                }
            }
            let proof = unproven.prove().await?;
            let Some(wrong) = wanted.mismatch(&proof) else { break proof };
            let from_others = unproven.distrust(|_, giver| giver == Giver::Origin).await?;
            if from_others > 0 && origin.is_usable() {
                warn!(
                    pieces = from_others,
                    "file is not the one that was wanted, read again from its origin alone"
                );
                // From here on only its own word counts.
                (peers, supplier) = (Vec::new(), supplier.alone());
                continue;
            }
            let blamed = supplier.blame();
            unproven.distrust(|_, _| false).await?;
            if from_others > 0 || !origin.is_usable() {
                unproven.discard().await?;
                let givers = gave.keys().filter(|name| name.is_peer());
                let from = if from_others > 0 { givers.map(ToString::to_string).collect() } else { blamed };
                return Err(wrong.from(from));
            }
        };
        for (liar, piece) in unproven.liars() {
            warn!(provider = %liar.fmt_short(), piece, "provider sent a piece that is not the file's");
            let reason = format!("its piece {piece} is not the one of the origin");
            self.inner.faults().add(liar, file.sha256.into(), reason);
        }
        if !wanted.share {
            self.store().keep_private(vec![proof.blob.hash.into()]).await?;
        }
        let blob = unproven.keep(proof).await?;
        let mut total = Gave::default();
        gave.into_iter().for_each(|(name, bytes)| total.count(blob, name, bytes));
        Ok(FetchedFile { blob, fetched: total.fetched, origin_bytes: total.origin_bytes })
    }

    /// Takes all that is missing from peers and the origin; counts who gave how much.
    async fn gather(
        &self,
        wanted: &OriginFile,
        unproven: &Arc<UnprovenFile>,
        supplier: &OriginSupplier,
        peers: &[Provider],
        progress: Option<&watch::Sender<Progress>>,
        gave: &mut BTreeMap<SourceName, u64>,
    ) -> Result<(), GatherError> {
        let target = Arc::new(FileTarget(Arc::clone(unproven)));
        let gathering = Gathering::new(Arc::clone(&self.inner), target, wanted.in_order, progress.cloned());
        self.show(&gathering);
        let us: PeerId = self.inner.config.credentials.peer();
        let others = peers.iter().filter(|provider| provider.peer != us).cloned();
        let mut suppliers: Vec<Arc<dyn Supplier>> = Vec::new();
        if supplier.has_urls() {
            suppliers.push(Arc::new(supplier.clone()));
        }
        suppliers.extend(others.map(|provider| Arc::new(PeerSupplier(provider)) as Arc<dyn Supplier>));
        let gathered = gathering.run(suppliers).await;
        for (name, bytes) in gathering.gave() {
            *gave.entry(name).or_default() += bytes;
        }
        gathered
    }

    /// Whether it needs no proof that a blob is the file.
    fn is_proven(&self, wanted: &OriginFile, blob: BlobRef) -> bool {
        wanted.is_trusted() || self.store().alias(&wanted.file.sha256) == Some(blob)
    }

    /// Proves that a whole blob is the file, unless somebody who is trusted says so: by the SHA-256 that was
    /// computed beside it, or by reading it.
    async fn prove(
        &self,
        wanted: &OriginFile,
        blob: BlobRef,
        beside: Option<Sha256Beside>,
        from: Vec<String>,
    ) -> Result<(), FetchFileError> {
        let file = wanted.file;
        if self.store().alias(&file.sha256) == Some(blob) {
            return Ok(());
        }
        if wanted.is_trusted() {
            // It lets others find the blob by this name as well; what was asked for is here without it.
            if let Err(error) = self.store().vouch(Alias { sha256: file.sha256, blob }).await {
                warn!(%error, "what a publisher signed of a file is not kept");
            }
            return Ok(());
        }
        let found = match beside {
            Some(beside) => self.store().prove_beside(blob, beside).await?,
            None => self.store().prove_sha256(blob).await?,
        };
        if found == file.sha256 { Ok(()) } else { Err(FetchFileError::WrongSha256 { file, found, from }) }
    }

    async fn locate(&self, wanted: &OriginFile) -> Found {
        let Some(finder) = self.finder().filter(|_| wanted.share) else { return Found::default() };
        let name = wanted.blob.map_or(BlobName::Sha256(wanted.file.sha256), BlobName::Blake3);
        finder.locate(&name).await.unwrap_or_else(|error| {
            debug!(%error, "nobody can be asked who holds the file");
            Found::default()
        })
    }

    /// Says what we hold of it at the end, and that we read no more.
    async fn give_back(&self, file: FileRef, holds: Vec<PieceRange>) {
        if let Some(finder) = self.finder() {
            let said = timeout(FAREWELL, finder.read_origin(&file, holds, 0)).await;
            debug!(heard = matches!(said, Ok(Ok(_))), "leases on the file are given back");
        }
    }

    fn finder(&self) -> Option<Arc<dyn Finder>> {
        self.inner.finder.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn origins(&self) -> Result<OriginReader, OriginSetupError> {
        if let Some(reader) = &*self.inner.origins.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(reader.clone());
        }
        let reader = OriginReader::new(OriginConfig::default())?.throttled(Arc::clone(&self.inner.throttle));
        self.set_origins(reader.clone());
        Ok(reader)
    }
}

impl OriginFile {
    fn is_trusted(&self) -> bool {
        self.trusted_blake3 && self.blob.is_some()
    }

    /// In what the whole differs from what was wanted.
    fn mismatch(&self, proof: &Proof) -> Option<Wrong> {
        if let Some(found) = proof.sha256.filter(|found| *found != self.file.sha256) {
            return Some(Wrong::Sha256 { file: self.file, found });
        }
        let expected = self.blob.filter(|expected| self.is_trusted() && *expected != proof.blob.hash)?;
        Some(Wrong::Blake3 { expected, found: proof.blob.hash })
    }
}

/// Which of its names a file does not have.
enum Wrong {
    Sha256 { file: FileRef, found: Sha256 },
    Blake3 { expected: BlobHash, found: BlobHash },
}

impl Wrong {
    fn from(self, from: Vec<String>) -> FetchFileError {
        match self {
            Self::Sha256 { file, found } => FetchFileError::WrongSha256 { file, found, from },
            Self::Blake3 { expected, found } => FetchFileError::WrongBlake3 { expected, found, from },
        }
    }
}
