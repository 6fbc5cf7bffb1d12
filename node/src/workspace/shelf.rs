//! The workspaces of this node: how far each is, and those that runs may use.
//!
//! Not here: building them, which is `prepare`'s. A clone is another handle to the same shelf.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use mesh::store::BlobHold;
use protocol::{BlobRef, CodeHash, EnvironmentKey, LockfileHash, Preparing, WorkspaceState};
use tokio::sync::{OwnedMutexGuard, watch};
use tracing::warn;

use super::Workspace;
use super::record::WorkspaceRecord;

/// Says, in the folder of a workspace, with which environment a run succeeded in it.
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
    /// What was ever put here and may still be used.
    lent: Mutex<BTreeMap<LockfileHash, Vec<Lent>>>,
    /// Held by whoever builds or removes workspaces; not by a proof, in which the workspace is lent.
    work: Arc<tokio::sync::Mutex<()>>,
}

/// A workspace that runs have, and ComfyUIs are in.
struct Lent {
    whole: Weak<Whole>,
    workspace: Weak<Workspace>,
}

impl Lent {
    /// How many have it, the shelf being one of them.
    fn users(&self) -> usize {
        let wholes = self.whole.strong_count();
        // The whole itself is no user of its workspace.
        wholes + self.workspace.strong_count().saturating_sub(usize::from(wholes > 0))
    }
}

/// One workspace.
struct Place {
    state: WorkspaceState,
    whole: Option<Arc<Whole>>,
}

impl Place {
    fn is_usable(&self) -> bool {
        matches!(self.state, WorkspaceState::Loaded | WorkspaceState::Proven)
    }
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
        let (places, lent, work) = (Mutex::default(), Mutex::default(), Arc::default());
        Self { inner: Arc::new(Inner { ready, places, changed, lent, work }) }
    }

    /// Where the workspace of a lockfile is, or will be.
    pub fn folder_of(&self, lockfile: LockfileHash) -> PathBuf {
        self.inner.ready.join(lockfile.to_string())
    }

    /// The workspace of a lockfile, if runs may use it. Its models stay as long as this is held.
    pub fn usable(&self, lockfile: LockfileHash) -> Option<Arc<Whole>> {
        let places = self.places();
        places.get(&lockfile).filter(|place| place.is_usable())?.whole.clone()
    }

    /// All workspaces that runs may use.
    pub fn all_usable(&self) -> Vec<Arc<Workspace>> {
        let places = self.places();
        let usable =
            places.values().filter(|place| place.is_usable()).filter_map(|place| place.whole.as_ref());
        usable.map(|whole| Arc::clone(&whole.workspace)).collect()
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
        let is_loaded = |place: &&Place| place.state == WorkspaceState::Loaded;
        let whole = self.places().get(&lockfile).filter(is_loaded).and_then(|place| place.whole.clone());
        if let Some(whole) = whole {
            let environment = whole.workspace.environment.to_string();
            if let Err(error) = std::fs::write(self.folder_of(lockfile).join(PROVEN), environment) {
                warn!(%error, "that the workspace is proven is forgotten with this process");
            }
            let mut places = self.places();
            // It may be doubted or gone since.
            if let Some(place) =
                places.get_mut(&lockfile).filter(|place| place.state == WorkspaceState::Loaded)
            {
                place.state = WorkspaceState::Proven;
            }
            drop(places);
            self.tell();
        }
    }

    /// Notes that a run uses a workspace.
    pub fn note_use(&self, lockfile: LockfileHash) {
        if let Err(error) = WorkspaceRecord::note_use(&self.folder_of(lockfile)) {
            warn!(%error, "use of the workspace is not remembered");
        }
    }

    /// Whether a run or a ComfyUI is in it.
    pub(super) fn is_at_work(&self, lockfile: LockfileHash) -> bool {
        let places = self.places();
        self.is_lent(&places, lockfile)
    }

    /// The code and the environment of each workspace that runs and ComfyUIs are in, also where it was made anew of others
    /// since.
    pub(super) fn in_use(&self) -> BTreeSet<(CodeHash, EnvironmentKey)> {
        let lent = self.inner.lent.lock().unwrap_or_else(PoisonError::into_inner);
        let workspaces = lent.values().flatten().filter_map(|lent| lent.workspace.upgrade());
        workspaces.map(|workspace| (workspace.code, workspace.environment)).collect()
    }

    /// Lets nobody use a workspace any more, unless somebody does; says whether that is so.
    pub(super) fn take_out(&self, lockfile: LockfileHash) -> bool {
        let mut places = self.places();
        if self.is_lent(&places, lockfile) {
            return false;
        }
        if let Some(place) = places.get_mut(&lockfile).filter(|place| place.whole.is_some()) {
            *place = Place { state: WorkspaceState::Waiting, whole: None };
        }
        drop(places);
        self.tell();
        true
    }

    fn is_lent(&self, places: &BTreeMap<LockfileHash, Place>, lockfile: LockfileHash) -> bool {
        let lent = self.inner.lent.lock().unwrap_or_else(PoisonError::into_inner);
        let users: usize = lent.get(&lockfile).into_iter().flatten().map(Lent::users).sum();
        let is_here = places.get(&lockfile).is_some_and(|place| place.whole.is_some());
        users > usize::from(is_here)
    }

    /// Waits until nobody builds or removes workspaces, and lets nobody do so as long as the answer lives.
    pub(super) async fn work(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.inner.work).lock_owned().await
    }

    /// The same, unless somebody does at the moment.
    pub(super) fn try_work(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.inner.work).try_lock_owned().ok()
    }

    /// Whether a run succeeded in it with this environment, now or before this start. It has another one since its owner
    /// began or ceased to allow install scripts.
    pub(super) fn was_proven(folder: &Path, environment: EnvironmentKey) -> bool {
        std::fs::read_to_string(folder.join(PROVEN)).is_ok_and(|proven| proven == environment.to_string())
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

    /// Lends a whole workspace that is not here yet: nobody removes it as long as the answer lives.
    pub(super) fn lend(&self, lockfile: LockfileHash, whole: Whole) -> Arc<Whole> {
        let whole = Arc::new(whole);
        let lent = Lent { whole: Arc::downgrade(&whole), workspace: Arc::downgrade(&whole.workspace) };
        let mut all = self.inner.lent.lock().unwrap_or_else(PoisonError::into_inner);
        let of_one = all.entry(lockfile).or_default();
        of_one.retain(|lent| lent.users() > 0);
        of_one.push(lent);
        whole
    }

    /// Puts a whole workspace here that was [lent](Self::lend).
    pub(super) fn put(&self, lockfile: LockfileHash, whole: Arc<Whole>, state: WorkspaceState) {
        if let Some(place) = self.places().get_mut(&lockfile) {
            *place = Place { state, whole: Some(whole) };
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
