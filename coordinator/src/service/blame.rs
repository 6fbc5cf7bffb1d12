//! Whose fault it is that a run went without a blob.
//!
//! A grant names the coordinator as the last provider of all that a job needs, because everything came through it. Where
//! its store has lost something of that, no node is to blame. Not here: what follows from it (`state`).

use protocol::RunErrorKind;
use protocol::message::{Outcome, RunEnded};

use super::driver::Driver;

impl Driver {
    /// Has the failure of a run for want of a blob say whether the coordinator is to blame, whatever the node says.
    pub(super) fn blame(&self, ended: &mut RunEnded) {
        let Outcome::Failed(error) = &mut ended.outcome else { return };
        if !matches!(error.kind, RunErrorKind::MissingBlob | RunErrorKind::LostBlob) {
            return;
        }
        let needed = self.state.needed(ended.lease.job);
        let lost = needed.into_iter().find(|hash| !self.parts.blobs.contains(*hash));
        error.kind = if lost.is_some() { RunErrorKind::LostBlob } else { RunErrorKind::MissingBlob };
        if let Some(lost) = lost {
            let told = std::mem::take(&mut error.detail);
            error.detail = format!(
                "the coordinator no longer has blob `{lost}`: submit the job again, or deploy its workflow again; {told}"
            );
        }
    }
}
