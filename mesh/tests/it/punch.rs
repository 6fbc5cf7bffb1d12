//! Direct paths between members behind translators, which the coordinator introduces to each other.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use mesh::fetch::{Exchange, FetchError};
use mesh::frames::{FrameReceiver, FrameSender};
use mesh::gate::Credentials;
use mesh::identity::Identity;
use mesh::plane::{Channel, Link, Plane, QuinnPlane, RacingPlane, RelayedPlane, RelayedRate};
use mesh::store::BlobStore;
use mesh::swarm::{Incoming, Mesh, MeshConfig};
use protocol::introduction::{Introduce, Introduced, Meet, Ready};
use protocol::message::Provider;
use protocol::wire::{BlobAnswer, BlobRequest, MAX_BLOB_FRAME};
use protocol::{BlobRef, PeerId};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::askers::asker;
use crate::farm::{Farm, PATIENCE, Peer, bytes, exchange_config, key, loopback};
use crate::internet::{HOMES, Internet, PUBLIC, PUBLIC_IP};
use crate::translator::Mapping;

const SIZE: usize = 8 << 20;
/// What takes so long through a relay that a direct path comes about meanwhile.
const LONG: usize = 96 << 20;
/// Far more datagrams than two members in vain send each other in one try.
const IN_VAIN: u64 = 20;

/// The public machine's addresses of both planes.
fn public(port: u16) -> SocketAddr {
    (PUBLIC_IP, port).into()
}

fn control() -> Vec<String> {
    vec![format!("/ip4/{PUBLIC_IP}/udp/4288/quic-v1")]
}

/// A process with both planes.
struct Process {
    peer: PeerId,
    store: BlobStore,
    exchange: Exchange,
    mesh: Mesh,
    _incoming: mpsc::Receiver<Incoming>,
    _folder: TempDir,
}

impl Process {
    async fn start(config: MeshConfig, credentials: Credentials, data: SocketAddr) -> Self {
        let identity = Arc::clone(&config.identity);
        let (mesh, _incoming) = Mesh::start(config).await.expect("a mesh");
        mesh.set_credentials(credentials.clone());
        let _folder = tempfile::tempdir().expect("a folder");
        let store = BlobStore::open(_folder.path()).await.expect("a store");
        let plane = RacingPlane::bind(&identity, data).await.expect("a plane");
        let plane = plane.with_last_resort(RelayedPlane::new(&mesh, RelayedRate::default()));
        let exchange = Exchange::start(exchange_config(store.clone(), Arc::new(plane), credentials));
        Self { peer: identity.peer(), store, exchange, mesh, _incoming, _folder }
    }

    /// The coordinator, which is a relay as well.
    async fn coordinator(farm: Arc<Farm>) -> Self {
        let config = MeshConfig::new(farm.coordinator(), vec![public(4288)]);
        let config = MeshConfig { accept: true, relay: true, ..config };
        Self::start(config, farm.coordinator_credentials(), public(4289)).await
    }

    /// A member that has met the coordinator, and keeps a link to it.
    async fn member(farm: Arc<Farm>) -> Self {
        let identity = Arc::new(key());
        let credentials = farm.credentials(identity.peer());
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let process = Self::start(MeshConfig::new(identity, Vec::new()), credentials, any).await;
        let coordinator = farm.coordinator().peer();
        let contact = process.mesh.meet(coordinator, control()).await;
        assert!(contact.expect("it is a member").relays);
        process.exchange.keep_link(coordinator, vec![public(4289)]);
        process
    }

    fn is_introduced_by(&self, coordinator: PeerId) {
        self.exchange.set_introducer(Provider { peer: coordinator, addresses: vec![public(4289)] });
    }

    /// A member that holds these, and opens its side when it is asked to.
    async fn holder(farm: Arc<Farm>, sizes: &[usize]) -> (Self, (PeerId, Vec<BlobRef>)) {
        let coordinator = farm.coordinator().peer();
        let holder = Self::member(farm).await;
        holder.is_introduced_by(coordinator);
        let mut blobs = Vec::new();
        for size in sizes {
            blobs.push(holder.store.import_bytes(&bytes(*size)).await.expect("there is room"));
        }
        let told = (holder.peer, blobs);
        (holder, told)
    }

    /// Fetches a blob until it comes: who holds it may not have its place at the relay yet.
    async fn fetch(&self, blob: BlobRef, holder: PeerId) {
        let provider = [Provider { peer: holder, addresses: Vec::new() }];
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.exchange.fetch(blob, &provider, None).await {
                Ok(_) => break,
                Err(FetchError::NoProvider { .. }) if Instant::now() < deadline => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert!(self.store.verify(blob.hash).await.expect("own file"));
    }
}

/// The coordinator and a holder, alive as long as this.
struct Others {
    farm: Arc<Farm>,
    holder: PeerId,
    blobs: Vec<BlobRef>,
    _guard: DropGuard,
}

impl Others {
    fn start(internet: &Internet, sizes: &'static [usize]) -> Self {
        let (farm, stop) = (Arc::new(Farm::new()), CancellationToken::new());
        let of_coordinator = Arc::clone(&farm);
        live(internet, PUBLIC, &stop, async move || (Process::coordinator(of_coordinator).await, ()));
        let of_holder = Arc::clone(&farm);
        let holding = async move || Process::holder(of_holder, sizes).await;
        let (holder, blobs) = live(internet, HOMES[0], &stop, holding);
        Self { farm, holder, blobs, _guard: stop.drop_guard() }
    }
}

/// Starts a process in a namespace, where it lives until `stop`; what it tells of itself.
fn live<T: Send + 'static, F: Future<Output = (Process, T)>>(
    internet: &Internet,
    index: usize,
    stop: &CancellationToken,
    start: impl FnOnce() -> F + Send + 'static,
) -> T {
    let (up, is_up) = std::sync::mpsc::sync_channel(1);
    let stop = stop.clone();
    internet.namespaces().run(index, move || async move {
        let (_process, told) = start().await;
        up.send(told).expect("the test waits for it");
        stop.cancelled().await;
    });
    is_up.recv().expect("it starts")
}

#[test]
fn two_members_behind_translators_come_to_a_direct_path_and_the_relay_carries_nothing() {
    let Some(internet) = Internet::new([Mapping::ForAll; 2]) else { return };
    // On a machine with much else to do the path may come about while the first of them is on its way.
    let others = Others::start(&internet, &[SIZE, SIZE + 1, SIZE + 2]);
    let (farm, holder, blobs) = (Arc::clone(&others.farm), others.holder, others.blobs.clone());
    let internet = Arc::new(internet);
    let seen = Arc::clone(&internet);
    let asking = internet.namespaces().run(HOMES[1], move || async move {
        let coordinator = farm.coordinator().peer();
        let asker = Process::member(farm).await;
        asker.is_introduced_by(coordinator);
        for blob in blobs {
            let before = seen.public_bytes();
            asker.fetch(blob, holder).await;
            if seen.public_bytes() - before < SIZE as u64 / 8 {
                return asker.exchange.plane_to(holder);
            }
        }
        panic!("the relay carries all of them: {} bytes", seen.public_bytes());
    });
    assert_eq!(asking.join().expect("it fetches"), Some("QUIC"));
    assert!(internet.direct()[1] > SIZE as u64, "{:?}", internet.direct());
}

#[test]
fn direct_path_takes_the_place_of_a_relayed_one_in_the_middle_of_a_fetch() {
    let Some(internet) = Internet::new([Mapping::ForAll; 2]) else { return };
    let others = Others::start(&internet, &[SIZE, LONG, SIZE + 1]);
    let (farm, holder, blobs) = (Arc::clone(&others.farm), others.holder, others.blobs.clone());
    let internet = Arc::new(internet);
    let seen = Arc::clone(&internet);
    let asking = internet.namespaces().run(HOMES[1], move || async move {
        let coordinator = farm.coordinator().peer();
        let asker = Process::member(farm).await;
        asker.fetch(blobs[0], holder).await;
        assert_eq!(asker.exchange.plane_to(holder), Some("relay"));
        assert!(seen.public_bytes() > SIZE as u64 && seen.direct() == [0, 0]);

        asker.is_introduced_by(coordinator);
        let before = seen.public_bytes();
        let provider = [Provider { peer: holder, addresses: Vec::new() }];
        asker.exchange.fetch(blobs[1], &provider, None).await.expect("nothing breaks in its way");
        assert_eq!(asker.exchange.plane_to(holder), Some("QUIC"));
        let relayed = seen.public_bytes() - before;
        assert!(relayed > SIZE as u64 / 8, "it began on the relayed link, with {relayed} bytes");
        assert!(relayed < LONG as u64 / 2, "it went on over the direct one, after {relayed} bytes");
        let before = seen.public_bytes();
        asker.fetch(blobs[2], holder).await;
        assert!(seen.public_bytes() - before < SIZE as u64 / 8);
        assert!(seen.direct()[1] > SIZE as u64);
    });
    asking.join().expect("it fetches");
}

#[test]
fn relay_stays_where_a_translator_shows_each_destination_another_port() {
    let Some(internet) = Internet::new([Mapping::ForEach, Mapping::ForAll]) else { return };
    let others = Others::start(&internet, &[SIZE]);
    let (farm, holder, blob) = (Arc::clone(&others.farm), others.holder, others.blobs[0]);
    let asking = internet.namespaces().run(HOMES[1], move || async move {
        let coordinator = farm.coordinator().peer();
        let asker = Process::member(farm).await;
        asker.is_introduced_by(coordinator);
        asker.fetch(blob, holder).await;
        asker.exchange.plane_to(holder)
    });
    assert_eq!(asking.join().expect("it fetches"), Some("relay"));
    assert!(internet.public_bytes() > SIZE as u64);
    let [packets, _] = internet.direct();
    assert!((1..IN_VAIN).contains(&packets), "it was tried, with {packets} datagrams");
}

/// What a request on a channel of its own is answered.
async fn answer(link: &dyn Link, request: BlobRequest) -> Option<BlobAnswer> {
    let Channel { reader, writer } = link.open().await.ok()?;
    // The link may be closed by then, which is an answer as well.
    let _ = FrameSender::with_limit(writer, MAX_BLOB_FRAME).send(&request).await;
    let mut answers = FrameReceiver::with_limit(reader, MAX_BLOB_FRAME);
    timeout(PATIENCE, answers.recv()).await.expect("it ends").ok().flatten()
}

#[tokio::test(flavor = "multi_thread")]
async fn stranger_is_introduced_to_nobody_and_a_member_by_the_coordinator_alone() {
    let farm = Farm::new();
    let coordinator: Arc<Identity> = farm.coordinator();
    let credentials = farm.coordinator_credentials();
    let introducing = Peer::start_as(&coordinator, credentials, |plane| plane).await;
    let other = farm.peer().await;
    other.exchange.set_introducer(introducing.provider());
    other.exchange.keep_link(introducing.id, introducing.exchange.addresses());
    let linked = async {
        while !introducing.exchange.is_linked(other.id) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, linked).await.expect("it dials");

    let stranger = QuinnPlane::bind(&key(), loopback()).await.expect("a plane");
    let address = introducing.exchange.addresses()[0];
    let link = stranger.dial(introducing.id, address).await.expect("it answers");
    assert_eq!(answer(&*link, BlobRequest::Introduce(Introduce { peer: other.id })).await, None);
    timeout(PATIENCE, link.closed()).await.expect("it gets no further than the gate");

    // A member that is no coordinator neither introduces nor has others send anything anywhere.
    let member = asker(&farm, &other).await;
    let target = UdpSocket::bind(loopback()).expect("a free port");
    target.set_nonblocking(true).expect("a socket");
    let meet = Meet { peer: member.peer, address: target.local_addr().expect("it is bound") };
    let ready = answer(&*member.link, BlobRequest::Meet(meet)).await;
    assert_eq!(ready, Some(BlobAnswer::Ready(Ready { ready: false })));
    assert!(target.recv(&mut [0; 8]).is_err(), "nothing was sent");
    let introduced = answer(&*member.link, BlobRequest::Introduce(Introduce { peer: introducing.id })).await;
    assert_eq!(introduced, Some(BlobAnswer::Introduced(Introduced { address: None })));
}
