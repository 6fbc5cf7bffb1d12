//! Whole swarms on a simulated clock: every peer plans for itself, links share their rate fairly, and each part
//! of a piece is passed on as it comes.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use protocol::PIECE_SIZE;
use protocol::wire::PART_SIZE;

use super::choice::mix;
use super::{Held, Reach, Schedule, SourceId};
use crate::store::Pieces;

const STEP: Duration = Duration::from_millis(4);
/// From a request to its first byte.
const LATENCY: Duration = Duration::from_millis(4);
/// How often a growing source tells what it gained.
const NEWS: Duration = Duration::from_millis(50);
/// How often a source with nothing open is looked at again.
const LOOK: Duration = Duration::from_millis(100);
/// Which part of a piece is sent at a time.
const PART: f64 = PART_SIZE as f64 / PIECE_SIZE as f64;

/// A peer and its link; rates are in pieces per second.
struct Peer {
    up: f64,
    down: f64,
    /// How far it is from those who ask it.
    reach: Reach,
    /// When it begins; what it holds then.
    begins: Duration,
    here: Pieces,
    schedule: Option<Schedule>,
    done: Option<Duration>,
    /// From when on it is silent.
    dies: Option<Duration>,
}

/// What one peer asks of another.
struct Conversation {
    asker: usize,
    provider: usize,
    queue: VecDeque<(u64, Duration)>,
    left: f64,
    told: Pieces,
    told_at: Duration,
    looked_at: Duration,
    sent: u64,
    /// When the provider says for the first time what it has, after both have begun.
    meets: Duration,
    joined: bool,
    /// Its share of a link beside others.
    weight: f64,
}

/// How much of each piece that is coming a peer has.
type Coming = HashMap<u64, f64>;

struct Swarm {
    peers: Vec<Peer>,
    conversations: Vec<Conversation>,
    pieces: u64,
    now: Duration,
}

impl Swarm {
    fn new(pieces: u64) -> Self {
        Self { peers: Vec::new(), conversations: Vec::new(), pieces, now: Duration::ZERO }
    }

    fn seed(&mut self, rate: f64) -> usize {
        self.add(rate, rate, Pieces::all(self.pieces), Duration::ZERO)
    }

    fn fetcher(&mut self, up: f64, down: f64, begins: Duration) -> usize {
        let none = Pieces::none(self.pieces);
        let peer = self.add(up, down, none.clone(), begins);
        self.peers[peer].schedule = Some(Schedule::new(none, Self::key(peer), false));
        peer
    }

    fn add(&mut self, up: f64, down: f64, here: Pieces, begins: Duration) -> usize {
        let reach = Reach::Near;
        self.peers.push(Peer { up, down, reach, begins, here, schedule: None, done: None, dies: None });
        self.peers.len() - 1
    }

    /// Everybody can ask everybody.
    fn connect(&mut self) {
        for asker in 0..self.peers.len() {
            for provider in 0..self.peers.len() {
                if asker != provider && self.peers[asker].schedule.is_some() {
                    let told = Pieces::none(self.pieces);
                    // A fetcher is heard of a little later than the seed.
                    let meets = if self.peers[provider].schedule.is_some() { NEWS * 2 } else { NEWS };
                    self.conversations.push(Conversation {
                        asker,
                        provider,
                        queue: VecDeque::new(),
                        left: 0.0,
                        told,
                        told_at: Duration::ZERO,
                        looked_at: Duration::ZERO,
                        sent: 0,
                        meets,
                        joined: false,
                        weight: 1.0,
                    });
                }
            }
        }
    }

    /// Runs until all have everything; when that was.
    fn run(&mut self) -> f64 {
        while self.peers.iter().any(|peer| peer.schedule.is_some() && peer.done.is_none()) {
            assert!(self.now < Duration::from_secs(600), "it never ends");
            self.now += STEP;
            let coming = self.coming();
            self.tell(&coming);
            self.ask();
            self.transfer(&coming);
        }
        self.now.as_secs_f64()
    }

    /// Names are spread unevenly, as those of real peers are.
    fn key(peer: usize) -> u64 {
        mix(3, peer as u64)
    }

    /// What is coming to each peer.
    fn coming(&self) -> Vec<Coming> {
        let mut coming = vec![Coming::new(); self.peers.len()];
        for talk in &self.conversations {
            if let Some((piece, _)) = talk.queue.front().filter(|_| talk.left > 0.0) {
                let here: &mut f64 = coming[talk.asker].entry(*piece).or_default();
                *here = here.max(1.0 - talk.left);
            }
        }
        coming
    }

    fn tell(&mut self, coming: &[Coming]) {
        let now = self.now;
        for (index, talk) in self.conversations.iter_mut().enumerate() {
            let id = SourceId(index as u32);
            let provider = &self.peers[talk.provider];
            let begins = provider.begins.max(self.peers[talk.asker].begins);
            if now < begins + talk.meets {
                continue;
            }
            let mut here = provider.here.clone();
            let begun = coming[talk.provider].iter().filter(|(_, here)| **here >= PART);
            begun.for_each(|(piece, _)| here.insert(*piece));
            let (is_growing, reach, key) =
                (provider.schedule.is_some(), provider.reach, Self::key(talk.provider));
            let schedule = self.peers[talk.asker].schedule.as_mut().expect("it fetches");
            if !talk.joined {
                talk.joined = true;
                let held = if is_growing { Held::Growing(here.clone()) } else { Held::Whole };
                schedule.join(id, key, held, reach, now);
                (talk.told, talk.told_at) = (here, now);
            } else if is_growing && now >= talk.told_at + NEWS && here.len() > talk.told.len() {
                for range in talk.told.missing_from(&here, u64::MAX) {
                    schedule.gained(id, range, now);
                }
                (talk.told, talk.told_at, talk.looked_at) = (here, now, Duration::ZERO);
            }
        }
    }

    fn ask(&mut self) {
        for (index, talk) in self.conversations.iter_mut().enumerate() {
            // One that sends is looked at with each part of a piece.
            if !talk.joined || (talk.queue.is_empty() && self.now < talk.looked_at + LOOK) {
                continue;
            }
            talk.looked_at = self.now;
            let schedule = self.peers[talk.asker].schedule.as_mut().expect("it fetches");
            while let Some(range) = schedule.next(SourceId(index as u32), self.now) {
                talk.queue.extend(range.map(|piece| (piece, self.now + LATENCY)));
            }
        }
    }

    fn transfer(&mut self, coming: &[Coming]) {
        let rates = self.rates(coming);
        for (index, rate) in rates {
            let talk = &mut self.conversations[index];
            talk.left -= rate * STEP.as_secs_f64();
            if talk.left > 0.0 {
                continue;
            }
            // What was on its way to one that has everything by now is forgotten.
            let Some((piece, _)) = talk.queue.pop_front() else { continue };
            talk.sent += 1;
            // Whoever just sent may be asked at once.
            talk.looked_at = Duration::ZERO;
            let asker = &mut self.peers[talk.asker];
            let schedule = asker.schedule.as_mut().expect("it fetches");
            let id = SourceId(index as u32);
            if schedule.received(id, piece, self.now) {
                schedule.arrived(id, piece);
                asker.here.insert(piece);
            }
            if schedule.is_complete() && asker.done.is_none() {
                asker.done = Some(self.now);
                let gone = talk.asker;
                self.conversations.iter_mut().filter(|talk| talk.asker == gone).for_each(|talk| {
                    talk.queue.clear();
                    talk.left = 0.0;
                });
            }
        }
    }

    /// The rate of each conversation that sends: all grow alike until a link is full.
    fn rates(&mut self, coming: &[Coming]) -> Vec<(usize, f64)> {
        let now = self.now;
        let is_silent = |peer: &Peer| peer.dies.is_some_and(|dies| now >= dies);
        let mut active = Vec::new();
        for (index, talk) in self.conversations.iter_mut().enumerate() {
            let provider = &self.peers[talk.provider];
            let sent = if talk.left > 0.0 { 1.0 - talk.left } else { 0.0 };
            let is_here = |piece| {
                let here = coming[talk.provider].get(piece);
                provider.here.contains(*piece) || here.is_some_and(|here| *here >= sent + PART)
            };
            let is_ready = talk.queue.front().is_some_and(|(piece, ready)| *ready <= now && is_here(piece));
            if is_ready && !is_silent(provider) {
                if talk.left <= 0.0 {
                    talk.left += 1.0;
                }
                active.push(index);
            }
        }
        let mut up: Vec<f64> = self.peers.iter().map(|peer| peer.up).collect();
        let mut down: Vec<f64> = self.peers.iter().map(|peer| peer.down).collect();
        let mut rates = Vec::new();
        while !active.is_empty() {
            let mut users = vec![(0.0, 0.0); self.peers.len()];
            for index in &active {
                let talk = &self.conversations[*index];
                users[talk.provider].0 += talk.weight;
                users[talk.asker].1 += talk.weight;
            }
            let share = |talk: &Conversation| {
                (up[talk.provider] / users[talk.provider].0).min(down[talk.asker] / users[talk.asker].1)
            };
            let smallest =
                active.iter().map(|index| share(&self.conversations[*index])).fold(f64::MAX, f64::min);
            let (full, rest): (Vec<usize>, Vec<usize>) =
                active.iter().partition(|index| share(&self.conversations[**index]) <= smallest * 1.000_001);
            for index in full {
                let talk = &self.conversations[index];
                let rate = smallest * talk.weight;
                up[talk.provider] -= rate;
                down[talk.asker] -= rate;
                rates.push((index, rate));
            }
            active = rest;
        }
        rates
    }

    fn sent_by(&self, peer: usize) -> u64 {
        self.conversations.iter().filter(|talk| talk.provider == peer).map(|talk| talk.sent).sum()
    }
}

/// Mebibytes per second of so many megabits.
fn megabits(rate: f64) -> f64 {
    rate * 1e6 / 8.0 / f64::from(1 << 20)
}

#[test]
fn unequal_sources_end_together() {
    let pieces = 512;
    let mut swarm = Swarm::new(pieces);
    let rates = [50.0, 100.0, 200.0, 200.0].map(megabits);
    for rate in rates {
        swarm.seed(rate);
    }
    swarm.fetcher(0.0, megabits(1000.0), Duration::ZERO);
    swarm.connect();
    let ideal = pieces as f64 / rates.iter().sum::<f64>();
    let (took, sent) = (swarm.run(), (0..4).map(|peer| swarm.sent_by(peer)).sum::<u64>());
    assert!(took < ideal * 1.1, "{took} s of {ideal}");
    assert!(sent < pieces + 16, "{sent} pieces were sent");
}

#[test]
fn silent_source_loses_its_ranges_to_the_others() {
    let pieces = 256;
    let mut swarm = Swarm::new(pieces);
    let rate = megabits(100.0);
    for _ in 0..3 {
        swarm.seed(rate);
    }
    swarm.peers[1].dies = Some(Duration::from_secs(3));
    swarm.fetcher(0.0, megabits(1000.0), Duration::ZERO);
    swarm.connect();
    // Until then three send, and two after it.
    let ideal = 3.0 + (pieces as f64 - 9.0 * rate) / (2.0 * rate);
    let took = swarm.run();
    assert!(took < ideal * 1.1, "{took} s of {ideal}");
}

/// How much of a blob a far source sends beside a near one, and how long that takes, of how long the fastest way takes.
fn beside_a_near_one(near: f64, far: f64) -> (f64, f64) {
    let pieces = 512;
    let mut swarm = Swarm::new(pieces);
    swarm.seed(megabits(near));
    let source = swarm.seed(megabits(far));
    swarm.peers[source].reach = Reach::Far;
    swarm.fetcher(0.0, megabits(1000.0), Duration::ZERO);
    swarm.connect();
    let fastest = pieces as f64 / megabits(if far > near { near + far } else { near });
    let took = swarm.run() / fastest;
    (swarm.sent_by(source) as f64 / pieces as f64, took)
}

#[test]
fn far_source_is_spared_as_long_as_a_near_one_is_no_slower() {
    for (near, far) in [(200.0, 50.0), (200.0, 150.0)] {
        let (sent, took) = beside_a_near_one(near, far);
        assert!(sent < 0.01 && took < 1.1, "{near} beside {far}: {sent} of it in {took}");
    }
    let (sent, took) = beside_a_near_one(50.0, 200.0);
    assert!(sent > 0.7 && took < 1.1, "{sent} of it in {took}");
}

#[test]
fn fetcher_that_comes_late_takes_from_the_others() {
    let pieces = 256;
    let mut swarm = Swarm::new(pieces);
    let rate = megabits(200.0);
    let seed = swarm.seed(rate);
    for index in 0..4 {
        swarm.fetcher(rate, rate, Duration::from_secs(2 * index));
    }
    swarm.connect();
    let ideal = 6.0 + pieces as f64 / rate;
    let (took, sent) = (swarm.run(), swarm.sent_by(seed) as f64 / pieces as f64);
    assert!(took < ideal * 1.1, "{took} s of {ideal}");
    assert!(sent < 2.0, "the seed sent {sent} copies");
}

#[test]
fn eight_who_fetch_from_one_seed_need_little_more_than_one() {
    let pieces = 256;
    let mut swarm = Swarm::new(pieces);
    let rate = megabits(200.0);
    let seed = swarm.seed(rate);
    for _ in 0..8 {
        swarm.fetcher(rate, rate, Duration::ZERO);
    }
    swarm.connect();
    let ideal = pieces as f64 / rate;
    let (took, sent) = (swarm.run(), swarm.sent_by(seed) as f64 / pieces as f64);
    assert!(took < ideal * 1.05, "{took} s of {ideal}");
    assert!(sent < 1.05, "the seed sent {sent} copies");
}

#[test]
fn eight_who_meet_late_and_share_links_unfairly_ask_for_little_twice() {
    let (pieces, rate) = (256, megabits(200.0));
    for run in 0..4 {
        let mut drawn = 0;
        let mut chance = || {
            drawn += 1;
            (mix(run, drawn) >> 40) as f64 / f64::from(1 << 24)
        };
        let mut swarm = Swarm::new(pieces);
        let seed = swarm.seed(rate);
        for _ in 0..8 {
            swarm.fetcher(rate, rate, Duration::from_secs_f64(0.1 * chance()));
        }
        swarm.connect();
        for talk in &mut swarm.conversations {
            let (soonest, spread) = if talk.provider == seed { (0.06, 0.1) } else { (0.25, 0.45) };
            talk.meets = Duration::from_secs_f64(soonest + spread * chance());
            talk.weight = 0.4 + 1.2 * chance();
        }
        let ideal = pieces as f64 / rate;
        let (took, sent) = (swarm.run(), swarm.sent_by(seed) as f64 / pieces as f64);
        assert!(took < ideal * 1.09, "{took} s of {ideal}");
        assert!(sent < 1.05, "the seed sent {sent} copies");
        let all = swarm.conversations.iter().map(|talk| talk.sent).sum::<u64>() as f64 / pieces as f64;
        assert!(all < 8.0 * 1.02, "{all} copies were sent to eight");
    }
}
