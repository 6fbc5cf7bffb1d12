//! An upstream that is a folder of this machine: its commit is read on a thread of its own, because a disk that does not
//! answer, such as that of a server that is gone, holds whoever asks it, and nothing ends that.
//!
//! Such a thread is left behind, and its folder is asked no more until it has ended. Not here: whether the folder may be
//! asked, and what becomes of what was read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use git2::{Oid, Repository};
use protocol::GitUrl;
use tokio_util::sync::CancellationToken;

use super::fetch::no_commit;
use super::pack::write_pack;
use super::{GitError, GitStore, Part, tree};

/// How often it is looked whether a reader gets on.
const LOOK: Duration = Duration::from_millis(50);
/// How many files are looked at in one step.
const STEP: usize = 1000;

/// The readers that were left behind, by their upstream.
static LEFT: Mutex<BTreeMap<GitUrl, Weak<Reading>>> = Mutex::new(BTreeMap::new());

fn left() -> MutexGuard<'static, BTreeMap<GitUrl, Weak<Reading>>> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread of a reader is called, which may have 15 characters.
pub(super) fn reader_name(commit: Oid) -> String {
    format!("git {commit:.10}")
}

/// How far a reader is.
struct Reading {
    begun: Instant,
    steps: AtomicU64,
    bytes: AtomicU64,
    is_broken_off: AtomicBool,
}

impl Reading {
    fn begin() -> Arc<Self> {
        let (steps, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { begun: Instant::now(), steps, bytes, is_broken_off: AtomicBool::new(false) })
    }

    /// Notes that it gets on; says whether it is to go on.
    fn step(&self, bytes: u64) -> bool {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.steps.fetch_add(1, Ordering::Relaxed);
        !self.is_broken_off.load(Ordering::Relaxed)
    }

    fn silent(&self, part: &Part, waited: Duration) -> GitError {
        let (url, commit) = (part.url.to_string(), part.commit.to_string());
        GitError::Silent { url, commit, waited, received: self.bytes.load(Ordering::Relaxed) }
    }
}

impl GitStore {
    /// A pack of the commit, as it lies in the folder of its upstream. `progress` is told how many bytes of it there are.
    pub(super) fn read_folder(
        &self,
        part: &Part,
        progress: impl Fn(u64),
        cancel: &CancellationToken,
    ) -> Result<File, GitError> {
        if let Some(stuck) = left().get(&part.url).and_then(Weak::upgrade) {
            return Err(stuck.silent(part, stuck.begun.elapsed()));
        }
        let setup = |source| GitError::Setup { url: part.url.to_string(), source };
        let reading = Reading::begin();
        let (sender, receiver) = mpsc::sync_channel(1);
        let (store, wanted, telling) = (self.clone(), part.clone(), Arc::clone(&reading));
        let reader = std::thread::Builder::new().name(reader_name(part.commit));
        let read = move || drop(sender.send(store.read_task(&wanted, &telling)));
        reader.spawn(read).map_err(setup)?;
        let (mut last, mut since) = (0, Instant::now());
        loop {
            match receiver.recv_timeout(LOOK) {
                Ok(read) => return read,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(setup(io::Error::other("its reader broke off by a bug")));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let steps = reading.steps.load(Ordering::Relaxed);
            if steps != last {
                (last, since) = (steps, Instant::now());
                progress(reading.bytes.load(Ordering::Relaxed));
            }
            let waited = since.elapsed();
            let fault = match waited >= self.patience.silence {
                _ if cancel.is_cancelled() => GitError::Canceled,
                true => reading.silent(part, waited),
                false => continue,
            };
            reading.is_broken_off.store(true, Ordering::Relaxed);
            // Also of one that was broken off as asked nobody knows whether the disk lets it end.
            let mut left = left();
            left.retain(|_, reading| reading.strong_count() > 0);
            left.insert(part.url.clone(), Arc::downgrade(&reading));
            return Err(fault);
        }
    }

    /// Reads it, for as long as the disk takes.
    fn read_task(&self, part: &Part, reading: &Reading) -> Result<File, GitError> {
        let git = |attempt| move |source| GitError::git(attempt, &part.url, source);
        let path = part.url.as_str().trim_start_matches("file://");
        let upstream = Repository::open(path).map_err(git("open"))?;
        if !upstream.odb().is_ok_and(|odb| odb.exists(part.commit)) {
            return Err(no_commit(&part.url, part.commit));
        }
        let mut bytes = 0_u64;
        for entries in tree::entries(&upstream, part, self.bounds.entries)?.chunks(STEP) {
            bytes = bytes.saturating_add(self.weigh(&upstream, part, entries)?);
            if bytes > self.bounds.bytes {
                return Err(GitError::too_large(&part.url));
            }
            if !reading.step(0) {
                return Err(GitError::Canceled);
            }
        }
        // Where it goes to in the end: the system's own folder may be a small one in memory.
        let mut pack =
            tempfile::tempfile_in(&self.root).map_err(|source| GitError::io(&self.root, source))?;
        write_pack(&upstream, part.commit, &mut pack, |bytes| reading.step(bytes))
            .map_err(git("copy from"))?;
        pack.seek(SeekFrom::Start(0)).map_err(|source| GitError::io(&self.root, source))?;
        Ok(pack)
    }
}
