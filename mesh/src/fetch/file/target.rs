//! A file that only its SHA-256 names, as something that is filled with pieces.
//!
//! Not here: how it is proven.

use std::sync::Arc;

use protocol::wire::BlobRequest;
use protocol::{BlobName, BlobRef, SourceName};
use tokio::sync::watch;

use crate::fetch::source::Part;
use crate::fetch::target::Target;
use crate::store::{Giver, Pieces, StoreError, UnprovenFile};
use crate::tree::Tree;

/// The file while it is filled.
pub(super) struct FileTarget(pub(super) Arc<UnprovenFile>);

impl Target for FileTarget {
    fn name(&self) -> BlobName {
        self.0.file().sha256.into()
    }

    fn size(&self) -> u64 {
        self.0.file().size
    }

    fn opening(&self) -> BlobRequest {
        BlobRequest::OpenFile(self.0.file())
    }

    fn pieces(&self) -> Pieces {
        self.0.pieces()
    }

    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn growth(&self) -> watch::Receiver<()> {
        self.0.grown()
    }

    fn lacks_outboard(&self) -> Option<BlobRef> {
        None
    }

    fn add_tree(&self, _tree: Tree, _upper: &[u8]) -> Result<(), StoreError> {
        debug_assert!(false, "none is lacking");
        Ok(())
    }

    fn takes_whole_pieces(&self) -> bool {
        true
    }

    fn write_part(&self, part: Part, bytes: &[u8], from: &SourceName) -> Result<bool, StoreError> {
        debug_assert_eq!(part.offset, 0, "pieces come whole");
        let giver = match from {
            SourceName::Peer(peer) => Giver::Peer(*peer),
            SourceName::Origin(_) => Giver::Origin,
        };
        self.0.write_piece(part.piece, bytes, giver)
    }
}
