//! Blobs that nodes are asked to fetch and pin, so that whoever brought them may go: which nodes are asked.
//!
//! A wish lasts a while and is made again as long as somebody waits for it; nothing of it is written down,
//! because what nodes have pinned they remember themselves. Pure; not here: who waits.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use protocol::{BlobHash, BlobRef, PeerId};

/// The most wishes at a time.
const MAX_WISHES: usize = 1024;
/// How long a wish lasts that is not made again.
const WISH: Duration = Duration::from_secs(60);
/// How long a node gets to begin, before another is asked in its place.
const BEGIN: Duration = Duration::from_secs(30);
/// How long after its refusal a node may be asked again.
const AFTER_REFUSAL: Duration = Duration::from_secs(120);

/// All wishes.
#[derive(Debug, Default)]
pub(crate) struct Keeps {
    wishes: BTreeMap<BlobHash, Wish>,
}

/// That so many nodes keep a blob.
#[derive(Debug)]
struct Wish {
    blob: BlobRef,
    copies: usize,
    /// Who brought it: its own copy does not count.
    author: Option<PeerId>,
    until: Duration,
    asked: BTreeMap<PeerId, Asked>,
}

/// A node that was asked.
#[derive(Debug)]
struct Asked {
    at: Duration,
    refused: Option<String>,
}

/// A node, as far as keeping a blob is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Who.
    pub(crate) peer: PeerId,
    /// How many bytes it can still take.
    pub(crate) room: u64,
    /// Whether it holds the blob.
    pub(crate) holds: bool,
    /// Whether it has pinned it.
    pub(crate) pinned: bool,
    /// Whether it is fetching it.
    pub(crate) fetches: bool,
}

/// How a wish stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// How many nodes are to keep it.
    pub(crate) copies: usize,
    /// Who was asked and does not, and why.
    pub(crate) refused: Vec<(PeerId, String)>,
}

impl Keeps {
    /// Wishes that so many nodes beside the author keep a blob, or wishes it again. Says whether there is
    /// room for one more wish.
    pub(crate) fn wish(
        &mut self,
        blob: BlobRef,
        copies: usize,
        author: Option<PeerId>,
        now: Duration,
    ) -> bool {
        if self.wishes.len() >= MAX_WISHES && !self.wishes.contains_key(&blob.hash) {
            return false;
        }
        let fresh = || Wish { blob, copies, author, until: now, asked: BTreeMap::new() };
        let wish = self.wishes.entry(blob.hash).or_insert_with(fresh);
        (wish.blob, wish.copies, wish.author, wish.until) = (blob, copies, author, now + WISH);
        true
    }

    /// Forgets wishes that nobody makes any more, and gives the others.
    pub(crate) fn wished(&mut self, now: Duration) -> Vec<BlobRef> {
        self.wishes.retain(|_, wish| wish.until > now);
        self.wishes.values().map(|wish| wish.blob).collect()
    }

    /// Whom to ask now for a blob, out of all nodes that are there: those that hold it already, then those
    /// with most room.
    pub(crate) fn plan(&mut self, blob: BlobRef, candidates: &[Candidate], now: Duration) -> Vec<PeerId> {
        let Some(wish) = self.wishes.get_mut(&blob.hash) else { return Vec::new() };
        for node in candidates.iter().filter(|node| node.fetches) {
            if let Some(asked) = wish.asked.get_mut(&node.peer).filter(|asked| asked.refused.is_none()) {
                asked.at = now;
            }
        }
        wish.asked.retain(|_, asked| {
            let patience = if asked.refused.is_some() { AFTER_REFUSAL } else { WISH };
            now.saturating_sub(asked.at) < patience
        });
        let others = candidates.iter().filter(|node| Some(node.peer) != wish.author);
        let is_at_work = |node: &Candidate| {
            let asked = wish.asked.get(&node.peer).filter(|asked| asked.refused.is_none());
            asked.is_some_and(|asked| now.saturating_sub(asked.at) < BEGIN)
        };
        let counted = others.clone().filter(|node| node.pinned || is_at_work(node)).count();
        let can = |node: &&Candidate| {
            let was_asked = wish.asked.contains_key(&node.peer);
            !node.pinned && !was_asked && (node.holds || node.room >= blob.size)
        };
        let mut able: Vec<&Candidate> = others.filter(can).collect();
        able.sort_by_key(|node| (Reverse(node.holds), Reverse(node.room), node.peer));
        able.truncate(wish.copies.saturating_sub(counted));
        let chosen: Vec<PeerId> = able.into_iter().map(|node| node.peer).collect();
        wish.asked.extend(chosen.iter().map(|peer| (*peer, Asked { at: now, refused: None })));
        chosen
    }

    /// A node that was asked does not.
    pub(crate) fn refused(&mut self, peer: PeerId, hash: BlobHash, reason: String, now: Duration) {
        let asked = self.wishes.get_mut(&hash).and_then(|wish| wish.asked.get_mut(&peer));
        if let Some(asked) = asked {
            *asked = Asked { at: now, refused: Some(reason) };
        }
    }

    /// How the wish for a blob stands.
    pub(crate) fn standing(&self, hash: BlobHash) -> Option<Standing> {
        let wish = self.wishes.get(&hash)?;
        let refused = |(peer, asked): (&PeerId, &Asked)| Some((*peer, asked.refused.clone()?));
        Some(Standing { copies: wish.copies, refused: wish.asked.iter().filter_map(refused).collect() })
    }

    /// A node's session is gone: whatever it was asked, another is asked in its place.
    pub(crate) fn leave(&mut self, peer: PeerId) {
        self.wishes.values_mut().for_each(|wish| drop(wish.asked.remove(&peer)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: BlobRef = BlobRef { hash: BlobHash([1; 32]), size: 100 };

    fn peer(seed: u8) -> PeerId {
        PeerId([seed; 32])
    }

    fn node(seed: u8, room: u64) -> Candidate {
        Candidate { peer: peer(seed), room, holds: false, pinned: false, fetches: false }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn wished(author: u8) -> Keeps {
        let mut keeps = Keeps::default();
        assert!(keeps.wish(BLOB, 2, Some(peer(author)), seconds(0)));
        keeps
    }

    #[test]
    fn those_with_most_room_are_asked_once_and_the_author_never() {
        let mut keeps = wished(9);
        let nodes = [node(1, 99), node(2, 200), node(3, 300), node(4, 400), node(9, 1000)];
        assert_eq!(keeps.plan(BLOB, &nodes, seconds(0)), [peer(4), peer(3)]);
        assert_eq!(keeps.plan(BLOB, &nodes, seconds(1)), []);
        let pinned = [Candidate { pinned: true, ..node(2, 0) }, node(3, 300)];
        assert_eq!(wished(9).plan(BLOB, &pinned, seconds(0)), [peer(3)]);
        let holding = [node(1, 500), Candidate { holds: true, ..node(2, 0) }, node(3, 300)];
        assert_eq!(wished(9).plan(BLOB, &holding, seconds(0)), [peer(2), peer(1)], "it need not fetch it");
    }

    #[test]
    fn another_is_asked_for_one_that_refuses_vanishes_or_does_not_begin() {
        let nodes = [node(1, 200), node(2, 300), node(3, 400), node(4, 100)];
        let mut keeps = wished(9);
        assert_eq!(keeps.plan(BLOB, &nodes, seconds(0)), [peer(3), peer(2)]);
        keeps.refused(peer(3), BLOB.hash, "over its quota".to_owned(), seconds(1));
        assert_eq!(keeps.plan(BLOB, &nodes, seconds(1)), [peer(1)]);
        assert_eq!(
            keeps.standing(BLOB.hash).expect("wished").refused,
            [(peer(3), "over its quota".to_owned())]
        );
        keeps.leave(peer(2));
        assert_eq!(keeps.plan(BLOB, &nodes[..1], seconds(2)), []);
        // One that fetches is waited for as long as it takes.
        let fetching = [Candidate { fetches: true, ..node(1, 200) }, node(4, 100)];
        assert_eq!(keeps.plan(BLOB, &fetching, seconds(31)), [peer(4)]);
        let idle = [node(1, 200), node(4, 100), node(5, 100)];
        assert_eq!(keeps.plan(BLOB, &idle, seconds(62)), [peer(5)], "the others had their time");
        assert_eq!(keeps.plan(BLOB, &idle[..2], seconds(92)), [peer(1), peer(4)], "and may try again");
    }

    #[test]
    fn wish_that_nobody_makes_again_ends() {
        let mut keeps = wished(9);
        assert_eq!(keeps.wished(seconds(59)), [BLOB]);
        keeps.wish(BLOB, 2, None, seconds(59));
        assert_eq!(keeps.wished(seconds(118)), [BLOB]);
        assert_eq!(keeps.wished(seconds(119)), []);
        for number in 0..=MAX_WISHES as u64 {
            let blob = BlobRef::of(&number.to_be_bytes());
            assert_eq!(keeps.wish(blob, 1, None, seconds(0)), number < MAX_WISHES as u64);
        }
    }
}
