//! Many blobs at once, most of them small: the small ones come by the hundred over one channel of each
//! provider, the others as blobs by themselves.
//!
//! Not here: what they are together; a `Collection` says that.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures::future::{join, join_all};
use futures::stream::{self, TryStreamExt};
use protocol::message::Provider;
use protocol::wire::{BlobAnswer, BlobRequest, GetSmall, MAX_BLOB_FRAME, MAX_SMALL, Small};
use protocol::{BlobHash, BlobName, BlobRef, PIECE_SIZE, PeerId, SourceName, error_chain};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::source::{SourceError, WrongPart};
use super::{Exchange, FetchError};
use crate::frames::{FrameReceiver, FrameSender};
use crate::limits::Rate;

/// How many bytes of small blobs one request asks for at most, or one blob.
const MAX_REQUEST: u64 = 4 << 20;
/// How much of a blob must come before its provider is silent.
const PART: usize = 256 << 10;
/// How many requests a provider has open at once.
const OPEN_REQUESTS: usize = 2;
/// How many providers are asked for small blobs at once.
const MAX_PROVIDERS: usize = 8;
/// How many large blobs come at once.
const MAX_LARGE: usize = 4;

impl Exchange {
    /// Makes all of these blobs whole in the store, from these providers. It says from whom how many bytes
    /// came. Progress is in bytes that are here and verified, each blob counted once. It may be cancelled; what verified is kept.
    pub async fn fetch_many(
        &self,
        blobs: &[BlobRef],
        providers: &[Provider],
        progress: Option<&watch::Sender<u64>>,
    ) -> Result<BTreeMap<PeerId, u64>, FetchError> {
        let fetching = self.fetch_missing(blobs, providers, progress);
        let fetched = self.inner.stop.run_until_cancelled(fetching).await;
        fetched.unwrap_or(Err(FetchError::Stopped))
    }

    async fn fetch_missing(
        &self,
        blobs: &[BlobRef],
        providers: &[Provider],
        progress: Option<&watch::Sender<u64>>,
    ) -> Result<BTreeMap<PeerId, u64>, FetchError> {
        let store = self.store();
        let blobs: HashSet<BlobRef> = blobs.iter().copied().collect();
        let _held: Vec<_> = blobs.iter().map(|blob| store.hold(blob.hash)).collect();
        let size = |blobs: &[BlobRef]| blobs.iter().map(|blob| blob.size).sum::<u64>();
        let blobs: Vec<BlobRef> = blobs.into_iter().collect();
        let missing = store.missing(blobs.clone()).await?;
        let here = size(&blobs) - size(&missing);
        let (small, large): (Vec<_>, Vec<_>) = missing.into_iter().partition(|blob| blob.size <= PIECE_SIZE);
        let wanted = Wanted { state: Mutex::new(State::new(small, here)), progress };
        wanted.tell(0, None);
        self.fetch_small(&wanted, providers).await?;
        stream::iter(large.into_iter().map(Ok))
            .try_for_each_concurrent(MAX_LARGE, async |blob| {
                for fetched in self.fetch(blob, providers, None).await? {
                    wanted.tell(fetched.bytes, Some(fetched.from));
                }
                Ok::<_, FetchError>(())
            })
            .await?;
        Ok(wanted.state.into_inner().expect("nothing panics while it holds the state").from)
    }

    /// Asks every provider at once, and again as long as one that answers may hold what another lacked.
    async fn fetch_small(&self, wanted: &Wanted<'_>, providers: &[Provider]) -> Result<(), FetchError> {
        let ourselves = self.inner.config.credentials.peer();
        let mut asking: Vec<&Provider> =
            providers.iter().filter(|provider| provider.peer != ourselves).take(MAX_PROVIDERS).collect();
        let mut tried: Vec<(SourceName, String)> = Vec::new();
        for provider in &asking {
            let faults = self.inner.faults().by(provider.peer);
            if let Some(reason) = wanted.leave_out(provider.peer, &faults) {
                tried.push((SourceName::Peer(provider.peer), SourceError::Fault(reason).to_string()));
            }
        }
        loop {
            asking.retain(|provider| wanted.has_for(provider.peer));
            if asking.is_empty() {
                break;
            }
            let asked = join_all(asking.iter().map(|provider| self.ask_small(wanted, provider))).await;
            for (provider, result) in std::mem::take(&mut asking).into_iter().zip(asked) {
                match result {
                    Ok(()) => asking.push(provider),
                    Err(SourceError::Store(error)) => return Err(error.into()),
                    Err(error) => {
                        debug!(provider = %provider.peer.fmt_short(), %error, "provider did not give the blobs");
                        tried.push((SourceName::Peer(provider.peer), error_chain(&error)));
                    }
                }
            }
        }
        match wanted.lock().waiting.front() {
            None => Ok(()),
            Some(blob) => {
                let lacks = |provider: &Provider| {
                    let reason = SourceError::NotFound.to_string();
                    (SourceName::Peer(provider.peer), reason)
                };
                let failed: HashSet<SourceName> = tried.iter().map(|(name, _)| name.clone()).collect();
                let lacking =
                    providers.iter().filter(|provider| !failed.contains(&SourceName::Peer(provider.peer)));
                tried.extend(lacking.map(lacks));
                Err(FetchError::NoProvider { blob: *blob, tried })
            }
        }
    }

    /// Takes small blobs from one provider until none is left that it may hold.
    async fn ask_small(&self, wanted: &Wanted<'_>, provider: &Provider) -> Result<(), SourceError> {
        let peer = provider.peer;
        let link = self.inner.link(provider).await?;
        let piece_timeout = self.inner.config.piece_timeout;
        let silent = |_| SourceError::Silent(piece_timeout);
        let channel =
            timeout(piece_timeout, link.open()).await.map_err(silent)?.map_err(SourceError::from)?;
        let mut requests = FrameSender::<BlobRequest>::with_limit(channel.writer, MAX_BLOB_FRAME);
        let mut answers = FrameReceiver::<BlobAnswer>::with_limit(channel.reader, MAX_BLOB_FRAME);
        let mut open: VecDeque<Taken<'_>> = VecDeque::new();
        let mut came: Option<Came<'_>> = None;
        loop {
            while open.len() < OPEN_REQUESTS
                && let Some(taken) = wanted.take(peer)
            {
                let request = BlobRequest::GetSmall(GetSmall { blobs: taken.left.clone().into() });
                open.push_back(taken);
                let sent = timeout(piece_timeout, requests.send(&request)).await;
                sent.map_err(silent)?.map_err(SourceError::from)?;
            }
            // What came is stored while the next blobs cross.
            let storing = self.store_small(came.take(), peer);
            let Some(taken) = open.pop_front() else { return storing.await };
            let cap = &self.inner.throttle.download;
            let receiving = receive(&mut answers, taken, peer, piece_timeout, cap);
            let (received, stored) = join(receiving, storing).await;
            stored?;
            came = Some(received?);
        }
    }

    /// Stores what came; an error where some of it was not what was asked for.
    async fn store_small(&self, came: Option<Came<'_>>, peer: PeerId) -> Result<(), SourceError> {
        let Some(Came { mut taken, blobs }) = came else { return Ok(()) };
        let matching = self.store().import_small(blobs).await.map_err(SourceError::from)?;
        let (right, wrong): (Vec<_>, Vec<_>) =
            taken.left.drain(..).zip(matching).partition(|(_, is_right)| *is_right);
        taken.left.extend(wrong.iter().map(|(blob, _)| *blob));
        taken.wanted.tell(right.iter().map(|(blob, _)| blob.size).sum(), Some(peer));
        if taken.left.is_empty() {
            return Ok(());
        }
        let error = SourceError::Wrong(WrongPart::Piece(0));
        let blobs = taken.left.len();
        warn!(provider = %peer.fmt_short(), %error, blobs, "provider sent wrong bytes, not asked for these blobs again");
        let mut faults = self.inner.faults();
        for blob in &taken.left {
            faults.add(peer, BlobName::Blake3(blob.hash), error_chain(&error));
        }
        Err(error)
    }
}

/// Small blobs as they came, in the order in which they were asked for.
struct Came<'a> {
    taken: Taken<'a>,
    blobs: Vec<(BlobRef, Vec<u8>)>,
}

/// Receives the answers to one request, no faster than the cap allows.
async fn receive<'a>(
    answers: &mut FrameReceiver<BlobAnswer>,
    mut taken: Taken<'a>,
    peer: PeerId,
    piece_timeout: Duration,
    cap: &Rate,
) -> Result<Came<'a>, SourceError> {
    let mut blobs = Vec::with_capacity(taken.left.len());
    let silent = |_| SourceError::Silent(piece_timeout);
    for blob in taken.left.clone() {
        if !timeout(piece_timeout, is_found(answers)).await.map_err(silent)?? {
            taken.left.retain(|left| *left != blob);
            taken.wanted.is_lacking(peer, blob);
            continue;
        }
        let mut bytes = vec![0; blob.size as usize];
        for part in bytes.chunks_mut(PART) {
            timeout(piece_timeout, answers.recv_bytes(part)).await.map_err(silent)??;
            // What is not taken from the link yet slows its sender down.
            cap.take(part.len()).await;
        }
        blobs.push((blob, bytes));
    }
    Ok(Came { taken, blobs })
}

/// Whether the next small blob comes.
async fn is_found(answers: &mut FrameReceiver<BlobAnswer>) -> Result<bool, SourceError> {
    match answers.recv().await? {
        Some(BlobAnswer::Small(Small { found })) => Ok(found),
        Some(BlobAnswer::Busy(_)) => Err(SourceError::Busy),
        Some(_) => Err(SourceError::OutOfTurn),
        None => Err(SourceError::Ended),
    }
}

/// The small blobs that are still to come.
struct Wanted<'a> {
    state: Mutex<State>,
    progress: Option<&'a watch::Sender<u64>>,
}

struct State {
    waiting: VecDeque<BlobRef>,
    /// Who said that it does not hold which.
    lacking: HashMap<BlobHash, HashSet<PeerId>>,
    from: BTreeMap<PeerId, u64>,
    here: u64,
}

impl State {
    fn new(waiting: Vec<BlobRef>, here: u64) -> Self {
        Self { waiting: waiting.into(), lacking: HashMap::new(), from: BTreeMap::new(), here }
    }

    fn lacks(&self, peer: PeerId, blob: &BlobRef) -> bool {
        self.lacking.get(&blob.hash).is_some_and(|peers| peers.contains(&peer))
    }
}

/// Small blobs that one provider was asked for; those that did not come wait again when it is dropped.
struct Taken<'a> {
    wanted: &'a Wanted<'a>,
    left: VecDeque<BlobRef>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.wanted.lock().waiting.extend(self.left.drain(..));
    }
}

impl Wanted<'_> {
    /// Whether something waits that this provider may hold.
    fn has_for(&self, peer: PeerId) -> bool {
        let state = self.lock();
        state.waiting.iter().any(|blob| !state.lacks(peer, blob))
    }

    /// This provider is not asked for what it sent wrong; the reason, where there is such a blob.
    fn leave_out(&self, peer: PeerId, faults: &HashMap<BlobName, String>) -> Option<String> {
        let mut state = self.lock();
        let State { waiting, lacking, .. } = &mut *state;
        let mut reason = None;
        for blob in waiting.iter().filter(|_| !faults.is_empty()) {
            if let Some(fault) = faults.get(&BlobName::Blake3(blob.hash)) {
                lacking.entry(blob.hash).or_default().insert(peer);
                reason = Some(fault.clone());
            }
        }
        reason
    }

    /// As many blobs as one request asks this provider for.
    fn take(&self, peer: PeerId) -> Option<Taken<'_>> {
        let mut state = self.lock();
        let mut left = VecDeque::new();
        let (mut kept, mut bytes) = (VecDeque::new(), 0);
        while let Some(blob) = state.waiting.pop_front() {
            if state.lacks(peer, &blob) {
                kept.push_back(blob);
                continue;
            }
            if !left.is_empty() && (left.len() == MAX_SMALL || bytes + blob.size > MAX_REQUEST) {
                state.waiting.push_front(blob);
                break;
            }
            bytes += blob.size;
            left.push_back(blob);
        }
        state.waiting.extend(kept);
        drop(state);
        (!left.is_empty()).then_some(Taken { wanted: self, left })
    }

    fn is_lacking(&self, peer: PeerId, blob: BlobRef) {
        let mut state = self.lock();
        state.lacking.entry(blob.hash).or_default().insert(peer);
        state.waiting.push_back(blob);
    }

    /// Counts bytes that are here now, and from whom they came.
    fn tell(&self, bytes: u64, from: Option<PeerId>) {
        let mut state = self.lock();
        state.here += bytes;
        if let Some(from) = from.filter(|_| bytes > 0) {
            *state.from.entry(from).or_default() += bytes;
        }
        if let Some(progress) = self.progress {
            progress.send_replace(state.here);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the state")
    }
}
