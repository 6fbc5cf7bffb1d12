//! The listening end: bounded in connections, in bytes and in time, and for this process's user only.
//!
//! Not here: what is done for a request.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Uid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Answer, FailureKind, MAX_REQUEST, Means, Reach, Request, RoleHandler, SOCKET, perform};
use crate::store::BlobStore;

/// How many commands are served at a time.
const MAX_CONNECTIONS: usize = 8;
/// How long a command may take for its request, or for taking an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why commands cannot reach the process.
#[derive(Debug, thiserror::Error)]
#[error("commands cannot be served on `{}`", path.display())]
pub struct ControlError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Serves the commands of one data folder; the socket goes with it.
pub struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
    means: Means,
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // Whoever finds it later sees that nobody listens.
        let _ = fs::remove_file(&self.path);
    }
}

impl ControlServer {
    /// Listens in this data folder, which the process has taken.
    pub fn bind(data: &Path, store: BlobStore) -> Result<Self, ControlError> {
        let path = data.join(SOCKET);
        let error = |source| ControlError { path: path.clone(), source };
        // What a killed process left: the folder's lock says that nobody else listens on it.
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(error(source)),
            _ => {}
        }
        let listener = super::short_path(&path, UnixListener::bind).map_err(error)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(error)?;
        Ok(Self { listener, path, means: Means { store, reach: None, role: None } })
    }

    /// Also does what takes the farm.
    pub fn with_reach(mut self, reach: Reach) -> Self {
        self.means.reach = Some(reach);
        self
    }

    /// Also does what belongs to the role of the process.
    pub fn with_role(mut self, role: Arc<dyn RoleHandler>) -> Self {
        self.means.role = Some(role);
        self
    }

    /// Answers until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(answer_task(stream, self.means.clone(), stop.child_token()));
                    }
                    Err(error) => {
                        warn!(%error, "command could not be taken");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
        connections.shutdown().await;
    }
}

async fn answer_task(stream: UnixStream, means: Means, stop: CancellationToken) {
    // Whatever is still at work for a command that went away ends with it.
    let _guard = stop.clone().drop_guard();
    if let Err(error) = answer_impl(stream, &means, stop).await {
        debug!(%error, "command went away");
    }
}

async fn answer_impl(mut stream: UnixStream, means: &Means, stop: CancellationToken) -> io::Result<()> {
    let user = stream.peer_cred()?.uid();
    if user != Uid::effective().as_raw() && user != 0 {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    let mut bounded = (&mut reader).take(MAX_REQUEST);
    timeout(PATIENCE, bounded.read_line(&mut line)).await??;
    let request: Request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => {
            let words = format!("no request that is known here: {error}");
            return send(&mut writer, &Answer::Failed { kind: FailureKind::Input, words }).await;
        }
    };

    // Progress that comes before the last one was taken is passed over.
    let (progress, mut told) = mpsc::channel(1);
    let performing = perform(means, request, stop, move |so_far| {
        let _ = progress.try_send(so_far);
    });
    tokio::pin!(performing);
    let mut rest = Vec::new();
    let mut gone = reader.take(1);
    loop {
        tokio::select! {
            performed = &mut performing => {
                let answer = match performed {
                    Ok(reply) => Answer::Done(reply),
                    Err(error) => {
                        Answer::Failed { kind: error.kind(), words: protocol::error_chain(&error) }
                    }
                };
                return send(&mut writer, &answer).await;
            }
            Some(progress) = told.recv() => send(&mut writer, &Answer::Progress(progress)).await?,
            read = gone.read_to_end(&mut rest) => {
                read?;
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
        }
    }
}

async fn send(writer: &mut (impl AsyncWriteExt + Unpin), answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer).map_err(io::Error::from)?;
    line.push(b'\n');
    timeout(PATIENCE, writer.write_all(&line)).await?
}
