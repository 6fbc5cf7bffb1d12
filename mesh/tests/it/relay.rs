//! The plane of last resort: blobs between members that cannot dial each other, through a third.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use mesh::fetch::{Exchange, FetchError};
use mesh::gate::{Credentials, Side, exchange_hellos};
use mesh::identity::Identity;
use mesh::plane::{Channel, DialError, Link, Plane, RacingPlane, RelayedPlane, RelayedRate};
use mesh::store::BlobStore;
use mesh::swarm::{Incoming, Mesh, MeshConfig};
use protocol::codec::encode;
use protocol::message::Provider;
use protocol::wire::{BlobRequest, MAX_BLOB_FRAME};
use protocol::{BlobRef, PeerId};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::farm::{Farm, PATIENCE, bytes, exchange_config, key, loopback};

/// Fast enough for a test to count bytes in place of waiting for them.
const RATE: RelayedRate = RelayedRate { of_peer: 1 << 30, in_all: 1 << 30 };

/// A coordinator that passes circuits on.
async fn relay(farm: &Farm) -> (Mesh, mpsc::Receiver<Incoming>) {
    let config =
        MeshConfig { accept: true, relay: true, ..MeshConfig::new(farm.coordinator(), vec![loopback()]) };
    let (mesh, incoming) = Mesh::start(config).await.expect("a mesh");
    mesh.set_credentials(farm.coordinator_credentials());
    (mesh, incoming)
}

/// A process that listens nowhere and is connected to the relay alone.
struct Hidden {
    peer: PeerId,
    mesh: Mesh,
}

impl Hidden {
    async fn start(identity: &Arc<Identity>, credentials: Credentials) -> Self {
        let config = MeshConfig::new(Arc::clone(identity), Vec::new());
        let (mesh, _) = Mesh::start(config).await.expect("a mesh");
        mesh.set_credentials(credentials);
        Self { peer: identity.peer(), mesh }
    }

    async fn member(farm: &Farm, relay: &Mesh) -> Self {
        let identity = Arc::new(key());
        let hidden = Self::start(&identity, farm.credentials(identity.peer())).await;
        let contact = hidden.mesh.meet(farm.coordinator().peer(), relay.addresses()).await;
        assert!(contact.expect("it is a member").relays);
        hidden
    }
}

/// A hidden member with a data plane that nobody can dial.
struct HiddenPeer {
    hidden: Hidden,
    store: BlobStore,
    exchange: Exchange,
    _folder: TempDir,
}

impl HiddenPeer {
    async fn start(farm: &Farm, relay: &Mesh) -> Self {
        let identity = Arc::new(key());
        let credentials = farm.credentials(identity.peer());
        let hidden = Hidden::start(&identity, credentials.clone()).await;
        hidden.mesh.meet(farm.coordinator().peer(), relay.addresses()).await.expect("it is a member");
        let folder = tempfile::tempdir().expect("a folder");
        let store = BlobStore::open(folder.path()).await.expect("a store");
        let plane = RacingPlane::bind(&identity, loopback()).await.expect("a plane");
        let plane = plane.with_last_resort(RelayedPlane::new(&hidden.mesh, RATE));
        let exchange = Exchange::start(exchange_config(store.clone(), Arc::new(plane), credentials));
        Self { hidden, store, exchange, _folder: folder }
    }

    /// This peer at these addresses.
    fn at(&self, addresses: Vec<SocketAddr>) -> Provider {
        Provider { peer: self.hidden.peer, addresses }
    }
}

/// Fetches until it comes: whoever is new has asked for its place at the relay, and may not have it yet.
async fn fetch(asker: &HiddenPeer, blob: BlobRef, from: Provider) -> Vec<protocol::Fetched> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match asker.exchange.fetch(blob, std::slice::from_ref(&from), None).await {
            Ok(fetched) => return fetched,
            Err(FetchError::NoProvider { .. }) if Instant::now() < deadline => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_crosses_a_relay_between_two_that_nobody_can_dial() {
    let farm = Farm::new();
    let (relay, _incoming) = relay(&farm).await;
    let holder = HiddenPeer::start(&farm, &relay).await;
    let asker = HiddenPeer::start(&farm, &relay).await;
    let blob = holder.store.import_bytes(&bytes(3_000_000)).await.expect("there is room");
    let fetched = fetch(&asker, blob, holder.at(Vec::new())).await;
    assert_eq!(
        fetched.iter().map(|part| (part.from, part.bytes)).collect::<Vec<_>>(),
        [(holder.hidden.peer, blob.size)]
    );
    assert!(asker.store.verify(blob.hash).await.expect("own file"));

    // The same link carries the other way, and a dead address is no obstacle.
    let back = asker.store.import_bytes(&bytes(70_000)).await.expect("there is room");
    let dead = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let fetched = fetch(&holder, back, asker.at(vec![dead.expect("a port that was free")])).await;
    assert_eq!(fetched[0].from, asker.hidden.peer);
}

/// A link over a relay, as both ends see it.
async fn link(dialling: &RelayedPlane, accepting: &RelayedPlane, peer: PeerId) -> [Arc<dyn Link>; 2] {
    let deadline = Instant::now() + PATIENCE;
    let reach = async {
        loop {
            match dialling.reach(peer).await {
                Ok(link) => return link,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    };
    let (dialled, accepted) = tokio::join!(reach, accepting.accept());
    [dialled, accepted.expect("it is dialled")]
}

#[tokio::test(flavor = "multi_thread")]
async fn link_over_a_relay_carries_both_ways_and_ends_at_both_sides() {
    let farm = Farm::new();
    let (relay, _incoming) = relay(&farm).await;
    let (one, other) = (Hidden::member(&farm, &relay).await, Hidden::member(&farm, &relay).await);
    let (dialling, accepting) = (RelayedPlane::new(&one.mesh, RATE), RelayedPlane::new(&other.mesh, RATE));
    for closing in [0, 1] {
        let ends = link(&dialling, &accepting, other.peer).await;
        assert_eq!((ends[0].peer(), ends[1].peer()), (other.peer, one.peer));
        assert_eq!((ends[0].plane(), ends[1].plane()), ("relay", "relay"));
        ends.iter().for_each(|end| end.admit());
        for (from, to) in [(0, 1), (1, 0)] {
            let sent = bytes(300_000);
            let send = async {
                let Channel { mut writer, reader } = ends[from].open().await.expect("the link is open");
                writer.write_all(&sent).await.expect("the other side reads");
                writer.shutdown().await.expect("the other side reads");
                reader
            };
            let receive = async {
                let Channel { mut reader, .. } = ends[to].accept().await.expect("the link is open");
                let mut received = Vec::new();
                reader.read_to_end(&mut received).await.expect("the other side ends it");
                received
            };
            let carried = timeout(PATIENCE, async { tokio::join!(send, receive) }).await.expect("in time");
            assert!(carried.1 == sent, "{from} to {to}");
        }
        ends[closing].close("enough");
        timeout(PATIENCE, ends[1 - closing].closed()).await.expect("the other side notices");
        assert!(ends[closing].open().await.is_err(), "a closed link opens no channel");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stranger_gets_no_circuit_and_no_byte_of_a_member() {
    let farm = Farm::new();
    let (relay, _incoming) = relay(&farm).await;
    let holder = HiddenPeer::start(&farm, &relay).await;
    let blob = holder.store.import_bytes(b"secret").await.expect("there is room");
    let identity = Arc::new(key());
    let stranger = Hidden::start(&identity, Farm::new().credentials(identity.peer())).await;
    assert_eq!(stranger.mesh.meet(farm.coordinator().peer(), relay.addresses()).await, None);
    let plane = RelayedPlane::new(&stranger.mesh, RATE);
    let refused = timeout(PATIENCE, plane.reach(holder.hidden.peer)).await.expect("it is refused in time");
    let refused = refused.err().expect("no relay is for it").to_string();
    assert_eq!(refused, "no other way leads to the peer (relay)");
    assert!(!holder.exchange.is_linked(stranger.peer));

    // A member gets no further than the gate without a Hello on the link, and not to who is not there.
    let asker = Hidden::member(&farm, &relay).await;
    let plane = RelayedPlane::new(&asker.mesh, RATE);
    assert!(plane.reach(key().peer()).await.is_err(), "the relay knows no such peer");
    let open = encode(&BlobRequest::Open(blob), MAX_BLOB_FRAME).expect("it is small");
    let deadline = Instant::now() + PATIENCE;
    let link = loop {
        match plane.reach(holder.hidden.peer).await {
            Ok(link) => break link,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    for said in [open, b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        // The link may be closed by then, which is an answer as well.
        let Ok(Channel { mut reader, mut writer }) = link.open().await else { continue };
        let _ = writer.write_all(&said).await;
        let mut answer = Vec::new();
        let read = timeout(PATIENCE, reader.read_to_end(&mut answer)).await;
        assert!(read.is_ok() && answer.is_empty(), "{answer:?}");
    }
    timeout(PATIENCE, link.closed()).await.expect("the link is closed");
    assert!(!holder.exchange.is_linked(asker.peer));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_peer_gets_no_further_than_the_gate_at_either_end_of_a_relay() {
    let farm = Farm::new();
    let (relay, _incoming) = relay(&farm).await;
    let honest = HiddenPeer::start(&farm, &relay).await;
    let impostor = Hidden::member(&farm, &relay).await;
    let plane = RelayedPlane::new(&impostor.mesh, RATE);
    // A member's valid certificate, shown by another member.
    let shown = farm.credentials(key().peer());

    let deadline = Instant::now() + PATIENCE;
    let link = loop {
        match plane.reach(honest.hidden.peer).await {
            Ok(link) => break link,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    let Channel { reader, writer } = link.open().await.expect("one channel is for the Hello");
    let passed = exchange_hellos(reader, writer, &shown, honest.hidden.peer, Side::Dialled).await;
    assert!(passed.is_err(), "it is answered by no Hello");
    timeout(PATIENCE, link.closed()).await.expect("the link is closed");
    assert!(!honest.exchange.is_linked(impostor.peer));

    let answering = async {
        while let Some(link) = plane.accept().await {
            let Some(Channel { reader, writer }) = link.accept().await else { continue };
            // It is let go of by whoever dialled.
            let _ = exchange_hellos(reader, writer, &shown, link.peer(), Side::Accepted).await;
        }
    };
    let blob = BlobRef { size: 5, hash: protocol::BlobHash([7; 32]) };
    let provider = [Provider { peer: impostor.peer, addresses: Vec::new() }];
    let refused = async {
        loop {
            // It may not have its place at the relay yet.
            let error =
                honest.exchange.fetch(blob, &provider, None).await.expect_err("nobody has it").to_string();
            if error.contains("certificate of another peer") {
                return;
            }
            assert!(Instant::now() < deadline, "{error}");
        }
    };
    tokio::select! {
        () = refused => {}
        () = answering => panic!("the plane ended"),
    }
    assert!(!honest.exchange.is_linked(impostor.peer));
}

/// A last resort that leads nowhere and counts who tries.
#[derive(Default)]
struct Counting(Arc<AtomicUsize>);

#[async_trait]
impl Plane for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    async fn dial(&self, peer: PeerId, _: SocketAddr) -> Result<Arc<dyn Link>, DialError> {
        self.reach(peer).await
    }

    async fn reach(&self, _: PeerId) -> Result<Arc<dyn Link>, DialError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Err(DialError::NoWay { plane: self.name(), source: io::ErrorKind::HostUnreachable.into() })
    }

    async fn accept(&self) -> Option<Arc<dyn Link>> {
        std::future::pending().await
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        Vec::new()
    }

    async fn close(&self) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn last_resort_is_tried_only_where_no_address_gives_a_link() {
    let farm = Farm::new();
    let holder = farm.peer().await;
    let blob = holder.store.import_bytes(b"near").await.expect("there is room");
    let (identity, folder, tried) = (key(), tempfile::tempdir().expect("a folder"), Arc::default());
    let store = BlobStore::open(folder.path()).await.expect("a store");
    let plane = RacingPlane::bind(&identity, loopback()).await.expect("a plane");
    let plane = plane.with_last_resort(Counting(Arc::clone(&tried)));
    let config = exchange_config(store, Arc::new(plane), farm.credentials(identity.peer()));
    let asker = Exchange::start(config);
    asker.fetch(blob, &[holder.provider()], None).await.expect("it can be dialled");
    assert_eq!(tried.load(Ordering::Relaxed), 0);

    let other = BlobRef { size: blob.size, hash: protocol::BlobHash([7; 32]) };
    let dead = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let nobody = Provider { peer: key().peer(), addresses: vec![dead.expect("a port that was free")] };
    let Err(error) = asker.fetch(other, &[nobody], None).await else { panic!("nobody is there") };
    assert_eq!(tried.load(Ordering::Relaxed), 1);
    assert!(error.to_string().contains("no other way leads to the peer (counting)"), "{error}");
}
