//! Introductions: how two members of which neither can be dialled come to a direct path.
//!
//! **Participants.** Two members behind address translators (NATs), and the coordinator, which both reach. A
//! translator lets in what answers something that was sent out, so both sides have to send, each to where
//! the other's UDP port is seen from outside. Only somebody outside sees that.
//!
//! **Conversations.** Each is a channel of a link to the coordinator, like those of the [blob
//! wire](crate::wire), and ends with its answer.
//! ```text
//! asker                       coordinator                        other
//! Introduce{peer}      ->
//!                             Meet{peer, address}         ->
//!                                                                opens its side
//!                                                         <-     Ready{ready}
//!                      <-     Introduced{address}
//! dials                                                   ->
//! ```
//! The asker asks on a link of QUIC, which it makes from the port from which it then dials; the other makes one
//! before it is ready. The addresses are those of these links, as the coordinator sees them, and nothing that
//! either of the two says. What the other sends to open its side is a datagram of one byte, three times at most.
//! Where no link has come about 2.5 s later, the other dials, as long.
//!
//! **Trust.** A member takes `Meet` from the coordinator of its session alone, eight at a time. A
//! coordinator introduces members that it has links with, at most eight times at once and then once a second for
//! each link. What then meets is checked as ever: by key, and at the gate.
//!
//! **Not goals.** Translators that show each destination another port: between two such members the relay
//! stays.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::id::PeerId;
use crate::wire::is_dialable;

/// To a coordinator: have this member open its side for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduce {
    /// The member.
    pub peer: PeerId,
}

/// From a coordinator: this member is about to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meet {
    /// The member.
    pub peer: PeerId,
    /// Where its UDP port is seen.
    pub address: SocketAddr,
}

impl Meet {
    /// Whether the address can be one of a single peer.
    pub fn is_dialable(&self) -> bool {
        is_dialable(&self.address)
    }
}

/// The answer to [`Meet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Whether the member opened its side.
    pub ready: bool,
}

/// The answer to [`Introduce`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduced {
    /// Where the other's UDP port is seen; `None` where it is not here, or takes part in none of this.
    pub address: Option<SocketAddr>,
}

impl Introduced {
    /// The address, if it can be one of a single peer.
    pub fn dialable(self) -> Option<SocketAddr> {
        self.address.filter(is_dialable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::encode;
    use crate::wire::{BlobAnswer, BlobRequest, MAX_BLOB_FRAME};

    #[test]
    fn bytes_of_each_message_are_those_of_version_1() {
        let (peer, id) = (PeerId([0xbb; 32]), "bb".repeat(32));
        let address: SocketAddr = "127.0.0.1:4290".parse().expect("an address");
        let (text, request) =
            ("000000007f000001c210", |request| encode(&request, MAX_BLOB_FRAME).map(hex::encode));
        assert_eq!(request(BlobRequest::Introduce(Introduce { peer })), Ok(format!("220000000803{id}")));
        assert_eq!(request(BlobRequest::Meet(Meet { peer, address })), Ok(format!("2c0000000903{id}{text}")));
        let answer = |answer| encode(&answer, MAX_BLOB_FRAME).map(hex::encode);
        let introduced = |address| BlobAnswer::Introduced(Introduced { address });
        assert_eq!(answer(introduced(Some(address))), Ok(format!("0d000000880301{text}")));
        assert_eq!(answer(introduced(None)), Ok("03000000880300".to_owned()));
        assert_eq!(answer(BlobAnswer::Ready(Ready { ready: true })), Ok("03000000890301".to_owned()));
    }

    #[test]
    fn address_of_nobody_or_of_many_is_not_dialled() {
        for nobody in ["0.0.0.0:4290", "192.0.2.7:0", "224.0.0.1:4290", "255.255.255.255:1", "[::]:1"] {
            let address: SocketAddr = nobody.parse().expect("an address");
            assert_eq!(Introduced { address: Some(address) }.dialable(), None, "{nobody}");
            assert!(!Meet { peer: PeerId([1; 32]), address }.is_dialable(), "{nobody}");
        }
    }
}
