//! What a command has a running process do in the farm: fetch a blob into a file, and ask who holds one.
//!
//! Not here: how the command asks, and the fetching itself.

use std::convert::Infallible;
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
use crate::store::{BlobEntry, BlobStore, StoreError};

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
    /// Where a file that is named by its SHA-256 is on the internet, if no peer gives it.
    pub urls: Vec<String>,
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
    /// How many bytes came from the internet.
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
    /// It came neither from peers nor from the internet.
    #[error(transparent)]
    FetchFile(#[from] FetchFileError),
    /// It is not known how long the file is.
    #[error(transparent)]
    OriginSize(#[from] OriginSizeError),
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
        let GetRequest { name, from, urls, output } = request;
        let store = self.exchange.store();
        let got = match (here(store, &name), name) {
            (Some(entry), _) => {
                let blob = BlobRef { hash: entry.hash, size: entry.size };
                Got { blob, fetched: Vec::new(), origin_bytes: 0 }
            }
            (None, BlobName::Sha256(sha256)) if !urls.is_empty() => {
                self.fetch_file(sha256, urls, tell).await?
            }
            (None, name) => self.fetch(name, &from, tell).await?,
        };
        let blob = got.blob;
        if let BlobName::Sha256(wanted) = name {
            let found = store.sha256(blob.hash).await?;
            if found != wanted {
                return Err(ErrandError::WrongSha256 { blob: blob.hash, found });
            }
        }
        store.export(blob.hash, &output).await?;
        Ok(got)
    }

    /// Fetches a file from the farm and from the internet.
    async fn fetch_file(
        &self,
        sha256: Sha256,
        urls: Vec<String>,
        tell: impl Fn(Progress) + Send + Sync,
    ) -> Result<Got, ErrandError> {
        let located = self.finder.locate(&sha256.into()).await.unwrap_or_default();
        let size = match located.blob {
            Some(blob) => blob.size,
            None => self.exchange.origin_size(&urls).await?,
        };
        let file = FileRef { sha256, size };
        let wanted = OriginFile { file, blob: None, trusted_blake3: false, urls };
        let (sender, news) = watch::channel(FetchProgress::default());
        let names = [Some(sha256.into()), located.blob.map(|blob| blob.hash.into())];
        tokio::select! {
            fetched = self.exchange.fetch_file(&wanted, &[], Some(&sender)) => {
                let FetchedFile { blob, fetched, origin_bytes } = fetched?;
                Ok(Got { blob, fetched, origin_bytes })
            }
            never = self.tell_of(&names, size, news, tell) => match never {},
        }
    }

    /// Tells how far the transfer under one of these names is, without end.
    async fn tell_of(
        &self,
        names: &[Option<BlobName>],
        size: u64,
        mut news: watch::Receiver<FetchProgress>,
        tell: impl Fn(Progress) + Send + Sync,
    ) -> Infallible {
        while news.changed().await.is_ok() {
            let here = news.borrow_and_update().bytes;
            let is_it = |transfer: &Transfer| names.contains(&Some(transfer.name));
            let transfer = self.exchange.transfers().into_iter().find(is_it);
            let (name, sources) = match transfer {
                Some(transfer) => (transfer.name, transfer.sources),
                None => continue,
            };
            tell(Progress::Fetching(Transfer { name, size, here, sources }));
        }
        std::future::pending().await
    }

    async fn fetch(
        &self,
        name: BlobName,
        from: &[PeerId],
        tell: impl Fn(Progress) + Send + Sync,
    ) -> Result<Got, ErrandError> {
        let located = self.finder.locate(&name).await;
        let nobody = |asked: &str| ErrandError::Nobody { name, asked: asked.to_owned() };
        let (blob, providers) = match located {
            Ok(Found { blob: Some(blob), providers, .. }) if !providers.is_empty() => (blob, providers),
            Ok(_) => return Err(nobody("the coordinator, which knows of no node that has it")),
            Err(error @ FindError::Offline) => return Err(nobody(&format!("this node alone: {error}"))),
            Err(error @ FindError::Timeout) => return Err(nobody(&format!("in vain: {error}"))),
        };
        let chosen: Vec<Provider> = providers
            .iter()
            .filter(|provider| from.is_empty() || from.contains(&provider.peer))
            .cloned()
            .collect();
        if chosen.is_empty() {
            let holders: Vec<_> = providers.iter().map(|provider| provider.peer.to_string()).collect();
            return Err(ErrandError::NotFrom { name, holders: holders.join(", ") });
        }
        let (sender, news) = watch::channel(FetchProgress::default());
        let names = [Some(blob.hash.into())];
        tokio::select! {
            fetched = self.exchange.fetch(blob, &chosen, Some(&sender)) => {
                Ok(Got { blob, fetched: fetched?, origin_bytes: 0 })
            }
            never = self.tell_of(&names, blob.size, news, tell) => match never {},
        }
    }
}

fn here(store: &BlobStore, name: &BlobName) -> Option<BlobEntry> {
    let hash = match name {
        BlobName::Blake3(hash) => *hash,
        BlobName::Sha256(sha256) => store.alias(sha256)?.hash,
    };
    store.get(hash)?;
    store.list().into_iter().find(|entry| entry.hash == hash)
}
