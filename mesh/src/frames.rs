//! Messages over a byte stream: whole frames in, whole frames out.
//!
//! What a frame is, is `protocol::codec`'s; what the messages mean, is not known here. A received
//! length is checked before anything is allocated for it.

use std::fmt;
use std::io;
use std::marker::PhantomData;

use bytes::BytesMut;
use protocol::codec::{CodecError, HEADER, MAX_FRAME, Message, decode_header, encode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

/// A stream to read from.
pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
/// A stream to write to.
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// Why frames no longer cross. The stream is of no use after any of these.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The stream ended in the middle of a frame.
    #[error("the connection ended in the middle of a frame")]
    Cut,
    /// The other side broke the protocol, or a message of ours is too large.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// What the other side showed at the gate is valid no longer.
    #[error("the certificate that opened the connection has run out")]
    Expired,
}

/// Sends messages of one kind.
pub struct FrameSender<M> {
    writer: Writer,
    limit: usize,
    messages: PhantomData<fn(M)>,
}

impl<M: Message> FrameSender<M> {
    /// Sends frames of at most [`MAX_FRAME`] bytes.
    pub fn new(writer: Writer) -> Self {
        Self::with_limit(writer, MAX_FRAME)
    }

    /// Sends frames of at most `limit` bytes.
    pub fn with_limit(writer: Writer, limit: usize) -> Self {
        Self { writer, limit, messages: PhantomData }
    }

    /// Sends one message. If it is cancelled, the stream may hold half a frame: drop the sender then.
    pub async fn send(&mut self, message: &M) -> Result<(), FrameError> {
        self.send_with(message, &[]).await
    }

    /// Sends one message and raw bytes right behind it.
    pub async fn send_with(&mut self, message: &M, bytes: &[u8]) -> Result<(), FrameError> {
        let frame = encode(message, self.limit)?;
        self.writer.write_all(&frame).await?;
        self.writer.write_all(bytes).await?;
        Ok(self.writer.flush().await?)
    }

    /// Sends raw bytes.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        self.writer.write_all(bytes).await?;
        Ok(self.writer.flush().await?)
    }

    /// Says that nothing more comes.
    pub async fn finish(mut self) -> Result<(), FrameError> {
        Ok(self.writer.shutdown().await?)
    }

    /// The stream itself.
    pub fn into_inner(self) -> Writer {
        self.writer
    }
}

/// Receives messages of one kind.
pub struct FrameReceiver<M> {
    reader: Reader,
    limit: usize,
    /// When it ends, whatever still comes.
    end: Option<Instant>,
    /// What there is of the next frame: a receive that is cancelled loses nothing.
    buffer: BytesMut,
    messages: PhantomData<fn() -> M>,
}

impl<M: Message> FrameReceiver<M> {
    /// Receives frames of at most [`MAX_FRAME`] bytes.
    pub fn new(reader: Reader) -> Self {
        Self::with_limit(reader, MAX_FRAME)
    }

    /// Receives frames of at most `limit` bytes.
    pub fn with_limit(reader: Reader, limit: usize) -> Self {
        Self { reader, limit, end: None, buffer: BytesMut::new(), messages: PhantomData }
    }

    /// Receives until then, and [`FrameError::Expired`] after.
    pub fn until(mut self, end: Instant) -> Self {
        self.end = Some(end);
        self
    }

    /// The next message; `None` when the stream ended between two frames. It may be cancelled and called
    /// again. Messages that this release does not know and may skip are skipped.
    pub async fn recv(&mut self) -> Result<Option<M>, FrameError> {
        match self.end {
            // A peer that never falls silent must not outlast it either.
            Some(end) if end <= Instant::now() => Err(FrameError::Expired),
            Some(end) => timeout_at(end, self.recv_next()).await.unwrap_or(Err(FrameError::Expired)),
            None => self.recv_next().await,
        }
    }

    async fn recv_next(&mut self) -> Result<Option<M>, FrameError> {
        loop {
            if !self.fill(HEADER).await? {
                return Ok(None);
            }
            let header = self.buffer[..HEADER].try_into().expect("it is filled that far");
            let (kind, body) = decode_header(header, self.limit)?;
            self.fill(HEADER + body).await?;
            let message = M::decode_body(kind, &self.buffer[HEADER..])?;
            self.buffer.clear();
            if message.is_some() {
                return Ok(message);
            }
        }
    }

    /// The next raw bytes, exactly as many as `bytes` holds. It must not be cancelled.
    pub async fn recv_bytes(&mut self, bytes: &mut [u8]) -> Result<(), FrameError> {
        debug_assert!(self.buffer.is_empty(), "raw bytes are read between frames");
        match self.reader.read_exact(bytes).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(FrameError::Cut),
            result => Ok(result.map(drop)?),
        }
    }

    /// The stream itself, between two frames.
    pub fn into_inner(self) -> Reader {
        self.reader
    }

    /// Reads until the buffer holds `length` bytes and not one more; `false` at a clean end.
    async fn fill(&mut self, length: usize) -> Result<bool, FrameError> {
        while self.buffer.len() < length {
            let missing = length - self.buffer.len();
            // Memory follows what arrived: a peer that only announces a large frame costs little.
            self.buffer.reserve(missing.min(64 << 10));
            let read = (&mut self.reader).take(missing as u64).read_buf(&mut self.buffer).await?;
            if read == 0 {
                return if self.buffer.is_empty() { Ok(false) } else { Err(FrameError::Cut) };
            }
        }
        Ok(true)
    }
}

impl<M> fmt::Debug for FrameSender<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameSender").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<M> fmt::Debug for FrameReceiver<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameReceiver").field("limit", &self.limit).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use protocol::codec::SKIPPABLE;
    use protocol::message::{JoinMessage, NodeMessage};
    use protocol::message::{JoinRefusal, Leave};

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
    }

    fn receiver(bytes: Vec<u8>, limit: usize) -> FrameReceiver<JoinMessage> {
        FrameReceiver::with_limit(Box::new(io::Cursor::new(bytes)), limit)
    }

    #[tokio::test]
    async fn messages_cross_in_order_and_raw_bytes_between_them() {
        let (near, far) = tokio::io::duplex(8);
        let mut receiver = FrameReceiver::<JoinMessage>::new(Box::new(far));
        let sending = tokio::spawn(async move {
            let mut sender = FrameSender::<JoinMessage>::new(Box::new(near));
            sender.send_with(&JoinMessage::Refused(JoinRefusal::Busy), b"raw bytes").await?;
            sender.send(&JoinMessage::Refused(JoinRefusal::Expired)).await?;
            sender.finish().await
        });
        assert_eq!(receiver.recv().await.expect("a frame"), Some(JoinMessage::Refused(JoinRefusal::Busy)));
        let mut raw = [0; 9];
        receiver.recv_bytes(&mut raw).await.expect("raw bytes");
        assert_eq!(&raw, b"raw bytes");
        assert_eq!(receiver.recv().await.expect("a frame"), Some(JoinMessage::Refused(JoinRefusal::Expired)));
        assert_eq!(receiver.recv().await.expect("a clean end"), None);
        sending.await.expect("no panic").expect("everything was sent");
    }

    #[tokio::test]
    async fn unknown_skippable_kind_is_skipped_and_any_other_is_an_error() {
        let frame = |kind: u16| {
            let mut frame = 3u32.to_le_bytes().to_vec();
            frame.extend_from_slice(&kind.to_le_bytes());
            frame.push(7);
            frame
        };
        let known = encode(&JoinMessage::Refused(JoinRefusal::Busy), MAX_FRAME).expect("it is small");
        let mut skipping = receiver([frame(SKIPPABLE | 0x7ff), known].concat(), MAX_FRAME);
        assert_eq!(skipping.recv().await.expect("a frame"), Some(JoinMessage::Refused(JoinRefusal::Busy)));
        let unknown = receiver(frame(0x7ff), MAX_FRAME).recv().await;
        assert!(matches!(unknown, Err(FrameError::Codec(CodecError::UnknownKind(0x7ff)))), "{unknown:?}");
    }

    #[tokio::test]
    async fn cancelled_receive_loses_nothing() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut receiver = FrameReceiver::<NodeMessage>::new(Box::new(far));
        let frame =
            encode(&NodeMessage::Leave(Leave { leases: Vec::new() }), MAX_FRAME).expect("it is small");
        let (first, rest) = frame.split_at(4);
        near.write_all(first).await.expect("there is room");
        let cancelled = futures::FutureExt::now_or_never(receiver.recv());
        assert!(cancelled.is_none(), "half a header is no frame");
        near.write_all(rest).await.expect("there is room");
        assert!(matches!(receiver.recv().await, Ok(Some(NodeMessage::Leave(_)))));
    }

    #[tokio::test]
    async fn nothing_is_received_after_the_end_that_was_set() {
        let (mut near, far) = tokio::io::duplex(64);
        let end = Instant::now() + std::time::Duration::from_millis(20);
        let mut receiver = FrameReceiver::<JoinMessage>::new(Box::new(far)).until(end);
        let frame = encode(&JoinMessage::Refused(JoinRefusal::Busy), MAX_FRAME).expect("it is small");
        assert!(matches!(receiver.recv().await, Err(FrameError::Expired)), "silent until the end");
        near.write_all(&frame).await.expect("there is room");
        assert!(matches!(receiver.recv().await, Err(FrameError::Expired)), "speaking after it");
    }

    #[tokio::test]
    async fn announced_length_is_refused_before_its_bytes_are_read() {
        let mut bytes = (MAX_FRAME as u32 + 1).to_le_bytes().to_vec();
        bytes.extend_from_slice(&[0x10, 0]);
        let refused = receiver(bytes, MAX_FRAME).recv().await;
        assert!(matches!(refused, Err(FrameError::Codec(CodecError::TooLarge { .. }))), "{refused:?}");
    }

    proptest! {
        #[test]
        fn hostile_bytes_end_in_an_error_or_a_clean_end(bytes in any::<Vec<u8>>()) {
            let length = bytes.len();
            let mut receiver = receiver(bytes, 256);
            let mut frames = 0;
            // Each frame takes its header at least, so this ends.
            while let Ok(Some(_)) = runtime().block_on(receiver.recv()) {
                frames += 1;
            }
            assert!(frames * HEADER <= length);
        }
    }
}
