//! When each workspace that is wanted is tried again.
//!
//! Not here: trying.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use protocol::{BlobRef, LockfileHash, WantedWorkspace, WorkspaceState};
use tokio::time::Instant;

use super::LOOK;
use crate::policy::TrustedPublishers;
use crate::workspace::shelf::Shelf;

/// How long after its failure a workspace is tried again; each time twice as long, up to the last.
pub(super) const FIRST_RETRY: Duration = Duration::from_secs(30);
const LAST_RETRY: Duration = Duration::from_secs(30 * 60);

/// What became of earlier attempts.
#[derive(Default)]
pub(super) struct Attempts {
    retries: BTreeMap<LockfileHash, Retry>,
    refused: BTreeMap<LockfileHash, WantedWorkspace>,
    /// Whom the owner trusted when they were refused.
    trusted: TrustedPublishers,
}

/// When a failed one is tried again.
struct Retry {
    pause: Duration,
    at: Instant,
    /// What was known of its parts then; where more is known, it is tried at once.
    resolution: Option<BlobRef>,
}

/// What is to be prepared next.
pub(super) enum Next<'a> {
    Now(&'a WantedWorkspace),
    At(Instant),
}

impl Attempts {
    pub(super) fn keep_only(&mut self, wanted: &BTreeSet<LockfileHash>) {
        self.retries.retain(|lockfile, _| wanted.contains(lockfile));
        self.refused.retain(|lockfile, _| wanted.contains(lockfile));
    }

    /// Whether anybody is trusted no more where these are trusted now.
    pub(super) fn is_any_distrusted(&self, trusted: &TrustedPublishers) -> bool {
        self.trusted.iter().any(|key| !trusted.contains(key))
    }

    /// Notes whom the owner trusts now; what was refused before, while it was others, is judged again.
    pub(super) fn trust(&mut self, trusted: TrustedPublishers) {
        if self.trusted != trusted {
            self.refused.clear();
            self.trusted = trusted;
        }
    }

    pub(super) fn next<'a>(
        &self,
        shelf: &Shelf,
        wanted: impl Iterator<Item = &'a WantedWorkspace> + Clone,
    ) -> Next<'a> {
        let is_ready = |wanted: &WantedWorkspace| {
            matches!(shelf.state(wanted.lockfile), Some(WorkspaceState::Loaded | WorkspaceState::Proven))
        };
        let is_refused = |wanted: &WantedWorkspace| self.refused.get(&wanted.lockfile) == Some(wanted);
        let open = wanted.filter(|wanted| !is_ready(wanted) && !is_refused(wanted));
        let at = |wanted: &WantedWorkspace| {
            let retry = self.retries.get(&wanted.lockfile)?;
            (retry.resolution == wanted.resolution).then_some(retry.at)
        };
        if let Some(due) = open.clone().find(|wanted| at(wanted).is_none_or(|at| at <= Instant::now())) {
            return Next::Now(due);
        }
        let look = Instant::now() + LOOK;
        Next::At(open.filter_map(at).fold(look, Instant::min))
    }

    pub(super) fn note(&mut self, wanted: &WantedWorkspace, state: &WorkspaceState) {
        let lockfile = wanted.lockfile;
        match state {
            WorkspaceState::Failed { .. } => {
                let earlier = self.retries.get(&lockfile).map(|retry| retry.pause * 2);
                let pause = earlier.unwrap_or(FIRST_RETRY).min(LAST_RETRY);
                let retry = Retry { pause, at: Instant::now() + pause, resolution: wanted.resolution };
                self.retries.insert(lockfile, retry);
            }
            WorkspaceState::Refused { .. } => {
                self.refused.insert(lockfile, wanted.clone());
            }
            _ => {
                self.retries.remove(&lockfile);
            }
        }
    }
}
