//! What a fetch fills: a blob whose hash tree is known, or will be another kind of file.
//!
//! Not here: where its pieces come from.

use protocol::wire::BlobRequest;
use protocol::{BlobName, BlobRef, SourceName};
use tokio::sync::watch;

use super::source::Part;
use crate::store::{PartialBlob, Pieces, StoreError};
use crate::tree::{Tree, pairs_within};

/// Something that is made whole of pieces of 1 MiB, in any order.
pub(crate) trait Target: Send + Sync + 'static {
    /// What it is called.
    fn name(&self) -> BlobName;

    /// How many bytes it has.
    fn size(&self) -> u64;

    /// How a conversation about it begins.
    fn opening(&self) -> BlobRequest;

    /// The pieces that are here.
    fn pieces(&self) -> Pieces;

    /// How many bytes those are.
    fn bytes(&self) -> u64;

    /// Changes whenever there are more pieces.
    fn growth(&self) -> watch::Receiver<()>;

    /// The blob whose upper pairs must come before its pieces; `None` once they are here, or if none are
    /// needed.
    fn lacks_outboard(&self) -> Option<BlobRef>;

    /// Keeps the upper pairs of an outboard that verified. It blocks on the disk.
    fn add_tree(&self, tree: Tree, upper: &[u8]) -> Result<(), StoreError>;

    /// Whether it takes pieces as a whole, because their parts cannot be told right from wrong.
    fn takes_whole_pieces(&self) -> bool;

    /// Keeps a part of a piece unless it is wrong, and says whether it was right as far as can be told yet.
    /// `bytes` begin with the part's pairs; what comes from the internet is whole pieces without any.
    /// The piece is here with its last part: whoever gives that gave those before it. The same part may
    /// come twice. It blocks on the disk.
    fn write_part(&self, part: Part, bytes: &[u8], from: &SourceName) -> Result<bool, StoreError>;
}

impl Target for PartialBlob {
    fn name(&self) -> BlobName {
        BlobName::Blake3(self.blob().hash)
    }

    fn size(&self) -> u64 {
        self.blob().size
    }

    fn opening(&self) -> BlobRequest {
        BlobRequest::Open(self.blob())
    }

    fn pieces(&self) -> Pieces {
        self.pieces()
    }

    fn bytes(&self) -> u64 {
        self.bytes()
    }

    fn growth(&self) -> watch::Receiver<()> {
        self.growth()
    }

    fn lacks_outboard(&self) -> Option<BlobRef> {
        self.needs_outboard().then(|| self.blob())
    }

    fn add_tree(&self, tree: Tree, upper: &[u8]) -> Result<(), StoreError> {
        self.add_tree(tree, upper)
    }

    fn takes_whole_pieces(&self) -> bool {
        false
    }

    fn write_part(&self, part: Part, bytes: &[u8], from: &SourceName) -> Result<bool, StoreError> {
        if let SourceName::Origin(_) = from {
            return self.write_part(part.piece, 0, &pairs_within(bytes, part.piece), bytes);
        }
        let (pairs, bytes) = bytes.split_at(part.pairs);
        self.write_part(part.piece, part.offset, pairs, bytes)
    }
}
