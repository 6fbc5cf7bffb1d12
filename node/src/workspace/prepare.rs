//! Preparing the workspaces that are wanted, in the order in which they are wanted.
//!
//! They are built one after another, and so are they proven; who waits for the proof, for which the node may have no
//! slot before a long run is over, keeps no other from being built. A failed one is tried again later, a refused one
//! when it is wanted otherwise or the owner trusts others, and all are where the owner trusts somebody no more. What is
//! no longer wanted is broken off; what was built of it stays, and is found by whoever needs it next. Not here: the
//! steps themselves, which a [`Builder`] does.

mod at_work;
mod attempts;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protocol::{LockfileHash, PublisherKey, WantWorkspaces, WantedWorkspace};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::at_work::AtWork;
use self::attempts::{Attempts, Next};
use super::Workspace;
use super::progress::Steps;
use super::shelf::{Shelf, Whole};
use crate::policy::TrustedPublishers;

/// How often it is looked whether the owner trusts others.
const LOOK: Duration = Duration::from_secs(5);

/// What a workspace is built with.
#[async_trait]
pub trait Builder: Send + Sync + 'static {
    /// Builds a workspace from what is here and what others have, step by step. Called again after a failure or
    /// a cancel it goes on where it stopped.
    async fn build(
        &self,
        wanted: &WantedWorkspace,
        farm: PublisherKey,
        steps: &Steps,
        cancel: &CancellationToken,
    ) -> Result<Whole, BuildError>;

    /// Starts ComfyUI in it and sees that it has all that it must have. Who keeps the workspace is at work in it.
    async fn prove(&self, workspace: &Arc<Workspace>, cancel: &CancellationToken) -> Result<(), String>;

    /// Keeps the log of a preparation that failed with this reason; says where it is.
    fn keep_log(&self, lockfile: LockfileHash, reason: &str) -> Option<PathBuf>;

    /// Forgets what was kept of those that failed, because one succeeded.
    fn forget_log(&self, lockfile: LockfileHash);

    /// Whom the owner trusts at the moment. Once they are others, what is wanted is judged again.
    fn trusted(&self) -> TrustedPublishers;

    /// Keeps what was built within the disk that it may take. Called when nothing is being built.
    async fn tidy(&self);
}

/// Why a workspace was not built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The owner's policy does not allow it.
    #[error("{0}")]
    Refused(String),
    /// The step that it was at failed.
    #[error("{0}")]
    Failed(String),
    /// It was broken off as asked.
    #[error("it was broken off")]
    Canceled,
}

/// Prepares whatever is wanted, until `stop`.
pub async fn prepare_task(
    builder: Arc<dyn Builder>,
    shelf: Shelf,
    mut wanted: watch::Receiver<Option<WantWorkspaces>>,
    stop: CancellationToken,
) {
    let mut attempts = Attempts::default();
    let mut at_work = AtWork::new(Arc::clone(&builder), shelf.clone());
    // Here as long as nothing is being built.
    let mut turn = None;
    loop {
        let want = wanted.borrow_and_update().clone();
        let hashes = want.iter().flat_map(|want| &want.wanted).map(|wanted| wanted.lockfile).collect();
        shelf.keep_only(&hashes);
        attempts.keep_only(&hashes);
        at_work.keep_only(&hashes);
        let trusted = builder.trusted();
        if attempts.is_any_distrusted(&trusted) {
            for (wanted, state) in at_work.stop().await {
                attempts.note(&wanted, &state);
            }
            shelf.doubt_all();
        }
        attempts.trust(trusted);
        let mut pause = Instant::now() + LOOK;
        // One that nothing is wanted for stays: it would be free again at once, and so on without a pause.
        if let Some(want) = want
            && let Some(free) = turn.take()
        {
            let open = want.wanted.iter().filter(|wanted| !at_work.has(wanted.lockfile));
            match attempts.next(&shelf, open) {
                Next::Now(next) => at_work.begin(next.clone(), want.publisher, free),
                Next::At(at) => {
                    pause = at;
                    turn = Some(free);
                }
            }
        }
        let mut is_changed = false;
        tokio::select! {
            () = stop.cancelled() => break,
            changed = wanted.changed() => if changed.is_err() { break },
            free = at_work.turn(), if turn.is_none() => {
                turn = Some(free);
                is_changed = true;
            }
            Some((wanted, state)) = at_work.next() => {
                attempts.note(&wanted, &state);
                is_changed = true;
            }
            () = sleep_until(pause) => {}
        }
        if is_changed && turn.is_some() {
            builder.tidy().await;
        }
    }
    at_work.stop().await;
}

#[cfg(test)]
mod tests;
