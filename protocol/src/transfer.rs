//! What a node tells of its transfers, so that people see what moves, from where and how fast.
//!
//! A report is complete, may be dropped, and only the latest counts. Not here: the transfers.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::PeerId;
use crate::origin::BlobName;

/// The most transfers of one report, and the most faults.
pub const MAX_TRANSFERS: usize = 32;
/// The most sources of one transfer.
pub const MAX_SOURCES: usize = 32;
/// The longest text in a report, in bytes.
pub const MAX_WORDS: usize = 256;

/// All that a node fetches at the moment, and who sent it wrong bytes lately.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfers {
    /// At most [`MAX_TRANSFERS`].
    pub transfers: Vec<Transfer>,
    /// At most [`MAX_TRANSFERS`], the latest last.
    pub faults: Vec<Fault>,
}

/// A blob that a node fetches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Which.
    pub name: BlobName,
    /// How many bytes it has.
    pub size: u64,
    /// How many of them are there and verified.
    pub here: u64,
    /// At most [`MAX_SOURCES`].
    pub sources: Vec<TransferSource>,
}

/// Whoever a blob is fetched from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferSource {
    /// Who.
    pub from: SourceName,
    /// Over which plane, such as `tls`; at most [`MAX_WORDS`] bytes.
    pub plane: String,
    /// How many bytes of the blob came from there.
    pub bytes: u64,
    /// How many a second come at the moment.
    pub rate: u64,
}

/// Who a source is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SourceName {
    /// A peer.
    Peer(PeerId),
    /// A host of the internet; at most [`MAX_WORDS`] bytes.
    Origin(String),
}

impl SourceName {
    /// Whether it is a peer.
    pub fn is_peer(&self) -> bool {
        matches!(self, Self::Peer(_))
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(peer) => f.write_str(&peer.fmt_short()),
            Self::Origin(host) => f.write_str(host),
        }
    }
}

/// A peer that sent wrong bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Which.
    pub peer: PeerId,
    /// Of which blob.
    pub blob: BlobName,
    /// What was wrong, in at most [`MAX_WORDS`] bytes.
    pub reason: String,
}

impl Transfers {
    /// The report with no more in it than may be.
    pub fn bounded(mut self) -> Self {
        self.transfers.truncate(MAX_TRANSFERS);
        for transfer in &mut self.transfers {
            transfer.here = transfer.here.min(transfer.size);
            transfer.sources.truncate(MAX_SOURCES);
            for source in &mut transfer.sources {
                shorten(&mut source.plane, MAX_WORDS);
                if let SourceName::Origin(host) = &mut source.from {
                    shorten(host, MAX_WORDS);
                }
            }
        }
        let early = self.faults.len().saturating_sub(MAX_TRANSFERS);
        self.faults.drain(..early);
        self.faults.iter_mut().for_each(|fault| shorten(&mut fault.reason, MAX_WORDS));
        self
    }
}

/// Cuts a text to so many bytes.
pub(crate) fn shorten(text: &mut String, longest: usize) {
    text.truncate(text.floor_char_boundary(longest));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::BlobHash;

    #[test]
    fn report_is_cut_to_its_limits_and_the_latest_faults_stay() {
        let long = "ü".repeat(MAX_WORDS);
        let source =
            TransferSource { from: SourceName::Origin(long.clone()), plane: long.clone(), bytes: 1, rate: 1 };
        let name = BlobName::Blake3(BlobHash([1; 32]));
        let transfer = Transfer { name, size: 10, here: 11, sources: vec![source; MAX_SOURCES + 1] };
        let fault = |number: u8| Fault { peer: PeerId([number; 32]), blob: name, reason: long.clone() };
        let report = Transfers {
            transfers: vec![transfer; MAX_TRANSFERS + 1],
            faults: (0..=MAX_TRANSFERS as u8).map(fault).collect(),
        }
        .bounded();
        assert_eq!((report.transfers.len(), report.faults.len()), (MAX_TRANSFERS, MAX_TRANSFERS));
        let Transfer { here, sources, .. } = &report.transfers[0];
        assert_eq!((*here, sources.len()), (10, MAX_SOURCES));
        assert_eq!((sources[0].plane.len(), report.faults[0].reason.len()), (MAX_WORDS, MAX_WORDS));
        assert_eq!(report.faults[MAX_TRANSFERS - 1].peer, PeerId([MAX_TRANSFERS as u8; 32]));
    }
}
