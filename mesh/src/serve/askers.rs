//! Who else fetches a blob from us, so that askers hear of each other and need us less.
//!
//! Kept as long as a link to the asker is open. What an asker says of itself is a hint, proven by whoever
//! dials it. Not here: whether it serves what it fetched.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard};

use protocol::message::Provider;
use protocol::wire::MAX_PEERS;
use protocol::{BlobName, PeerId};
use tokio::sync::watch;

/// The most askers that are remembered of one blob; a newer one takes the place of the oldest.
const MAX_ASKERS: usize = 256;
/// The most blobs whose askers are remembered.
const MAX_BLOBS: usize = 4096;

/// The askers of every blob that is served.
#[derive(Default)]
pub(crate) struct Askers {
    blobs: Mutex<HashMap<BlobName, Asked>>,
    /// Changes when anybody was added.
    added: watch::Sender<()>,
}

/// The askers of one blob.
#[derive(Default)]
struct Asked {
    /// Counts up with every asker, so that news are told once.
    news: u64,
    /// The newest last.
    providers: Vec<Provider>,
}

impl Askers {
    /// Remembers an asker of a blob that is here.
    pub(super) fn add(&self, name: BlobName, peer: PeerId, addresses: Vec<SocketAddr>) {
        let mut blobs = self.lock();
        if addresses.is_empty() || (blobs.len() >= MAX_BLOBS && !blobs.contains_key(&name)) {
            return;
        }
        let asked = blobs.entry(name).or_default();
        let provider = Provider { peer, addresses };
        if asked.providers.contains(&provider) {
            return;
        }
        asked.providers.retain(|provider| provider.peer != peer);
        if asked.providers.len() >= MAX_ASKERS {
            asked.providers.remove(0);
        }
        asked.providers.push(provider);
        asked.news += 1;
        self.added.send_replace(());
    }

    /// Changes when there may be news of any blob.
    pub(crate) fn added(&self) -> watch::Receiver<()> {
        self.added.subscribe()
    }

    /// The newest askers of a blob besides this one, if there is news since `told`, which is brought up
    /// to date.
    pub(crate) fn news(&self, name: &BlobName, peer: PeerId, told: &mut u64) -> Vec<Provider> {
        let blobs = self.lock();
        let Some(asked) = blobs.get(name).filter(|asked| asked.news != *told) else { return Vec::new() };
        *told = asked.news;
        let others = asked.providers.iter().rev().filter(|provider| provider.peer != peer);
        others.take(MAX_PEERS).cloned().collect()
    }

    /// Forgets a peer that is gone.
    pub(crate) fn forget(&self, peer: PeerId) {
        self.lock().retain(|_, asked| {
            asked.providers.retain(|provider| provider.peer != peer);
            !asked.providers.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BlobName, Asked>> {
        self.blobs.lock().expect("nothing panics while it holds them")
    }
}

#[cfg(test)]
mod tests {
    use protocol::BlobHash;

    use super::*;

    const BLOB: BlobName = BlobName::Blake3(BlobHash([7; 32]));

    fn add(askers: &Askers, peer: u16) {
        askers.add(BLOB, name(peer), vec![SocketAddr::from(([192, 0, 2, 1], peer + 1))]);
    }

    fn name(peer: u16) -> PeerId {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&peer.to_le_bytes());
        PeerId(bytes)
    }

    fn told(askers: &Askers, peer: u16, told: &mut u64) -> Vec<PeerId> {
        askers.news(&BLOB, name(peer), told).into_iter().map(|provider| provider.peer).collect()
    }

    #[test]
    fn askers_hear_of_each_other_once_and_not_of_those_who_left() {
        let askers = Askers::default();
        let mut known = 0;
        add(&askers, 1);
        assert_eq!(told(&askers, 1, &mut known), []);
        add(&askers, 2);
        add(&askers, 3);
        assert_eq!(told(&askers, 1, &mut known), [name(3), name(2)]);
        add(&askers, 3);
        assert_eq!(told(&askers, 1, &mut known), [], "that is no news");
        askers.forget(name(3));
        assert_eq!(told(&askers, 1, &mut 0), [name(2)]);
    }

    #[test]
    fn a_thousand_askers_are_neither_kept_nor_told() {
        let askers = Askers::default();
        (0..1000).for_each(|peer| add(&askers, peer));
        assert_eq!(askers.lock()[&BLOB].providers.len(), MAX_ASKERS);
        assert_eq!(told(&askers, 999, &mut 0).len(), MAX_PEERS);
    }
}
