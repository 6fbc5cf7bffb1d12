//! The providers of a blob that a fetch hears of while it goes on.
//!
//! Not here: whether they hold anything; whoever is asked proves that.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard};

use protocol::PeerId;
use protocol::message::Provider;
use tokio::sync::Notify;

/// The most providers that one fetch ever asks because others named them.
const MAX_LEARNED: usize = 64;

/// Providers that were named and not asked yet.
pub(super) struct Learned {
    state: Mutex<State>,
    added: Notify,
}

#[derive(Default)]
struct State {
    known: HashSet<PeerId>,
    learned: usize,
    waiting: Vec<Provider>,
}

impl Learned {
    /// Nothing, apart from these peers, who need not be named.
    pub(super) fn besides(known: impl IntoIterator<Item = PeerId>) -> Self {
        let known = known.into_iter().collect();
        Self { state: Mutex::new(State { known, ..State::default() }), added: Notify::new() }
    }

    /// Takes note that this peer need not be named.
    pub(super) fn knows(&self, peer: PeerId) {
        self.lock().known.insert(peer);
    }

    /// Takes note of those who are new.
    pub(super) fn add(&self, providers: Vec<Provider>) {
        let mut state = self.lock();
        for provider in providers {
            if state.learned < MAX_LEARNED && state.known.insert(provider.peer) {
                state.learned += 1;
                state.waiting.push(provider);
            }
        }
        if !state.waiting.is_empty() {
            self.added.notify_one();
        }
    }

    /// Waits until somebody may have been added.
    pub(super) async fn added(&self) {
        self.added.notified().await;
    }

    /// Those who were named since the last call.
    pub(super) fn take(&self) -> Vec<Provider> {
        std::mem::take(&mut self.lock().waiting)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the state")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider(peer: u8) -> Provider {
        Provider { peer: PeerId([peer; 32]), addresses: Vec::new() }
    }

    #[test]
    fn each_provider_is_learned_once_and_a_flood_is_cut_off() {
        let learned = Learned::besides([PeerId([1; 32])]);
        learned.add(vec![provider(1), provider(2), provider(2)]);
        assert_eq!(learned.take(), [provider(2)]);
        learned.add(vec![provider(2)]);
        assert_eq!(learned.take(), []);
        learned.add((3..=255).map(provider).collect());
        assert_eq!(learned.take().len(), MAX_LEARNED - 1);
    }
}
