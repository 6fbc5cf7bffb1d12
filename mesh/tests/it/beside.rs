//! Files whose BLAKE3 hash is known and whose only holder is slow, busy, or gone: what comes from their URLs besides.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use mesh::fetch::{FetchFileError, OriginFile};
use mesh::finder::Found;
use mesh::limits::{Caps, Limits};
use mesh::store::ByteSize;
use protocol::{BlobRef, PIECE_SIZE};
use tokio::time::timeout;

use crate::farm::{Farm, PATIENCE, Peer, bytes};
use crate::files::{fetch, file_of, peer, web};
use crate::leases::Table;
use crate::web::{Reply, Web};

const MIB: usize = PIECE_SIZE as usize;

/// A holder of a blob with a slow uplink, and who wants that blob's file from it and from these URLs.
struct Slow {
    asker: Peer,
    holder: Peer,
    blob: BlobRef,
    file: OriginFile,
    table: Arc<Table>,
}

impl Slow {
    async fn start(bytes: &Bytes, urls: &[String]) -> Self {
        let farm = Farm::new();
        let (asker, holder) = (peer(&farm).await, farm.peer().await);
        let blob = holder.store.import_bytes(bytes).await.expect("there is room");
        let caps = Caps { upload: Some(ByteSize(PIECE_SIZE)), download: None };
        holder.exchange.set_limits(Limits { caps, ..Limits::default() });
        let table = Arc::new(Table::default());
        table.set_found(Found { blob: Some(blob), providers: vec![holder.provider()], readers: vec![] });
        asker.exchange.set_finder(table.finder(asker.provider()));
        let file = OriginFile { blob: Some(blob.hash), ..file_of(bytes, urls) };
        Self { asker, holder, blob, file, table }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn known_blob_comes_from_its_url_as_well_where_the_only_peer_is_slow() {
    let bytes = Bytes::from(bytes(24 * MIB + 5));
    let web = web(&bytes).await;
    web.set_rate(24 << 20);
    let slow = Slow::start(&bytes, &[web.url("/")]).await;
    let fetched = fetch(&slow.asker.exchange, &slow.file).await.expect("both have it");
    let size = bytes.len() as u64;
    assert_eq!(fetched.blob, slow.blob);
    assert!(fetched.origin_bytes > size / 2, "{} of {size} bytes came from the URL", fetched.origin_bytes);
    // An answer that is broken off, because the peer brought what comes next in it, costs what was under way.
    assert!(web.sent() <= size + size / 4, "{} of {size} bytes were sent", web.sent());
    assert_eq!(slow.asker.store.alias(&slow.file.file.sha256), Some(slow.blob), "its SHA-256 was computed");
    assert!(slow.asker.store.verify(slow.blob.hash).await.expect("it can be read"));
    assert!(slow.table.held(slow.asker.id) > 0, "ranges were leased, and given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn url_is_left_alone_while_the_only_peer_is_busy_with_our_other_fetches() {
    const FILES: usize = 16;
    let farm = Farm::new();
    let (asker, holder) = (peer(&farm).await, farm.peer().await);
    // Each of them comes slowly, and all of them do not.
    let caps = Caps { upload: Some(ByteSize(32 * PIECE_SIZE)), download: None };
    holder.exchange.set_limits(Limits { caps, ..Limits::default() });
    let web = Web::start(|_| Reply::status(404)).await;
    let providers = [holder.provider()];
    let fetching = (0..FILES).map(async |number| {
        let bytes = Bytes::from([&bytes(4 * MIB)[..], &[number as u8]].concat());
        let blob = holder.store.import_bytes(&bytes).await.expect("there is room");
        let file = OriginFile { blob: Some(blob.hash), ..file_of(&bytes, &[web.url("/")]) };
        let fetching = asker.exchange.fetch_file(&file, &providers, None);
        timeout(PATIENCE, fetching).await.expect("it ends").expect("a peer has it").blob == blob
    });
    assert!(join_all(fetching).await.into_iter().all(|is_it| is_it));
    assert_eq!(web.asked().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn url_with_another_file_is_found_out_by_the_hash_tree_and_the_next_one_asked() {
    let bytes = Bytes::from(bytes(16 * MIB));
    let (good, bad) = (web(&bytes).await, web(&Bytes::from(vec![7; bytes.len()])).await);
    let slow = Slow::start(&bytes, &[bad.url("/a"), good.url("/b")]).await;
    let fetched = fetch(&slow.asker.exchange, &slow.file).await.expect("one URL has it");
    assert_eq!((fetched.blob, slow.asker.exchange.faults()), (slow.blob, vec![]));
    assert!(good.sent() > 0 && bad.sent() < slow.blob.size, "{} bad bytes", bad.sent());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_gave_before_it_left_is_not_read_again_from_the_url() {
    let bytes = Bytes::from(bytes(16 * MIB));
    let web = web(&bytes).await;
    let slow = Slow::start(&bytes, &[]).await;
    slow.holder.exchange.set_limits(Limits {
        caps: Caps { upload: Some(ByteSize(8 * PIECE_SIZE)), download: None },
        ..Limits::default()
    });
    let fetching = tokio::spawn({
        let (exchange, file) = (slow.asker.exchange.clone(), slow.file.clone());
        async move { exchange.fetch_file(&file, &[], None).await }
    });
    let arrived = async {
        while slow.asker.exchange.transfers().iter().all(|transfer| transfer.here < 4 * PIECE_SIZE) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, arrived).await.expect("it comes");
    fetching.abort();
    assert!(fetching.await.is_err_and(|error| error.is_cancelled()));
    slow.holder.exchange.shutdown().await;
    slow.table.set_found(Found { blob: Some(slow.blob), providers: vec![], readers: vec![] });
    let file = OriginFile { urls: vec![web.url("/")], ..slow.file };
    let fetched = fetch(&slow.asker.exchange, &file).await.expect("the URL has the rest");
    assert_eq!(fetched.blob, slow.blob);
    assert!(web.sent() <= 12 * PIECE_SIZE, "{} bytes were sent", web.sent());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_of_a_known_blob_waits_for_its_only_provider_where_nobody_else_has_it() {
    let farm = Farm::new();
    let (asker, table) = (peer(&farm).await, Arc::new(Table::default()));
    asker.exchange.set_finder(table.finder(asker.provider()));
    // No URL helps who is cut off from the internet as well.
    let web = Web::start(|_| Reply::status(404)).await;
    let url = || vec![web.url("/")];
    // Where others merely say that the blob is the file, it goes on as the file, and comes back from there.
    let cases = [(vec![], true, true), (url(), true, true), (url(), false, true), (url(), false, false)];
    for (case, (urls, is_known, by_sha256)) in cases.into_iter().enumerate() {
        let mut holder = farm.peer().await;
        let bytes = [vec![case as u8], bytes(16 * MIB - 1)].concat();
        let blob = holder.store.import_bytes(&bytes).await.expect("there is room");
        table.set_found(Found { blob: Some(blob), providers: vec![], readers: vec![] });
        let caps = Caps { upload: Some(ByteSize(8 * PIECE_SIZE)), download: None };
        holder.exchange.set_limits(Limits { caps, ..Limits::default() });
        let file = OriginFile { blob: is_known.then_some(blob.hash), ..file_of(&bytes, &urls) };
        let fetching = tokio::spawn({
            let (exchange, file, providers) = (asker.exchange.clone(), file.clone(), [holder.provider()]);
            async move { exchange.fetch_file(&file, &providers, None).await }
        });
        let arrived = async {
            while asker.exchange.transfers().iter().all(|transfer| transfer.here < 4 * PIECE_SIZE) {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, arrived).await.expect("it comes");
        holder.exchange.shutdown().await;
        let error = timeout(PATIENCE, fetching).await.expect("it ends").expect("no panic");
        let error = error.expect_err("nobody has the rest");
        assert!(matches!(error, FetchFileError::NoSource { .. }), "{error}");
        let left = std::fs::read_dir(asker.folder.path().join("partial")).expect("own folder").count();
        assert_eq!(left, 3, "its bytes, its tree and its marks");

        holder = farm.peer().await;
        holder.store.import_bytes(&bytes).await.expect("there is room");
        let providers = [holder.provider()];
        let fetched = match by_sha256 {
            true => asker.exchange.fetch_file(&file, &providers, None).await.expect("it is back").fetched,
            false => asker.exchange.fetch(blob, &providers, None).await.expect("it is back"),
        };
        let crossed: u64 = fetched.iter().map(|fetched| fetched.bytes).sum();
        assert!(crossed <= 12 * PIECE_SIZE, "{crossed} bytes crossed again in case {case}");
        let left = std::fs::read_dir(asker.folder.path().join("partial")).expect("own folder").count();
        assert_eq!(left, 0);
        asker.store.remove(blob.hash).await.expect("own folder");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn file_comes_from_its_url_where_nobody_of_those_who_want_its_blob_has_the_hash_tree() {
    let farm = Farm::new();
    let (asker, other) = (peer(&farm).await, farm.peer().await);
    let bytes = Bytes::from(bytes(8 * MIB));
    let (web, blob) = (web(&bytes).await, BlobRef::of(&bytes));
    let _begun = other.store.partial(blob).await.expect("there is room");
    let file = OriginFile { blob: Some(blob.hash), ..file_of(&bytes, &[web.url("/")]) };
    let providers = [other.provider()];
    let fetching = asker.exchange.fetch_file(&file, &providers, None);
    let fetched = timeout(PATIENCE, fetching).await.expect("it ends").expect("the URL has it");
    assert_eq!((fetched.blob, fetched.origin_bytes), (blob, blob.size));
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_that_is_only_said_to_be_a_file_is_given_to_nobody_as_that_file() {
    let bytes = Bytes::from(bytes(8 * MIB));
    let web = web(&bytes).await;
    let slow = Slow::start(&bytes, &[web.url("/")]).await;
    // What others say is all that is known.
    let file = OriginFile { blob: None, ..slow.file };
    let fetched = fetch(&slow.asker.exchange, &file).await.expect("both have it");
    assert_eq!((fetched.blob, slow.asker.store.alias(&file.file.sha256)), (slow.blob, Some(slow.blob)));
    assert!(fetched.origin_bytes > 0, "the URL was asked");
    assert_eq!(slow.table.held(slow.asker.id), 0, "no range was leased for what cannot be given");
}
