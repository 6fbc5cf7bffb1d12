//! The files of a workspace: blobs of this node, of peers, and of the internet.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use mesh::control::Reach;
use mesh::fetch::{FetchFileError, FetchedFile, OriginFile, OriginSizeError, Progress};
use mesh::store::{BlobHold, BlobStore, GrowingFile, StoreError};
use protocol::message::Provider;
use protocol::{
    BlobHash, BlobName, BlobRef, CodeSpec, FileRef, GitPin, LockedFile, LockedModel, Lockfile, MAX_CARRIED,
    PrepareStep, WebUrl, error_chain,
};
use tokio::sync::{SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::{Assembler, failed, total};
use crate::os;
use crate::policy::Policy;
use crate::workspace::code::CodeTrees;
use crate::workspace::git::{Fetching, GitError, GitStore};
use crate::workspace::prepare::BuildError;
use crate::workspace::progress::{Part, Steps};
use crate::workspace::python::{WheelError, WheelSource};

/// How long a full or read-only disk is waited for, before people are told; the workspace is tried again after that as well.
const ROOM_PATIENCE: Duration = Duration::from_secs(60);

/// Where files of one workspace come from.
pub(super) struct Files<'a> {
    pub(super) reach: &'a Reach,
    /// Who holds them for sure.
    pub(super) providers: &'a [Provider],
    /// Who is told how far they are.
    pub(super) steps: &'a Steps,
    pub(super) cancel: &'a CancellationToken,
    policy: &'a Policy,
    /// Where the repositories are.
    git: PathBuf,
    /// What was given by its path stays at it.
    given: Mutex<Vec<BlobHold>>,
}

impl<'a> Files<'a> {
    pub(super) fn new(
        assembler: &'a Assembler,
        providers: &'a [Provider],
        steps: &'a Steps,
        cancel: &'a CancellationToken,
    ) -> Self {
        let Assembler { reach, policy, root, .. } = assembler;
        Self { reach, providers, steps, cancel, policy, git: root.join("git"), given: Mutex::default() }
    }
}

impl Files<'_> {
    /// Has a blob of a step here, from whoever holds it, and keeps it as long as the answer lives.
    pub(super) async fn blob(&self, blob: BlobRef, step: PrepareStep) -> Result<BlobHold, BuildError> {
        let part = self.steps.part(step);
        let hold = self.blob_as(blob, &part).await?;
        part.set(blob.size);
        Ok(hold)
    }

    /// The same, of which only what comes is counted, as this part.
    pub(super) async fn blob_as(&self, blob: BlobRef, part: &Part) -> Result<BlobHold, BuildError> {
        let exchange = &self.reach.exchange;
        let hold = exchange.store().hold(blob.hash);
        if exchange.store().check(blob.hash).await.map_err(failed)? != Some(blob) {
            let found = self.reach.finder.locate(&BlobName::Blake3(blob.hash)).await.unwrap_or_default();
            let is_new =
                |provider: &Provider| !self.providers.iter().any(|known| known.peer == provider.peer);
            let found: Vec<Provider> = found.providers.into_iter().filter(is_new).collect();
            let providers = [&found, self.providers].concat();
            let (sender, progress) = watch::channel(Progress::default());
            let fetching = part.count(progress, exchange.fetch(blob, &providers, Some(&sender)));
            let fetched = self.cancel.run_until_cancelled(fetching).await;
            fetched.ok_or(BuildError::Canceled)?.map_err(failed)?;
        }
        Ok(hold)
    }

    /// The bytes of a document, which is read if it has at most `limit` of them. `what` it is, for people.
    pub(super) async fn document(
        &self,
        what: &str,
        blob: BlobRef,
        limit: usize,
    ) -> Result<Vec<u8>, BuildError> {
        if blob.size > limit as u64 {
            let size = blob.size;
            return Err(BuildError::Failed(format!("{what} of {size} bytes: at most {limit} are read")));
        }
        self.steps.expect(PrepareStep::Lockfile, blob.size);
        let _held = self.blob(blob, PrepareStep::Lockfile).await?;
        self.reach.exchange.store().read_all(blob.hash, blob.size).await.map_err(failed)
    }

    /// Has the archives of what travels with a bundle here, and says where each lies.
    pub(super) async fn archives(
        &self,
        spec: &CodeSpec,
        holds: &mut Vec<BlobHold>,
    ) -> Result<BTreeMap<BlobHash, PathBuf>, BuildError> {
        let mut archives = BTreeMap::new();
        for files in CodeTrees::archives(spec) {
            let fail = |reason| {
                BuildError::Failed(format!(
                    "a custom node that travels with the bundle did not come: {reason}"
                ))
            };
            if files.size > MAX_CARRIED {
                return Err(fail(format!(
                    "it has {} bytes, and at most {MAX_CARRIED} are taken",
                    files.size
                )));
            }
            holds.push(self.blob(files, PrepareStep::Code).await.map_err(|error| match error {
                BuildError::Failed(reason) => fail(reason),
                error => error,
            })?);
            let path = self.reach.exchange.store().path_of(files.hash);
            archives.insert(files.hash, path.ok_or_else(|| fail("it was removed meanwhile".to_owned()))?);
        }
        Ok(archives)
    }

    /// Has every model of a lockfile here, and at its place below a folder.
    pub(super) async fn models(
        &self,
        lockfile: &Lockfile,
        folder: &Path,
    ) -> Result<Vec<BlobHold>, BuildError> {
        std::fs::create_dir_all(folder).map_err(failed)?;
        let models: Vec<&LockedModel> = lockfile.models.iter().filter(|model| !model.disabled).collect();
        let total = total(models.iter().map(|model| model.size));
        self.steps.expect(PrepareStep::Models, total);
        let mut holds = Vec::new();
        for model in models {
            let (blob, hold) = self.model(model).await?;
            holds.push(hold);
            let store = self.reach.exchange.store();
            let target = store.path_of(blob.hash);
            let target = target
                .ok_or_else(|| BuildError::Failed(format!("model `{}` was removed meanwhile", model.path)))?;
            os::file::link(&target, &folder.join(model.path.as_str())).map_err(|source| {
                BuildError::Failed(format!("model `{}` cannot be put at its place: {source}", model.path))
            })?;
        }
        Ok(holds)
    }

    /// Fetches a file, and waits a while for room where the disk has none.
    async fn fetch(
        &self,
        wanted: &OriginFile,
        progress: &watch::Sender<Progress>,
    ) -> Result<FetchedFile, FetchFileError> {
        let exchange = &self.reach.exchange;
        exchange.fetch_file_when_there_is_room(wanted, self.providers, Some(progress), ROOM_PATIENCE).await
    }

    async fn model(&self, model: &LockedModel) -> Result<(BlobRef, BlobHold), BuildError> {
        let named = model.blob.map(|hash| BlobRef { hash, size: model.size });
        let store = self.reach.exchange.store();
        if !model.share {
            // Also where it is here already: the lockfile's word holds for this node from now on.
            let names = named.map(|blob| blob.hash.into()).into_iter();
            let names = names.chain(model.sha256.map(BlobName::Sha256));
            store.keep_private(names.collect()).await.map_err(failed)?;
        }
        let Some(sha256) = model.sha256 else {
            let Some(blob) = named.or_else(|| by_place(store, model)) else {
                return Err(BuildError::Failed(format!(
                    "model `{}`: it has no hash, so no other node and no URL can give it: put it into a model folder of \
                     this node (`--models`) under this name and with its {} bytes",
                    model.path, model.size
                )));
            };
            if !model.share && store.check(blob.hash).await.map_err(failed)? != Some(blob) {
                return Err(not_given(model));
            }
            let hold = self.blob(blob, PrepareStep::Models).await.map_err(|error| match error {
                BuildError::Failed(reason) => {
                    BuildError::Failed(format!("model `{}` did not come: {reason}", model.path))
                }
                error => error,
            })?;
            return Ok((blob, hold));
        };
        let wanted = OriginFile {
            file: FileRef { sha256, size: model.size },
            blob: model.blob,
            // The publisher signed both names.
            trusted_blake3: model.blob.is_some(),
            urls: model.sources.iter().map(|source| source.url.to_string()).collect(),
            share: model.share,
            in_order: false,
        };
        let exchange = &self.reach.exchange;
        // Under this name until the other one is known.
        let _held = exchange.store().hold(sha256);
        let (part, (sender, progress)) =
            (self.steps.part(PrepareStep::Models), watch::channel(Progress::default()));
        let fetching = part.count(progress, self.fetch(&wanted, &sender));
        let fetched = self.cancel.run_until_cancelled(fetching).await.ok_or(BuildError::Canceled)?;
        let blob = match fetched {
            Err(FetchFileError::NoSource { tried, .. }) if !model.share && tried.is_empty() => {
                return Err(not_given(model));
            }
            fetched => fetched.map_err(|error| did_not_come(model, &error))?.blob,
        };
        part.set(model.size);
        Ok((blob, exchange.store().hold(blob.hash)))
    }
}

/// The file of a model without a hash: the only one of its name and size in this node's model folders. Nothing proves
/// that it is the one its author had.
pub(in crate::workspace) fn by_place(store: &BlobStore, model: &LockedModel) -> Option<BlobRef> {
    let is_nameless = model.sha256.is_none() && model.blob.is_none();
    let name = model.path.as_str().strip_prefix("models/").filter(|_| is_nameless)?;
    match store.in_place_as(name, model.size).as_slice() {
        [only] => Some(*only),
        _ => None,
    }
}

/// A model that came from nobody, or whose bytes are others.
fn did_not_come(model: &LockedModel, error: &FetchFileError) -> BuildError {
    let hint = match error {
        FetchFileError::NoSource { .. } | FetchFileError::WrongSha256 { .. } => {
            ": put it into a model folder of any node (`--models`), or record an address that has it"
        }
        _ => "",
    };
    BuildError::Failed(format!("model `{}` did not come: {}{hint}", model.path, error_chain(error)))
}

/// A model that no peer may give, which is not here, and for which no URL is named.
fn not_given(model: &LockedModel) -> BuildError {
    let path = &model.path;
    BuildError::Failed(format!(
        "model `{path}`: it is marked not to be shared, so no peer gives it, and its lockfile names no URL: put it into \
         a model folder of this node (`--models`)"
    ))
}

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
            git.fetch(&pin, &fetching)?;
            git.checkout(&pin, &into).map(drop)
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

#[cfg(test)]
mod tests {
    use protocol::Sha256;
    use serde_json::json;

    use super::*;

    #[test]
    fn model_of_other_bytes_is_told_with_both_hashes_who_gave_it_and_what_to_do() {
        let (sha256, found) = (Sha256([1; 32]), Sha256([2; 32]));
        let model =
            json!({ "path": "models/vae/a.safetensors", "size": 3, "sha256": sha256, "disabled": false });
        let model: LockedModel = serde_json::from_value(model).expect("a model");
        let from = vec!["https://models.example.org/a".to_owned()];
        let error = FetchFileError::WrongSha256 { file: FileRef { sha256, size: 3 }, found, from };
        let BuildError::Failed(reason) = did_not_come(&model, &error) else {
            panic!("it may be tried again")
        };
        let expected = format!(
            "model `models/vae/a.safetensors` did not come: wrong SHA-256 `{found}` in place of `{sha256}` from \
             https://models.example.org/a: put it into a model folder of any node (`--models`), or record an address \
             that has it"
        );
        assert_eq!(reason, expected);
    }
}
