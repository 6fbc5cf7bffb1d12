//! Forms (`multipart/form-data`), read part by part, each part under a limit.
//!
//! The parser of forms collects the headers of a part before it shows the part, however long they are;
//! so a body is handed to it a chunk at a time, and only as long as it makes something of them. Not
//! here: what the parts mean.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::{Body, BodyDataStream};
use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use mesh::store::BlobStore;
use protocol::BlobRef;

use crate::api::error::ApiError;
use crate::api::upload::{Allowance, IDLE, announced, drain, within};

/// The most bytes that may be read without a part, or bytes of one, coming of them.
const MAX_UNREAD: u64 = 64 << 10;

/// A form as it comes.
pub(crate) struct Form {
    multipart: Multipart,
    unread: Arc<AtomicU64>,
}

/// One part of it.
pub(crate) struct Part<'a> {
    field: Field<'a>,
    unread: Arc<AtomicU64>,
}

impl Form {
    /// Begins to read. A form whose announced length is beyond the limit is refused at once.
    pub(crate) async fn open(request: Request, limit: u64) -> Result<Self, ApiError> {
        if announced(request.headers()).is_some_and(|length| length > limit) {
            drain(&mut request.into_body().into_data_stream()).await;
            return Err(ApiError::TooLarge { limit });
        }
        let unread = Arc::new(AtomicU64::new(0));
        let (parts, body) = request.into_parts();
        let paced = Paced { chunks: body.into_data_stream(), unread: unread.clone(), rests: false };
        let request = Request::from_parts(parts, Body::from_stream(paced));
        let multipart = Multipart::from_request(request, &()).await;
        let multipart = multipart.map_err(|rejection| ApiError::Malformed(rejection.body_text()))?;
        Ok(Self { multipart, unread })
    }

    /// The next part; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Part<'_>>, ApiError> {
        let field = within(IDLE, self.multipart.next_field()).await?;
        let field = field.map_err(|error| malformed(&error, &self.unread))?;
        self.unread.store(0, Ordering::Relaxed);
        Ok(field.map(|field| Part { field, unread: self.unread.clone() }))
    }
}

impl Part<'_> {
    /// Its name; empty where it has none.
    pub(crate) fn name(&self) -> &str {
        self.field.name().unwrap_or("")
    }

    /// The name of the file that it is, if it is one.
    pub(crate) fn file_name(&self) -> Option<&str> {
        self.field.file_name()
    }

    /// Stores it as a blob.
    pub(crate) async fn store(
        mut self,
        allowance: &mut Allowance,
        store: &BlobStore,
    ) -> Result<BlobRef, ApiError> {
        let mut writer = store.writer(allowance.left()).await?;
        while let Some(chunk) = self.chunk(allowance).await? {
            writer.write(&chunk).await?;
        }
        Ok(writer.finish().await?)
    }

    /// Reads it into memory.
    pub(crate) async fn read(mut self, allowance: &mut Allowance) -> Result<Vec<u8>, ApiError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(allowance).await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Reads past it.
    pub(crate) async fn skip(mut self, allowance: &mut Allowance) -> Result<(), ApiError> {
        while self.chunk(allowance).await?.is_some() {}
        Ok(())
    }

    async fn chunk(&mut self, allowance: &mut Allowance) -> Result<Option<Bytes>, ApiError> {
        let chunk = within(IDLE, self.field.chunk()).await?;
        let chunk = chunk.map_err(|error| malformed(&error, &self.unread))?;
        self.unread.store(0, Ordering::Relaxed);
        if let Some(chunk) = &chunk {
            allowance.take(chunk)?;
        }
        Ok(chunk)
    }
}

fn malformed(error: &MultipartError, unread: &AtomicU64) -> ApiError {
    ApiError::Malformed(match unread.load(Ordering::Relaxed) {
        ..=MAX_UNREAD => error.body_text(),
        _ => format!("what stands before a part of the form is longer than {MAX_UNREAD} bytes"),
    })
}

/// A body that is read a chunk at a time, and not on and on where nothing comes of it.
struct Paced {
    chunks: BodyDataStream,
    /// How much was read since something last came of it.
    unread: Arc<AtomicU64>,
    /// Set after each chunk: the parser, which reads as long as there is more, first looks at it.
    rests: bool,
}

impl Stream for Paced {
    type Item = Result<Bytes, io::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.rests) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.unread.load(Ordering::Relaxed) > MAX_UNREAD {
            return Poll::Ready(Some(Err(io::Error::other("nothing comes of it"))));
        }
        let chunk = ready!(self.chunks.poll_next_unpin(context));
        if let Some(Ok(chunk)) = &chunk {
            self.unread.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            self.rests = true;
        }
        Poll::Ready(chunk.map(|chunk| chunk.map_err(io::Error::other)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use axum::http::header;
    use futures::stream;

    use super::*;

    /// A body of these chunks that counts those that were taken.
    fn request(chunks: Vec<Vec<u8>>) -> (Request, Arc<AtomicUsize>) {
        let taken = Arc::new(AtomicUsize::new(0));
        let counted = taken.clone();
        let chunks = stream::iter(chunks).map(move |chunk| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok::<_, io::Error>(chunk)
        });
        let request = Request::builder().header(header::CONTENT_TYPE, "multipart/form-data; boundary=cut");
        (request.body(Body::from_stream(chunks)).unwrap(), taken)
    }

    const BEGIN: &[u8] = b"--cut\r\ncontent-disposition: form-data; name=\"";

    #[tokio::test]
    async fn endless_headers_are_refused_after_a_little_of_them() {
        for begin in [BEGIN, b"no boundary at all "] {
            let mut chunks = vec![begin.to_vec()];
            chunks.resize(10_000, vec![b'x'; 1000]);
            let (request, taken) = request(chunks);
            let mut form = Form::open(request, u64::MAX).await.unwrap();
            let Err(error) = form.next().await else { panic!("there is no part") };
            assert!(matches!(error, ApiError::Malformed(_)), "{error}");
            assert!(error.to_string().contains("longer than"), "{error}");
            assert!(taken.load(Ordering::Relaxed) < 100);
        }
    }

    #[tokio::test]
    async fn long_part_comes_whole_in_whatever_pieces() {
        for piece in [1, 7, 1000, 200_000] {
            let length = if piece == 1 { 3000 } else { 150_000 };
            let bytes = vec![b'\r'; length];
            let tail = b"\r\n--cut\r\ncontent-disposition: form-data; name=\"b\"\r\n\r\nend\r\n--cut--\r\n";
            let body = [BEGIN, b"a\"\r\n\r\n", &bytes, tail].concat();
            let (request, _) = request(body.chunks(piece).map(<[u8]>::to_vec).collect());
            let mut form = Form::open(request, u64::MAX).await.unwrap();
            let mut allowance = Allowance::new(200_000);
            let part = form.next().await.unwrap().expect("a part");
            assert_eq!((part.name(), part.file_name()), ("a", None));
            assert!(part.read(&mut allowance).await.unwrap() == bytes);
            let part = form.next().await.unwrap().expect("another part");
            assert_eq!(part.read(&mut allowance).await.unwrap(), b"end");
            assert!(form.next().await.unwrap().is_none());
        }
    }
}
