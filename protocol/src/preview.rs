//! A picture in the making, small enough to be passed on while it is made.
//!
//! Not here: who makes them, and who is shown them.

use std::fmt;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The largest frame that is passed on, in bytes.
pub const MAX_PREVIEW: usize = 256 << 10;
/// How each kind of picture begins, and its media type.
const KINDS: [(&[u8], &str); 2] = [(b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n\x1a\n", "image/png")];

/// A JPEG or PNG of at most [`MAX_PREVIEW`] bytes, by its first bytes: nobody has decoded it.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct PreviewFrame(Vec<u8>);

impl PreviewFrame {
    /// The frame with these bytes, if they are one.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        is_frame(bytes).then(|| Self(bytes.to_owned()))
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its media type.
    pub fn media_type(&self) -> &'static str {
        kind_of(&self.0).expect("only a picture becomes a frame")
    }
}

/// Its size, because nobody reads its bytes.
impl fmt::Debug for PreviewFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PreviewFrame({} bytes)", self.0.len())
    }
}

impl<'de> Deserialize<'de> for PreviewFrame {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(FrameVisitor)
    }
}

/// Refuses a frame by the length that it announces, before there is room for it.
struct FrameVisitor;

impl<'de> Visitor<'de> for FrameVisitor {
    type Value = PreviewFrame;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a JPEG or PNG of at most {MAX_PREVIEW} bytes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<PreviewFrame, A::Error> {
        let length = sequence.size_hint().unwrap_or(0);
        if length > MAX_PREVIEW {
            return Err(A::Error::invalid_length(length, &self));
        }
        let mut bytes = Vec::with_capacity(length);
        while let Some(byte) = sequence.next_element()? {
            bytes.push(byte);
            if bytes.len() > MAX_PREVIEW {
                return Err(A::Error::invalid_length(bytes.len(), &self));
            }
        }
        if is_frame(&bytes) { Ok(PreviewFrame(bytes)) } else { Err(A::Error::custom("no JPEG or PNG")) }
    }
}

fn is_frame(bytes: &[u8]) -> bool {
    bytes.len() <= MAX_PREVIEW && kind_of(bytes).is_some()
}

fn kind_of(bytes: &[u8]) -> Option<&'static str> {
    KINDS.iter().find(|(begin, _)| bytes.starts_with(begin)).map(|(_, media_type)| *media_type)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode_bincode, encode_bincode};

    fn jpeg(size: usize) -> Vec<u8> {
        let mut bytes = vec![7; size];
        bytes[..3].copy_from_slice(b"\xff\xd8\xff");
        bytes
    }

    #[test]
    fn only_small_pictures_are_frames() {
        let check = |bytes: &[u8], media_type: Option<&str>| {
            assert_eq!(PreviewFrame::of(bytes).as_ref().map(PreviewFrame::media_type), media_type);
            let wire = encode_bincode(0, &bytes).expect("encodes");
            let read: Option<PreviewFrame> = decode_bincode(0, &wire).ok();
            assert_eq!(read, PreviewFrame::of(bytes));
        };
        check(&jpeg(40), Some("image/jpeg"));
        check(&jpeg(MAX_PREVIEW), Some("image/jpeg"));
        check(&jpeg(MAX_PREVIEW + 1), None);
        check(b"\x89PNG\r\n\x1a\n....", Some("image/png"));
        check(b"<svg onload='x'>", None);
        check(b"", None);
    }

    #[test]
    fn frame_is_refused_by_the_length_that_it_announces() {
        let announced = (MAX_PREVIEW as u64 + 1).to_le_bytes();
        let refused = decode_bincode::<PreviewFrame>(0, &announced).expect_err("it is too large").to_string();
        assert!(refused.contains("invalid length 262145"), "{refused}");
    }
}
