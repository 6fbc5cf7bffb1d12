//! The files of a lock on this machine, under the names that an installer needs.
//!
//! Not here: how they cross the network; whoever implements [`WheelSource`] knows.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use protocol::{LockedFile, Sha256, WebUrl};
use tokio_util::sync::CancellationToken;

use super::PythonError;
use crate::os;

/// How many files are asked for at once.
const AT_ONCE: usize = 8;

/// Where the files of a lock come from: blobs of this node, peers, the internet.
#[async_trait]
pub trait WheelSource: Send + Sync {
    /// A file that was proven to have this SHA-256, under any name. It stays where it is until the environment
    /// is built.
    async fn file(&self, file: &LockedFile) -> Result<PathBuf, WheelError>;

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

/// Gets these files, several at once, and returns their paths in order: links with the right names in a
/// folder that is named after their hash, so that uv knows them again.
pub(super) async fn gather(
    files: Vec<LockedFile>,
    source: &dyn WheelSource,
    folder: &Path,
    cancel: &CancellationToken,
) -> Result<Vec<PathBuf>, PythonError> {
    let gathering = stream::iter(files)
        .map(|file| async move {
            let path = source.file(&file).await?;
            link(&path, folder, &file)
        })
        .buffered(AT_ONCE)
        .try_collect();
    cancel.run_until_cancelled(gathering).await.unwrap_or(Err(PythonError::Canceled))
}

/// Names a file as its lock does.
fn link(path: &Path, folder: &Path, file: &LockedFile) -> Result<PathBuf, PythonError> {
    let named = folder.join(file.sha256.to_string()).join(file.file_name.as_str());
    if named != path {
        os::file::link(path, &named).map_err(|source| PythonError::io("making", &named, source))?;
    }
    Ok(named)
}
