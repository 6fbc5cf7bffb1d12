//! What a node fetches, and who sent it wrong bytes, as JSON.

use protocol::SourceName;
use serde::Serialize;
use utoipa::ToSchema;

/// A blob that a node fetches.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Transfer {
    /// Its BLAKE3 hash in hex, or `sha256:` and its SHA-256.
    blob: String,
    /// How many bytes it has.
    size: u64,
    /// How many of them are there and verified.
    here: u64,
    /// From whom it comes.
    sources: Vec<Source>,
}

/// Whoever a blob is fetched from.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TransferSource)]
pub(crate) struct Source {
    /// The peer; null for a host of the internet.
    #[schema(required)]
    peer: Option<String>,
    /// The host of the internet; null for a peer.
    #[schema(required)]
    host: Option<String>,
    /// Over which plane, such as `tls`.
    plane: String,
    /// How many bytes came from there.
    bytes: u64,
    /// How many bytes a second come at the moment.
    rate: u64,
}

/// A peer that sent wrong bytes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TransferFault)]
pub(crate) struct Fault {
    /// Its peer id.
    peer: String,
    /// Of which blob.
    blob: String,
    /// What was wrong.
    reason: String,
}

impl From<protocol::Transfer> for Transfer {
    fn from(transfer: protocol::Transfer) -> Self {
        let protocol::Transfer { name, size, here, sources } = transfer;
        Self { blob: name.to_string(), size, here, sources: sources.into_iter().map(Source::from).collect() }
    }
}

impl From<protocol::TransferSource> for Source {
    fn from(source: protocol::TransferSource) -> Self {
        let protocol::TransferSource { from, plane, bytes, rate } = source;
        let (peer, host) = match from {
            SourceName::Peer(peer) => (Some(peer.to_string()), None),
            SourceName::Origin(host) => (None, Some(host)),
        };
        Self { peer, host, plane, bytes, rate }
    }
}

impl From<protocol::Fault> for Fault {
    fn from(fault: protocol::Fault) -> Self {
        let protocol::Fault { peer, blob, reason } = fault;
        Self { peer: peer.to_string(), blob: blob.to_string(), reason }
    }
}
