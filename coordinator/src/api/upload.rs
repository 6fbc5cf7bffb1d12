//! Bytes that a caller sends, streamed into the blob store or a temporary file under a limit.
//!
//! Nothing is kept in memory but the chunk at hand, and nothing stays on disk of what was too long or
//! was broken off. Not here: what the bytes mean.

use std::fs::File;
use std::io::{Seek, Write};

use axum::body::Body;
use axum::extract::multipart::Field;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use mesh::store::BlobStore;
use protocol::BlobRef;

use crate::api::error::ApiError;

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

    /// The same, for a request whose announced length is refused before its first byte is read.
    pub(crate) fn for_request(limit: u64, headers: &HeaderMap) -> Result<Self, ApiError> {
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        match announced.and_then(|length| length.parse::<u64>().ok()) {
            Some(length) if length > limit => Err(ApiError::TooLarge { limit }),
            _ => Ok(Self::new(limit)),
        }
    }

    /// Counts a chunk that has come.
    pub(crate) fn take(&mut self, chunk: &[u8]) -> Result<(), ApiError> {
        self.left =
            self.left.checked_sub(chunk.len() as u64).ok_or(ApiError::TooLarge { limit: self.limit })?;
        Ok(())
    }
}

/// Stores a body as a blob.
pub(crate) async fn store_body(
    body: Body,
    mut allowance: Allowance,
    store: &BlobStore,
) -> Result<BlobRef, ApiError> {
    let chunks = body.into_data_stream().map(|chunk| chunk.map_err(|error| broken_off(&error)));
    store_chunks(chunks, &mut allowance, store).await
}

/// Stores one part of a form as a blob.
pub(crate) async fn store_field(
    field: Field<'_>,
    allowance: &mut Allowance,
    store: &BlobStore,
) -> Result<BlobRef, ApiError> {
    let chunks = field.map(|chunk| chunk.map_err(|error| ApiError::Malformed(error.body_text())));
    store_chunks(chunks, allowance, store).await
}

async fn store_chunks(
    chunks: impl Stream<Item = Result<Bytes, ApiError>>,
    allowance: &mut Allowance,
    store: &BlobStore,
) -> Result<BlobRef, ApiError> {
    let mut writer = store.writer(allowance.left).await?;
    let mut chunks = std::pin::pin!(chunks);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        allowance.take(&chunk)?;
        writer.write(&chunk).await?;
    }
    Ok(writer.finish().await?)
}

/// Reads a short body into memory.
pub(crate) async fn read_body(body: Body, mut allowance: Allowance) -> Result<Vec<u8>, ApiError> {
    let mut chunks = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| broken_off(&error))?;
        allowance.take(&chunk)?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Reads a short text part of a form into memory.
pub(crate) async fn read_field(mut field: Field<'_>, allowance: &mut Allowance) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(|error| ApiError::Malformed(error.body_text()))? {
        allowance.take(&chunk)?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Writes a body to a file without a name, which is gone when it is closed, and rewinds it.
pub(crate) async fn spool_body(body: Body, mut allowance: Allowance) -> Result<File, ApiError> {
    let io = |source| ApiError::Io { attempt: "writing the upload to a temporary file", source };
    let mut file = tempfile::tempfile().map_err(io)?;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| broken_off(&error))?;
        allowance.take(&chunk)?;
        file = tokio::task::spawn_blocking(move || file.write_all(&chunk).map(|()| file))
            .await
            .expect("writing a chunk does not panic")
            .map_err(io)?;
    }
    file.rewind().map_err(io)?;
    Ok(file)
}

fn broken_off(error: &axum::Error) -> ApiError {
    ApiError::Malformed(format!("the body broke off: {error}"))
}
