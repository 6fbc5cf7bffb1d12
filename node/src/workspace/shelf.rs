//! The workspaces of this node: how far each is, and those that runs may use.
//!
//! Not here: building them, which is `prepare`'s. A clone is another handle to the same shelf.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use mesh::store::BlobHold;
use protocol::{BlobRef, LockfileHash, Preparing, WorkspaceState};
use tokio::sync::watch;
use tracing::warn;

use super::Workspace;

/// Marks, in the folder of a workspace, that a run succeeded in it.
const PROVEN: &str = "proven";

/// All workspaces that this node is to have.
#[derive(Clone)]
pub struct Shelf {
    inner: Arc<Inner>,
}

struct Inner {
    /// Where whole workspaces are, each under its lockfile's hash.
    ready: PathBuf,
    places: Mutex<BTreeMap<LockfileHash, Place>>,
    changed: watch::Sender<u64>,
}

/// One workspace.
struct Place {
    state: WorkspaceState,
    whole: Option<Arc<Whole>>,
}

/// A workspace that is whole, and what keeps its parts from being evicted.
pub struct Whole {
    /// The workspace.
    pub workspace: Arc<Workspace>,
    /// Its blobs.
    pub holds: Vec<BlobHold>,
    /// What its lockfile came to, as far as others do not know that yet.
    pub resolution: Option<BlobRef>,
}

impl Shelf {
    /// An empty shelf; whole workspaces are in this folder.
    pub fn new(ready: PathBuf) -> Self {
        let (changed, _) = watch::channel(0);
        Self { inner: Arc::new(Inner { ready, places: Mutex::default(), changed }) }
    }

    /// Where the workspace of a lockfile is, or will be.
    pub fn folder_of(&self, lockfile: LockfileHash) -> PathBuf {
        self.inner.ready.join(lockfile.to_string())
    }

    /// The workspace of a lockfile, if runs may use it. Its models stay as long as this is held.
    pub fn usable(&self, lockfile: LockfileHash) -> Option<Arc<Whole>> {
        let places = self.places();
        let place = places.get(&lockfile)?;
        let is_usable = matches!(place.state, WorkspaceState::Loaded | WorkspaceState::Proven);
        place.whole.as_ref().filter(|_| is_usable).cloned()
    }

    /// How far each is.
    pub fn states(&self) -> BTreeMap<LockfileHash, WorkspaceState> {
        self.places().iter().map(|(lockfile, place)| (*lockfile, place.state.clone())).collect()
    }

    /// How far one is.
    pub fn state(&self, lockfile: LockfileHash) -> Option<WorkspaceState> {
        self.places().get(&lockfile).map(|place| place.state.clone())
    }

    /// Counts the changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// Notes that a run succeeded in a workspace, also for the next start.
    pub fn prove(&self, lockfile: LockfileHash) {
        let was_loaded = self.state(lockfile) == Some(WorkspaceState::Loaded);
        if was_loaded {
            if let Err(error) = std::fs::write(self.folder_of(lockfile).join(PROVEN), b"") {
                warn!(%error, "that the workspace is proven is forgotten with this process");
            }
            self.set(lockfile, WorkspaceState::Proven);
        }
    }

    /// Whether a run succeeded in it, now or before this start.
    pub(super) fn was_proven(folder: &Path) -> bool {
        folder.join(PROVEN).exists()
    }

    /// Forgets all but these, and has those wait that are new.
    pub(super) fn keep_only(&self, wanted: &BTreeSet<LockfileHash>) {
        let mut places = self.places();
        if places.keys().eq(wanted) {
            return;
        }
        places.retain(|lockfile, _| wanted.contains(lockfile));
        for lockfile in wanted {
            let waiting = || Place { state: WorkspaceState::Waiting, whole: None };
            places.entry(*lockfile).or_insert_with(waiting);
        }
        drop(places);
        self.tell();
    }

    /// Has all that are whole be judged again before runs may use them.
    pub(super) fn doubt_all(&self) {
        for place in self.places().values_mut().filter(|place| place.whole.is_some()) {
            *place = Place { state: WorkspaceState::Waiting, whole: None };
        }
        self.tell();
    }

    /// Notes how far one is.
    pub(super) fn set(&self, lockfile: LockfileHash, state: WorkspaceState) {
        let mut places = self.places();
        let Some(place) = places.get_mut(&lockfile).filter(|place| place.state != state) else { return };
        place.state = state;
        drop(places);
        self.tell();
    }

    /// Notes how far a step is.
    pub(super) fn set_preparing(&self, lockfile: LockfileHash, preparing: Preparing) {
        self.set(lockfile, WorkspaceState::Preparing(preparing));
    }

    /// Puts a whole workspace here.
    pub(super) fn put(&self, lockfile: LockfileHash, whole: Whole, state: WorkspaceState) {
        if let Some(place) = self.places().get_mut(&lockfile) {
            *place = Place { state, whole: Some(Arc::new(whole)) };
        }
        self.tell();
    }

    fn tell(&self) {
        self.inner.changed.send_modify(|count| *count += 1);
    }

    fn places(&self) -> std::sync::MutexGuard<'_, BTreeMap<LockfileHash, Place>> {
        self.inner.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
