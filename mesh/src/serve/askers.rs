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
    state: Mutex<State>,
    /// Changes when anybody was added.
    added: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    /// How many were added so far, to any blob.
    count: u64,
    blobs: HashMap<BlobName, Vec<Numbered>>,
}

/// An asker of one blob, and the how manieth it was: those of a blob stand in this order.
struct Numbered {
    number: u64,
    provider: Provider,
}

impl Askers {
    /// Remembers an asker of a blob that is here. One that says other addresses keeps its number, so that nobody
    /// hears of it twice.
    pub(super) fn add(&self, name: BlobName, peer: PeerId, addresses: Vec<SocketAddr>) {
        let mut state = self.lock();
        let State { count, blobs } = &mut *state;
        if addresses.is_empty() || (blobs.len() >= MAX_BLOBS && !blobs.contains_key(&name)) {
            return;
        }
        let asked = blobs.entry(name).or_default();
        if let Some(known) = asked.iter_mut().find(|asker| asker.provider.peer == peer) {
            known.provider.addresses = addresses;
            return;
        }
        if asked.len() >= MAX_ASKERS {
            asked.remove(0);
        }
        *count += 1;
        asked.push(Numbered { number: *count, provider: Provider { peer, addresses } });
        drop(state);
        self.added.send_replace(());
    }

    /// Changes when there may be news of any blob.
    pub(crate) fn added(&self) -> watch::Receiver<()> {
        self.added.subscribe()
    }

    /// The newest askers of a blob besides this one, of those that came after `told`, which is brought up to
    /// date.
    pub(crate) fn news(&self, name: &BlobName, peer: PeerId, told: &mut u64) -> Vec<Provider> {
        let state = self.lock();
        let asked = state.blobs.get(name).map_or(&[][..], Vec::as_slice);
        let news = asked.iter().rev().take_while(|asker| asker.number > *told);
        let others = news.map(|asker| &asker.provider).filter(|provider| provider.peer != peer);
        let others = others.take(MAX_PEERS).cloned().collect();
        *told = state.count;
        others
    }

    /// Forgets a peer that is gone.
    pub(crate) fn forget(&self, peer: PeerId) {
        self.lock().blobs.retain(|_, asked| {
            asked.retain(|asker| asker.provider.peer != peer);
            !asked.is_empty()
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds them")
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
        add(&askers, 4);
        assert_eq!(told(&askers, 1, &mut known), [name(4)], "the others are no news any more");
    }

    #[test]
    fn asker_that_says_other_addresses_again_and_again_is_told_of_once() {
        let askers = Askers::default();
        let addresses = |port| vec![SocketAddr::from(([192, 0, 2, 1], port))];
        let mut known = 0;
        askers.add(BLOB, name(2), addresses(1));
        assert_eq!(told(&askers, 1, &mut known), [name(2)]);
        let added = askers.added();
        for port in 2..100 {
            askers.add(BLOB, name(2), addresses(port));
            assert_eq!(told(&askers, 1, &mut known), []);
        }
        assert!(!added.has_changed().expect("the askers are here"), "nobody looks for news in vain");
        assert_eq!(
            askers.news(&BLOB, name(1), &mut 0)[0].addresses,
            addresses(99),
            "a new one hears the last"
        );
    }

    #[test]
    fn asker_of_a_blob_that_all_others_left_is_news() {
        let askers = Askers::default();
        let mut known = 0;
        (2..5).for_each(|peer| add(&askers, peer));
        assert_eq!(told(&askers, 1, &mut known).len(), 3);
        (2..5).for_each(|peer| askers.forget(name(peer)));
        add(&askers, 6);
        assert_eq!(told(&askers, 1, &mut known), [name(6)]);
    }

    #[test]
    fn a_thousand_askers_are_neither_kept_nor_told() {
        let askers = Askers::default();
        (0..1000).for_each(|peer| add(&askers, peer));
        assert_eq!(askers.lock().blobs[&BLOB].len(), MAX_ASKERS);
        assert_eq!(told(&askers, 999, &mut 0).len(), MAX_PEERS);
    }
}
