//! What commands on the same machine ask of the process that has a data folder: its store of blobs, its way
//! into the farm, and whatever belongs to its role.
//!
//! The process listens on `DATA/control.sock`, which only its user can open. A connection carries one
//! request, a line of JSON, and answers, one line each: any number of `progress`, then `done` or `failed`.
//! `Custodian` finds the process, or does the same itself where none runs. Not here: what the farm as a
//! whole is asked; that is the coordinator's HTTP.

mod custodian;
mod errand;
mod role;
mod server;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::{BlobHash, BlobName, Transfer};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub use custodian::{Custodian, CustodianError};
pub use errand::{ErrandError, GetRequest, Got, Reach, Whereabouts};
pub use role::{RoleError, RoleHandler};
pub use server::{ControlError, ControlServer};

use crate::fetch::{FetchError, FetchFileError};
use crate::folders::{self, IndexError, IndexProgress, Indexed, paths};
use crate::store::{BlobEntry, BlobStore, Collected, StoreError};

/// The socket's name in the data folder.
const SOCKET: &str = "control.sock";
/// How long the address of a socket may be, with the byte that ends it.
const MAX_SOCKET_NAME: usize = 104;
/// The longest request, in bytes.
const MAX_REQUEST: u64 = 64 << 10;
/// The longest answer: a list of some 200,000 blobs.
const MAX_ANSWER: u64 = 64 << 20;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Every whole blob.
    List,
    /// To index a folder or file in place, and to follow the folder from now on.
    Add {
        /// Its full path.
        path: PathBuf,
    },
    /// To follow a folder no longer, and to forget its files.
    Forget {
        /// Its full path.
        path: PathBuf,
    },
    /// To read blobs again.
    Verify {
        /// Which; all without one.
        hash: Option<BlobHash>,
    },
    /// To delete leftovers, and what is over the quota.
    Collect {
        /// In place of the store's own quota.
        quota: Option<u64>,
    },
    /// To pin or unpin a blob.
    Pin {
        /// Which.
        hash: BlobHash,
        /// Whether it is to be pinned.
        pinned: bool,
    },
    /// To make a file of a blob, which is fetched where it is not here.
    Get(GetRequest),
    /// Who holds a blob.
    Where {
        /// Which.
        name: BlobName,
    },
    /// Something that belongs to the role of the process, such as a node's workspaces.
    Role {
        /// What, in words that only the two ends know.
        request: Value,
    },
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Progress {
    /// Files are read.
    Reading(IndexProgress),
    /// A blob is fetched.
    Fetching(Transfer),
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// For `List`.
    Listed(Vec<BlobEntry>),
    /// For `Add`.
    Added(Indexed),
    /// For `Forget`.
    Forgotten {
        /// How many files were blobs.
        files: u64,
    },
    /// For `Verify`.
    Verified(Verified),
    /// For `Collect`.
    Collected(Collected),
    /// For `Pin`.
    Pinned,
    /// For `Get`.
    Got(Got),
    /// For `Where`.
    Where(Whereabouts),
    /// For `Role`.
    Role(Value),
}

/// What reading blobs again came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verified {
    /// How many are what their name says.
    pub good: u64,
    /// Those that were not, or had gone; the store has forgotten them.
    pub bad: Vec<BlobHash>,
}

/// A line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Progress(Progress),
    Done(Reply),
    Failed { kind: FailureKind, words: String },
}

/// Whose matter a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// No such blob is here.
    NotFound,
    /// What was named cannot be used.
    Input,
    /// Anything else.
    Other,
}

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PerformError {
    /// The store itself.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A folder.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The farm.
    #[error(transparent)]
    Errand(#[from] ErrandError),
    /// The role of the process.
    #[error(transparent)]
    Role(#[from] RoleError),
}

impl PerformError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Role(error) => error.kind,
            Self::Store(StoreError::Missing(_))
            | Self::Errand(
                ErrandError::Nobody { .. }
                | ErrandError::NotFrom { .. }
                | ErrandError::Fetch(FetchError::NoProvider { .. })
                | ErrandError::File(FetchFileError::NoSource { .. })
                | ErrandError::Size(_),
            ) => FailureKind::NotFound,
            Self::Index(IndexError::Read { .. }) => FailureKind::Input,
            _ => FailureKind::Other,
        }
    }
}

/// What a process does requests with.
#[derive(Clone)]
struct Means {
    store: BlobStore,
    reach: Option<Reach>,
    role: Option<Arc<dyn RoleHandler>>,
}

/// Does what is asked.
async fn perform(
    Means { store, reach, role }: &Means,
    request: Request,
    stop: CancellationToken,
    tell: impl Fn(Progress) + Send + Sync + 'static,
) -> Result<Reply, PerformError> {
    let reach = || reach.as_ref().ok_or(ErrandError::NoReach);
    Ok(match request {
        Request::List => Reply::Listed(store.list()),
        Request::Add { path } => {
            let tell = move |progress| tell(Progress::Reading(progress));
            let indexed = folders::index(store, &path, stop, tell).await?;
            if paths::is_folder_or_list(&path) {
                store.set_followed(path, true).await?;
            }
            Reply::Added(indexed)
        }
        Request::Forget { path } => {
            // Of a list that is gone, the folders are known no more.
            let folders = paths::folders_of(&path).unwrap_or_default();
            store.set_followed(path, false).await?;
            Reply::Forgotten { files: store.forget_in_place(folders).await? }
        }
        Request::Verify { hash: Some(hash) } if !store.contains(hash) => {
            return Err(StoreError::Missing(hash).into());
        }
        Request::Verify { hash } => {
            let blobs = hash.map_or_else(|| store.list(), |hash| entries_of(store, hash));
            let total = blobs.iter().map(|blob| blob.size).sum();
            let (mut verified, mut done) = (Verified::default(), 0);
            for blob in blobs {
                match store.verify(blob.hash).await? {
                    true => verified.good += 1,
                    false => verified.bad.push(blob.hash),
                }
                done += blob.size;
                tell(Progress::Reading(IndexProgress { done, total }));
            }
            Reply::Verified(verified)
        }
        Request::Collect { quota } => Reply::Collected(store.collect(quota).await?),
        Request::Pin { hash, pinned } => {
            store.set_pinned(hash, pinned).await?;
            Reply::Pinned
        }
        Request::Get(request) => Reply::Got(reach()?.get(request, tell).await?),
        Request::Where { name } => Reply::Where(reach()?.whereabouts(name).await),
        Request::Role { request } => {
            let role = role.as_ref().ok_or_else(RoleError::none)?;
            Reply::Role(role.answer(request).await?)
        }
    })
}

/// Opens a socket by a name that fits its address, also in a folder with a long one.
fn short_path<T>(path: &Path, open: impl FnOnce(PathBuf) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().len() < MAX_SOCKET_NAME {
        return open(path.to_owned());
    }
    let folder = File::open(path.parent().unwrap_or(Path::new("/")))?;
    let name = path.file_name().unwrap_or_default();
    open(PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name))
}

fn entries_of(store: &BlobStore, hash: BlobHash) -> Vec<BlobEntry> {
    store.list().into_iter().filter(|entry| entry.hash == hash).collect()
}

#[cfg(test)]
mod tests;
