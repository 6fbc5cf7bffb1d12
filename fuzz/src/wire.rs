//! Frames, and the bodies of every kind of message.

use bolero::check;
use futures::executor::block_on;
use mesh::frames::FrameReceiver;
use protocol::codec::{HEADER, MAX_FRAME, Message, decode_header, encode};
use protocol::contact::{ContactMessage, WhereMessage};
use protocol::message::{CoordinatorMessage, GateMessage, JoinMessage, NodeMessage};
use protocol::wire::{BlobAnswer, BlobRequest};

use crate::INPUTS;

/// Small, so that the limit is met.
const LIMIT: usize = 256;

/// Frames as they come: any bytes, and any body behind a good header.
#[test]
fn frames() {
    check!().with_iterations(INPUTS).with_type::<(u16, Vec<u8>, bool)>().for_each(|(kind, body, framed)| {
        let mut bytes = Vec::new();
        if *framed {
            bytes.extend_from_slice(&(body.len() as u32 + 2).to_le_bytes());
            // Near the numbers that there are, or none would be met.
            bytes.extend_from_slice(&(kind & 0x83ff).to_le_bytes());
        }
        bytes.extend_from_slice(body);
        receive::<NodeMessage>(&bytes);
        receive::<BlobRequest>(&bytes);
        receive::<BlobAnswer>(&bytes);
    });
}

/// Receives until the end or an error, which must come before the bytes are used up twice.
fn receive<M: Message>(bytes: &[u8]) {
    let reader = tokio_reader(bytes.to_vec());
    let mut receiver = FrameReceiver::<M>::with_limit(reader, LIMIT);
    let mut frames = 0;
    while let Ok(Some(message)) = block_on(receiver.recv()) {
        frames += 1;
        assert!(frames * HEADER <= bytes.len(), "more frames than bytes");
        assert!(message.encode_body().is_ok());
    }
}

fn tokio_reader(bytes: Vec<u8>) -> mesh::frames::Reader {
    Box::new(std::io::Cursor::new(bytes))
}

/// A header is taken or refused by its limit alone.
#[test]
fn headers() {
    check!().with_iterations(INPUTS).with_type::<[u8; HEADER]>().for_each(|header| {
        if let Ok((_, body)) = decode_header(*header, MAX_FRAME) {
            assert!(body < MAX_FRAME);
        }
    });
}

/// A body that is taken is that of its message and of no other.
#[test]
fn bodies() {
    check!().with_iterations(INPUTS).with_type::<(u16, Vec<u8>)>().for_each(|(kind, body)| {
        decode::<GateMessage>(*kind, body);
        decode::<JoinMessage>(*kind, body);
        decode::<NodeMessage>(*kind, body);
        decode::<CoordinatorMessage>(*kind, body);
        decode::<ContactMessage>(*kind, body);
        decode::<WhereMessage>(*kind, body);
        decode::<BlobRequest>(*kind, body);
        decode::<BlobAnswer>(*kind, body);
    });
}

/// The low byte chooses a number, whatever the high one is of these messages.
fn decode<M: Message>(kind: u16, body: &[u8]) {
    for high in [0x00, 0x01, 0x02, 0x03, 0x81, 0x82, 0x83] {
        let kind = high << 8 | kind & 0xff;
        let Ok(Some(message)) = M::decode_body(kind, body) else { continue };
        assert_eq!(message.kind(), kind);
        let again = message.encode_body().expect("what was decoded can be encoded");
        let decoded =
            M::decode_body(kind, &again).expect("it is its own encoding").expect("its kind is known");
        assert_eq!(decoded.encode_body(), Ok(again));
        assert!(encode(&message, MAX_FRAME).is_ok());
    }
}
