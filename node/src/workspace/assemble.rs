//! From a signed lockfile to a workspace on disk: checked, then code, Python and models, in this order.
//!
//! Each part is found where it is here already, so an assembly that was broken off goes on where it stopped. Not
//! here: whether ComfyUI comes up in it, and how each part is made.

mod files;
mod resolution;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh::control::Reach;
use mesh::store::BlobHold;
use protocol::{
    Accelerator, BlobHash, CodeSpec, EnvironmentLock, EnvironmentSpec, Lockfile, MAX_LOCKFILE, PrepareStep,
    PublisherKey, Resolution, WantedWorkspace, error_chain,
};
use tokio_util::sync::CancellationToken;

use self::files::Files;
use super::Workspace;
use super::code::{CodeError, CodeTree, CodeTrees};
use super::git::{Fetching, GitError, GitStore};
use super::log::PrepareLog;
use super::prepare::{BuildError, Steps};
use super::python::{
    Ask, Environment, Environments, INSTALL_SCRIPT, Limits, Private, PythonError, Resolver, Uv, UvConfig,
};
use super::record::WorkspaceRecord;
use super::shelf::Whole;
use crate::os::file::replace;
use crate::policy::{Policy, TrustedPublishers};

/// Makes workspaces on this machine.
pub struct Assembler {
    /// The node's data folder, in which the owner's trusted publishers are.
    pub data: PathBuf,
    /// Where everything of workspaces is kept.
    pub root: PathBuf,
    /// What the owner allows.
    pub policy: Policy,
    /// The way to the farm's blobs and to the internet.
    pub reach: Reach,
    /// How uv is had.
    pub uv: UvConfig,
    /// What torch computes on here.
    pub accelerator: Accelerator,
}

/// A cause, in words, for whoever waits for the workspace.
fn failed(error: impl std::error::Error) -> BuildError {
    const FULL: &str = "the disk is full";
    let reason = error_chain(&error);
    // Any step may find it so, and each names what it was about.
    let is_full = [FULL, "No space left on device", "Disk quota exceeded"];
    if !is_full.iter().any(|said| reason.contains(said)) {
        return BuildError::Failed(reason);
    }
    let reason = if reason.contains(FULL) { reason } else { format!("{FULL}: {reason}") };
    let hint = "`comfy-farm workspace rm` and `comfy-farm blob gc` make room; it is tried again later";
    BuildError::Failed(format!("{reason} ({hint})"))
}

/// Does what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(BuildError::Failed(format!("a step broke off by a bug: {error}"))))
}

impl Assembler {
    /// Makes the workspace that is wanted; `farm` is the key with which the farm signs.
    pub async fn assemble(
        &self,
        wanted: &WantedWorkspace,
        farm: PublisherKey,
        steps: &Steps,
        cancel: &CancellationToken,
    ) -> Result<Whole, BuildError> {
        let logs = self.root.join("logs");
        std::fs::create_dir_all(&logs).map_err(failed)?;
        let log = PrepareLog::create(&logs.join(format!("{}.log", wanted.lockfile))).map_err(failed)?;
        let assembled = self.assemble_logged(wanted, farm, steps, &log, cancel).await;
        match &assembled {
            Err(_) if cancel.is_cancelled() => Err(BuildError::Canceled),
            Err(BuildError::Failed(reason) | BuildError::Refused(reason)) => {
                log.line(reason);
                assembled
            }
            _ => assembled,
        }
    }

    async fn assemble_logged(
        &self,
        wanted: &WantedWorkspace,
        farm: PublisherKey,
        steps: &Steps,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<Whole, BuildError> {
        let files = Files::new(&self.reach, &wanted.providers, cancel);
        let lockfile = self.lockfile(wanted, farm, &files).await?;
        let known = self.resolution(wanted, farm, &files, log).await;
        let folder = self.root.join("ready").join(wanted.lockfile.to_string());
        let mut record = WorkspaceRecord::begin(&folder, &lockfile, &wanted.workflow).map_err(failed)?;
        steps.enter(PrepareStep::Code);
        let mut holds = Vec::new();
        let tree = self.code(&lockfile, &known, &files, steps, log, &mut holds).await?;
        steps.enter(PrepareStep::Python);
        let environment = self.python(&lockfile, &known, &tree, &files, log, cancel).await?;
        record.environment = Some(environment.key);
        record.save(&folder).map_err(failed)?;
        steps.enter(PrepareStep::Models);
        let folder = folder.join("files");
        holds.extend(files.models(&lockfile, &folder, steps).await?);
        let resolution = self.resolved(&lockfile, &known, &environment, &mut holds).await?;
        let workspace = Workspace {
            lockfile: wanted.lockfile,
            environment: environment.key,
            code: tree.hash,
            python: environment.python,
            // Its own, where install scripts wrote into it.
            comfyui: environment.comfyui.unwrap_or(tree.comfyui),
            files: folder,
            classes: wanted.classes.clone(),
            model_names: wanted.models.clone(),
        };
        Ok(Whole { workspace: Arc::new(workspace), holds, resolution })
    }

    /// The lockfile, which is the one that is meant, and which the owner lets be rebuilt.
    async fn lockfile(
        &self,
        wanted: &WantedWorkspace,
        farm: PublisherKey,
        files: &Files<'_>,
    ) -> Result<Lockfile, BuildError> {
        let bytes = files.document("lockfile", wanted.document, MAX_LOCKFILE).await?;
        let lockfile = Lockfile::parse(&bytes).map_err(failed)?;
        if lockfile.hash() != wanted.lockfile {
            return Err(BuildError::Failed("the lockfile that came is another one".to_owned()));
        }
        let trusted = TrustedPublishers::load(&self.data).map_err(failed)?;
        let judged = self.policy.judge(&lockfile, farm, &trusted);
        judged.map_err(|refusal| BuildError::Refused(error_chain(&refusal)))?;
        Ok(lockfile)
    }

    async fn code(
        &self,
        lockfile: &Lockfile,
        known: &Resolution,
        files: &Files<'_>,
        steps: &Steps,
        log: &PrepareLog,
        holds: &mut Vec<BlobHold>,
    ) -> Result<CodeTree, BuildError> {
        let spec = CodeSpec::of(lockfile);
        let git = GitStore::open(self.root.join("git")).map_err(failed)?;
        let trees = CodeTrees::new(self.root.join("code"), git.clone());
        let mut archives = BTreeMap::new();
        if trees.has(&spec) {
            // Other nodes have them from this one.
            let store = self.reach.exchange.store();
            holds.extend(CodeTrees::archives(&spec).iter().map(|files| store.hold(files.hash)));
        } else {
            self.unpack(&spec, known, &git, files, log).await?;
            archives = files.archives(&spec, holds).await?;
        }
        let (policy, steps, cancel) = (self.policy.clone(), steps.clone(), files.cancel.clone());
        blocking(move || {
            let progress = |bytes| steps.tell(bytes, 0);
            let fetching = Fetching { policy: &policy, progress: &progress, cancel: &cancel };
            trees.build(&spec, &archives, &fetching).map_err(|error| match error {
                // To try again would bring as much again.
                CodeError::Git(refused @ (GitError::Refused { .. } | GitError::TooLarge { .. })) => {
                    BuildError::Refused(error_chain(&refused))
                }
                error => failed(error),
            })
        })
        .await
    }

    async fn python(
        &self,
        lockfile: &Lockfile,
        known: &Resolution,
        tree: &CodeTree,
        files: &Files<'_>,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<Environment, BuildError> {
        let uv = Uv::find(self.uv.clone(), log, cancel).await.map_err(failed)?;
        let spec = EnvironmentSpec::of(lockfile, &crate::platform(), self.accelerator);
        let scripts = tree.custom_nodes.iter().filter(|node| node.join(INSTALL_SCRIPT).is_file());
        let scripts: Vec<PathBuf> = scripts.filter(|_| self.policy.install_scripts).cloned().collect();
        let comfyui = tree.comfyui.clone();
        let private = (!scripts.is_empty()).then(|| Private { lockfile: lockfile.hash(), comfyui, scripts });
        let folder = self.root.join("environments");
        let environments = Environments { uv: uv.clone(), folder, limits: Limits::default() };
        if let Some(lock) = known.environment(&spec) {
            match environments.build(lock, private.as_ref(), files, log, cancel).await {
                // Another system of the same platform can be older.
                Err(PythonError::OtherMachine { wanted, here }) => {
                    log.line(&format!("the lock of the farm is for {wanted}, and this is {here}"));
                }
                built => return built.map_err(failed),
            }
        }
        let asks = asks(tree).map_err(failed)?;
        let kept = self.root.join("locks").join(format!("{}.json", lock_name(&spec, &asks)));
        let lock = match read_lock(&kept) {
            Some(lock) => lock,
            None => {
                // Building a source runs its code, as an install script does.
                let build_sources = self.policy.install_scripts;
                let resolver = Resolver { uv, limits: Limits::default(), build_sources };
                let lock = resolver.resolve(&spec, &asks, files, log, cancel).await.map_err(failed)?;
                keep_lock(&kept, &lock).map_err(failed)?;
                lock
            }
        };
        environments.build(&lock, private.as_ref(), files, log, cancel).await.map_err(failed)
    }
}

/// What the parts of a code tree ask of Python.
fn asks(tree: &CodeTree) -> std::io::Result<Vec<Ask>> {
    let parent = tree.comfyui.parent().unwrap_or(&tree.comfyui);
    let ask = |path: PathBuf| {
        let from = path.strip_prefix(parent).unwrap_or(&path).display().to_string();
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        Ok(Ask { from, text })
    };
    tree.requirements().into_iter().map(ask).collect()
}

/// Names what was asked for beyond the pins, so that it is resolved once.
fn lock_name(spec: &EnvironmentSpec, asks: &[Ask]) -> BlobHash {
    let mut named = spec.hash().to_string();
    for ask in asks.iter().filter(|ask| !ask.is_pinned_by(spec)) {
        named.push_str(&BlobHash::of(ask.text.as_bytes()).to_string());
    }
    BlobHash::of(named.as_bytes())
}

fn read_lock(path: &Path) -> Option<EnvironmentLock> {
    EnvironmentLock::parse(&std::fs::read(path).ok()?).ok()
}

fn keep_lock(path: &Path, lock: &EnvironmentLock) -> std::io::Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    replace(path, &lock.to_canonical_json())
}
