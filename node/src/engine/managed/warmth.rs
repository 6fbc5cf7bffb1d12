//! Which workspaces a slot can work in with the process that it has.
//!
//! That is asked every second, so folders are read only where the process or the workspaces are others than before. Not
//! here: who is told, and what is made of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::LockfileHash;

use super::Slot;
use super::process::blocking;
use crate::workspace::Workspace;

/// What was last found of a slot.
#[derive(Debug, Default)]
pub(super) struct Warmth(Mutex<Option<Found>>);

/// What was found of a process.
#[derive(Clone, Debug)]
struct Found {
    /// The lockfiles that it served then, and those that were asked for: as long as both stay, so does the answer.
    of: [BTreeSet<LockfileHash>; 2],
    serves: BTreeSet<LockfileHash>,
}

impl Slot {
    /// Those of these that its process serves, or would without a start; of a slot at work, what was found before.
    pub(super) async fn warm(&self, workspaces: &[Arc<Workspace>]) -> Option<BTreeSet<LockfileHash>> {
        let asked = workspaces.iter().map(|workspace| workspace.lockfile).collect();
        let (of, served) = {
            let Ok(mut place) = self.process.try_lock() else { return self.warmth.serves() };
            let Some(process) = place.up() else {
                *self.warmth.found() = None;
                return None;
            };
            let of = [process.served().lockfiles().collect(), asked];
            if self.warmth.found().as_ref().is_some_and(|found| found.of == of) {
                return self.warmth.serves();
            }
            (of, process.served().clone())
        };
        let workspaces = workspaces.to_vec();
        let able = blocking(move || {
            let can_serve = |workspace: &&Arc<Workspace>| matches!(served.with(workspace), Ok(Some(_)));
            Ok(workspaces.iter().filter(can_serve).map(|workspace| workspace.lockfile).collect())
        });
        let serves = able.await.unwrap_or_default();
        *self.warmth.found() = Some(Found { of, serves });
        self.warmth.serves()
    }
}

impl Warmth {
    fn serves(&self) -> Option<BTreeSet<LockfileHash>> {
        self.found().as_ref().map(|found| found.serves.clone())
    }

    fn found(&self) -> MutexGuard<'_, Option<Found>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
