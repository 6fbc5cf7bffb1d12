//! What a Python is installed from: wheels and sources as blobs, from peers and the internet, and repositories.
//!
//! Not here: which ones, and what is made of them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use mesh::fetch::{FetchFileError, OriginFile, OriginSizeError, Progress};
use mesh::store::{GrowingFile, StoreError};
use protocol::{BlobRef, FileRef, GitPin, LockedFile, PrepareStep, WebUrl, error_chain};
use tokio::sync::{SemaphorePermit, watch};

use super::files::Files;
use crate::workspace::git::{Fetching, GitError, GitStore};
use crate::workspace::python::{WheelError, WheelSource};

#[async_trait]
impl WheelSource for Files<'_> {
    async fn file(
        &self,
        file: &LockedFile,
        turn: Option<SemaphorePermit<'_>>,
    ) -> Result<PathBuf, WheelError> {
        let file_name = file.file_name.to_string();
        let wanted = OriginFile {
            file: FileRef { sha256: file.sha256, size: file.size },
            blob: file.blob,
            trusted_blake3: false,
            urls: file.urls.iter().map(ToString::to_string).collect(),
            share: true,
            in_order: true,
        };
        let store = self.reach.exchange.store();
        let _held = store.hold(file.sha256);
        let part = self.steps.part(PrepareStep::Python);
        let (sender, mut progress) = watch::channel(Progress::default());
        let counted = progress.clone();
        let came = async move {
            let _ = progress.wait_for(|progress| progress.bytes >= file.size).await;
            drop(turn);
        };
        let fetching = self.fetch(&wanted, &sender);
        let mut fetching = std::pin::pin!(fetching);
        let fetching = async {
            tokio::select! {
                fetched = &mut fetching => fetched,
                () = came => fetching.await,
            }
        };
        let fetched = part.count(counted, fetching).await;
        let blob = match fetched {
            Ok(fetched) => fetched.blob,
            Err(FetchFileError::NoSource { tried, .. }) => {
                let tried = tried.into_iter().map(|(who, why)| format!("{who}: {why}")).collect();
                return Err(WheelError::NoSource { file_name, tried });
            }
            Err(FetchFileError::WrongSha256 { found, from, .. }) => {
                let (expected, from) = (file.sha256, from.join(", "));
                return Err(WheelError::WrongHash { file_name, expected, found, from });
            }
            Err(error) => return Err(WheelError::Store { file_name, source: Box::new(error) }),
        };
        part.set(file.size);
        self.given.lock().unwrap_or_else(PoisonError::into_inner).push(store.hold(blob.hash));
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let path = store.path_of(blob.hash);
        path.ok_or_else(|| WheelError::Store { file_name, source: Box::new(gone()) })
    }

    fn expects(&self, bytes: u64) {
        self.steps.expect(PrepareStep::Python, bytes);
    }

    fn read<'a>(&'a self, file: &'a LockedFile) -> BoxStream<'a, Result<Vec<u8>, WheelError>> {
        let blob = file.blob.map(|hash| BlobRef { hash, size: file.size });
        let named = FileRef { sha256: file.sha256, size: file.size };
        let reader = self.reach.exchange.store().read_growing(named, blob);
        let read = |mut reader: GrowingFile| async { Ok(reader.next().await?.map(|part| (part, reader))) };
        let failed = |source: StoreError| WheelError::Store {
            file_name: file.file_name.to_string(),
            source: Box::new(source),
        };
        stream::try_unfold(reader, read).map_err(failed).boxed()
    }

    async fn repository(&self, pin: &GitPin, into: &Path) -> Result<(), WheelError> {
        let (root, pin, into) = (self.git.clone(), pin.clone(), into.to_owned());
        let (policy, cancel) = (self.policy.clone(), self.cancel.clone());
        let laid_out = tokio::task::spawn_blocking(move || {
            let git = GitStore::open(root)?;
            let fetching = Fetching { policy: &policy, progress: &|_| {}, cancel: &cancel };
            git.lay_out(&pin, &into, &fetching).map(drop)
        });
        // It broke off by a bug, or the node ends.
        laid_out.await.unwrap_or(Err(GitError::Canceled)).map_err(WheelError::from)
    }

    async fn size(&self, urls: &[WebUrl]) -> Result<u64, WheelError> {
        let urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
        let size = self.reach.exchange.origin_size(&urls).await;
        size.map_err(|error: OriginSizeError| WheelError::NoSource {
            file_name: urls.first().cloned().unwrap_or_default(),
            tried: vec![error_chain(&error)],
        })
    }
}
