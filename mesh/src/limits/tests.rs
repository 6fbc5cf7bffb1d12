//! Limits over real links: by what they counted, not by how long it took.

use std::collections::BTreeMap;

use protocol::membership::{Membership, Role};
use protocol::message::Provider;
use protocol::{BlobRef, FarmId, PIECE_SIZE, PeerId};
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::fetch::{Exchange, ExchangeConfig};
use crate::gate::Credentials;
use crate::identity::Identity;
use crate::plane::TlsPlane;
use crate::store::BlobStore;
use crate::tree::outboard_size;

const PATIENCE: Duration = Duration::from_secs(60);

/// A member of a farm, and what its data plane is held to.
struct Member {
    peer: PeerId,
    exchange: Exchange,
    _folder: TempDir,
}

impl Member {
    async fn start(root: &Identity, limits: Limits) -> Self {
        let identity = Identity::generate().expect("a key");
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let issued = since_epoch.as_secs();
        let keys = (root.signing_key(), root.signing_key());
        let coordinator = Membership::for_coordinator(keys.0, keys.1, issued).coordinator;
        let peer = identity.peer();
        let membership = Membership::issue(&coordinator, keys.1, peer, Role::Node, BTreeMap::new(), issued);
        let credentials = Credentials::new(FarmId(root.peer().0), peer, membership);
        let folder = tempfile::tempdir().expect("a folder");
        let store = BlobStore::open(folder.path()).await.expect("a store");
        let plane = TlsPlane::bind(&identity, ([127, 0, 0, 1], 0).into()).await.expect("a plane");
        let config = ExchangeConfig { limits, ..ExchangeConfig::new(store, Arc::new(plane), credentials) };
        Self { peer, exchange: Exchange::start(config), _folder: folder }
    }

    fn provider(&self) -> Provider {
        Provider { peer: self.peer, addresses: self.exchange.addresses() }
    }

    fn throttle(&self) -> &Throttle {
        self.exchange.throttle()
    }

    async fn add(&self, sizes: &[usize]) -> Vec<BlobRef> {
        let mut blobs = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let bytes = vec![index as u8; *size];
            blobs.push(self.exchange.store().import_bytes(&bytes).await.expect("there is room"));
        }
        blobs
    }
}

fn caps() -> Caps {
    let plenty = Some(ByteSize(1 << 40));
    Caps { upload: plenty, download: plenty }
}

#[tokio::test]
async fn small_blobs_and_outboards_count_towards_both_caps() {
    let root = Identity::generate().expect("a key");
    let limits = Limits { caps: caps(), ..Limits::default() };
    let (giver, taker) = (Member::start(&root, limits.clone()).await, Member::start(&root, limits).await);
    let check = async |sizes: &[usize], expected: u64| {
        let before = [giver.throttle().upload.spent(), taker.throttle().download.spent()];
        let blobs = giver.add(sizes).await;
        let providers = [giver.provider()];
        let fetching = taker.exchange.fetch_many(&blobs, &providers, None);
        timeout(PATIENCE, fetching).await.expect("soon").expect("the giver holds all");
        assert_eq!(giver.throttle().upload.spent() - before[0], expected, "sent, of {sizes:?}");
        assert_eq!(taker.throttle().download.spent() - before[1], expected, "received, of {sizes:?}");
    };
    check(&[1, 20_000, 300_000, PIECE_SIZE as usize], 320_001 + PIECE_SIZE).await;
    let large = 2 * PIECE_SIZE + 7;
    check(&[large as usize], large + outboard_size(large)).await;
}

#[tokio::test]
async fn small_blobs_and_outboards_wait_for_their_turn() {
    let root = Identity::generate().expect("a key");
    let limits = Limits { uploads: 1, ..Limits::default() };
    let (giver, taker) = (Member::start(&root, limits).await, Member::start(&root, Limits::default()).await);
    for size in [20_000, 2 * PIECE_SIZE as usize + 7] {
        let blobs = giver.add(&[size]).await;
        let turns = &giver.throttle().uploads;
        let turn = turns.take(PeerId([9; 32])).await;
        let providers = [giver.provider()];
        let fetching = taker.exchange.fetch_many(&blobs, &providers, None);
        tokio::pin!(fetching);
        let waits = async {
            while turns.waiting() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = &mut fetching => panic!("it came while another had the only turn"),
            waited = timeout(PATIENCE, waits) => waited.expect("it waits soon"),
        }
        drop(turn);
        timeout(PATIENCE, fetching).await.expect("soon").expect("it is its turn");
    }
}

#[test]
fn relay_passes_on_no_more_than_may_be_uploaded_at_any_hour() {
    let mib = |count: u64| ByteSize(count << 20);
    let caps = |upload: Option<u64>| Caps { upload: upload.map(mib), download: Some(mib(1)) };
    let check = |rate: Option<u64>, day, night, expected| {
        let hours = vec![Hours { from: 22 * 60, until: 6 * 60, caps: caps(night) }];
        let limits = Limits { caps: caps(day), hours, ..Limits::default() };
        let relaying = Relaying { passes_on: true, rate: rate.map(mib) };
        assert_eq!(relaying.passed_on(&limits), mib(expected), "{rate:?}, {day:?}, {night:?}");
    };
    check(None, None, None, 128);
    check(Some(40), None, None, 40);
    check(None, Some(200), None, 128);
    check(None, Some(20), Some(100), 20);
    check(Some(40), None, Some(3), 3);
    check(Some(8), Some(20), Some(100), 8);
}

#[test]
fn caps_follow_the_time_of_day_also_over_midnight() {
    let caps = |upload| Caps { upload: Some(ByteSize(upload)), download: None };
    let limits = Limits {
        caps: caps(1),
        hours: vec![
            Hours { from: 9 * 60, until: 17 * 60, caps: caps(2) },
            Hours { from: 22 * 60, until: 6 * 60, caps: caps(3) },
        ],
        utc_offset: -60,
        ..Limits::default()
    };
    for (hour, minute, expected) in
        [(8, 59, 1), (9, 0, 2), (16, 59, 2), (17, 0, 1), (22, 0, 3), (0, 0, 3), (5, 59, 3), (6, 0, 1)]
    {
        assert_eq!(limits.caps_at(hour * 60 + minute), caps(expected), "{hour}:{minute}");
    }
    assert_eq!(limits.minute_of_day(Duration::from_secs(3 * 24 * 3600 + 3600)), 0);
    assert_eq!(limits.minute_of_day(Duration::from_secs(30 * 60 + 24 * 3600)), 23 * 60 + 30);
}
