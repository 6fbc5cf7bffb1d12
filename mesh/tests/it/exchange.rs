//! Blobs between peers: whom they come from, what is kept, what is refused.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use mesh::fetch::{Exchange, FetchError, Progress};
use mesh::identity::Identity;
use mesh::plane::QuinnPlane;
use mesh::store::BlobStore;
use protocol::message::Provider;
use protocol::{BlobHash, BlobName, BlobRef, Fetched, PIECE_SIZE, SourceName};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::cut::CutPlane;
use crate::farm::{Farm, PATIENCE, Peer, bytes, exchange_config, key, loopback};
use crate::log;

#[tokio::test(flavor = "multi_thread")]
async fn blobs_of_every_size_cross_and_are_counted() {
    let farm = Farm::new();
    let (holder, asker) = (farm.peer().await, farm.peer().await);
    for size in [0, 1, 16 << 10, (16 << 10) + 1, 1 << 20, (1 << 20) + 1, 5_000_000] {
        let bytes = bytes(size);
        let blob = holder.store.import_bytes(&bytes).await.expect("there is room");
        let (progress, latest) = watch::channel(Progress::default());
        let fetched = asker.exchange.fetch(blob, &[holder.provider()], Some(&progress)).await;
        let fetched = fetched.unwrap_or_else(|error| panic!("{size}: {error}"));
        assert_eq!(fetched.iter().map(|fetched| fetched.bytes).sum::<u64>(), size as u64);
        assert_eq!(latest.borrow().bytes, size as u64);
        assert_eq!(asker.store.read_all(blob.hash, u64::MAX).await.expect("it is whole"), bytes);
        let again = asker.exchange.fetch(blob, &[holder.provider()], None).await;
        assert_eq!(again.expect("it is here"), [], "nothing is fetched twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupt_provider_is_dropped_and_remembered_and_the_rest_comes_from_another() {
    log::listen();
    let farm = Farm::new();
    let (corrupt, good, asker) = (farm.peer().await, farm.peer().await, farm.peer().await);
    let size = 4 * PIECE_SIZE as usize;
    let original = bytes(size);
    let mut bytes = original.clone();
    let blob = good.store.import_bytes(&bytes).await.expect("there is room");
    assert_eq!(corrupt.store.import_bytes(&bytes).await.expect("there is room"), blob);
    let path = corrupt.store.path_of(blob.hash).expect("it is whole");
    bytes[2 * PIECE_SIZE as usize + 5] ^= 1;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("own file");
    fs::write(&path, &bytes).expect("own file");

    let providers = [corrupt.provider(), good.provider()];
    let fetched = asker.exchange.fetch(blob, &providers, None).await.expect("one provider is good");
    assert_eq!(fetched.iter().map(|fetched| fetched.bytes).sum::<u64>(), blob.size);
    assert_eq!(asker.store.read_all(blob.hash, u64::MAX).await.expect("it is whole"), original);
    let faults = asker.exchange.faults();
    assert_eq!(faults.len(), 1);
    assert_eq!((faults[0].0, faults[0].1), (corrupt.id, BlobName::Blake3(blob.hash)));
    assert!(faults[0].2.contains("piece 2"), "{}", faults[0].2);
    let logged = log::warnings_about(corrupt.id);
    assert!(logged.len() == 1 && logged[0].contains("piece 2"), "{logged:#?}");

    asker.store.remove(blob.hash).await.expect("own file");
    let refused = asker.exchange.fetch(blob, &[corrupt.provider()], None).await;
    let refused = refused.expect_err("the provider is not asked again").to_string();
    assert!(refused.contains("wrong bytes before"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_transfer_resumes_after_a_restart_with_what_is_missing() {
    let farm = Farm::new();
    let holder = farm.peer().await;
    let bytes = bytes(8 * PIECE_SIZE as usize + 77);
    let blob = holder.store.import_bytes(&bytes).await.expect("there is room");
    // It breaks off in the middle of its fourth piece.
    let dying = key();
    let credentials = farm.credentials(dying.peer());
    let after = 3 * PIECE_SIZE as usize + 500_000;
    let dying = Peer::start(dying, credentials, |inner| Arc::new(CutPlane { inner, after })).await;
    assert_eq!(dying.store.import_bytes(&bytes).await.expect("there is room"), blob);

    let asker = key();
    let credentials = farm.credentials(asker.peer());
    let folder = tempfile::tempdir().expect("a folder");
    let store = BlobStore::open(folder.path()).await.expect("a store");
    let plane = Arc::new(QuinnPlane::bind(&asker, loopback()).await.expect("a plane"));
    let exchange = Exchange::start(exchange_config(store, plane, credentials.clone()));
    let silent = exchange.fetch(blob, &[dying.provider()], None).await;
    assert!(
        matches!(silent, Err(FetchError::NoProvider { ref tried, .. }) if tried[0].1.contains("sent nothing"))
    );
    exchange.shutdown().await;
    drop(exchange);

    let store = BlobStore::open(folder.path()).await.expect("the store again");
    assert!(!store.contains(blob.hash), "a partial blob is not whole");
    let kept = store.partial(blob).await.expect("what is left of it").bytes();
    // The last piece is shorter, and may be one of those that came.
    assert!((2 * PIECE_SIZE..4 * PIECE_SIZE).contains(&kept), "{kept} bytes were kept");
    let plane = Arc::new(QuinnPlane::bind(&asker, loopback()).await.expect("a plane"));
    let exchange = Exchange::start(exchange_config(store.clone(), plane, credentials));
    let fetched = exchange.fetch(blob, &[holder.provider()], None).await.expect("the rest");
    assert_eq!(fetched, [Fetched { blob, from: holder.id, bytes: blob.size - kept }]);
    assert_eq!(store.read_all(blob.hash, u64::MAX).await.expect("it is whole"), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn askers_hear_of_each_other_and_go_on_when_their_only_provider_dies() {
    let farm = Farm::new();
    let holder = farm.peer().await;
    let bytes = bytes(8 * PIECE_SIZE as usize + 77);
    let blob = holder.store.import_bytes(&bytes).await.expect("there is room");
    let dying = key();
    let credentials = farm.credentials(dying.peer());
    let after = 3 * PIECE_SIZE as usize + 500_000;
    let dying = Peer::start(dying, credentials, |inner| Arc::new(CutPlane { inner, after })).await;
    assert_eq!(dying.store.import_bytes(&bytes).await.expect("there is room"), blob);

    let (first, second) = (farm.peer().await, farm.peer().await);
    let providers = [dying.provider(), holder.provider()];
    first.exchange.fetch(blob, &providers, None).await.expect("the holder has the rest");
    let fetched = second.exchange.fetch(blob, &[dying.provider()], None).await;
    let fetched = fetched.expect("the first asker has the rest");
    let from = |peer| fetched.iter().find(|fetched| fetched.from == peer).map_or(0, |fetched| fetched.bytes);
    assert!(from(dying.id) < 4 * PIECE_SIZE, "it cannot send more: {fetched:?}");
    assert_eq!(from(dying.id) + from(first.id), blob.size, "{fetched:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_fetch_serves_all_who_ask() {
    let farm = Farm::new();
    let (holder, asker) = (farm.peer().await, farm.peer().await);
    let blob = holder.store.import_bytes(&bytes(6_000_000)).await.expect("there is room");
    let providers = [holder.provider()];
    let fetches = (0..4).map(|_| asker.exchange.fetch(blob, &providers, None));
    let fetched = futures::future::try_join_all(fetches).await.expect("the holder is good");
    let bytes: u64 = fetched.iter().flatten().map(|fetched| fetched.bytes).sum();
    assert_eq!(bytes, blob.size);
    assert_eq!(fetched.iter().filter(|fetched| fetched.is_empty()).count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_dialled_fetches_over_the_link_and_again_after_it_broke() {
    let farm = Farm::new();
    let hidden = farm.peer().await;
    let blob = hidden.store.import_bytes(&bytes(2_000_000)).await.expect("there is room");
    let other = hidden.store.import_bytes(b"another").await.expect("there is room");
    // It names no address of its own, so nobody can dial it.
    let provider = Provider { peer: hidden.id, addresses: Vec::new() };

    let identity = key();
    let credentials = farm.credentials(identity.peer());
    let folder = tempfile::tempdir().expect("a folder");
    let store = BlobStore::open(folder.path()).await.expect("a store");
    let plane = Arc::new(QuinnPlane::bind(&identity, loopback()).await.expect("a plane"));
    let exchange = Exchange::start(exchange_config(store.clone(), plane, credentials.clone()));
    let address = exchange.addresses()[0];
    hidden.exchange.keep_link(identity.peer(), vec![address]);
    let providers = [provider];
    let fetched = timeout(PATIENCE, exchange.fetch(blob, &providers, None)).await.expect("in time");
    assert_eq!(fetched.expect("the link is kept")[0].from, hidden.id);
    exchange.shutdown().await;
    drop(exchange);

    let plane = timeout(PATIENCE, rebind(&identity, address)).await.expect("the port becomes free");
    let exchange = Exchange::start(exchange_config(store, Arc::new(plane), credentials));
    let fetched = timeout(PATIENCE, exchange.fetch(other, &providers, None)).await.expect("in time");
    assert_eq!(fetched.expect("the link came back")[0].from, hidden.id);
}

/// Listens on a port that is about to become free.
async fn rebind(identity: &Identity, address: SocketAddr) -> QuinnPlane {
    loop {
        match QuinnPlane::bind(identity, address).await {
            Ok(plane) => return plane,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partial_blob_serves_what_it_has() {
    let farm = Farm::new();
    let (holder, middle, asker) = (farm.peer().await, farm.peer().await, farm.peer().await);
    let blob = holder.store.import_bytes(&bytes(3 * PIECE_SIZE as usize)).await.expect("there is room");
    let dying = key();
    let credentials = farm.credentials(dying.peer());
    let after = PIECE_SIZE as usize + 500_000;
    let dying = Peer::start(dying, credentials, |inner| Arc::new(CutPlane { inner, after })).await;
    dying.store.import_bytes(&bytes(3 * PIECE_SIZE as usize)).await.expect("there is room");
    let growing = middle.store.partial(blob).await.expect("an empty one");
    let error = middle.exchange.fetch(blob, &[dying.provider()], None).await.expect_err("it dies");
    assert!(error.to_string().contains("sent nothing"), "{error}");
    assert_eq!(growing.bytes(), PIECE_SIZE);

    let providers = [middle.provider(), holder.provider()];
    let fetched = asker.exchange.fetch(blob, &providers, None).await.expect("together they have it");
    assert_eq!(fetched.iter().map(|fetched| fetched.bytes).sum::<u64>(), blob.size);
    assert!(fetched.iter().all(|fetched| fetched.from != middle.id || fetched.bytes <= PIECE_SIZE));
    assert!(fetched.iter().any(|fetched| fetched.from == holder.id && fetched.bytes >= 2 * PIECE_SIZE));
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_that_nobody_gives_is_refused_with_each_reason() {
    let farm = Farm::new();
    let (empty, asker) = (farm.peer().await, farm.peer().await);
    let gone = farm.peer().await;
    let gone_provider = gone.provider();
    gone.exchange.shutdown().await;
    let blob = BlobRef { hash: BlobHash([7; 32]), size: 10 };
    let providers = [empty.provider(), gone_provider];
    let error = asker.exchange.fetch(blob, &providers, None).await.expect_err("nobody has it");
    let FetchError::NoProvider { tried, .. } = &error else { panic!("{error}") };
    assert_eq!(tried.len(), 2);
    let reason = |peer| tried.iter().find(|(name, _)| *name == SourceName::Peer(peer)).expect("it was asked");
    assert_eq!(reason(empty.id).1, "it does not hold the blob");
    let unreachable = &reason(gone.id).1;
    assert!(unreachable.contains("nothing answers at 127.0.0.1:"), "{unreachable}");
    let unknown = asker.exchange.fetch(blob, &[], None).await.expect_err("nobody is asked").to_string();
    assert!(unknown.contains("no peer is known to hold it"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn file_served_in_place_is_not_served_once_it_changed() {
    let farm = Farm::new();
    let (holder, asker) = (farm.peer().await, farm.peer().await);
    let path = holder.folder.path().join("model.safetensors");
    fs::write(&path, bytes(100_000)).expect("own folder");
    let blob = holder.store.import_in_place(&path).await.expect("it is a file");
    asker.exchange.fetch(blob, &[holder.provider()], None).await.expect("it is served where it lies");
    asker.store.remove(blob.hash).await.expect("own file");
    fs::write(&path, vec![0; 100_000]).expect("own folder");
    let own = holder.exchange.fetch(blob, &[], None).await.expect_err("the holder lost it as well");
    assert!(own.to_string().contains("no peer is known"), "{own}");
    let error = asker.exchange.fetch(blob, &[holder.provider()], None).await.expect_err("it changed");
    assert!(error.to_string().contains("does not hold the blob"), "{error}");
    assert!(!holder.store.contains(blob.hash));
}
