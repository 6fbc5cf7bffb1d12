//! Who has the store of a data folder: the process that runs on it, or else we ourselves for a moment.
//!
//! Not here: the requests.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::{
    Answer, FailureKind, MAX_ANSWER, Means, PerformError, Progress, Reply, Request, SOCKET, perform,
    short_path,
};
use crate::folder::{DataFolder, FolderError};
use crate::store::{BlobStore, StoreError};

/// Whoever does what is asked with the blobs of a data folder.
pub enum Custodian {
    /// The process that runs on it, at its socket.
    Process(PathBuf),
    /// Nobody else: the folder is ours as long as this lives.
    Ourselves {
        /// The store.
        store: BlobStore,
        /// The lock.
        folder: DataFolder,
    },
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum CustodianError {
    /// There is no such data folder.
    #[error("`{}` is no data folder: name that of a node or coordinator with `--data`", .0.display())]
    NoFolder(PathBuf),
    /// Another process has the folder and does not listen.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// We tried it ourselves.
    #[error(transparent)]
    Perform(#[from] PerformError),
    /// The process could not be asked, or ended.
    #[error("the process at `{}` did not answer", path.display())]
    Socket {
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process tried it.
    #[error("{words}")]
    Failed {
        /// Whose matter it is.
        kind: FailureKind,
        /// Why, in words.
        words: String,
    },
}

impl CustodianError {
    /// Whose matter it is.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::NoFolder(_) => FailureKind::Input,
            Self::Perform(error) => error.kind(),
            Self::Failed { kind, .. } => *kind,
            Self::Folder(_) | Self::Store(_) | Self::Socket { .. } => FailureKind::Other,
        }
    }

    /// Whether another process has the folder.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Folder(FolderError::InUse { .. }))
    }
}

impl Custodian {
    /// Finds the process that has this data folder, or takes the folder.
    pub async fn find(data: &Path) -> Result<Self, CustodianError> {
        if !data.is_dir() {
            return Err(CustodianError::NoFolder(data.to_owned()));
        }
        let path = data.join(SOCKET);
        match connect(&path).await {
            Ok(_) => Ok(Self::Process(path)),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                let folder = DataFolder::take(data, "a command of `comfy-farm`")?;
                let store = BlobStore::open(data.join("blobs")).await?;
                Ok(Self::Ourselves { store, folder })
            }
            Err(source) => Err(CustodianError::Socket { path, source }),
        }
    }

    /// Asks, and hears now and then how far it is.
    pub async fn ask(
        &self,
        request: Request,
        tell: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Reply, CustodianError> {
        match self {
            Self::Ourselves { store, .. } => {
                let means = Means { store: store.clone(), reach: None, role: None };
                Ok(perform(&means, request, CancellationToken::new(), tell).await?)
            }
            Self::Process(path) => {
                let answer = ask_process(path, &request, &tell).await;
                match answer.map_err(|source| CustodianError::Socket { path: path.clone(), source })? {
                    Ok(reply) => Ok(reply),
                    Err((kind, words)) => Err(CustodianError::Failed { kind, words }),
                }
            }
        }
    }
}

async fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = short_path(path, std::os::unix::net::UnixStream::connect)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

async fn ask_process(
    path: &Path,
    request: &Request,
    tell: &impl Fn(Progress),
) -> io::Result<Result<Reply, (FailureKind, String)>> {
    let mut stream = connect(path).await?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        (&mut reader).take(MAX_ANSWER).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        match serde_json::from_slice(&line)? {
            Answer::Progress(progress) => tell(progress),
            Answer::Done(reply) => return Ok(Ok(reply)),
            Answer::Failed { kind, words } => return Ok(Err((kind, words))),
        }
    }
}
