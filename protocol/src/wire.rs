//! The blob wire `farm-blob/1`: how the bytes of a blob cross between two members.
//!
//! **Participants.** The *asker* wants a blob, the *provider* holds it, whole or in part. They share a
//! link: a connection on which both have passed the gate. Whoever dialled it, either may ask.
//!
//! **Channels.** A link carries many channels, each a reliable byte stream with two directions. The
//! first channel of a link, opened by the one who dialled, carries the Hello of each side
//! ([`GateMessage`](crate::message::GateMessage)) and closes. Every later one is one conversation about
//! one blob, opened by its asker.
//!
//! **A conversation.**
//! ```text
//! asker                               provider
//! Open{hash, size}            ->
//!                             <-      Have{pieces}    or NotFound, or Busy
//! Announce{addresses}         ->
//!                             <-      Peers{providers}    now and then, as they come
//! GetOutboard                 ->
//!                             <-      Outboard{length}, then that many raw bytes
//! Get{first, count}           ->
//!                             <-      Piece{index, offset}, then raw bytes; all of a piece, piece by piece
//! ```
//! What `GetOutboard` asks for are the pairs of the hash tree above pieces, 64 bytes for each MiB; a blob of
//! one piece has none. Those within a piece, 4,032 bytes for a whole one, come with it, in front of its first
//! bytes: so that the first bytes of a large blob follow soon, also where many ask one provider at once.
//!
//! A frame is that of [`codec`](crate::codec). Raw bytes follow their frame without one of their own. How
//! many a piece has follows from the blob's size (1 MiB, the last one less); they come [`PART_SIZE`] at a
//! time, so that on a slow link news need not wait for a whole piece. An asker that wants no
//! more closes the channel; there is no farewell. Up to [`MAX_OPEN_GETS`] requests may be open at once.
//! A provider whose blob is still growing tells what came meanwhile with `Gained`, between any two frames: each
//! piece once, as soon as a first part of it has come and was verified. Whoever asks for it then gets each part
//! as it comes. Nobody asks for a piece twice in one conversation.
//!
//! **Files.** A conversation may begin with `OpenFile{sha256, size}` where nobody knows the BLAKE3 hash yet:
//! several members read one file from the internet and take its pieces from each other. There is no
//! outboard; what came is proven by the SHA-256 of the whole, before its first use.
//!
//! **Small blobs.** A conversation may instead be about many blobs of one piece at most, such as the files of a
//! [collection](crate::Collection): each `GetSmall{blobs}` is answered by one `Small` for every blob, in
//! order, and its bytes. Each is verified by its hash as a whole.
//!
//! **Trust.** The asker knows hash and size before it opens. From the size follows how long the outboard is,
//! so neither side sizes anything by the other's word. The pairs are checked from the root down as they
//! arrive, each piece by groups of 16 KiB against them; what does not match is never stored, and
//! the asker says `Bad` and goes elsewhere.
//!
//! **Introductions.** A channel of a link with the coordinator may carry one of those instead:
//! [`introduction`](crate::introduction).
//!
//! **Each other.** An asker that listens says where with `Announce`. A provider tells its askers of each
//! other with `Peers`, as long as they are linked to it: each serves what it has verified. Both may be left
//! out and skipped. What they say is a hint, proven by dialling.
//!
//! **Not goals.** Finding the first provider (a coordinator or a ticket names it), names of files, encryption (the link
//! has it), uploads: nobody is sent what it did not ask for.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::blob::BlobRef;
use crate::codec::messages;
use crate::introduction::{Introduce, Introduced, Meet, Ready};
use crate::message::Provider;
use crate::origin::{FileRef, PieceRange};

/// The name of this wire where a transport negotiates one; it carries the version.
pub const BLOB_PROTOCOL: &str = "farm-blob/1";
/// The largest frame on a channel, without raw bytes: a bitmap of all pieces of the largest blob fits.
pub const MAX_BLOB_FRAME: usize = 64 << 10;
/// How many bytes follow a `Piece`: whole groups, except at the end of the blob.
pub const PART_SIZE: usize = 128 << 10;
/// The most pieces in one `Get`.
pub const MAX_RANGE: u64 = 256;
/// The most requests that an asker has open on one channel.
pub const MAX_OPEN_GETS: usize = 4;
/// The most addresses in one `Announce`, and of one peer in `Peers`.
pub const MAX_ANNOUNCED: usize = 8;
/// The most ranges in one `Gained`.
pub const MAX_GAINED: usize = 1024;
/// The most blobs in one `GetSmall`.
pub const MAX_SMALL: usize = 256;
/// The most providers in one `Peers`.
pub const MAX_PEERS: usize = 32;

messages! {
    /// From the asker of a blob.
    BlobRequest {
        /// The first message of a channel.
        0x0300 => Open(BlobRef),
        /// Send the outboard above pieces; only for a blob of more than one.
        0x0301 => GetOutboard(GetOutboard),
        /// Send these pieces.
        0x0302 => Get(Get),
        /// These bytes were not the blob's; the asker leaves.
        0x0303 => Bad(Bad),
        /// Here others can fetch from the asker what it has of the blob.
        0x8304 => Announce(Announce),
        /// The first message of a channel about a file whose BLAKE3 hash nobody knows yet.
        0x0305 => OpenFile(FileRef),
        /// Send these small blobs; the only message of a channel that begins with it.
        0x0306 => GetSmall(GetSmall),
        /// Introduce the asker to a member; the only message of its channel.
        0x0308 => Introduce(Introduce),
        /// Be introduced to a member; the only message of its channel.
        0x0309 => Meet(Meet),
    }
}

messages! {
    /// From its provider.
    BlobAnswer {
        /// What can be asked for.
        0x0380 => Have(Have),
        /// The outboard follows.
        0x0381 => Outboard(Outboard),
        /// Bytes of a piece follow.
        0x0382 => Piece(Piece),
        /// Others hold some of the blob as well.
        0x8383 => Peers(Peers),
        /// Nothing of such a blob is here.
        0x0384 => NotFound(NotFound),
        /// Too much is asked at the moment: try again, or elsewhere.
        0x0385 => Busy(Busy),
        /// Pieces that can be asked for from now on as well.
        0x0386 => Gained(Gained),
        /// One blob of `GetSmall`, in its order.
        0x0387 => Small(Small),
        /// The answer to `Introduce`.
        0x0388 => Introduced(Introduced),
        /// The answer to `Meet`.
        0x0389 => Ready(Ready),
    }
}

/// A request for the outboard above pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetOutboard;

/// A request for pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    /// The first piece.
    pub first: u64,
    /// How many, from 1 to [`MAX_RANGE`].
    pub count: u64,
}

/// A request for many blobs of one piece at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetSmall {
    /// At most [`MAX_SMALL`], each of at most [`PIECE_SIZE`](crate::blob::PIECE_SIZE) bytes.
    pub blobs: Vec<BlobRef>,
}

/// The answer to one blob of `GetSmall`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Small {
    /// Whether the provider holds it; then its bytes follow.
    pub found: bool,
}

/// What the asker could not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bad {
    /// The outboard.
    Outboard,
    /// This piece.
    Piece(u64),
}

/// Where an asker listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// Addresses to try, best first, at most [`MAX_ANNOUNCED`].
    pub addresses: Vec<SocketAddr>,
}

impl Announce {
    /// The addresses that can be dialled; `None` from a peer that sends more than it may.
    pub fn dialable(mut self) -> Option<Vec<SocketAddr>> {
        if self.addresses.len() > MAX_ANNOUNCED {
            return None;
        }
        self.addresses.retain(is_dialable);
        Some(self.addresses)
    }
}

/// Who else holds some of the blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peers {
    /// At most [`MAX_PEERS`], each with at most [`MAX_ANNOUNCED`] addresses.
    pub providers: Vec<Provider>,
}

impl Peers {
    /// The providers, with the addresses that can be dialled; `None` from a peer that sends more than it
    /// may.
    pub fn dialable(mut self) -> Option<Vec<Provider>> {
        let is_long = |provider: &Provider| provider.addresses.len() > MAX_ANNOUNCED;
        if self.providers.len() > MAX_PEERS || self.providers.iter().any(is_long) {
            return None;
        }
        self.providers.iter_mut().for_each(|provider| provider.addresses.retain(is_dialable));
        self.providers.retain(|provider| !provider.addresses.is_empty());
        Some(self.providers)
    }
}

/// Whether an address can be one of a single peer.
pub(crate) fn is_dialable(address: &SocketAddr) -> bool {
    let (ip, port) = (address.ip(), address.port());
    let is_broadcast = matches!(ip, std::net::IpAddr::V4(ip) if ip.is_broadcast());
    port != 0 && !ip.is_unspecified() && !ip.is_multicast() && !is_broadcast
}

/// The pieces that a provider can send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Have {
    /// All of them.
    Whole,
    /// Those whose bit is set: bit `i % 8` of byte `i / 8`, from the lowest, is piece `i`.
    Pieces(Vec<u8>),
}

/// Pieces that the provider got meanwhile, at least in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gained {
    /// At most [`MAX_GAINED`] ranges.
    pub ranges: Vec<PieceRange>,
}

/// The outboard above pieces follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outboard {
    /// Its bytes; any other number than the one that follows from the blob's size is an error.
    pub length: u64,
}

/// Bytes of a piece follow: [`PART_SIZE`] of them, or what is left of it. Before the first of a blob's piece
/// come the pairs within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Which one.
    pub index: u64,
    /// How many of its bytes came before.
    pub offset: u64,
}

/// Nothing of such a blob is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotFound;

/// Too much is asked at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Busy;

#[cfg(test)]
mod tests {
    use crate::blob::{BlobHash, PIECE_SIZE};
    use crate::codec::{Message, encode};
    use crate::id::PeerId;

    use super::*;

    #[test]
    fn bytes_of_each_message_are_those_of_version_1() {
        let check = |frame: Result<Vec<u8>, _>, expected: &str| {
            assert_eq!(frame.map(hex::encode), Ok(expected.to_owned()));
        };
        let open = BlobRequest::Open(BlobRef { hash: BlobHash([0xaa; 32]), size: 5 });
        let hash = "aa".repeat(32);
        check(encode(&open, MAX_BLOB_FRAME), &format!("2a0000000003{hash}0500000000000000"));
        check(encode(&BlobRequest::GetOutboard(GetOutboard), MAX_BLOB_FRAME), "020000000103");
        let get = BlobRequest::Get(Get { first: 1, count: 2 });
        check(encode(&get, MAX_BLOB_FRAME), "12000000020301000000000000000200000000000000");
        check(
            encode(&BlobRequest::Bad(Bad::Piece(7)), MAX_BLOB_FRAME),
            "0e0000000303010000000700000000000000",
        );
        check(encode(&BlobAnswer::Have(Have::Whole), MAX_BLOB_FRAME), "06000000800300000000");
        let pieces = BlobAnswer::Have(Have::Pieces(vec![5]));
        check(encode(&pieces, MAX_BLOB_FRAME), "0f000000800301000000010000000000000005");
        check(
            encode(&BlobAnswer::Outboard(Outboard { length: 64 }), MAX_BLOB_FRAME),
            "0a00000081034000000000000000",
        );
        let piece = BlobAnswer::Piece(Piece { index: 3, offset: 4 });
        check(encode(&piece, MAX_BLOB_FRAME), "12000000820303000000000000000400000000000000");
        check(encode(&BlobAnswer::NotFound(NotFound), MAX_BLOB_FRAME), "020000008403");
        check(encode(&BlobAnswer::Busy(Busy), MAX_BLOB_FRAME), "020000008503");
        let gained = BlobAnswer::Gained(Gained { ranges: vec![PieceRange { first: 2, count: 3 }] });
        check(
            encode(&gained, MAX_BLOB_FRAME),
            "1a0000008603010000000000000002000000000000000300000000000000",
        );
        let blobs = vec![BlobRef { hash: BlobHash([0xaa; 32]), size: 5 }];
        check(
            encode(&BlobRequest::GetSmall(GetSmall { blobs }), MAX_BLOB_FRAME),
            &format!("3200000006030100000000000000{hash}0500000000000000"),
        );
        check(encode(&BlobAnswer::Small(Small { found: true }), MAX_BLOB_FRAME), "03000000870301");
        let file = FileRef { sha256: "aa".repeat(32).parse().expect("64 digits"), size: 5 };
        check(
            encode(&BlobRequest::OpenFile(file), MAX_BLOB_FRAME),
            &format!("2a0000000503{hash}0500000000000000"),
        );
        let address: SocketAddr = "127.0.0.1:4290".parse().expect("an address");
        let announce = BlobRequest::Announce(Announce { addresses: vec![address] });
        let addresses = "0100000000000000000000007f000001c210";
        check(encode(&announce, MAX_BLOB_FRAME), &format!("140000000483{addresses}"));
        let providers = vec![Provider { peer: PeerId([0xbb; 32]), addresses: vec![address] }];
        let peers = format!("3c00000083830100000000000000{}{addresses}", "bb".repeat(32));
        check(encode(&BlobAnswer::Peers(Peers { providers }), MAX_BLOB_FRAME), &peers);
    }

    #[test]
    fn bitmap_of_the_largest_blob_fits_its_frame() {
        let pieces = (1u64 << 38) / PIECE_SIZE;
        let have = BlobAnswer::Have(Have::Pieces(vec![0xff; pieces as usize / 8]));
        assert!(encode(&have, MAX_BLOB_FRAME).is_ok());
    }

    #[test]
    fn later_release_may_say_what_this_one_skips() {
        assert_eq!(BlobAnswer::decode_body(0x83ff, b"news"), Ok(None));
        assert_eq!(BlobRequest::decode_body(0x837f, b"news"), Ok(None));
    }

    #[test]
    fn peers_beyond_the_limits_are_refused_and_addresses_of_nobody_left_out() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let good = address("192.0.2.7:4290");
        let nobody =
            ["0.0.0.0:4290", "192.0.2.7:0", "224.0.0.1:4290", "255.255.255.255:1", "[::]:1"].map(address);
        let announce = Announce { addresses: [&[good], &nobody[..]].concat() };
        assert_eq!(announce.dialable(), Some(vec![good]));
        assert_eq!(Announce { addresses: vec![good; MAX_ANNOUNCED + 1] }.dialable(), None);

        let provider =
            |addresses: &[SocketAddr]| Provider { peer: PeerId([1; 32]), addresses: addresses.to_vec() };
        let peers = Peers { providers: vec![provider(&[good]), provider(&nobody)] };
        assert_eq!(peers.dialable(), Some(vec![provider(&[good])]));
        assert_eq!(Peers { providers: vec![provider(&[good]); MAX_PEERS + 1] }.dialable(), None);
        assert_eq!(Peers { providers: vec![provider(&[good; MAX_ANNOUNCED + 1])] }.dialable(), None);
    }
}
