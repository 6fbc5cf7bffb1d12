//! Who reads which range from the internet, in a test: a small, honest table in place of a coordinator.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use mesh::finder::{FindError, Finder, Found};
use protocol::message::{OriginLease, Provider};
use protocol::{BlobName, FileRef, PeerId, PieceRange};

/// The most pieces that one reader gets at a time.
const LONGEST: usize = 16;

/// The table, of one file.
#[derive(Default)]
pub(crate) struct Table {
    readers: Mutex<BTreeMap<PeerId, Reader>>,
    found: Mutex<Found>,
    offline: Mutex<bool>,
}

struct Reader {
    provider: Provider,
    held: BTreeSet<u64>,
    leased: BTreeSet<u64>,
}

impl Table {
    /// Whom this peer asks.
    pub(crate) fn finder(self: &Arc<Self>, provider: Provider) -> Arc<dyn Finder> {
        Arc::new(TableFinder { table: Arc::clone(self), provider })
    }

    /// The peer's session is gone.
    pub(crate) fn leave(&self, peer: PeerId) {
        self.readers.lock().expect("no test panics with it").remove(&peer);
    }

    /// Nobody answers any more.
    pub(crate) fn go_offline(&self) {
        *self.offline.lock().expect("no test panics with it") = true;
    }

    /// What is answered when somebody asks for the file or its blob.
    pub(crate) fn set_found(&self, found: Found) {
        *self.found.lock().expect("no test panics with it") = found;
    }

    /// How many pieces this peer holds.
    pub(crate) fn held(&self, peer: PeerId) -> usize {
        self.readers.lock().expect("no test panics with it").get(&peer).map_or(0, |reader| reader.held.len())
    }
}

struct TableFinder {
    table: Arc<Table>,
    provider: Provider,
}

#[async_trait]
impl Finder for TableFinder {
    async fn locate(&self, _name: &BlobName) -> Result<Found, FindError> {
        Ok(self.table.found.lock().expect("no test panics with it").clone())
    }

    async fn read_origin(
        &self,
        file: &FileRef,
        held: Vec<PieceRange>,
        wanted: u64,
    ) -> Result<OriginLease, FindError> {
        if *self.table.offline.lock().expect("no test panics with it") {
            return Err(FindError::Offline);
        }
        let pieces = file.pieces();
        let held: BTreeSet<u64> = held.iter().filter_map(|range| range.within(pieces)).flatten().collect();
        let mut readers = self.table.readers.lock().expect("no test panics with it");
        let mut leased =
            readers.remove(&self.provider.peer).map_or_else(BTreeSet::new, |reader| reader.leased);
        let mut taken = held.clone();
        for reader in readers.values() {
            taken.extend(reader.held.iter().chain(&reader.leased));
        }
        leased.retain(|piece| !taken.contains(piece) && wanted > 0);
        let left = (0..pieces).filter(|piece| !taken.contains(piece)).count();
        let fair = (left / (2 * (readers.len() + 1))).max(1);
        let goal = LONGEST.min(wanted as usize).min(fair);
        for piece in (0..pieces).filter(|piece| !taken.contains(piece)) {
            if leased.len() < goal {
                leased.insert(piece);
            }
        }
        let ranges = leased.iter().map(|piece| PieceRange { first: *piece, count: 1 }).collect();
        let others = readers.values().map(|reader| reader.provider.clone()).collect();
        let provider = self.provider.clone();
        readers.insert(self.provider.peer, Reader { provider, held, leased });
        Ok(OriginLease { request: 0, ranges, duration: Duration::from_secs(20), readers: others })
    }
}
