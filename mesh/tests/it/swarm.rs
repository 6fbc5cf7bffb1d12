//! One blob from many peers at once, some of whom are slow, gone, silent, or worse.

use std::sync::Arc;
use std::time::Duration;

use mesh::fetch::{Exchange, Progress};
use mesh::frames::{FrameReceiver, FrameSender};
use mesh::gate::{Side, exchange_hellos};
use mesh::limits::{Caps, Limits};
use mesh::plane::{Plane, RacingPlane, TlsPlane};
use mesh::store::{BlobStore, ByteSize};
use mesh::tree::{pairs_of, upper_size};
use protocol::message::Provider;
use protocol::wire::{
    BlobAnswer, BlobRequest, Gained, Have, MAX_BLOB_FRAME, Outboard, PART_SIZE, Peers, Piece,
};
use protocol::{BlobRef, Fetched, PIECE_SIZE, PeerId, PieceRange};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::cut::CutPlane;
use crate::farm::{Farm, PATIENCE, Peer, bytes, exchange_config, key, loopback};
use crate::log;
use crate::rogue::{Rogue, Talk};

/// Uploads of at most so many pieces a second.
fn slow(pieces: u64) -> Limits {
    let caps = Caps { upload: Some(ByteSize(pieces * PIECE_SIZE)), download: None };
    Limits { caps, ..Limits::default() }
}

fn from(fetched: &[Fetched], peer: PeerId) -> u64 {
    fetched.iter().filter(|fetched| fetched.from == peer).map(|fetched| fetched.bytes).sum()
}

/// A peer that waits for silent providers longer than any test does.
async fn patient(farm: &Farm) -> (Exchange, tempfile::TempDir) {
    let identity = key();
    let credentials = farm.credentials(identity.peer());
    let folder = tempfile::tempdir().expect("a folder");
    let store = BlobStore::open(folder.path()).await.expect("a store");
    let plane = Arc::new(RacingPlane::bind(&identity, loopback()).await.expect("a plane"));
    let mut config = exchange_config(store, plane, credentials);
    config.piece_timeout = PATIENCE * 10;
    (Exchange::start(config), folder)
}

async fn give(peers: &[&Peer], bytes: &[u8]) -> BlobRef {
    for peer in peers {
        peer.store.import_bytes(bytes).await.expect("there is room");
    }
    BlobRef::of(bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_source_sends_a_part() {
    let farm = Farm::new();
    let (one, two, three) = (farm.peer().await, farm.peer().await, farm.peer().await);
    let bytes = bytes(24 * PIECE_SIZE as usize + 5);
    let blob = give(&[&one, &two, &three], &bytes).await;
    [&one, &two, &three].iter().for_each(|peer| peer.exchange.set_limits(slow(8)));
    let asker = farm.peer().await;
    let providers = [&one, &two, &three].map(Peer::provider);
    let (progress, mut latest) = watch::channel(Progress::default());
    let fetching = asker.exchange.fetch(blob, &providers, Some(&progress));
    let watching = async {
        latest.wait_for(|progress| progress.sources == 3).await.expect("three sources give");
        let [transfer] = asker.exchange.transfers().try_into().expect("one fetch goes on");
        assert_eq!((transfer.size, transfer.sources.len()), (blob.size, 3));
        assert!(transfer.sources.iter().all(|source| source.rate > 0 && !source.plane.is_empty()));
    };
    let (fetched, ()) = tokio::join!(fetching, watching);
    let fetched = fetched.expect("all are good");
    for peer in [one.id, two.id, three.id] {
        assert!(from(&fetched, peer) > 0, "{fetched:?}");
    }
    assert_eq!(fetched.iter().map(|fetched| fetched.bytes).sum::<u64>(), blob.size);
    assert_eq!(asker.store.read_all(blob.hash, u64::MAX).await.expect("it is whole"), bytes);
    assert!(asker.exchange.transfers().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_fetch_at_once_serve_each_other() {
    let farm = Farm::new();
    let (seed, one, two) = (farm.peer().await, farm.peer().await, farm.peer().await);
    let blob = give(&[&seed], &bytes(32 * PIECE_SIZE as usize)).await;
    seed.exchange.set_limits(slow(16));
    let providers = [seed.provider()];
    let fetches = [&one, &two].map(|peer| peer.exchange.fetch(blob, &providers, None));
    let [first, second]: [_; 2] =
        futures::future::try_join_all(fetches).await.expect("the seed is good").try_into().expect("two");
    let sent = from(&first, seed.id) + from(&second, seed.id);
    assert!(sent < blob.size * 3 / 2, "the seed sent {sent} of twice {}", blob.size);
    assert!(from(&first, two.id) > 0 && from(&second, one.id) > 0, "{first:?} {second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn asker_is_told_of_pieces_that_its_provider_gets_later() {
    let farm = Farm::new();
    let (seed, middle, last) = (farm.peer().await, farm.peer().await, farm.peer().await);
    let blob = give(&[&seed], &bytes(6 * PIECE_SIZE as usize)).await;
    // It has nothing yet, not even the outboard, and is found all the same.
    let _begun = middle.store.partial(blob).await.expect("an empty one");
    let providers = [middle.provider()];
    let waiting = last.exchange.fetch(blob, &providers, None);
    let filling = async {
        let linked = async {
            while !middle.exchange.is_linked(last.id) {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, linked).await.expect("it is asked");
        middle.exchange.fetch(blob, &[seed.provider()], None).await
    };
    let (waiting, filling) = tokio::join!(waiting, filling);
    filling.expect("the seed is good");
    assert_eq!(from(&waiting.expect("it comes through the one in the middle"), middle.id), blob.size);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_a_silent_source_move_to_another() {
    let farm = Farm::new();
    let good = farm.peer().await;
    let silent = key();
    let credentials = farm.credentials(silent.peer());
    let after = 2 * PIECE_SIZE as usize;
    let silent = Peer::start(silent, credentials, |inner| Arc::new(CutPlane { inner, after })).await;
    let blob = give(&[&good, &silent], &bytes(16 * PIECE_SIZE as usize)).await;
    good.exchange.set_limits(slow(16));
    let (exchange, _folder) = patient(&farm).await;
    let providers = [silent.provider(), good.provider()];
    let fetched = timeout(PATIENCE, exchange.fetch(blob, &providers, None)).await.expect("in time");
    assert!(from(&fetched.expect("one is good"), good.id) >= 14 * PIECE_SIZE);
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_outlives_a_source_that_goes_away() {
    let farm = Farm::new();
    let (leaving, staying, asker) = (farm.peer().await, farm.peer().await, farm.peer().await);
    let blob = give(&[&leaving, &staying], &bytes(24 * PIECE_SIZE as usize)).await;
    [&leaving, &staying].iter().for_each(|peer| peer.exchange.set_limits(slow(8)));
    let providers = [leaving.provider(), staying.provider()];
    let (progress, mut latest) = watch::channel(Progress::default());
    let fetching = asker.exchange.fetch(blob, &providers, Some(&progress));
    let watching = async {
        latest.wait_for(|progress| progress.bytes >= 4 * PIECE_SIZE).await.expect("it goes on");
        leaving.exchange.shutdown().await;
    };
    let (fetched, ()) = tokio::join!(fetching, watching);
    assert!(from(&fetched.expect("one stays"), staying.id) > 12 * PIECE_SIZE);
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer_goes_on_when_its_cap_is_lifted() {
    let farm = Farm::new();
    let seed = farm.peer().await;
    let blob = give(&[&seed], &bytes(3 * PIECE_SIZE as usize)).await;
    let caps = Caps { upload: Some(ByteSize(1)), download: None };
    seed.exchange.set_limits(Limits { caps, ..Limits::default() });
    let (exchange, _folder) = patient(&farm).await;
    let providers = [seed.provider()];
    let fetching = exchange.fetch(blob, &providers, None);
    let lifting = async {
        let is_asked = async {
            while exchange
                .transfers()
                .iter()
                .all(|transfer| transfer.sources.iter().all(|source| source.plane.is_empty()))
            {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, is_asked).await.expect("the seed is asked");
        seed.exchange.set_limits(Limits::default());
    };
    let (fetched, ()) = tokio::join!(timeout(PATIENCE, fetching), lifting);
    fetched.expect("in time").expect("the seed is good");
}

/// What a rogue does once its asker has begun.
#[derive(Debug, Clone, Copy)]
enum Mischief {
    LongBitmap,
    LongOutboard,
    WrongOutboard,
    GainsBeyondTheEnd,
    PieceThatNobodyAskedFor,
    WrongPairs,
    WrongBytes,
    EndlessNews,
    EndlessNewsOfPieces,
    EmptyNews,
}

async fn misbehave(mut talk: Talk, mischief: Mischief, size: u64, outboard: Vec<u8>) {
    let have = match mischief {
        Mischief::LongBitmap => Have::Pieces(vec![0xff; 60 << 10]),
        // It has nothing, and so is never asked for any.
        Mischief::EndlessNewsOfPieces | Mischief::EmptyNews => Have::Pieces(vec![0]),
        _ => Have::Whole,
    };
    let _ = talk.requests.recv().await;
    let mut answers = vec![(BlobAnswer::Have(have), Vec::new())];
    let length = upper_size(size);
    let upper = outboard[..length as usize].to_vec();
    let gained = |first| BlobAnswer::Gained(Gained { ranges: vec![PieceRange { first, count: 2 }] });
    match mischief {
        Mischief::LongBitmap => {}
        Mischief::LongOutboard => {
            answers.push((BlobAnswer::Outboard(Outboard { length: u64::MAX }), Vec::new()));
        }
        Mischief::WrongOutboard => {
            answers.push((BlobAnswer::Outboard(Outboard { length }), vec![7; upper.len()]));
        }
        Mischief::GainsBeyondTheEnd => answers.push((gained(u64::MAX - 1), Vec::new())),
        Mischief::EndlessNewsOfPieces => answers.extend((0..2).map(|_| (gained(0), Vec::new()))),
        Mischief::EmptyNews => {
            answers.push((BlobAnswer::Gained(Gained { ranges: Vec::new() }), Vec::new()));
        }
        Mischief::EndlessNews => answers.extend((0..1000).map(|_| (gained(0), Vec::new()))),
        Mischief::PieceThatNobodyAskedFor | Mischief::WrongPairs | Mischief::WrongBytes => {
            answers.push((BlobAnswer::Outboard(Outboard { length }), upper));
        }
    }
    for (answer, raw) in answers {
        if talk.answers.send_with(&answer, &raw).await.is_err() {
            return;
        }
    }
    while let Ok(Some(request)) = talk.requests.recv().await {
        let BlobRequest::Get(get) = request else { continue };
        let index = match mischief {
            Mischief::PieceThatNobodyAskedFor => get.first + 100,
            _ => get.first,
        };
        let (first, length) = pairs_of(size, get.first);
        let mut wrong = match mischief {
            Mischief::WrongPairs => vec![1; length],
            _ => outboard[first as usize..][..length].to_vec(),
        };
        wrong.extend([1; PART_SIZE]);
        if talk.answers.send_with(&BlobAnswer::Piece(Piece { index, offset: 0 }), &wrong).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_breaks_the_wire_is_dropped_and_remembered_and_the_blob_comes_from_another() {
    let farm = Farm::new();
    let good = farm.peer().await;
    let original = bytes(3 * PIECE_SIZE as usize);
    let blob = give(&[&good], &original).await;
    let path = good.store.path_of(blob.hash).expect("it is whole").with_extension("outboard");
    let outboard = std::fs::read(path).expect("own file");
    for mischief in [
        Mischief::LongBitmap,
        Mischief::LongOutboard,
        Mischief::WrongOutboard,
        Mischief::GainsBeyondTheEnd,
        Mischief::PieceThatNobodyAskedFor,
        Mischief::WrongPairs,
        Mischief::WrongBytes,
        Mischief::EndlessNews,
        Mischief::EndlessNewsOfPieces,
        Mischief::EmptyNews,
    ] {
        let outboard = outboard.clone();
        log::listen();
        let rogue =
            Rogue::start(&farm, move |talk| misbehave(talk, mischief, blob.size, outboard.clone())).await;
        let asker = farm.peer().await;
        let alone = asker.exchange.fetch(blob, std::slice::from_ref(&rogue.provider), None);
        let refused = timeout(PATIENCE, alone).await.expect("in time");
        assert!(refused.is_err(), "{mischief:?}");
        let faults = asker.exchange.faults();
        assert!(faults.iter().any(|(peer, ..)| *peer == rogue.provider.peer), "{mischief:?}: {refused:?}");
        let logged = log::warnings_about(rogue.provider.peer);
        assert_eq!(logged.len(), 1, "{mischief:?}: {logged:#?}");
        assert!(logged[0].contains("provider sent wrong bytes"), "{logged:#?}");

        let asker = farm.peer().await;
        let providers = [rogue.provider.clone(), good.provider()];
        let fetched = timeout(PATIENCE, asker.exchange.fetch(blob, &providers, None)).await;
        let fetched = fetched.expect("in time").unwrap_or_else(|error| panic!("{mischief:?}: {error}"));
        assert_eq!(from(&fetched, good.id), blob.size, "{mischief:?}");
        assert_eq!(asker.store.read_all(blob.hash, u64::MAX).await.expect("it is whole"), original);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn source_that_tells_news_in_place_of_what_it_was_asked_for_is_silent() {
    let farm = Farm::new();
    let good = farm.peer().await;
    let blob = give(&[&good], &bytes(3 * PIECE_SIZE as usize)).await;
    let path = good.store.path_of(blob.hash).expect("it is whole").with_extension("outboard");
    let outboard = std::fs::read(path).expect("own file");
    let chatty = Rogue::start(&farm, move |talk| chat(talk, blob.size, outboard.clone())).await;
    let asker = farm.peer().await;
    let alone = asker.exchange.fetch(blob, std::slice::from_ref(&chatty.provider), None);
    let refused = timeout(PATIENCE, alone).await.expect("in time").expect_err("it gives nothing");
    assert!(refused.to_string().contains("it sent nothing for"), "{refused}");
}

/// Sends the outboard, and then tells of others every now and then, and never sends a piece.
async fn chat(mut talk: Talk, size: u64, outboard: Vec<u8>) {
    let length = upper_size(size);
    let upper = &outboard[..length as usize];
    let _ = talk.requests.recv().await;
    let begun = async {
        talk.answers.send(&BlobAnswer::Have(Have::Whole)).await?;
        talk.answers.send_with(&BlobAnswer::Outboard(Outboard { length }), upper).await
    };
    if begun.await.is_err() {
        return;
    }
    let addresses = vec!["127.0.0.1:9".parse().expect("an address")];
    let news = BlobAnswer::Peers(Peers { providers: vec![Provider { peer: key().peer(), addresses }] });
    while talk.answers.send(&news).await.is_ok() {
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn asker_with_too_many_channels_is_told_that_we_are_busy_and_others_are_served() {
    let farm = Farm::new();
    let (holder, other) = (farm.peer().await, farm.peer().await);
    let blob = give(&[&holder], &bytes(2 * PIECE_SIZE as usize)).await;
    let identity = key();
    let credentials = farm.credentials(identity.peer());
    let plane = TlsPlane::bind(&identity, loopback()).await.expect("a plane");
    let link = plane.dial(holder.id, holder.exchange.addresses()[0]).await.expect("it listens");
    let hello = link.open().await.expect("a channel");
    let passed = exchange_hellos(hello.reader, hello.writer, &credentials, holder.id, Side::Dialled);
    passed.await.expect("both are members");
    let (mut open, mut busy) = (Vec::new(), 0);
    for _ in 0..40 {
        let channel = link.open().await.expect("a channel");
        let mut requests = FrameSender::<BlobRequest>::with_limit(channel.writer, MAX_BLOB_FRAME);
        let mut answers = FrameReceiver::<BlobAnswer>::with_limit(channel.reader, MAX_BLOB_FRAME);
        // A provider that is busy may hang up before it reads this.
        let _ = requests.send(&BlobRequest::Open(blob)).await;
        match timeout(PATIENCE, answers.recv()).await.expect("in time") {
            Ok(Some(BlobAnswer::Have(_))) => open.push((requests, answers)),
            Ok(Some(BlobAnswer::Busy(_))) => busy += 1,
            answer => panic!("{answer:?}"),
        }
    }
    assert_eq!((open.len(), busy), (32, 8));
    other.exchange.fetch(blob, &[holder.provider()], None).await.expect("others are served");
}
