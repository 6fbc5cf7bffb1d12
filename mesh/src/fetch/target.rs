//! What a fetch fills: a blob whose hash tree is known, or will be another kind of file.
//!
//! Not here: where its pieces come from.

use protocol::wire::BlobRequest;
use protocol::{BlobName, BlobRef, SourceName};

use super::source::Part;
use crate::store::{PartialBlob, Pieces, StoreError};
use crate::tree::Tree;

/// What is taken, verified and written at a time: a core's cache has it all the while.
const PART_SIZE: usize = 128 << 10;

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

    /// The blob whose outboard must come before its pieces; `None` once it is here, or if none is needed.
    fn lacks_outboard(&self) -> Option<BlobRef>;

    /// Keeps an outboard that verified. It blocks on the disk.
    fn add_outboard(&self, tree: Tree, outboard: &[u8]) -> Result<(), StoreError>;

    /// How many bytes of a piece are best kept at a time: whole groups, or a whole piece.
    fn part_size(&self) -> usize;

    /// Keeps a part of a piece unless it is wrong, and says whether it was right as far as can be told yet.
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

    fn lacks_outboard(&self) -> Option<BlobRef> {
        self.needs_outboard().then(|| self.blob())
    }

    fn add_outboard(&self, tree: Tree, outboard: &[u8]) -> Result<(), StoreError> {
        self.add_outboard(tree, outboard)
    }

    fn part_size(&self) -> usize {
        PART_SIZE
    }

    fn write_part(&self, part: Part, bytes: &[u8], _from: &SourceName) -> Result<bool, StoreError> {
        self.write_part(part.piece, part.offset, bytes)
    }
}
