//! The files of a workspace: blobs of this node, of peers, and of the internet.
//!
//! Not here: which ones; models are in `models`, and what a Python is installed from in `wheels`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use mesh::control::Reach;
use mesh::fetch::{FetchFileError, FetchedFile, OriginFile, Progress};
use mesh::store::BlobHold;
use protocol::message::Provider;
use protocol::{BlobHash, BlobName, BlobRef, CodeSpec, MAX_CARRIED, PrepareStep};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Assembler, failed};
use crate::policy::Policy;
use crate::workspace::code::CodeTrees;
use crate::workspace::prepare::BuildError;
use crate::workspace::progress::{Part, Steps};

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
    pub(super) policy: &'a Policy,
    /// Where the repositories are.
    pub(super) git: PathBuf,
    /// What was given by its path stays at it.
    pub(super) given: Mutex<Vec<BlobHold>>,
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

    /// Fetches a file, and waits a while for room where the disk has none.
    pub(super) async fn fetch(
        &self,
        wanted: &OriginFile,
        progress: &watch::Sender<Progress>,
    ) -> Result<FetchedFile, FetchFileError> {
        let exchange = &self.reach.exchange;
        exchange.fetch_file_when_there_is_room(wanted, self.providers, Some(progress), ROOM_PATIENCE).await
    }
}
