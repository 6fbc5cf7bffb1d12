//! The SHA-256 of a file, computed from its beginning as far as its pieces are there without a gap.
//!
//! It runs on one thread that may block, for as long as there is a next piece, and never in the way of those
//! who bring pieces. Not here: the bytes.

use std::sync::{Mutex, MutexGuard};

use protocol::Sha256;
use sha2::Digest;
use tokio::sync::watch;

use crate::store::StoreError;

/// How far the SHA-256 has come.
#[derive(Debug)]
pub(super) struct Follower {
    count: u64,
    state: Mutex<Following>,
    /// Changes with every piece.
    went_on: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Following {
    is_enabled: bool,
    is_running: bool,
    hasher: sha2::Sha256,
    /// The piece that is hashed next.
    next: u64,
    /// How often it began anew; what a thread computed before that is of no use.
    epoch: u64,
    failure: Option<StoreError>,
}

impl Follower {
    /// Of a file of `count` pieces.
    pub(super) fn new(count: u64) -> Self {
        Self { count, state: Mutex::default(), went_on: watch::Sender::new(()) }
    }

    pub(super) fn enable(&self) {
        self.lock().is_enabled = true;
    }

    /// Begins anew: pieces were taken back.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        (state.hasher, state.next, state.failure) = (sha2::Sha256::new(), 0, None);
        state.epoch += 1;
    }

    /// Whether [`Self::run`] is to be called now: there is a next piece, and nobody does it already.
    pub(super) fn begins(&self, is_there: impl Fn(u64) -> bool) -> bool {
        let mut state = self.lock();
        let begins = state.is_enabled && !state.is_running && is_there(state.next);
        state.is_running |= begins;
        begins
    }

    /// Hashes as long as the next piece is there.
    pub(super) fn run(
        &self,
        is_there: impl Fn(u64) -> bool,
        read: impl Fn(u64, &mut Vec<u8>) -> Result<(), StoreError>,
    ) {
        let mut bytes = Vec::new();
        loop {
            let (piece, epoch, mut hasher) = {
                let mut state = self.lock();
                // Asked while the lock is held: whoever brings the piece then looks whether this runs.
                if state.failure.is_some() || !is_there(state.next) {
                    state.is_running = false;
                    break;
                }
                (state.next, state.epoch, std::mem::take(&mut state.hasher))
            };
            let result = read(piece, &mut bytes);
            hasher.update(&bytes);
            let mut state = self.lock();
            if state.epoch == epoch {
                (state.hasher, state.next) = (hasher, piece + 1);
                state.failure = result.err();
            }
            drop(state);
            self.went_on.send_replace(());
        }
        self.went_on.send_replace(());
    }

    /// The SHA-256, once all pieces are there and hashed; `None` where it is not computed.
    pub(super) async fn finish(&self) -> Result<Option<Sha256>, StoreError> {
        let mut went_on = self.went_on.subscribe();
        loop {
            {
                let mut state = self.lock();
                if !state.is_enabled {
                    return Ok(None);
                }
                if let Some(failure) = state.failure.take() {
                    return Err(failure);
                }
                if state.next >= self.count {
                    return Ok(Some(Sha256(state.hasher.clone().finalize().into())));
                }
            }
            went_on.changed().await.map_err(|_| StoreError::Abandoned)?;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Following> {
        self.state.lock().expect("nothing panics while it holds the state")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_are_hashed_from_the_beginning_and_anew_after_some_were_taken_back() {
        let follower = Follower::new(3);
        let run = |there: u64, bytes: &[u8; 3]| {
            let is_there = |piece| piece < there;
            if follower.begins(is_there) {
                follower.run(is_there, |piece, buffer| {
                    *buffer = vec![bytes[piece as usize]];
                    Ok(())
                });
            }
        };
        let expected = |bytes: &[u8]| Sha256(sha2::Sha256::digest(bytes).into());
        run(3, b"abc");
        assert_eq!(follower.finish().await.expect("nothing failed"), None, "it is not asked for");
        follower.enable();
        run(2, b"abc");
        run(3, b"xxc");
        assert_eq!(follower.finish().await.expect("nothing failed"), Some(expected(b"abc")));
        follower.reset();
        run(3, b"axc");
        assert_eq!(follower.finish().await.expect("nothing failed"), Some(expected(b"axc")));
    }
}
