//! The files of a lock on this machine, under the names that an installer needs.
//!
//! Not here: how they cross the network; whoever implements [`WheelSource`] knows.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{StreamExt, TryStreamExt, stream};
use protocol::{GitPin, LockedFile, LockedWheel, Sha256, WebUrl};
use tokio::io::AsyncReadExt;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::PythonError;
use crate::os;
use crate::workspace::git::GitError;

/// How many files are fetched at once. Each of so many bytes counts for one more: a large one has the way to itself, so
/// that it is unpacked while the small ones come.
const AT_ONCE: u32 = 8;
const LARGE: u64 = 8 << 20;
/// How much of a file on the disk is read at a time.
const PART: usize = 256 << 10;

/// Where the files of a lock come from: blobs of this node, peers, the internet.
#[async_trait]
pub trait WheelSource: Send + Sync {
    /// A file that was proven to have this SHA-256, under any name. It stays where it is until the environment
    /// is built. `turn` is to be dropped once all of it is here: its proof takes the disk and no link.
    async fn file(&self, file: &LockedFile, turn: Option<SemaphorePermit<'_>>)
    -> Result<PathBuf, WheelError>;

    /// Hears how many bytes more are to come by [`file`](Self::file).
    fn expects(&self, _bytes: u64) {}

    /// The parts of a file in their order, those that are not here yet as they come by [`file`](Self::file). Nothing
    /// has proven them.
    fn read<'a>(&'a self, file: &'a LockedFile) -> BoxStream<'a, Result<Vec<u8>, WheelError>>;

    /// Lays out the files of a commit in this folder, which is not there yet.
    async fn repository(&self, pin: &GitPin, into: &Path) -> Result<(), WheelError>;

    /// How many bytes the file at the first of these URLs that answers has, for an index that does not say.
    async fn size(&self, urls: &[WebUrl]) -> Result<u64, WheelError>;
}

/// Why a file of a lock did not come.
#[derive(Debug, thiserror::Error)]
pub enum WheelError {
    /// Nobody gave it.
    #[error("`{file_name}` came from nobody: {}", tried.join("; "))]
    NoSource {
        /// The file.
        file_name: String,
        /// Who was asked, and what came of it.
        tried: Vec<String>,
    },
    /// What came is another file.
    #[error(
        "`{file_name}` has another hash: sha256:{found} in place of {expected}, from {from}: it was exchanged there, and a node of the farm that has the recorded one would give it"
    )]
    WrongHash {
        /// The file.
        file_name: String,
        /// What the lock names.
        expected: Sha256,
        /// What came.
        found: Sha256,
        /// Where from.
        from: String,
    },
    /// A repository is not here at its commit.
    #[error(transparent)]
    Repository(#[from] GitError),
    /// It cannot be kept here.
    #[error("`{file_name}` cannot be stored")]
    Store {
        /// The file.
        file_name: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A package that is installed.
pub(super) struct Wheel {
    pub(super) locked: LockedWheel,
    /// Where it lies, if it was made here.
    pub(super) path: Option<PathBuf>,
}

impl Wheel {
    /// Its parts in their order.
    pub(super) fn read<'a>(
        &'a self,
        source: &'a dyn WheelSource,
    ) -> BoxStream<'a, Result<Vec<u8>, WheelError>> {
        match &self.path {
            Some(path) => read_file(path, self.locked.file.file_name.as_str()),
            None => source.read(&self.locked.file),
        }
    }
}

/// The parts of a file on the disk.
pub(super) fn read_file<'a>(path: &'a Path, name: &'a str) -> BoxStream<'a, Result<Vec<u8>, WheelError>> {
    let failed =
        |source: std::io::Error| WheelError::Store { file_name: name.to_owned(), source: Box::new(source) };
    let read = move |file: Option<tokio::fs::File>| async move {
        let mut file = match file {
            Some(file) => file,
            None => tokio::fs::File::open(path).await?,
        };
        let mut part = Vec::with_capacity(PART);
        let count = file.read_buf(&mut part).await?;
        Ok((count > 0).then_some((part, Some(file))))
    };
    stream::try_unfold(None, read).map_err(failed).boxed()
}

/// Has all of these come that were not made here, the largest first.
pub(super) async fn gather(
    wheels: &[Wheel],
    source: &dyn WheelSource,
    cancel: &CancellationToken,
) -> Result<(), PythonError> {
    let mut files: Vec<_> = wheels.iter().filter(|wheel| wheel.path.is_none()).collect();
    files.sort_by_key(|wheel| Reverse(wheel.locked.file.size));
    source.expects(files.iter().map(|wheel| wheel.locked.file.size).fold(0, u64::saturating_add));
    let turns = Semaphore::new(AT_ONCE as usize);
    let get = async |file: &LockedFile| {
        let share = u32::try_from(file.size / LARGE).unwrap_or(AT_ONCE).saturating_add(1).min(AT_ONCE);
        let turn = turns.acquire_many(share).await.ok();
        source.file(file, turn).await.map(drop)
    };
    let mut gathering: FuturesUnordered<_> = files.into_iter().map(|wheel| get(&wheel.locked.file)).collect();
    let all = async {
        while let Some(got) = gathering.next().await {
            got?;
        }
        Ok(())
    };
    cancel.run_until_cancelled(all).await.unwrap_or(Err(PythonError::Canceled))
}

/// Gets a file, and returns its path: a link with the right name in a folder that is named after its hash.
pub(super) async fn get(
    file: &LockedFile,
    source: &dyn WheelSource,
    folder: &Path,
    cancel: &CancellationToken,
) -> Result<PathBuf, PythonError> {
    source.expects(file.size);
    let got = cancel.run_until_cancelled(source.file(file, None)).await.ok_or(PythonError::Canceled)?;
    link(&got?, folder, file)
}

/// Names a file as its lock does.
fn link(path: &Path, folder: &Path, file: &LockedFile) -> Result<PathBuf, PythonError> {
    let named = folder.join(file.sha256.to_string()).join(file.file_name.as_str());
    if named != path {
        os::file::link(path, &named).map_err(|source| PythonError::io("making", &named, source))?;
    }
    Ok(named)
}
