//! Turns to send: so many at once, and who has fewest is next.
//!
//! Not here: what is sent in a turn.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use protocol::PeerId;
use tokio::sync::oneshot;

/// Who sends at the moment, and who waits.
#[derive(Debug)]
pub(crate) struct Turns(Mutex<State>);

#[derive(Debug)]
struct State {
    most: usize,
    taken: HashMap<PeerId, usize>,
    /// In the order in which they came. Each is a conversation, whose number is bounded.
    waiting: VecDeque<(PeerId, oneshot::Sender<Turn>)>,
}

/// A turn of this peer, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Arc<Turns>,
    peer: PeerId,
}

impl Turns {
    /// At most so many turns at once.
    pub(crate) fn new(most: usize) -> Self {
        Self(Mutex::new(State { most: most.max(1), taken: HashMap::new(), waiting: VecDeque::new() }))
    }

    /// Changes how many there may be at once.
    pub(crate) fn set(self: &Arc<Self>, most: usize) {
        self.lock().most = most.max(1);
        self.give();
    }

    /// Waits for a turn of this peer.
    pub(crate) async fn take(self: &Arc<Self>, peer: PeerId) -> Turn {
        let receiver = {
            let mut state = self.lock();
            if state.waiting.is_empty() && state.has_room() {
                state.count(peer);
                return Turn { turns: Arc::clone(self), peer };
            }
            let (sender, receiver) = oneshot::channel();
            state.waiting.push_back((peer, sender));
            receiver
        };
        receiver.await.expect("turns outlive whoever waits for one")
    }

    /// How many wait for one.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Gives turns to those who wait, as far as there are any.
    fn give(self: &Arc<Self>) {
        loop {
            let (peer, sender) = {
                let mut state = self.lock();
                let Some(next) = state.next() else { return };
                state.count(next.0);
                next
            };
            // One that is wanted no more is dropped here, and counted back by that.
            drop(sender.send(Turn { turns: Arc::clone(self), peer }));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the turns")
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.taken.values().sum::<usize>() < self.most
    }

    fn count(&mut self, peer: PeerId) {
        *self.taken.entry(peer).or_default() += 1;
    }

    /// Takes the one out of those who wait whose peer has the fewest turns.
    fn next(&mut self) -> Option<(PeerId, oneshot::Sender<Turn>)> {
        if !self.has_room() {
            return None;
        }
        let turns = |peer: &PeerId| self.taken.get(peer).copied().unwrap_or(0);
        let fewest = self.waiting.iter().enumerate().min_by_key(|(_, (peer, _))| turns(peer));
        let (index, _) = fewest?;
        self.waiting.remove(index)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut state = self.turns.lock();
            if let Some(taken) = state.taken.get_mut(&self.peer) {
                *taken -= 1;
                if *taken == 0 {
                    state.taken.remove(&self.peer);
                }
            }
        }
        self.turns.give();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn turns_go_to_whoever_has_fewest_and_not_to_those_who_left() {
        let turns = Arc::new(Turns::new(2));
        let [greedy, modest, gone] = [1, 2, 3].map(|peer| PeerId([peer; 32]));
        let take = |peer| Box::pin(turns.take(peer));
        let first = take(greedy).now_or_never().expect("there is room");
        let _second = take(greedy).now_or_never().expect("there is room");
        let (mut third, mut left, mut other) = (take(greedy), take(gone), take(modest));
        for waiting in [&mut third, &mut left, &mut other] {
            assert!(waiting.now_or_never().is_none());
        }
        drop(left);
        drop(first);
        let other = (&mut other).now_or_never().expect("the modest one has none");
        assert!((&mut third).now_or_never().is_none());
        drop(other);
        assert!((&mut third).now_or_never().is_some());
        turns.set(3);
        assert!(take(modest).now_or_never().is_some());
    }
}
