//! From a signed lockfile to a workspace on disk: checked, then code and Python, then models.
//!
//! Each part is found where it is here already, so an assembly that was broken off goes on where it stopped. Not
//! here: whether ComfyUI comes up in it, and how each part is made.

mod environment;
mod files;
mod models;
mod registry;
mod resolution;
mod wheels;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use mesh::control::Reach;
use mesh::store::BlobHold;
use protocol::{
    Accelerator, Lockfile, MAX_LOCKFILE, PrepareStep, PublisherKey, Resolution, WantedWorkspace, error_chain,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::environment::Parts;
use self::files::Files;
pub(super) use self::models::by_place;
use super::Workspace;
use super::code::{CodeError, CodeTree, CodeTrees};
use super::git::{Fetching, GitStore};
use super::log::PrepareLog;
use super::prepare::BuildError;
use super::progress::Steps;
use super::python::UvConfig;
use super::record::WorkspaceRecord;
use super::registry::Registry;
use super::shelf::Whole;
use crate::os::file::tells_full_disk;
use crate::policy::{Policy, PolicyRefusal, TrustedPublishers};

/// What people are told first of a disk without room.
const FULL: &str = "the disk is full";

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
    /// Where custom nodes are that a lockfile names by their version in the Comfy registry.
    pub registry: Registry,
    /// How uv is had.
    pub uv: UvConfig,
    /// What torch computes on here.
    pub accelerator: Accelerator,
}

/// A cause, in words, for whoever waits for the workspace.
fn failed(error: impl std::error::Error) -> BuildError {
    let reason = error_chain(&error);
    // Any step may find it so, and each names what it was about.
    if !tells_of_full_disk(&reason) {
        return BuildError::Failed(reason);
    }
    disk_is_full(&reason)
}

/// The same of a disk without room, with what makes some.
fn disk_is_full(reason: &str) -> BuildError {
    let reason = if reason.contains(FULL) { reason.to_owned() } else { format!("{FULL}: {reason}") };
    let hint = "`comfy-farm workspace rm` and `comfy-farm blob gc` make room; it is tried again later";
    BuildError::Failed(format!("{reason} ({hint})"))
}

/// Whether that is the cause, in our words or in those of a program.
fn tells_of_full_disk(reason: &str) -> bool {
    reason.contains(FULL) || tells_full_disk(reason)
}

/// The bytes of all, which strangers name.
fn total(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

/// What the owner's policy does not allow.
fn refused(refusal: PolicyRefusal) -> BuildError {
    BuildError::Refused(error_chain(&refusal))
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
        std::fs::create_dir_all(self.root.join("logs")).map_err(failed)?;
        let log = PrepareLog::create(&PrepareLog::latest(&self.root, wanted.lockfile)).map_err(failed)?;
        let assembled = self.assemble_logged(wanted, farm, steps, &log, cancel).await;
        match assembled {
            Err(_) if cancel.is_cancelled() => Err(BuildError::Canceled),
            assembled => assembled,
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
        let files = Files::new(self, &wanted.providers, steps, cancel);
        let lockfile = self.lockfile(wanted, farm, &files).await?;
        let (known, unused) = match self.resolution(wanted, farm, &files).await {
            Ok(known) => (known, None),
            Err(reason) => {
                log.line(&format!("the resolved lockfile is not used: {reason}"));
                (Resolution::new(wanted.lockfile), Some(reason))
            }
        };
        let assembled = self.assemble_from(wanted, &lockfile, &known, &files, log).await;
        match (assembled, unused) {
            (Err(BuildError::Failed(reason)), Some(unused)) => Err(BuildError::Failed(format!(
                "{reason}\n(what others found is not used, so all parts are asked for where they are published: {unused})"
            ))),
            (assembled, _) => assembled,
        }
    }

    async fn assemble_from(
        &self,
        wanted: &WantedWorkspace,
        lockfile: &Lockfile,
        known: &Resolution,
        files: &Files<'_>,
        log: &PrepareLog,
    ) -> Result<Whole, BuildError> {
        let (steps, cancel) = (files.steps, files.cancel);
        let folder = self.root.join("ready").join(wanted.lockfile.to_string());
        let mut record = WorkspaceRecord::begin(&folder, lockfile, &wanted.workflow).map_err(failed)?;
        let mut holds = Vec::new();
        steps.enter(PrepareStep::Code);
        record.registry = self.registry_nodes(lockfile, known, &record, files, log, &mut holds).await?;
        record.save(&folder).map_err(failed)?;
        let told = record.clone();
        let mut left_out = blocking(move || Ok(told.left_out())).await?;
        let tell = |left_out: &String| {
            warn!(workflow = %wanted.workflow, left_out, "workspace is not all that its author had");
            log.line(left_out);
        };
        left_out.iter().for_each(tell);
        let (tree, environment) = {
            let code = self.code(&record, known, files, log, &mut holds);
            let parts = Parts { lockfile, known, files, log, cancel };
            self.code_and_python(code, &parts, steps).await?
        };
        let of_code = tree.left_out();
        of_code.iter().for_each(tell);
        left_out.extend(of_code);
        record.environment = Some(environment.key);
        record.save(&folder).map_err(failed)?;
        steps.enter(PrepareStep::Models);
        let folder = folder.join("files");
        holds.extend(files.models(lockfile, known, &folder).await?);
        // Others do without what this node cannot tell them, and so does what works here.
        let resolution = match self.resolved(&record, known, &environment, &mut holds).await {
            Err(BuildError::Failed(reason)) => {
                log.line(&format!("what the parts came to is not told to the farm: {reason}"));
                warn!(workflow = %wanted.workflow, reason, "what a workspace came to is not told to the farm");
                None
            }
            resolution => resolution?,
        };
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
            equivalent: environment.lock.equivalent,
            left_out,
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
        self.policy.judge(&lockfile, farm, &trusted, &self.uv.indexes).map_err(refused)?;
        Ok(lockfile)
    }

    async fn code(
        &self,
        record: &WorkspaceRecord,
        known: &Resolution,
        files: &Files<'_>,
        log: &PrepareLog,
        holds: &mut Vec<BlobHold>,
    ) -> Result<CodeTree, BuildError> {
        let spec = record.code_spec();
        let git = GitStore::open(self.root.join("git")).map_err(failed)?;
        let trees = CodeTrees::new(self.root.join("code"), git.clone());
        let mut archives = BTreeMap::new();
        if trees.has(&spec) {
            // Other nodes have them from this one.
            let store = self.reach.exchange.store();
            holds.extend(CodeTrees::archives(&spec).iter().map(|files| store.hold(files.hash)));
        } else {
            let carried = CodeTrees::archives(&spec);
            files.steps.expect(PrepareStep::Code, total(carried.iter().map(|files| files.size)));
            self.unpack(&spec, known, &git, files, log).await?;
            self.registry_files(&record.registry, files, log).await?;
            archives = files.archives(&spec, holds).await?;
        }
        let (policy, steps, cancel) = (self.policy.clone(), files.steps.clone(), files.cancel.clone());
        let packed: BTreeSet<String> = known.git.iter().map(|pack| pack.pin.commit.to_string()).collect();
        blocking(move || {
            let commits = steps.part(PrepareStep::Code);
            let progress = |bytes| {
                // An upstream does not say how much it will send.
                steps.open(PrepareStep::Code);
                commits.set_of_next(bytes);
            };
            let fetching = Fetching { policy: &policy, progress: &progress, cancel: &cancel };
            trees.build(&spec, &archives, &fetching).map_err(|error| match error {
                // To try again would bring as much again.
                CodeError::Git(refused) if refused.is_refusal() => BuildError::Refused(error_chain(&refused)),
                CodeError::Git(error) if error.lacks().is_some_and(|commit| packed.contains(commit)) => {
                    let reason = error_chain(&error);
                    BuildError::Failed(format!(
                        "{reason} (a node of this farm had it from there, so the history was rewritten since: start a node \
                         that has it, and others take it from that)"
                    ))
                }
                error => failed(error),
            })
        })
        .await
    }
}
