//! A conversation about many small blobs: each request is answered blob by blob.

use protocol::wire::{BlobAnswer, BlobRequest, GetSmall, MAX_SMALL, Small};
use protocol::{BlobRef, PIECE_SIZE};

use super::{Conversation, ServeError};
use crate::store::BlobStore;

/// How many bytes are read before they are sent.
const READ_AHEAD: u64 = 4 << 20;

impl Conversation {
    /// Answers this request, and whatever follows it.
    pub(super) async fn serve_small(&mut self, first: GetSmall, store: &BlobStore) -> Result<(), ServeError> {
        let mut next = Some(BlobRequest::GetSmall(first));
        while let Some(request) = next {
            let BlobRequest::GetSmall(GetSmall { blobs }) = request else {
                return Err(ServeError::OutOfTurn);
            };
            let is_large = |blob: &BlobRef| blob.size > PIECE_SIZE;
            if blobs.len() > MAX_SMALL || blobs.iter().any(is_large) {
                return Err(ServeError::OutOfTurn);
            }
            let mut left = blobs.as_slice();
            while !left.is_empty() {
                let (now, later) = left.split_at(count_ahead(left));
                for bytes in store.read_small(now.to_vec()).await? {
                    let small = BlobAnswer::Small(Small { found: bytes.is_some() });
                    match bytes {
                        Some(bytes) => self.send_in_turn(Some(small), &bytes).await?,
                        None => self.answer(&small, &[]).await?,
                    }
                }
                left = later;
            }
            next = self.next().await?;
        }
        Ok(())
    }
}

/// How many of the first blobs are read at once: one at least.
fn count_ahead(blobs: &[BlobRef]) -> usize {
    let mut bytes = 0;
    let fits = |blob: &&BlobRef| {
        bytes += blob.size;
        bytes <= READ_AHEAD
    };
    blobs.iter().take_while(fits).count().max(1)
}

#[cfg(test)]
mod tests {
    use protocol::BlobHash;

    use super::*;

    #[test]
    fn blobs_are_read_ahead_up_to_a_limit_and_one_at_least() {
        let blob = |size| BlobRef { hash: BlobHash([1; 32]), size };
        assert_eq!(count_ahead(&[blob(0); 9]), 9);
        assert_eq!(count_ahead(&[blob(PIECE_SIZE); 9]), 4);
        assert_eq!(count_ahead(&[blob(READ_AHEAD + 1), blob(0)]), 1);
    }
}
