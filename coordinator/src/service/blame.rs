//! Whose fault it is that a run went without a blob.
//!
//! A grant names the coordinator as the last provider of all that a job needs, because everything came through it. Where
//! its store has lost something of that and no other node has it, no node is to blame. Not here: what follows from it
//! (`state`).

use protocol::message::{Outcome, RunEnded};
use protocol::{BlobHash, PeerId, RunErrorKind};

use super::driver::Driver;

impl Driver {
    /// Has the failure of a run for want of a blob say whether the coordinator is to blame, whatever the node says.
    pub(super) fn blame(&self, node: PeerId, ended: &mut RunEnded) {
        let Outcome::Failed(error) = &mut ended.outcome else { return };
        if !matches!(error.kind, RunErrorKind::MissingBlob | RunErrorKind::LostBlob) {
            return;
        }
        let needed = self.state.needed(ended.lease.job);
        let is_lost = |hash: &BlobHash| !self.parts.blobs.contains(*hash) && !self.state.is_held(*hash, node);
        let lost = needed.into_iter().find(is_lost);
        error.kind = if lost.is_some() { RunErrorKind::LostBlob } else { RunErrorKind::MissingBlob };
        if let Some(lost) = lost {
            let told = std::mem::take(&mut error.detail);
            error.detail = format!(
                "the coordinator no longer has blob `{lost}`: submit the job again, or deploy its workflow again; {told}"
            );
        }
    }
}
