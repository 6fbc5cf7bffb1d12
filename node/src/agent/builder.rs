//! What makes a workspace of a managed node ready: assembled, then proven by a ComfyUI that comes up in it.
//!
//! Not here: either of the two.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use protocol::{Accelerator, LockfileHash, PublisherKey, WantedWorkspace, WebUrl};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::engine::managed::Managed;
use crate::policy::{Policy, TrustedPublishers};
use crate::workspace::Workspace;
use crate::workspace::assemble::Assembler;
use crate::workspace::care::Caretaker;
use crate::workspace::log::PrepareLog;
use crate::workspace::prepare::{BuildError, Builder};
use crate::workspace::progress::Steps;
use crate::workspace::python::UvConfig;
use crate::workspace::shelf::Whole;

/// How a node rebuilds workspaces, and runs ComfyUI in them.
pub struct Rebuilding {
    /// What its owner allows.
    pub policy: Policy,
    /// Where the Comfy registry is. Everybody's is at [`COMFY_REGISTRY`](crate::workspace::COMFY_REGISTRY).
    pub registry: WebUrl,
    /// How uv is had.
    pub uv: UvConfig,
    /// What torch computes on here.
    pub accelerator: Accelerator,
    /// How much disk its workspaces may take. Defaults to all that there is.
    pub quota: Option<u64>,
    /// Its engine.
    pub engine: Arc<Managed>,
}

/// Makes workspaces ready.
pub(super) struct Rebuilder {
    pub(super) assembler: Assembler,
    pub(super) engine: Arc<Managed>,
    pub(super) caretaker: Caretaker,
    pub(super) quota: Option<u64>,
}

#[async_trait]
impl Builder for Rebuilder {
    async fn build(
        &self,
        wanted: &WantedWorkspace,
        farm: PublisherKey,
        steps: &Steps,
        cancel: &CancellationToken,
    ) -> Result<Whole, BuildError> {
        self.assembler.assemble(wanted, farm, steps, cancel).await
    }

    async fn prove(&self, workspace: &Arc<Workspace>, cancel: &CancellationToken) -> Result<(), String> {
        self.engine.prove(workspace, cancel).await
    }

    fn keep_log(&self, lockfile: LockfileHash, reason: &str) -> Option<PathBuf> {
        let kept = PrepareLog::keep_failed(&self.assembler.root, lockfile, reason);
        kept.inspect_err(|error| warn!(%error, "the log of what failed is not kept")).ok()
    }

    fn forget_log(&self, lockfile: LockfileHash) {
        // A log that stays is not worth an error.
        let _ = std::fs::remove_file(PrepareLog::last_failed(&self.assembler.root, lockfile));
    }

    fn trusted(&self) -> TrustedPublishers {
        // A file that cannot be read is told by the next build.
        TrustedPublishers::load(&self.assembler.data).unwrap_or_default()
    }

    async fn tidy(&self) {
        if let Some(quota) = self.quota {
            self.caretaker.keep_quota(quota).await;
        }
    }
}
