//! A file that is not to be shared: read from the internet by one peer for itself, and given to nobody.

use std::sync::Arc;

use bytes::Bytes;
use mesh::fetch::{FetchFileError, OriginFile};
use mesh::finder::Found;
use mesh::folders::index;
use mesh::frames::{FrameReceiver, FrameSender};
use mesh::plane::{Channel, Link};
use mesh::store::BlobStore;
use protocol::wire::{BlobAnswer, BlobRequest, GetSmall, MAX_BLOB_FRAME};
use protocol::{BlobRef, PIECE_SIZE};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::askers::asker;
use crate::farm::{Farm, PATIENCE, bytes};
use crate::files::{file_of, peer};
use crate::leases::Table;
use crate::web::{Cut, Reply, Web};

const MIB: usize = PIECE_SIZE as usize;

/// Whether a member gets something for this request.
async fn is_given(link: &Arc<dyn Link>, request: BlobRequest) -> bool {
    let Channel { reader, writer } = link.open().await.expect("the link is open");
    let mut requests = FrameSender::with_limit(writer, MAX_BLOB_FRAME);
    requests.send(&request).await.expect("the link is open");
    let mut answers = FrameReceiver::<BlobAnswer>::with_limit(reader, MAX_BLOB_FRAME);
    match timeout(PATIENCE, answers.recv()).await.expect("it answers").expect("it answers") {
        Some(BlobAnswer::Have(_)) => true,
        Some(BlobAnswer::Small(small)) => small.found,
        Some(BlobAnswer::NotFound(_)) => false,
        answer => panic!("{answer:?} is no answer to it"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn private_file_is_given_to_nobody_on_any_path_while_it_comes_and_when_it_is_here() {
    for share in [true, false] {
        let farm = Farm::new();
        let holder = peer(&farm).await;
        let table = Arc::new(Table::default());
        holder.exchange.set_finder(table.finder(holder.provider()));
        // Two sizes: small ones are asked for otherwise.
        for size in [10 * MIB + 7, 9000] {
            let bytes = Bytes::from(bytes(size));
            let (cut, whole) = (bytes.clone(), bytes.clone());
            let hanging =
                Web::start(move |asked| Reply::range(asked, &cut, "a").cut(Cut::HangAfter(4 * MIB))).await;
            let web = Web::start(move |asked| Reply::range(asked, &whole, "a")).await;
            let asker = asker(&farm, &holder).await;

            if size > 4 * MIB {
                let file = OriginFile { share, ..file_of(&bytes, &[hanging.url("/")]) };
                let fetching = tokio::spawn({
                    let (exchange, file) = (holder.exchange.clone(), file.clone());
                    async move { exchange.fetch_file(&file, &[], None).await }
                });
                let arrived = async {
                    while holder.exchange.transfers().iter().all(|transfer| transfer.here < 2 * PIECE_SIZE) {
                        tokio::task::yield_now().await;
                    }
                };
                timeout(PATIENCE, arrived).await.expect("it comes");
                assert_eq!(
                    is_given(&asker.link, BlobRequest::OpenFile(file.file)).await,
                    share,
                    "half of it"
                );
                fetching.abort();
                assert!(fetching.await.is_err_and(|error| error.is_cancelled()));
            }
            let file = OriginFile { share, ..file_of(&bytes, &[web.url("/")]) };
            let fetched = holder.exchange.fetch_file(&file, &[], None).await.expect("it can be read");
            let blob = BlobRef::of(&bytes);
            assert_eq!(fetched.blob, blob);
            assert_eq!(table.held(holder.id) > 0, share, "whoever leases ranges hears of it");
            assert_eq!(is_given(&asker.link, BlobRequest::Open(blob)).await, share);
            assert_eq!(is_given(&asker.link, BlobRequest::OpenFile(file.file)).await, share);
            if size < MIB {
                let small = BlobRequest::GetSmall(GetSmall { blobs: vec![blob] });
                assert_eq!(is_given(&asker.link, small).await, share);
            }
            for store in
                [&holder.store, &BlobStore::open(holder.folder.path()).await.expect("the store again")]
            {
                let named = store.aliases().iter().any(|alias| alias.blob == blob);
                let found = store.find_shared(&blob.hash.into());
                assert_eq!((found.is_some(), named), (share, share));
                let entry = store.list().into_iter().find(|entry| entry.hash == blob.hash);
                assert!(entry.is_some_and(|entry| entry.shared == share), "people are told so");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn private_file_is_taken_from_its_own_origin_alone() {
    let farm = Farm::new();
    let (asking, other) = (peer(&farm).await, farm.peer().await);
    let bytes = Bytes::from(bytes(3 * MIB));
    let blob = other.store.import_bytes(&bytes).await.expect("there is room");
    let table = Arc::new(Table::default());
    table.set_found(Found { blob: Some(blob), providers: vec![other.provider()], readers: vec![] });
    asking.exchange.set_finder(table.finder(asking.provider()));
    let file = OriginFile { share: false, blob: Some(blob.hash), ..file_of(&bytes, &[]) };
    let others = [other.provider()];
    let fetching = asking.exchange.fetch_file(&file, &others, None);
    let error = timeout(PATIENCE, fetching).await.expect("it ends").expect_err("it has no origin");
    assert!(matches!(error, FetchFileError::NoSource { .. }), "{error}");
    let from_web = bytes.clone();
    let web = Web::start(move |asked| Reply::range(asked, &from_web, "a")).await;
    let file = OriginFile { urls: vec![web.url("/")], ..file };
    let fetched = asking.exchange.fetch_file(&file, &others, None).await.expect("it can be read");
    assert_eq!((fetched.blob, fetched.origin_bytes), (blob, bytes.len() as u64));

    // What is here already becomes private as well.
    let open = OriginFile { share: true, ..file_of(&bytes, &[]) };
    other
        .exchange
        .fetch_file(&OriginFile { share: false, ..open.clone() }, &[], None)
        .await
        .expect_err("its SHA-256 is not known here");
    other.store.prove_sha256(blob).await.expect("it can be read");
    other.exchange.fetch_file(&OriginFile { share: false, ..open }, &[], None).await.expect("it is here");
    assert_eq!(other.store.find_shared(&blob.hash.into()), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn model_that_is_private_by_its_sha256_alone_is_not_served_from_a_model_folder_either() {
    let farm = Farm::new();
    let (holder, models) = (peer(&farm).await, tempfile::tempdir().expect("a folder"));
    let wait = CancellationToken::new();
    for (size, private_first) in [(3 * MIB, true), (3 * MIB + 1, false), (9000, true)] {
        let bytes = bytes(size);
        let (file, blob) = (file_of(&bytes, &[]), BlobRef::of(&bytes));
        let asker = asker(&farm, &holder).await;
        let named = vec![file.file.sha256.into()];
        if private_first {
            holder.store.keep_private(named.clone()).await.expect("there is room");
        }
        std::fs::write(models.path().join(format!("{size}.safetensors")), &bytes).expect("own folder");
        index(&holder.store, models.path(), wait.clone(), |_| {}).await.expect("it can be read");
        if !private_first {
            assert!(is_given(&asker.link, BlobRequest::Open(blob)).await);
            holder.store.keep_private(named).await.expect("there is room");
        }
        assert!(!is_given(&asker.link, BlobRequest::Open(blob)).await, "{size}");
        assert!(!is_given(&asker.link, BlobRequest::OpenFile(file.file)).await, "{size}");
        if size < MIB {
            let small = BlobRequest::GetSmall(GetSmall { blobs: vec![blob] });
            assert!(!is_given(&asker.link, small).await);
        }
        assert_eq!(holder.store.find_shared(&blob.hash.into()), None);
        assert!(holder.store.aliases().iter().all(|alias| alias.blob != blob));
    }
}
