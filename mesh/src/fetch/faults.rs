//! Who sent wrong bytes: not asked for that blob again for a while.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use protocol::{BlobName, PeerId};
use tokio::time::Instant;

/// How many are remembered.
const MAX_FAULTS: usize = 1024;
/// How long a provider is not asked; its disk may be mended after that.
const FAULT_LIFETIME: Duration = Duration::from_secs(600);

/// Faults of providers, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Faults(VecDeque<Fault>);

#[derive(Debug)]
struct Fault {
    peer: PeerId,
    name: BlobName,
    reason: String,
    noticed: Instant,
}

impl Fault {
    fn is_recent(&self) -> bool {
        self.noticed.elapsed() < FAULT_LIFETIME
    }
}

impl Faults {
    pub(super) fn add(&mut self, peer: PeerId, name: BlobName, reason: String) {
        if self.0.len() == MAX_FAULTS {
            self.0.pop_front();
        }
        self.0.push_back(Fault { peer, name, reason, noticed: Instant::now() });
    }

    /// What the peer did wrong with this blob lately.
    pub(super) fn of(&self, peer: PeerId, name: &BlobName) -> Option<String> {
        let fault = self.0.iter().rev().find(|fault| fault.peer == peer && fault.name == *name)?;
        fault.is_recent().then(|| fault.reason.clone())
    }

    /// What the peer did wrong lately, by the blob that it was asked for.
    pub(super) fn by(&self, peer: PeerId) -> HashMap<BlobName, String> {
        let lately = self.0.iter().filter(|fault| fault.peer == peer && fault.is_recent());
        lately.map(|fault| (fault.name, fault.reason.clone())).collect()
    }

    pub(super) fn all(&self) -> Vec<(PeerId, BlobName, String)> {
        self.0.iter().map(|fault| (fault.peer, fault.name, fault.reason.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use protocol::BlobHash;

    use super::*;

    #[test]
    fn faults_are_bounded_and_the_latest_stay() {
        let mut faults = Faults::default();
        let name = |index: usize| BlobName::Blake3(BlobHash::of(&index.to_le_bytes()));
        for index in 0..MAX_FAULTS + 1 {
            faults.add(PeerId([1; 32]), name(index), "wrong".to_owned());
        }
        assert_eq!(faults.all().len(), MAX_FAULTS);
        assert_eq!(faults.of(PeerId([1; 32]), &name(0)), None);
        assert_eq!(faults.of(PeerId([1; 32]), &name(MAX_FAULTS)).as_deref(), Some("wrong"));
        assert_eq!(faults.of(PeerId([2; 32]), &name(MAX_FAULTS)), None);
    }
}
