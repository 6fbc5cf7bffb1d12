//! A peer as a source: the asker's side of the blob wire.
//!
//! The words are `protocol::wire`'s. Not here: what is asked for, and what becomes of it.

use std::collections::VecDeque;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protocol::message::Provider;
use protocol::wire::{
    Announce, Bad, BlobAnswer, BlobRequest, Gained, Get, GetOutboard, Have, MAX_ANNOUNCED, MAX_BLOB_FRAME,
    MAX_GAINED, Outboard, PART_SIZE, Peers, Piece,
};
use protocol::{BlobRef, PeerId, SourceName};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};
use tokio_util::context::TokioContext;

use super::gather::Gathering;
use super::schedule::{Held, Reach};
use super::source::{Event, Opened, Part, Source, SourceError, Supplier, WrongPart, next_asked};
use super::target::Target;
use crate::frames::{FrameReceiver, FrameSender};
use crate::limits::Throttle;
use crate::links::{LinkError, Links, is_relayed};
use crate::plane::{Channel, Link};
use crate::store::Pieces;
use crate::tree::{OutboardVerifier, PAIR, Tree, pairs_of, piece_size, upper_size};

/// How much of an outboard is taken at a time.
const OUTBOARD_PART: usize = 1024 * PAIR;
/// How much news may come before an outboard.
const MAX_PUT_OFF: usize = 64;
/// Of how many others one peer may tell us; of more, nobody is asked.
const MAX_INTRODUCED: usize = 4096;
/// How many pieces came through a relay before it is left for a direct link.
const BEFORE_MOVE: u64 = 4;
/// How long a peer may take to hear that it was wrong.
const BLAME_TIMEOUT: Duration = Duration::from_secs(1);

/// A peer that is said to hold some of the blob.
pub(super) struct PeerSupplier(pub(super) Provider);

#[async_trait]
impl Supplier for PeerSupplier {
    fn name(&self) -> SourceName {
        SourceName::Peer(self.0.peer)
    }

    async fn open(&self, gathering: &Gathering, thread: &Handle) -> Result<Opened, SourceError> {
        let (exchange, target) = (gathering.exchange(), gathering.target());
        if let Some(reason) = exchange.faults().of(self.0.peer, &target.name()) {
            return Err(SourceError::Fault(reason));
        }
        let link = exchange.link(&self.0).await?;
        let patience = exchange.config.piece_timeout;
        // Where a channel is a connection, the thread that reads it hears of its bytes first.
        let opening = TokioContext::new(link.open(), thread.clone());
        let channel = in_time(patience, async { Ok(opening.await?) }).await?;
        let throttle = Arc::clone(&exchange.throttle);
        let mut source = PeerSource::new(channel, &**target, patience, throttle);
        source.relayed = is_relayed(&*link).then(|| (Arc::clone(&exchange.links), self.0.peer));
        let held = in_time(patience, source.open(target.opening())).await?;
        if source.pieces > 1 {
            in_time(patience, source.announce(exchange.links.addresses())).await?;
        }
        let (reach, carrier) = (reach_of(link.remote().ip()), link.plane());
        Ok(Opened { source: Box::new(source), held, reach, carrier })
    }
}

impl super::Inner {
    /// A link to this provider, by whatever way leads to it.
    pub(super) async fn link(&self, provider: &Provider) -> Result<Arc<dyn Link>, LinkError> {
        let Provider { peer, addresses } = provider;
        self.links.get_by_any_way(*peer, addresses, self.config.link_wait).await
    }
}

/// Whether an address is in a network of our own kind: this machine, a LAN, a private network.
fn reach_of(address: IpAddr) -> Reach {
    let is_near = match address.to_canonical() {
        IpAddr::V4(address) => address.is_loopback() || address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
    };
    if is_near { Reach::Near } else { Reach::Far }
}

/// The conversation with a peer.
struct PeerSource {
    requests: FrameSender<BlobRequest>,
    answers: FrameReceiver<BlobAnswer>,
    size: u64,
    pieces: u64,
    /// How many bytes came of the piece whose turn it is.
    came: usize,
    /// Where those are gathered for a target that takes pieces as a whole.
    whole: Option<Vec<u8>>,
    /// What was asked for and has not come.
    asked: VecDeque<Range<u64>>,
    /// News that came while something else was waited for.
    put_off: VecDeque<Event>,
    /// How many pieces it may still say that it gained, each being gained once.
    may_gain: u64,
    /// How many others that it tells of are still listened to.
    may_introduce: usize,
    /// How many pieces came as a whole.
    gave: u64,
    /// Where a direct link to the peer would be, if this one goes through others.
    relayed: Option<(Arc<Links>, PeerId)>,
    /// How long it may send nothing of what it was asked for.
    patience: Duration,
    /// For how long the next part has been waited for.
    waited: Duration,
    throttle: Arc<Throttle>,
}

impl PeerSource {
    fn new(channel: Channel, target: &dyn Target, patience: Duration, throttle: Arc<Throttle>) -> Self {
        Self {
            requests: FrameSender::with_limit(channel.writer, MAX_BLOB_FRAME),
            answers: FrameReceiver::with_limit(channel.reader, MAX_BLOB_FRAME),
            size: target.size(),
            pieces: target.pieces().count(),
            came: 0,
            whole: target.takes_whole_pieces().then(Vec::new),
            asked: VecDeque::new(),
            put_off: VecDeque::new(),
            may_gain: target.pieces().count(),
            may_introduce: MAX_INTRODUCED,
            gave: 0,
            relayed: None,
            patience,
            waited: Duration::ZERO,
            throttle,
        }
    }

    /// Begins the conversation; what the provider has.
    async fn open(&mut self, opening: BlobRequest) -> Result<Held, SourceError> {
        // A provider that is busy may answer without reading this.
        let sent = self.requests.send(&opening).await;
        match self.answers.recv().await {
            Ok(Some(BlobAnswer::Have(Have::Whole))) => Ok(Held::Whole),
            Ok(Some(BlobAnswer::Have(Have::Pieces(bits)))) => {
                let pieces = Pieces::from_bits(self.pieces, bits).ok_or(SourceError::OutOfTurn)?;
                Ok(Held::Growing(pieces))
            }
            Ok(Some(BlobAnswer::NotFound(_))) => Err(SourceError::NotFound),
            Ok(Some(BlobAnswer::Busy(_))) => Err(SourceError::Busy),
            Ok(Some(_)) => Err(SourceError::OutOfTurn),
            Ok(None) => Err(sent.map_or_else(SourceError::from, |()| SourceError::Ended)),
            Err(error) => Err(error.into()),
        }
    }

    /// Says where we listen.
    async fn announce(&mut self, listening: Vec<SocketAddr>) -> Result<(), SourceError> {
        let addresses = listening.into_iter().take(MAX_ANNOUNCED).collect();
        Ok(self.requests.send(&BlobRequest::Announce(Announce { addresses })).await?)
    }

    async fn answer(&mut self) -> Result<BlobAnswer, SourceError> {
        self.answers.recv().await?.ok_or(SourceError::Ended)
    }

    /// What an answer says that belongs to no request; the answer itself where it says something else.
    /// Whoever has nothing to say does not say it, and nobody gains a piece twice. Others may come and go without
    /// end while a blob is fetched, so that one more than we listen to is no fault.
    fn news_in(&mut self, answer: BlobAnswer) -> Result<Result<Event, BlobAnswer>, SourceError> {
        let out_of_turn = || SourceError::OutOfTurn;
        Ok(match answer {
            BlobAnswer::Gained(Gained { ranges }) if (1..=MAX_GAINED).contains(&ranges.len()) => {
                let within = ranges.into_iter().map(|range| range.within(self.pieces));
                let ranges: Vec<Range<u64>> = within.collect::<Option<_>>().ok_or_else(out_of_turn)?;
                let gained: u64 = ranges.iter().map(|range| range.end - range.start).sum();
                self.may_gain = self.may_gain.checked_sub(gained).ok_or_else(out_of_turn)?;
                Ok(Event::Gained(ranges))
            }
            BlobAnswer::Peers(peers) => {
                let providers = introduced(peers, &mut self.may_introduce).ok_or_else(out_of_turn)?;
                Ok(Event::Learned(providers))
            }
            answer => Err(answer),
        })
    }

    /// Whether the rest is better asked for on a link that came about meanwhile. That is left to whoever opens
    /// sources: by then it is known that this one gives something.
    fn is_outdone(&self) -> bool {
        let direct = |(links, peer): &(Arc<Links>, PeerId)| links.has_direct(*peer);
        self.came == 0 && self.gave >= BEFORE_MOVE && self.relayed.as_ref().is_some_and(direct)
    }

    /// The next answer while a part is waited for. News do not make up for it.
    async fn awaited(&mut self) -> Result<BlobAnswer, SourceError> {
        let began = Instant::now();
        let left = self.patience.saturating_sub(self.waited);
        let answer = timeout(left, self.answer()).await.unwrap_or(Err(SourceError::Silent(self.patience)));
        self.waited += began.elapsed();
        answer
    }

    /// Takes bytes of the piece whose turn it is; what they are to the target, if anything yet.
    async fn take(&mut self, piece: Piece, buffer: &mut Vec<u8>) -> Result<Option<Part>, SourceError> {
        let mut part = Part { piece: piece.index, offset: self.came, pairs: 0 };
        let is_next = self.asked.front().is_some_and(|range| range.start == part.piece);
        if !is_next || piece.offset != part.offset as u64 {
            return Err(SourceError::OutOfTurn);
        }
        let left = piece_size(self.size, part.piece) - part.offset;
        let bytes = match &mut self.whole {
            Some(whole) => {
                whole.resize(part.offset + left.min(PART_SIZE), 0);
                &mut whole[part.offset..]
            }
            None => {
                if part.offset == 0 {
                    part.pairs = pairs_of(self.size, part.piece).1;
                }
                buffer.resize(part.pairs + left.min(PART_SIZE), 0);
                &mut buffer[..]
            }
        };
        in_time(self.patience, async { Ok(self.answers.recv_bytes(bytes).await?) }).await?;
        // What is not taken from the link yet slows its sender down.
        self.throttle.download.take(bytes.len()).await;
        let came = bytes.len() - part.pairs;
        self.came += came;
        self.waited = Duration::ZERO;
        let is_whole = came == left;
        if is_whole {
            self.came = 0;
            self.gave += 1;
            next_asked(&mut self.asked);
        }
        match &mut self.whole {
            Some(_) if !is_whole => Ok(None),
            Some(whole) => {
                std::mem::swap(whole, buffer);
                Ok(Some(Part::first(part.piece)))
            }
            None => Ok(Some(part)),
        }
    }
}

#[async_trait]
impl Source for PeerSource {
    async fn ask(&mut self, range: Range<u64>) -> Result<(), SourceError> {
        let get = Get { first: range.start, count: range.end - range.start };
        self.asked.push_back(range);
        let requests = &mut self.requests;
        in_time(self.patience, async { Ok(requests.send(&BlobRequest::Get(get)).await?) }).await
    }

    async fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Event, SourceError> {
        if let Some(event) = self.put_off.pop_front() {
            return Ok(event);
        }
        if self.is_outdone() {
            return Err(SourceError::Outdone);
        }
        loop {
            let answer = self.awaited().await?;
            match self.news_in(answer)? {
                Ok(event) => return Ok(event),
                Err(BlobAnswer::Piece(piece)) => {
                    if let Some(part) = self.take(piece, buffer).await? {
                        return Ok(Event::Part(part));
                    }
                }
                Err(_) => return Err(SourceError::OutOfTurn),
            }
        }
    }

    async fn news(&mut self) -> Result<Event, SourceError> {
        if let Some(event) = self.put_off.pop_front() {
            return Ok(event);
        }
        let answer = self.answer().await?;
        self.news_in(answer)?.map_err(|_| SourceError::OutOfTurn)
    }

    async fn outboard(&mut self, blob: BlobRef) -> Result<(Tree, Vec<u8>), SourceError> {
        let mut verifier = OutboardVerifier::new(blob);
        let mut upper = Vec::new();
        let length = upper_size(blob.size);
        if length > 0 {
            self.requests.send(&BlobRequest::GetOutboard(GetOutboard)).await?;
            loop {
                let answer = in_time(self.patience, self.answer()).await?;
                match self.news_in(answer)? {
                    Ok(event) if self.put_off.len() < MAX_PUT_OFF => self.put_off.push_back(event),
                    Err(BlobAnswer::Outboard(Outboard { length: announced })) if announced == length => break,
                    Err(BlobAnswer::Outboard(_)) => return Err(SourceError::Wrong(WrongPart::Outboard)),
                    _ => return Err(SourceError::OutOfTurn),
                }
            }
            let mut part = vec![0; OUTBOARD_PART];
            while (upper.len() as u64) < length {
                let size = (length - upper.len() as u64).min(OUTBOARD_PART as u64) as usize;
                let part = &mut part[..size];
                in_time(self.patience, async { Ok(self.answers.recv_bytes(part).await?) }).await?;
                self.throttle.download.take(part.len()).await;
                verifier.update(part).map_err(|_| SourceError::Wrong(WrongPart::Outboard))?;
                upper.extend_from_slice(part);
            }
        }
        let tree = verifier.finish().map_err(|_| SourceError::Wrong(WrongPart::Outboard))?;
        Ok((tree, upper))
    }

    async fn blame(&mut self, part: WrongPart) {
        let bad = match part {
            WrongPart::Outboard => Bad::Outboard,
            WrongPart::Piece(piece) => Bad::Piece(piece),
        };
        // It helps the provider find a bad disk; whether it hears it does not matter here.
        let _ = timeout(BLAME_TIMEOUT, self.requests.send(&BlobRequest::Bad(bad))).await;
    }
}

/// Whom a peer tells of, as long as it is listened to; `None` where no honest one says that.
fn introduced(peers: Peers, left: &mut usize) -> Option<Vec<Provider>> {
    if peers.providers.is_empty() {
        return None;
    }
    let mut providers = peers.dialable()?;
    providers.truncate(*left);
    *left -= providers.len();
    Some(providers)
}

async fn in_time<T>(
    patience: Duration,
    step: impl Future<Output = Result<T, SourceError>>,
) -> Result<T, SourceError> {
    timeout(patience, step).await.unwrap_or(Err(SourceError::Silent(patience)))
}

#[cfg(test)]
mod tests {
    use protocol::wire::MAX_PEERS;

    use super::*;

    #[test]
    fn introductions_beyond_the_budget_are_passed_over_and_no_fault() {
        let address = SocketAddr::from(([192, 0, 2, 1], 1));
        let provider = Provider { peer: PeerId([1; 32]), addresses: vec![address] };
        let told = |count| Peers { providers: vec![provider.clone(); count] };
        let mut left = MAX_PEERS + 3;
        let mut heard = |count| introduced(told(count), &mut left).map(|providers| providers.len());
        assert_eq!(heard(MAX_PEERS), Some(MAX_PEERS));
        assert_eq!(heard(MAX_PEERS), Some(3));
        assert_eq!(heard(1), Some(0));
        assert_eq!(heard(MAX_PEERS + 1), None, "that is more than it may send at once");
        assert_eq!(heard(0), None, "whoever has nothing to say does not say it");
    }

    #[test]
    fn private_networks_are_near_and_the_internet_is_far() {
        let check = |text: &str, expected| {
            let address: IpAddr = text.parse().expect("an address");
            assert_eq!(reach_of(address), expected, "{text}");
        };
        for near in ["127.0.0.1", "10.1.2.3", "192.168.0.9", "172.16.4.4", "169.254.1.1", "::1", "fd00::1"] {
            check(near, Reach::Near);
        }
        check("fe80::1", Reach::Near);
        check("::ffff:10.0.0.1", Reach::Near);
        for far in ["192.0.2.1", "8.8.8.8", "2001:db8::1", "::ffff:8.8.8.8"] {
            check(far, Reach::Far);
        }
    }
}
