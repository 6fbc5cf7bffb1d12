//! What a command has a running process do in the farm: fetch a blob into a file, and ask who holds one.
//!
//! Not here: how the command asks, and the fetching itself.

use std::path::PathBuf;
use std::sync::Arc;

use protocol::message::Provider;
use protocol::{BlobHash, BlobName, BlobRef, Fetched, FileRef, PeerId, Sha256, Transfer};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::Progress;
use crate::fetch::{
    Exchange, FetchError, FetchFileError, FetchedFile, OriginFile, OriginSizeError, Progress as FetchProgress,
};
use crate::finder::{FindError, Finder, Found};
use crate::store::{BlobEntry, BlobStore, ExportBeside, Sha256Beside, StoreError};

/// The ways of a process into its farm.
#[derive(Clone)]
pub struct Reach {
    /// Fetches blobs.
    pub exchange: Exchange,
    /// Knows who holds them.
    pub finder: Arc<dyn Finder>,
}

/// A blob that is to become a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetRequest {
    /// Which.
    pub name: BlobName,
    /// The only peers that may be asked; any without one.
    pub from: Vec<PeerId>,
    /// Where on the internet it is, for one that is named by its SHA-256.
    pub urls: Vec<String>,
    /// Its size, where nobody else would know it.
    pub size: Option<u64>,
    /// The full path of the file.
    pub output: PathBuf,
}

/// What a `get` came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Got {
    /// The blob.
    pub blob: BlobRef,
    /// From whom how much came; nothing, if it was here.
    pub fetched: Vec<Fetched>,
    /// How much came from the internet.
    pub origin_bytes: u64,
}

/// Where a blob is, as a process and its farm know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Whereabouts {
    /// What was asked for.
    pub name: BlobName,
    /// The blob, where anybody knows it.
    pub blob: Option<BlobRef>,
    /// What of it is in the process's own store.
    pub here: Option<BlobEntry>,
    /// Who holds it whole.
    pub providers: Vec<Provider>,
    /// Who reads it from the internet at the moment.
    pub readers: Vec<Provider>,
    /// Why the farm was not heard, where it was not.
    pub silence: Option<String>,
}

/// Why a blob did not become a file.
#[derive(Debug, thiserror::Error)]
pub enum ErrandError {
    /// Nobody runs who could be asked.
    #[error("no process runs on this data folder that could ask its farm: start `comfy-farm node`")]
    NoReach,
    /// Nobody is known to hold it.
    #[error("`{name}` is held by nobody that is known: asked {asked}")]
    Nobody {
        /// Which.
        name: BlobName,
        /// Who was asked, in words.
        asked: String,
    },
    /// None of the peers that were named holds it.
    #[error("`{name}` is held by none of the peers that were named, but by {holders}")]
    NotFrom {
        /// Which.
        name: BlobName,
        /// Who does hold it.
        holders: String,
    },
    /// It did not come.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It did not come from the internet either.
    #[error(transparent)]
    File(#[from] FetchFileError),
    /// Its size is not known, and so nothing can be asked for.
    #[error(transparent)]
    Size(#[from] OriginSizeError),
    /// The blob that the farm names for a SHA-256 has another one.
    #[error("the farm names blob `{blob}` for it, which has the SHA-256 `{found}`")]
    WrongSha256 {
        /// The blob.
        blob: BlobHash,
        /// Its SHA-256.
        found: Sha256,
    },
    /// The store, or the file.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Reach {
    /// Who holds a blob, as the farm knows it, and what of it is here.
    pub(super) async fn whereabouts(&self, name: BlobName) -> Whereabouts {
        let here = here(self.exchange.store(), &name);
        let (found, silence) = match self.finder.locate(&name).await {
            Ok(found) => (found, None),
            Err(error) => (Found::default(), Some(error.to_string())),
        };
        let Found { blob, providers, readers } = found;
        let blob = blob.or(here.as_ref().map(|entry| BlobRef { hash: entry.hash, size: entry.size }));
        Whereabouts { name, blob, here, providers, readers, silence }
    }

    /// Fetches a blob, proves that it is what was asked for, and makes a file of it.
    pub(super) async fn get(
        &self,
        request: GetRequest,
        tell: impl Fn(Progress) + Send + Sync,
    ) -> Result<Got, ErrandError> {
        let store = self.exchange.store();
        let here = match &request.name {
            BlobName::Blake3(hash) => store.check(*hash).await?,
            BlobName::Sha256(sha256) => store.proven(sha256).await?,
        };
        if let Some(blob) = here {
            store.export(blob.hash, &request.output).await?;
            return Ok(Got { blob, fetched: Vec::new(), origin_bytes: 0 });
        }
        let export = store.export_beside(request.name, &request.output);
        let got = self.fetch(&request, &export, tell).await?;
        export.finish(got.blob.hash).await?;
        Ok(got)
    }

    async fn fetch(
        &self,
        request: &GetRequest,
        export: &ExportBeside,
        tell: impl Fn(Progress) + Send + Sync,
    ) -> Result<Got, ErrandError> {
        let GetRequest { name, from, urls, size, .. } = request;
        let nobody = |asked: String| ErrandError::Nobody { name: *name, asked };
        let (found, silence) = match self.finder.locate(name).await {
            Ok(found) => (found, "the coordinator, which knows of no node that has it".to_owned()),
            Err(error @ FindError::Offline) => (Found::default(), format!("this node alone: {error}")),
            Err(error @ FindError::Nowhere) => {
                (Found::default(), format!("this node and the members that it reaches: {error}"))
            }
            Err(error @ FindError::Timeout) => (Found::default(), format!("in vain: {error}")),
        };
        let Found { blob, providers, readers } = found;
        blob.iter().for_each(|blob| export.comes_as(blob.hash));
        let (sender, news) = watch::channel(FetchProgress::default());
        let telling = self.tell_progress(*name, blob, news, tell);
        let fetching = async {
            match name {
                BlobName::Sha256(sha256) if from.is_empty() => {
                    if urls.is_empty() && providers.is_empty() && readers.is_empty() {
                        return Err(nobody(silence));
                    }
                    let size = match size.or(blob.map(|blob| blob.size)) {
                        Some(size) => size,
                        None => self.exchange.origin_size(urls).await?,
                    };
                    let file = FileRef { sha256: *sha256, size };
                    let urls = urls.clone();
                    let wanted = OriginFile {
                        file,
                        blob: None,
                        trusted_blake3: false,
                        urls,
                        share: true,
                        in_order: false,
                    };
                    let file = self.exchange.fetch_file(&wanted, &providers, Some(&sender)).await?;
                    let FetchedFile { blob, fetched, origin_bytes } = file;
                    Ok(Got { blob, fetched, origin_bytes })
                }
                _ => {
                    let named = match (name, size) {
                        (BlobName::Blake3(hash), Some(size)) => Some(BlobRef { hash: *hash, size: *size }),
                        _ => None,
                    };
                    let blob = blob.or(named).filter(|_| !providers.is_empty());
                    let blob = blob.ok_or_else(|| nobody(silence))?;
                    let chosen = choose(*name, from, &providers)?;
                    // It stays until it is proven.
                    let _hold = self.exchange.store().hold(blob.hash);
                    let proof = match name {
                        BlobName::Sha256(wanted) => Some((wanted, self.exchange.store().sha256_beside(blob))),
                        BlobName::Blake3(_) => None,
                    };
                    let fetched = self.exchange.fetch(blob, &chosen, Some(&sender)).await?;
                    if let Some((wanted, beside)) = proof {
                        self.prove(wanted, blob, beside).await?;
                    }
                    Ok(Got { blob, fetched, origin_bytes: 0 })
                }
            }
        };
        tokio::select! {
            got = fetching => got,
            () = telling => unreachable!("it never ends"),
        }
    }

    async fn tell_progress(
        &self,
        name: BlobName,
        blob: Option<BlobRef>,
        mut news: watch::Receiver<FetchProgress>,
        tell: impl Fn(Progress) + Send + Sync,
    ) {
        let by_hash = blob.map(|blob| BlobName::Blake3(blob.hash));
        while news.changed().await.is_ok() {
            let here = news.borrow_and_update().bytes;
            let is_it = |transfer: &Transfer| transfer.name == name || Some(transfer.name) == by_hash;
            if let Some(transfer) = self.exchange.transfers().into_iter().find(is_it) {
                tell(Progress::Fetching(Transfer { here, ..transfer }));
            }
        }
        std::future::pending().await
    }

    /// That a blob has the SHA-256 by which it was asked for: others' word for that is only a hint.
    async fn prove(&self, wanted: &Sha256, blob: BlobRef, beside: Sha256Beside) -> Result<(), ErrandError> {
        let found = self.exchange.store().prove_beside(blob, beside).await?;
        if found == *wanted { Ok(()) } else { Err(ErrandError::WrongSha256 { blob: blob.hash, found }) }
    }
}

/// Those of the providers that may be asked.
fn choose(name: BlobName, from: &[PeerId], providers: &[Provider]) -> Result<Vec<Provider>, ErrandError> {
    let is_chosen = |provider: &&Provider| from.is_empty() || from.contains(&provider.peer);
    let chosen: Vec<Provider> = providers.iter().filter(is_chosen).cloned().collect();
    if chosen.is_empty() {
        let holders: Vec<_> = providers.iter().map(|provider| provider.peer.to_string()).collect();
        return Err(ErrandError::NotFrom { name, holders: holders.join(", ") });
    }
    Ok(chosen)
}

fn here(store: &BlobStore, name: &BlobName) -> Option<BlobEntry> {
    let hash = match name {
        BlobName::Blake3(hash) => *hash,
        BlobName::Sha256(sha256) => store.named(sha256)?.hash,
    };
    store.get(hash)?;
    store.list().into_iter().find(|entry| entry.hash == hash)
}
