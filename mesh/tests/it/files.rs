//! Files that only a SHA-256 names, from a counting origin and from peers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use mesh::control::{self, ControlServer, Custodian, CustodianError, GetRequest, Got, Reach, Request};
use mesh::fetch::{Exchange, FetchFileError, FetchedFile, OriginFile};
use mesh::finder::Found;
use mesh::limits::{Caps, Limits};
use mesh::plane::TlsPlane;
use mesh::store::{BlobStore, ByteSize};
use protocol::{BlobHash, BlobRef, FileRef, PIECE_SIZE, Sha256};
use sha2::Digest;
use tokio::time::{Duration, timeout};
use tokio_util::sync::CancellationToken;

use crate::farm::{Farm, PATIENCE, Peer, bytes, exchange_config, key, loopback};
use crate::leases::Table;
use crate::log;
use crate::web::{Cut, Reply, Web, reader};

const MIB: usize = PIECE_SIZE as usize;

pub(crate) fn file_of(bytes: &[u8], urls: &[String]) -> OriginFile {
    let sha256 = Sha256(sha2::Sha256::digest(bytes).into());
    let file = FileRef { sha256, size: bytes.len() as u64 };
    let urls = urls.to_vec();
    OriginFile { file, blob: None, trusted_blake3: false, urls, share: true, in_order: false }
}

/// A peer that may ask the servers of a test.
pub(crate) async fn peer(farm: &Farm) -> Peer {
    let peer = farm.peer().await;
    peer.exchange.set_origins(reader(|_| ()));
    peer
}

pub(crate) async fn fetch(exchange: &Exchange, file: &OriginFile) -> Result<FetchedFile, FetchFileError> {
    timeout(PATIENCE, exchange.fetch_file(file, &[], None)).await.expect("it ends")
}

pub(crate) async fn web(bytes: &Bytes) -> Web {
    let bytes = bytes.clone();
    Web::start(move |asked| Reply::range(asked, &bytes, "a")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn file_comes_from_its_url_and_is_a_blob_under_both_names() {
    let peer = peer(&Farm::new()).await;
    for size in [0, 10, 20_000, 5 * MIB + 10] {
        let bytes = Bytes::from(bytes(size));
        let web = web(&bytes).await;
        let file = file_of(&bytes, &[web.url("/model")]);
        let fetched = fetch(&peer.exchange, &file).await.expect("it can be read");
        assert_eq!(fetched.blob, BlobRef::of(&bytes), "{size}");
        assert_eq!((fetched.origin_bytes, web.sent()), (size as u64, size as u64));
        assert!(peer.store.verify(fetched.blob.hash).await.expect("it can be read"));
        assert_eq!(peer.store.alias(&file.file.sha256), Some(fetched.blob));
        let again = fetch(&peer.exchange, &file).await.expect("it is here");
        assert_eq!((again.blob, again.origin_bytes), (fetched.blob, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_is_another_one_is_refused_and_the_next_url_asked() {
    let peer = peer(&Farm::new()).await;
    let (good, bad) = (Bytes::from(bytes(3 * MIB)), Bytes::from(vec![7; 3 * MIB]));
    let (good_web, bad_web) = (web(&good).await, web(&bad).await);
    let file = file_of(&good, &[bad_web.url("/a?key=secret")]);
    let error = fetch(&peer.exchange, &file).await.expect_err("it is another file").to_string();
    assert!(error.starts_with("wrong SHA-256") && error.contains("/a"), "{error}");
    assert!(error.contains(&file.file.sha256.to_string()) && !error.contains("secret"), "{error}");
    assert_eq!(peer.store.complete(), []);
    let left = std::fs::read_dir(peer.folder.path().join("partial")).expect("own folder").count();
    assert_eq!(left, 0, "nothing is kept");

    let file = file_of(&good, &[bad_web.url("/a"), good_web.url("/b")]);
    let fetched = fetch(&peer.exchange, &file).await.expect("the second one is good");
    assert_eq!(fetched.blob, BlobRef::of(&good));
}

#[tokio::test(flavor = "multi_thread")]
async fn file_comes_from_a_server_without_ranges_and_from_one_that_changes_it() {
    let peer = peer(&Farm::new()).await;
    let bytes = Bytes::from(bytes(6 * MIB + 5));
    let whole = bytes.clone();
    let no_ranges = Web::start(move |_| Reply::whole(&whole)).await;
    let fetched = fetch(&peer.exchange, &file_of(&bytes, &[no_ranges.url("/")])).await;
    assert_eq!(fetched.expect("it can be read").blob, BlobRef::of(&bytes));
    peer.store.remove(BlobRef::of(&bytes).hash).await.expect("own folder");

    let (old, new) = (Bytes::from(vec![3; bytes.len()]), bytes.clone());
    let is_new = AtomicBool::new(false);
    let changing = Web::start(move |asked| match is_new.swap(true, Ordering::Relaxed) {
        false => Reply::range(asked, &old, "old").cut(Cut::EndAfter(2 * MIB + 7)),
        true => Reply::range(asked, &new, "new"),
    })
    .await;
    let fetched = fetch(&peer.exchange, &file_of(&bytes, &[changing.url("/")])).await;
    assert_eq!(fetched.expect("it can be read").blob, BlobRef::of(&bytes));
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_nobody_gives_says_who_was_asked_and_why_not() {
    let farm = Farm::new();
    let (peer, other) = (peer(&farm).await, farm.peer().await);
    let web = Web::start(|_| Reply::status(404)).await;
    let file = file_of(&bytes(MIB), &[web.url("/model")]);
    let providers = [other.provider()];
    let fetching = peer.exchange.fetch_file(&file, &providers, None);
    let error = timeout(PATIENCE, fetching).await.expect("it ends").expect_err("nobody has it").to_string();
    assert!(error.contains("/model: ") && error.contains("404"), "{error}");
    assert!(error.contains(&other.id.fmt_short()) && error.contains("does not hold"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn known_blob_comes_from_peers_and_its_sha256_is_proven_unless_somebody_vouches() {
    let farm = Farm::new();
    let (peer, holder) = (peer(&farm).await, farm.peer().await);
    let bytes = Bytes::from(bytes(3 * MIB));
    let blob = holder.store.import_bytes(&bytes).await.expect("there is room");
    let web = web(&bytes).await;
    let table = Arc::new(Table::default());
    table.set_found(Found { blob: Some(blob), providers: vec![holder.provider()], readers: vec![] });
    peer.exchange.set_finder(table.finder(peer.provider()));
    let file = file_of(&bytes, &[web.url("/")]);
    let fetched = fetch(&peer.exchange, &file).await.expect("a peer has it");
    assert_eq!((fetched.blob, fetched.origin_bytes, web.sent()), (blob, 0, 0));
    assert_eq!(peer.store.alias(&file.file.sha256), Some(blob));

    // Somebody says that another blob is the file.
    let wrong = holder.store.import_bytes(&vec![1; 3 * MIB]).await.expect("there is room");
    let second = self::peer(&farm).await;
    table.set_found(Found { blob: Some(wrong), providers: vec![holder.provider()], readers: vec![] });
    second.exchange.set_finder(table.finder(second.provider()));
    let fetched = fetch(&second.exchange, &file).await.expect("the origin has it");
    assert_eq!((fetched.blob, fetched.origin_bytes), (blob, bytes.len() as u64));

    let vouched = OriginFile {
        file: FileRef { sha256: Sha256([1; 32]), size: wrong.size },
        blob: Some(wrong.hash),
        trusted_blake3: true,
        ..file_of(&[], &[])
    };
    let third = self::peer(&farm).await;
    third.exchange.set_finder(table.finder(third.provider()));
    let fetched = fetch(&third.exchange, &vouched).await.expect("it is the blob that was vouched for");
    assert_eq!((fetched.blob, third.store.alias(&vouched.file.sha256)), (wrong, None));
    let not_it = OriginFile { blob: Some(BlobHash([2; 32])), trusted_blake3: true, ..file.clone() };
    third.exchange.set_finder(Arc::new(Table::default()).finder(third.provider()));
    let error = fetch(&third.exchange, &not_it).await.expect_err("it is another blob").to_string();
    assert!(error.starts_with("wrong BLAKE3 hash"), "{error}");
    // Who is not trusted for it may be wrong: whoever has the blob, or nobody has it, and it may be here already.
    for said in [wrong.hash, BlobHash([2; 32])] {
        let fourth = self::peer(&farm).await;
        table.set_found(Found { blob: Some(wrong), providers: vec![holder.provider()], readers: vec![] });
        fourth.exchange.set_finder(table.finder(fourth.provider()));
        let said = OriginFile { blob: Some(said), ..file.clone() };
        assert_eq!(fetch(&fourth.exchange, &said).await.expect("the origin has it").blob, blob);
    }
    let said = OriginFile { blob: Some(wrong.hash), ..file.clone() };
    let fifth = self::peer(&farm).await;
    assert_eq!(fifth.store.import_bytes(&vec![1; 3 * MIB]).await.expect("there is room"), wrong);
    assert_eq!(fetch(&fifth.exchange, &said).await.expect("the origin has it").blob, blob);
}

#[tokio::test(flavor = "multi_thread")]
async fn download_cap_holds_for_what_comes_from_the_internet() {
    let (peer, bytes) = (peer(&Farm::new()).await, Bytes::from(bytes(4 * MIB)));
    let (web, caps) = (web(&bytes).await, Caps { upload: None, download: Some(ByteSize(1)) });
    peer.exchange.set_limits(Limits { caps, ..Limits::default() });
    let file = file_of(&bytes, &[web.url("/")]);
    let fetching = fetch(&peer.exchange, &file);
    tokio::pin!(fetching);
    let came = timeout(Duration::from_secs(1), &mut fetching).await;
    assert!(came.is_err(), "it came at more than a byte a second");
    peer.exchange.set_limits(Limits::default());
    assert_eq!(fetching.await.expect("it can be read").origin_bytes, bytes.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn file_is_taken_up_where_a_process_left_it() {
    let (farm, folder) = (Farm::new(), tempfile::tempdir().expect("a folder"));
    let bytes = Bytes::from(bytes(16 * MIB));
    let (whole, cut) = (bytes.clone(), bytes.clone());
    let hanging = Web::start(move |asked| Reply::range(asked, &cut, "a").cut(Cut::HangAfter(9 * MIB))).await;
    let good = Web::start(move |asked| Reply::range(asked, &whole, "a")).await;
    let start = async |urls: &[String]| {
        let (identity, store) = (key(), BlobStore::open(folder.path()).await.expect("a store"));
        let plane = Arc::new(TlsPlane::bind(&identity, loopback()).await.expect("a plane"));
        let config = exchange_config(store, plane, farm.credentials(identity.peer()));
        let exchange = Exchange::start(config);
        exchange.set_origins(reader(|_| ()));
        (exchange, file_of(&bytes, urls))
    };
    let (exchange, file) = start(&[hanging.url("/")]).await;
    let fetching = tokio::spawn({
        let (exchange, file) = (exchange.clone(), file.clone());
        async move { exchange.fetch_file(&file, &[], None).await }
    });
    let arrived = async {
        while exchange.transfers().iter().all(|transfer| transfer.here < 8 * PIECE_SIZE) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, arrived).await.expect("it comes");
    fetching.abort();
    assert!(fetching.await.is_err_and(|error| error.is_cancelled()));
    drop(exchange);

    let (exchange, file) = start(&[good.url("/")]).await;
    let fetched = fetch(&exchange, &file).await.expect("the rest can be read");
    assert_eq!(fetched.blob, BlobRef::of(&bytes));
    assert!(good.sent() <= 8 * PIECE_SIZE, "{} bytes were sent again", good.sent() - 7 * PIECE_SIZE);
}

/// Peers that ask the same table, and a file of `size` bytes that all of them want from one origin.
struct Fleet {
    peers: Vec<Peer>,
    table: Arc<Table>,
    web: Web,
    file: OriginFile,
    bytes: Bytes,
}

impl Fleet {
    async fn start(count: usize, size: usize) -> Self {
        let (farm, table, bytes) = (Farm::new(), Arc::new(Table::default()), Bytes::from(bytes(size)));
        let web = web(&bytes).await;
        let file = file_of(&bytes, &[web.url("/model")]);
        let mut peers = Vec::new();
        for _ in 0..count {
            let peer = peer(&farm).await;
            peer.exchange.set_finder(table.finder(peer.provider()));
            peers.push(peer);
        }
        Self { peers, table, web, file, bytes }
    }

    /// How many copies of the file the origin sent.
    fn copies(&self) -> f64 {
        self.web.sent() as f64 / self.bytes.len() as f64
    }

    fn begin(&self, peer: usize) -> tokio::task::JoinHandle<Result<FetchedFile, FetchFileError>> {
        let (exchange, file) = (self.peers[peer].exchange.clone(), self.file.clone());
        tokio::spawn(async move { fetch(&exchange, &file).await })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn origin_sends_one_copy_to_many_who_fetch_at_once() {
    for count in [2, 8] {
        let fleet = Fleet::start(count, 32 * MIB).await;
        fleet.web.set_rate(24 << 20);
        let fetching: Vec<_> = (0..count).map(|peer| fleet.begin(peer)).collect();
        let mut from_origin = 0;
        for fetching in fetching {
            let fetched = fetching.await.expect("no panic").expect("all of them get it");
            assert_eq!(fetched.blob, BlobRef::of(&fleet.bytes));
            from_origin += fetched.origin_bytes;
        }
        assert!(from_origin >= fleet.bytes.len() as u64);
        assert!(fleet.copies() <= 1.05, "{count} peers: {} copies", fleet.copies());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_fetch_a_known_blob_of_a_slow_peer_read_each_range_of_its_url_once() {
    let mut fleet = Fleet::start(3, 48 * MIB).await;
    fleet.web.set_rate(24 << 20);
    fleet.file.blob = Some(BlobHash::of(&fleet.bytes));
    let holder = &fleet.peers[2];
    let blob = holder.store.import_bytes(&fleet.bytes).await.expect("there is room");
    let caps = Caps { upload: Some(ByteSize(PIECE_SIZE)), download: None };
    holder.exchange.set_limits(Limits { caps, ..Limits::default() });
    fleet.table.set_found(Found { blob: Some(blob), providers: vec![holder.provider()], readers: vec![] });
    for fetching in [fleet.begin(0), fleet.begin(1)] {
        assert_eq!(fetching.await.expect("no panic").expect("all of them get it").blob, blob);
    }
    // Beside that, an answer that is broken off costs what was under way.
    assert!(fleet.copies() <= 1.25, "{} copies", fleet.copies());
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_reader_costs_what_it_had_in_flight() {
    // What is in flight is a small part only of a file that is large beside a lease.
    let fleet = Fleet::start(3, 128 * MIB).await;
    fleet.web.set_rate(16 << 20);
    let fetching: Vec<_> = (0..3).map(|peer| fleet.begin(peer)).collect();
    let (victim, exchange) = (fleet.peers[0].id, fleet.peers[0].exchange.clone());
    let half = async {
        while fleet.table.held(victim) < 15 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, half).await.expect("it gets on");
    fetching[0].abort();
    exchange.shutdown().await;
    fleet.table.leave(victim);
    for (peer, fetching) in fetching.into_iter().enumerate() {
        match fetching.await {
            Ok(fetched) => assert_eq!(fetched.expect("the others get it").blob, BlobRef::of(&fleet.bytes)),
            Err(error) => assert!(peer == 0 && error.is_cancelled(), "{error}"),
        }
    }
    assert!(fleet.copies() <= 1.1, "{} copies", fleet.copies());
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_that_lies_is_found_out_and_remembered() {
    log::listen();
    let fleet = Fleet::start(2, 24 * MIB).await;
    // It holds wrong bytes from the beginning, as if it had put them together.
    let liar = &fleet.peers[0];
    let unproven = liar.store.unproven(fleet.file.file).await.expect("there is room");
    let wrong = tokio::task::spawn_blocking(move || {
        for piece in 0..12 {
            unproven.write_piece(piece, &vec![7; MIB], mesh::store::Giver::Origin).expect("there is room");
        }
        unproven
    });
    let _wrong = wrong.await.expect("no panic");
    let finder = fleet.table.finder(liar.provider());
    let held = vec![protocol::PieceRange { first: 0, count: 12 }];
    finder.read_origin(&fleet.file.file, held, 0).await.expect("the table answers");

    let fetched = fleet.begin(1).await.expect("no panic").expect("the origin is honest");
    assert_eq!(fetched.blob, BlobRef::of(&fleet.bytes));
    assert!(fetched.fetched.iter().any(|fetched| fetched.from == liar.id), "{:?}", fetched.fetched);
    let faults = fleet.peers[1].exchange.faults();
    assert!(faults.iter().any(|(peer, ..)| *peer == liar.id), "{faults:?}");
    let logged = log::warnings_about(liar.id);
    assert!(logged.len() == 1 && logged[0].contains("a piece that is not the file's"), "{logged:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn file_is_read_without_whoever_leases_its_ranges() {
    let fleet = Fleet::start(2, 24 * MIB).await;
    fleet.table.go_offline();
    for peer in 0..2 {
        let fetched = fleet.begin(peer).await.expect("no panic").expect("the origin has it");
        assert_eq!(fetched.blob, BlobRef::of(&fleet.bytes));
    }
    assert_eq!(fleet.web.sent(), 2 * fleet.bytes.len() as u64, "duplicates are allowed, and no more");
}

/// The process of a peer, as commands on its machine ask it.
struct Commanded {
    data: tempfile::TempDir,
    custodian: Custodian,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Commanded {
    async fn start(peer: &Peer) -> Self {
        let table = Arc::new(Table::default());
        let reach = Reach { exchange: peer.exchange.clone(), finder: table.finder(peer.provider()) };
        let data = tempfile::tempdir().expect("a folder");
        let server = ControlServer::bind(data.path(), peer.store.clone()).expect("a socket");
        let stop = CancellationToken::new();
        let serving = tokio::spawn(server.with_reach(reach).serve(stop.clone()));
        let custodian = Custodian::find(data.path()).await.expect("it runs");
        Self { data, custodian, stop, serving }
    }

    /// Has the file of this name made, and says what came of that and what is in it.
    async fn get(&self, name: Sha256, urls: Vec<String>) -> Result<(Got, Vec<u8>), CustodianError> {
        let output = self.data.path().join("model");
        let request =
            GetRequest { name: name.into(), from: vec![], urls, size: None, output: output.clone() };
        let reply = self.custodian.ask(Request::Get(request), |_| ()).await?;
        let control::Reply::Got(got) = reply else { panic!("{reply:?}") };
        Ok((got, std::fs::read(&output).expect("it was made")))
    }

    async fn stop(self) {
        self.stop.cancel();
        self.serving.await.expect("no panic");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn command_has_a_process_fetch_a_file_from_its_url() {
    let (peer, bytes) = (peer(&Farm::new()).await, Bytes::from(bytes(3 * MIB)));
    let (web, commanded) = (web(&bytes).await, Commanded::start(&peer).await);
    let sha256 = file_of(&bytes, &[]).file.sha256;
    let (got, file) = commanded.get(sha256, vec![web.url("/model")]).await.expect("the URL has it");
    assert_eq!((got.blob, got.origin_bytes), (BlobRef::of(&bytes), bytes.len() as u64));
    assert_eq!(file, bytes);
    commanded.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_that_a_trusted_publisher_ties_to_a_sha256_is_found_and_served_under_it_alone() {
    let farm = Farm::new();
    let (holder, peer, asker) = (farm.peer().await, peer(&farm).await, peer(&farm).await);
    let bytes = bytes(3 * MIB);
    let blob = holder.store.import_bytes(&bytes).await.expect("there is room");
    let file = file_of(&bytes, &[]);
    let signed = OriginFile { blob: Some(blob.hash), trusted_blake3: true, ..file.clone() };
    let fetched = peer.exchange.fetch_file(&signed, &[holder.provider()], None).await;
    assert_eq!(fetched.expect("it is held").blob, blob);
    assert_eq!(peer.store.aliases(), [], "it read no byte for that, and says so to nobody");

    let given = asker.exchange.fetch_file(&file, &[peer.provider()], None).await;
    assert_eq!(given.expect("it is served under that name").blob, blob);
    let commanded = Commanded::start(&peer).await;
    let name = file.file.sha256.into();
    let reply = commanded.custodian.ask(Request::Where { name }, |_| ()).await.expect("it answers");
    let control::Reply::Where(found) = reply else { panic!("{reply:?}") };
    assert_eq!((found.blob, found.here.map(|here| here.hash)), (Some(blob), Some(blob.hash)));
    let (got, copied) = commanded.get(file.file.sha256, vec![]).await.expect("it is here");
    assert_eq!((got.blob, copied), (blob, bytes.clone()));
    assert_eq!(peer.store.aliases().len(), 1, "the bytes were read for that");

    // One who is trusted and wrong fools nobody else.
    let wrong = OriginFile { file: FileRef { sha256: Sha256([1; 32]), ..file.file }, ..signed };
    holder.exchange.fetch_file(&wrong, &[], None).await.expect("the blob is here");
    let commanded_holder = Commanded::start(&holder).await;
    let refused = commanded_holder.get(wrong.file.sha256, vec![]).await.expect_err("it is another file");
    assert!(refused.to_string().contains("is held by nobody"), "{refused}");
    let unsigned = OriginFile { blob: None, trusted_blake3: false, ..wrong };
    let refused = holder.exchange.fetch_file(&unsigned, &[], None).await.expect_err("it is another file");
    assert!(matches!(refused, FetchFileError::NoSource { .. }), "{refused}");
    assert_eq!(holder.store.named(&unsigned.file.sha256), None);
    commanded.stop().await;
    commanded_holder.stop().await;
}
