//! Model folders that become blobs where they lie: each file is hashed once, and again when it changed.
//!
//! Symbolic links are not followed, hidden files and half-done downloads are passed over. A folder may
//! name files that are never served, one path a line, in `.comfy-farm-private`. Not here: how a change of
//! one file is noticed; that is `store::in_place`.

pub mod paths;
pub(crate) mod walk;
mod watch;
pub mod names;

use std::collections::HashSet;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::folders::walk::{Found, walk};
use crate::folders::watch::FolderWatch;
use crate::store::{BlobStore, ByteSize, StoreError, hash_model};

/// How long after one look at the folders the next one comes, also where no change was told.
const RESCAN: Duration = Duration::from_secs(180);
/// How often a long look tells how far it is.
const TELL: Duration = Duration::from_secs(1);
/// How often a long look is logged, and writes down what it has.
const KEEP: Duration = Duration::from_secs(10);

/// Why a folder could not be indexed.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The folder, or the file in its place, cannot be read.
    #[error("`{}` cannot be read: name a folder of models or one file", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The list of files cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The process ends.
    #[error("the index of `{}` was stopped", .0.display())]
    Stopped(PathBuf),
}

/// What one look at a folder came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Indexed {
    /// Files that are blobs now.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of them that were hashed this time.
    pub hashed: u64,
    /// Files that are no longer what they were, or gone.
    pub dropped: u64,
    /// Files that could not be read or changed meanwhile; the next look tries them again.
    pub skipped: u64,
    /// Symbolic links, which are not followed: whoever can write into the folder could lead one anywhere.
    pub links: u64,
}

/// How far a look is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexProgress {
    /// Bytes that were hashed.
    pub done: u64,
    /// Bytes that are to be hashed.
    pub total: u64,
}

/// Looks at these folders, and at those that the store was told to follow, whenever they change, and now and
/// again, until `stop`. A path may be a folder of models or ComfyUI's `extra_model_paths.yaml`.
pub async fn index_task(store: BlobStore, roots: Vec<PathBuf>, stop: CancellationToken) {
    let mut watch = FolderWatch::new();
    let mut followed = store.followed();
    loop {
        let mut roots = roots.clone();
        roots.extend(followed.borrow_and_update().iter().cloned());
        // Before the look, so that no change between the two is missed.
        watch = watch.follow(&roots).await;
        for root in &roots {
            let indexed = index(&store, root, stop.clone(), log_progress()).await;
            match indexed {
                Ok(Indexed { files, bytes, hashed, dropped, skipped, links }) => {
                    let bytes = ByteSize(bytes);
                    if hashed + dropped > 0 {
                        info!(folder = %root.display(), files, %bytes, hashed, dropped, skipped, links, "models are indexed");
                    } else {
                        debug!(folder = %root.display(), files, %bytes, skipped, links, "models are as they were");
                    }
                }
                Err(IndexError::Stopped(_)) => return,
                Err(error) => {
                    let error = protocol::error_chain(&error);
                    warn!(folder = %root.display(), error, "models could not be indexed");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RESCAN) => {}
            () = watch.settled() => {}
            // The store, which is held here, has the other end.
            _ = followed.changed() => {}
        }
    }
}

/// Logs how far a look is, now and then.
fn log_progress() -> impl Fn(IndexProgress) + Send + Sync {
    let logged = Mutex::new(Instant::now());
    move |progress| {
        let mut logged = logged.lock().expect("nothing panics while it holds the time");
        if logged.elapsed() >= KEEP {
            *logged = Instant::now();
            let (done, total) = (ByteSize(progress.done), ByteSize(progress.total));
            info!(%done, %total, "hashing models");
        }
    }
}

/// Looks at a folder, or one file, once; hashes with all cores what is new in it. `tell` hears every few
/// seconds how far it is.
pub async fn index(
    store: &BlobStore,
    root: &Path,
    stop: CancellationToken,
    tell: impl Fn(IndexProgress) + Send + Sync + 'static,
) -> Result<Indexed, IndexError> {
    let (store, root) = (store.clone(), root.to_owned());
    match tokio::task::spawn_blocking(move || index_blocking(&store, &root, &stop, &tell)).await {
        Ok(indexed) => indexed,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn index_blocking(
    store: &BlobStore,
    root: &Path,
    stop: &CancellationToken,
    tell: &(dyn Fn(IndexProgress) + Sync),
) -> Result<Indexed, IndexError> {
    let read = |source| IndexError::Read { path: root.to_owned(), source };
    let root = &std::fs::canonicalize(root).map_err(read)?;
    let roots = paths::folders_of(root).map_err(read)?;
    let (mut found, mut indexed) = (Vec::new(), Indexed::default());
    for root in &roots {
        let walked = walk(root).map_err(|source| IndexError::Read { path: root.clone(), source })?;
        indexed.links += walked.links;
        // An empty file is no model.
        found.extend(walked.found.into_iter().filter(|found| found.metadata.len() > 0));
    }

    let paths: HashSet<&Path> = found.iter().map(|found| found.path.as_path()).collect();
    let known = roots.iter().flat_map(|root| store.files_below(root));
    let gone: Vec<PathBuf> = known.filter(|path| !paths.contains(path.as_path())).collect();
    let mut fresh = Vec::new();
    let mut changed = Vec::new();
    for found in &found {
        match store.file_at(&found.path) {
            Some(file) if file.matches(&found.metadata) && file.shared == found.shared => {
                indexed.files += 1;
                indexed.bytes += file.blob.size;
            }
            known => {
                changed.extend(known.map(|known| known.path));
                fresh.push(found);
            }
        }
    }
    indexed.dropped = (gone.len() + changed.len()) as u64;
    // Before the hashing, which may take hours: a changed file is not served meanwhile.
    store.drop_in_place(&gone);
    store.drop_in_place(&changed);

    let work = Work::new(fresh);
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        for _ in 0..cores.min(work.total_files) {
            scope.spawn(|| work.hash_all(store, stop, tell));
        }
    });
    let done = work.finish();
    indexed.files += done.files;
    indexed.hashed = done.files;
    indexed.bytes += done.bytes;
    indexed.skipped = done.skipped;
    if indexed.hashed + indexed.dropped > 0 {
        store.keep_in_place()?;
    }
    if stop.is_cancelled() { Err(IndexError::Stopped(root.clone())) } else { Ok(indexed) }
}

/// The files to hash, which the cores take one after another.
struct Work<'a> {
    total_files: usize,
    total_bytes: u64,
    state: Mutex<State<'a>>,
}

struct State<'a> {
    left: Vec<&'a Found>,
    done: Done,
    told: Instant,
    kept: Instant,
}

#[derive(Default, Clone, Copy)]
struct Done {
    files: u64,
    bytes: u64,
    /// Of the files that were taken, also of those skipped.
    passed: u64,
    skipped: u64,
}

impl<'a> Work<'a> {
    fn new(mut left: Vec<&'a Found>) -> Self {
        // The largest is taken first, so that no core is left alone with it at the end.
        left.sort_by_key(|found| found.metadata.len());
        let total_bytes = left.iter().map(|found| found.metadata.len()).sum();
        let total_files = left.len();
        let now = Instant::now();
        let state = State { left, done: Done::default(), told: now, kept: now };
        Self { total_files, total_bytes, state: Mutex::new(state) }
    }

    fn finish(self) -> Done {
        self.state.into_inner().expect("nothing panics while it holds the work").done
    }

    fn next(&self) -> Option<&'a Found> {
        self.state.lock().expect("nothing panics while it holds the work").left.pop()
    }

    fn hash_all(&self, store: &BlobStore, stop: &CancellationToken, tell: &(dyn Fn(IndexProgress) + Sync)) {
        while let Some(found) = self.next().filter(|_| !stop.is_cancelled()) {
            let hashed = hash_model(&found.path, &|| stop.is_cancelled()).and_then(|(mut file, outboard)| {
                file.shared = found.shared;
                store.add_in_place(file, &outboard)
            });
            let mut state = self.state.lock().expect("nothing panics while it holds the work");
            state.done.passed += found.metadata.len();
            match hashed {
                Ok(()) => {
                    state.done.files += 1;
                    state.done.bytes += found.metadata.len();
                }
                Err(_) if stop.is_cancelled() => return,
                Err(error) => {
                    state.done.skipped += 1;
                    let error = protocol::error_chain(&error);
                    warn!(path = %found.path.display(), error, "model is passed over for now");
                }
            }
            let now = Instant::now();
            let progress = IndexProgress { done: state.done.passed, total: self.total_bytes };
            let is_to_tell = now - state.told >= TELL;
            let is_to_keep = now - state.kept >= KEEP;
            if is_to_tell {
                state.told = now;
            }
            if is_to_keep {
                state.kept = now;
            }
            drop(state);
            if is_to_tell {
                tell(progress);
            }
            // A process that is killed meanwhile does not begin anew.
            if is_to_keep && let Err(error) = store.keep_in_place() {
                warn!(%error, "index of models is not written down");
            }
        }
    }
}

#[cfg(test)]
mod tests;
