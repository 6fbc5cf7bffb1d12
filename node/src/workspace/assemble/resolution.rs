//! The resolved lockfile: what others found the parts of a lockfile to be, and what this node found.
//!
//! What others found is taken where it is signed by somebody who is trusted; all of it is proven once more where it is
//! used, by git's hashes and by those of files. Not here: joining what several nodes found.

use std::io::Seek;
use std::path::Path;

use mesh::store::BlobHold;
use protocol::{
    Alias, BlobName, BlobRef, CodeSpec, EnvironmentLock, GitPack, GitPin, LockedFile, MAX_PACK,
    MAX_RESOLUTION, PrepareStep, PublisherKey, Resolution, WantedWorkspace,
};
use tracing::warn;

use super::files::Files;
use super::{Assembler, blocking, failed, total};
use crate::policy::TrustedPublishers;
use crate::workspace::git::{GitError, GitStore};
use crate::workspace::log::PrepareLog;
use crate::workspace::prepare::BuildError;
use crate::workspace::python::Environment;
use crate::workspace::record::WorkspaceRecord;

impl Assembler {
    /// What the farm knows of a lockfile's parts, unless it cannot be had or nobody trusted signed it: then everything
    /// comes from its origin.
    pub(super) async fn resolution(
        &self,
        wanted: &WantedWorkspace,
        farm: PublisherKey,
        files: &Files<'_>,
    ) -> Result<Resolution, BuildError> {
        let Some(document) = wanted.resolution else { return Ok(Resolution::new(wanted.lockfile)) };
        let bytes = files.document("resolved lockfile", document, MAX_RESOLUTION).await?;
        let resolution = Resolution::parse(&bytes).map_err(failed)?;
        if resolution.lockfile != wanted.lockfile {
            return Err(BuildError::Failed("it is of another lockfile".to_owned()));
        }
        let publisher = resolution.verify().map_err(failed)?;
        let trusted = TrustedPublishers::load(&self.data).map_err(failed)?;
        self.policy.check(publisher, farm, &trusted).map_err(failed)?;
        Ok(resolution)
    }

    /// Takes commits that are not here from packs that others made. One that does not come so comes from its upstream; all
    /// do where the owner names hosts, because a pack does not prove where it is from.
    pub(super) async fn unpack(
        &self,
        spec: &CodeSpec,
        known: &Resolution,
        git: &GitStore,
        files: &Files<'_>,
        log: &PrepareLog,
    ) -> Result<(), BuildError> {
        if !self.policy.hosts.is_empty() {
            return Ok(());
        }
        let store = git.clone();
        let packs = spec.pins().into_iter().filter_map(|pin| Some((known.pack(&pin)?, pin)));
        // Whoever reported it may have made the size up.
        let packs: Vec<_> = packs.filter(|(pack, _)| pack.size <= MAX_PACK).collect();
        let missing = move || Ok(packs.into_iter().filter(|(_, pin)| !store.holds(pin)).collect::<Vec<_>>());
        let missing = blocking(missing).await?;
        files.steps.expect(PrepareStep::Code, total(missing.iter().map(|(pack, _)| pack.size)));
        for (pack, pin) in missing {
            match self.unpack_one(&pin, pack, git, files).await {
                Ok(()) => log.line(&format!("`{}` comes from a pack", pin.url)),
                Err(BuildError::Canceled) => return Err(BuildError::Canceled),
                Err(error) => log.line(&format!("`{}` does not come from its pack: {error}", pin.url)),
            }
        }
        Ok(())
    }

    async fn unpack_one(
        &self,
        pin: &GitPin,
        pack: BlobRef,
        git: &GitStore,
        files: &Files<'_>,
    ) -> Result<(), BuildError> {
        let _held = files.blob(pack, PrepareStep::Code).await?;
        let path = self.reach.exchange.store().path_of(pack.hash);
        let path = path.ok_or_else(|| BuildError::Failed("the pack was removed meanwhile".to_owned()))?;
        let (git, pin) = (git.clone(), pin.clone());
        blocking(move || {
            let file = std::fs::File::open(&path).map_err(failed)?;
            git.unpack(&pin, &file).map_err(failed)
        })
        .await
    }

    /// What this node found that is not known yet, as a document that it serves with all parts; `None` where all is
    /// known. Its packs stay as long as the holds are kept.
    pub(super) async fn resolved(
        &self,
        WorkspaceRecord { lockfile, registry, .. }: &WorkspaceRecord,
        known: &Resolution,
        environment: &Environment,
        holds: &mut Vec<BlobHold>,
    ) -> Result<Option<BlobRef>, BuildError> {
        let store = self.reach.exchange.store();
        let mut found = Resolution::new(lockfile.hash());
        for pin in CodeSpec::of(lockfile, registry).pins() {
            let pack = match known.pack(&pin) {
                Some(pack) => pack,
                None => {
                    let pack = match self.pack(&pin).await {
                        Ok(pack) => pack,
                        // It is laid out and good all the same.
                        Err(error) => {
                            warn!(url = %pin.url, %error, "a commit is not given to others");
                            continue;
                        }
                    };
                    found.git.push(GitPack { pin: GitPin::new(pin.url, pin.commit), pack });
                    pack
                }
            };
            holds.push(store.hold(pack.hash));
        }
        found.registry.clone_from(registry);
        if !known.environments.iter().any(|lock| lock.environment == environment.lock.environment) {
            found.environments.push(self.served(environment).await?);
        }
        for model in lockfile.models.iter().filter(|model| !model.disabled) {
            let Some(sha256) = model.sha256 else { continue };
            let blob = store.find_shared(&BlobName::Sha256(sha256));
            found.models.extend(blob.map(|blob| Alias { sha256, blob }));
        }
        let mut joined = known.clone();
        if !joined.join(&found, lockfile) {
            return Ok(None);
        }
        let document = store.import_bytes(&found.to_canonical_json()).await.map_err(failed)?;
        holds.push(store.hold(document.hash));
        Ok(Some(document))
    }

    /// A commit as a blob of this node.
    async fn pack(&self, pin: &GitPin) -> Result<BlobRef, BuildError> {
        let (root, pin) = (self.root.join("git"), pin.clone());
        let packed = blocking(move || {
            let git = GitStore::open(&root).map_err(failed)?;
            let mut file = tempfile::NamedTempFile::new_in(&root).map_err(failed)?;
            git.pack(&pin, file.as_file_mut()).map_err(|error: GitError| failed(error))?;
            file.as_file_mut().rewind().map_err(failed)?;
            Ok(file)
        });
        let packed = packed.await?;
        self.reach.exchange.store().import_file(packed.path()).await.map_err(failed)
    }

    /// The lock of an environment with the names by which this node serves its files. What was built here is offered
    /// from now on.
    async fn served(&self, environment: &Environment) -> Result<EnvironmentLock, BuildError> {
        let store = self.reach.exchange.store();
        let mut lock = environment.lock.clone();
        let name = |file: &mut LockedFile| {
            let blob = store.find_shared(&BlobName::Sha256(file.sha256));
            file.blob = blob.map(|blob| blob.hash).or(file.blob);
        };
        lock.wheels.iter_mut().for_each(|wheel| name(&mut wheel.file));
        for built in &mut lock.built {
            let Some(wheel) = &mut built.wheel else { continue };
            let is_it = |path: &&std::path::PathBuf| {
                path.file_name().is_some_and(|name| name == Path::new(wheel.file_name.as_str()))
            };
            if let Some(path) = environment.built.iter().find(is_it) {
                wheel.blob = Some(store.import_file(path).await.map_err(failed)?.hash);
            }
        }
        Ok(lock)
    }
}
