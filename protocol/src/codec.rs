//! How a message becomes bytes: the session frame `u32 length, u16 kind, bincode body`, little-endian
//! as bincode itself.
//!
//! `length` counts the kind and the body. A frame is refused by its length before anything is
//! allocated for it, and bincode decodes under the same limit. A kind that this release does not know
//! is skipped when its top bit is set, and an error otherwise. Reading from a socket is the mesh's.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest frame of a session, in bytes: an offer of an engine with thousands of classes fits.
pub const MAX_FRAME: usize = 1 << 20;
/// The largest frame before the gate has opened, in bytes.
pub const MAX_HELLO: usize = 4 << 10;
/// The bit of a kind that says: whoever does not know it may skip it.
pub const SKIPPABLE: u16 = 0x8000;
/// The bytes before a frame's body: length and kind.
pub const HEADER: usize = 6;

/// What is wrong with a frame. Whoever sent it has broken the protocol, so its connection is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The frame says that it is larger than the receiver takes.
    #[error("frame of {length} bytes, where at most {limit} are taken")]
    TooLarge {
        /// What the frame said.
        length: usize,
        /// What is taken here.
        limit: usize,
    },
    /// The length does not even cover the kind.
    #[error("frame of {0} bytes, too short for its kind")]
    TooShort(usize),
    /// A kind that this release does not know and may not skip.
    #[error("frame of unknown kind {0:#06x}")]
    UnknownKind(u16),
    /// The body is not what its kind says.
    #[error("frame of kind {kind:#06x} does not decode: {reason}")]
    Body {
        /// The frame's kind.
        kind: u16,
        /// What bincode said.
        reason: String,
    },
}

/// A set of messages that share a stream, each with a number that it keeps for ever.
pub trait Message: Sized + Send + 'static {
    /// The message's number.
    fn kind(&self) -> u16;
    /// The message's body in bincode.
    fn encode_body(&self) -> Result<Vec<u8>, CodecError>;
    /// The message of that number; `None` for an unknown one that may be skipped.
    fn decode_body(kind: u16, body: &[u8]) -> Result<Option<Self>, CodecError>;
}

/// A whole frame for this message.
pub fn encode<M: Message>(message: &M, limit: usize) -> Result<Vec<u8>, CodecError> {
    let body = message.encode_body()?;
    let length = body.len() + 2;
    if length > limit {
        return Err(CodecError::TooLarge { length, limit });
    }
    let mut frame = Vec::with_capacity(HEADER + body.len());
    frame.extend_from_slice(&(length as u32).to_le_bytes());
    frame.extend_from_slice(&message.kind().to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// The kind and the body's length that a frame's header announces, checked against the limit.
pub fn decode_header(header: [u8; HEADER], limit: usize) -> Result<(u16, usize), CodecError> {
    let [a, b, c, d, e, f] = header;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > limit {
        return Err(CodecError::TooLarge { length, limit });
    }
    let body = length.checked_sub(2).ok_or(CodecError::TooShort(length))?;
    Ok((u16::from_le_bytes([e, f]), body))
}

/// A body in bincode: fixed-width little-endian integers, so that golden bytes read plainly.
pub(crate) fn encode_bincode<T: Serialize>(kind: u16, value: &T) -> Result<Vec<u8>, CodecError> {
    bincode::serde::encode_to_vec(value, CONFIG)
        .map_err(|error| CodecError::Body { kind, reason: error.to_string() })
}

/// The value in a body, which must be all of it.
pub(crate) fn decode_bincode<T: DeserializeOwned>(kind: u16, body: &[u8]) -> Result<T, CodecError> {
    let error = |reason| CodecError::Body { kind, reason };
    let (value, used) =
        bincode::serde::decode_from_slice(body, CONFIG).map_err(|cause| error(cause.to_string()))?;
    if used != body.len() {
        return Err(error(format!("{} bytes follow its end", body.len() - used)));
    }
    Ok(value)
}

const CONFIG: Configuration<LittleEndian, Fixint, Limit<MAX_FRAME>> =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<MAX_FRAME>();

/// Declares an enum of messages with their numbers and implements [`Message`] for it.
macro_rules! messages {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $number:literal => $variant:ident($body:ty),)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant($body),)+
        }

        impl $crate::codec::Message for $name {
            fn kind(&self) -> u16 {
                match self {
                    $(Self::$variant(_) => $number,)+
                }
            }

            fn encode_body(&self) -> Result<Vec<u8>, $crate::codec::CodecError> {
                match self {
                    $(Self::$variant(body) => $crate::codec::encode_bincode($number, body),)+
                }
            }

            fn decode_body(kind: u16, body: &[u8]) -> Result<Option<Self>, $crate::codec::CodecError> {
                match kind {
                    $($number => $crate::codec::decode_bincode(kind, body).map(|body| Some(Self::$variant(body))),)+
                    unknown if unknown & $crate::codec::SKIPPABLE != 0 => Ok(None),
                    unknown => Err($crate::codec::CodecError::UnknownKind(unknown)),
                }
            }
        }
    };
}
pub(crate) use messages;
