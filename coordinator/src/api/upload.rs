//! Bytes that a caller sends, streamed into the blob store, a temporary file or a short buffer, under a
//! limit.
//!
//! Nothing stays on disk of what was too long or was broken off. Not here: what the bytes mean, and
//! forms (`form`).

use std::fs::File;
use std::io::{self, Seek};
use std::time::Duration;

use axum::body::BodyDataStream;
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use futures::StreamExt;
use mesh::store::BlobStore;
use protocol::BlobRef;
use tokio::io::AsyncWriteExt;

use crate::api::error::ApiError;

/// How much of a refused body is still read, and for how long: a caller that only writes until it is
/// done would otherwise see a broken connection in place of the refusal.
const DRAINED: u64 = 64 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// The longest silence within a body.
pub(crate) const IDLE: Duration = Duration::from_secs(30);

/// How many bytes may still come.
#[derive(Debug)]
pub(crate) struct Allowance {
    limit: u64,
    left: u64,
}

impl Allowance {
    /// At most `limit` bytes in all.
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, left: limit }
    }

    /// How many are left.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Counts what came.
    pub(crate) fn take(&mut self, chunk: &[u8]) -> Result<(), ApiError> {
        let left = self.left.checked_sub(chunk.len() as u64);
        self.left = left.ok_or(ApiError::TooLarge { limit: self.limit })?;
        Ok(())
    }
}

/// A body as it comes.
struct Upload {
    chunks: BodyDataStream,
    allowance: Allowance,
    announced: Option<u64>,
}

impl Upload {
    fn begin(request: Request, limit: u64) -> Self {
        let announced = announced(request.headers());
        Self { chunks: request.into_body().into_data_stream(), allowance: Allowance::new(limit), announced }
    }

    /// The next chunk; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let limit = self.allowance.limit;
        if self.announced.is_some_and(|length| length > limit) {
            drain(&mut self.chunks).await;
            return Err(ApiError::TooLarge { limit });
        }
        let Some(chunk) = within(IDLE, self.chunks.next()).await? else { return Ok(None) };
        let chunk = chunk.map_err(|error| ApiError::Malformed(format!("the body broke off: {error}")))?;
        if let Err(error) = self.allowance.take(&chunk) {
            drain(&mut self.chunks).await;
            return Err(error);
        }
        Ok(Some(chunk))
    }
}

/// Waits only so long for more of a body.
pub(crate) async fn within<T>(time: Duration, more: impl Future<Output = T>) -> Result<T, ApiError> {
    tokio::time::timeout(time, more).await.map_err(|_| ApiError::TooSlow(time.as_secs()))
}

pub(crate) fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pub(crate) async fn drain(chunks: &mut BodyDataStream) {
    let draining = async {
        let mut left = DRAINED;
        while let Some(Ok(chunk)) = chunks.next().await {
            match left.checked_sub(chunk.len() as u64) {
                Some(less) => left = less,
                None => break,
            }
        }
    };
    // Whether all of it came or not, it is not wanted.
    let _ = tokio::time::timeout(DRAIN_TIME, draining).await;
}

/// Stores a body as a blob.
pub(crate) async fn store_body(request: Request, limit: u64, store: &BlobStore) -> Result<BlobRef, ApiError> {
    let mut upload = Upload::begin(request, limit);
    let mut writer = store.writer(limit).await?;
    while let Some(chunk) = upload.next().await? {
        writer.write(&chunk).await?;
    }
    Ok(writer.finish().await?)
}

/// Reads a short body into memory.
pub(crate) async fn read_body(request: Request, limit: u64) -> Result<Vec<u8>, ApiError> {
    let mut upload = Upload::begin(request, limit);
    let mut bytes = Vec::new();
    while let Some(chunk) = upload.next().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Writes a body to a file without a name, which is gone when it is closed, and rewinds it.
pub(crate) async fn spool_body(request: Request, limit: u64) -> Result<File, ApiError> {
    let io = |source: io::Error| ApiError::Io { attempt: "writing the upload to a temporary file", source };
    let mut upload = Upload::begin(request, limit);
    let mut file = tokio::fs::File::from_std(tempfile::tempfile().map_err(io)?);
    while let Some(chunk) = upload.next().await? {
        file.write_all(&chunk).await.map_err(io)?;
    }
    file.flush().await.map_err(io)?;
    let mut file = file.into_std().await;
    file.rewind().map_err(io)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn silent_body_is_given_up_with_a_status_that_says_so() {
        let silent = within(Duration::ZERO, std::future::pending::<()>()).await;
        assert!(matches!(silent, Err(ApiError::TooSlow(0))));
    }

    #[tokio::test]
    async fn upload_that_breaks_off_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = BlobStore::open(folder.path()).await.unwrap();
        let files = || {
            let mut folders = vec![folder.path().to_owned()];
            let mut files = Vec::new();
            while let Some(folder) = folders.pop() {
                for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                    if entry.is_dir() { folders.push(entry) } else { files.push(entry) }
                }
            }
            files.sort();
            files
        };
        let before = files();
        let chunks = (0..3).map(|_| Ok(vec![0; 1 << 20])).chain([Err(io::Error::other("cut"))]);
        let body = axum::body::Body::from_stream(futures::stream::iter(chunks));
        let broken = store_body(Request::new(body), u64::MAX, &store).await;
        assert!(matches!(broken, Err(ApiError::Malformed(_))));
        assert_eq!(files(), before);
        // The same where the caller hangs up, which drops the request wherever it is.
        let chunks = futures::stream::iter([Ok::<_, io::Error>(vec![0; 2 << 20])]);
        let body = axum::body::Body::from_stream(chunks.chain(futures::stream::pending()));
        let hung_up =
            within(Duration::from_millis(50), store_body(Request::new(body), u64::MAX, &store)).await;
        assert!(hung_up.is_err());
        // What was being written at that moment is written first.
        let gone = async {
            while files() != before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within(Duration::from_secs(20), gone).await.unwrap();
    }
}
