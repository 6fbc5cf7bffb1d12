//! Files that only a SHA-256 names: in any order, after a crash, with a liar among their givers.

use sha2::Digest;

use super::*;
use crate::tree::outboard_size;

const MIB: usize = PIECE_SIZE as usize;
const LIAR: Giver = Giver::Peer(PeerId([9; 32]));

fn file(size: usize) -> (FileRef, Vec<u8>) {
    let bytes: Vec<u8> = (0..size).map(|index| (index ^ (index >> 8) ^ (index >> 16)) as u8).collect();
    let sha256 = Sha256(sha2::Sha256::digest(&bytes).into());
    (FileRef { sha256, size: size as u64 }, bytes)
}

fn piece(bytes: &[u8], piece: u64) -> &[u8] {
    bytes.chunks(MIB).nth(piece as usize).expect("it has that many")
}

async fn put(unproven: &Arc<UnprovenFile>, index: u64, bytes: Vec<u8>, giver: Giver) -> bool {
    let unproven = Arc::clone(unproven);
    blocking(move || unproven.write_piece(index, &bytes, giver)).await.expect("there is room")
}

async fn store() -> (tempfile::TempDir, BlobStore) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = BlobStore::open(folder.path()).await.expect("a store");
    (folder, store)
}

#[tokio::test]
async fn pieces_in_any_order_become_a_blob_under_both_names() {
    for size in [0, 1, 20_000, MIB, 3 * MIB + 5] {
        let (folder, store) = store().await;
        let (file, bytes) = file(size);
        let unproven = store.unproven(file).await.expect("an empty one");
        unproven.hash_beside();
        for index in (0..size.div_ceil(MIB) as u64).rev() {
            assert!(put(&unproven, index, piece(&bytes, index).to_vec(), Giver::Origin).await);
        }
        assert_eq!(unproven.bytes(), size as u64);
        let proof = unproven.prove().await.expect("all is there");
        assert_eq!((proof.blob, proof.sha256), (BlobRef::of(&bytes), Some(file.sha256)), "{size}");
        let blob = unproven.keep(proof).await.expect("there is room");
        assert_eq!(store.with_sha256(&file.sha256), Some(blob));
        assert!(store.verify(blob.hash).await.expect("it can be read"));
        assert_eq!(fs::read_dir(folder.path().join("partial")).expect("own folder").count(), 0);
        let source = store.source(blob).await.expect("no error").expect("it is served");
        let (mut outboard, length) = (Vec::new(), outboard_size(blob.size) as usize);
        source.read_outboard(0, 0..length, &mut outboard).await.expect("all of it is there");
    }
}

#[tokio::test]
async fn pieces_survive_a_crash_as_far_as_they_are_what_they_were() {
    let (folder, store) = store().await;
    let (file, bytes) = file(3 * MIB + 5);
    let unproven = store.unproven(file).await.expect("an empty one");
    for index in [0, 1, 3] {
        put(&unproven, index, piece(&bytes, index).to_vec(), LIAR).await;
    }
    assert!(!put(&unproven, 2, bytes[..5].to_vec(), LIAR).await, "it is too short");
    assert!(!put(&unproven, 4, bytes[..5].to_vec(), LIAR).await, "there is no such piece");
    drop((unproven, store));
    let data = folder.path().join(format!("partial/sha256-{}.data", file.sha256));
    let damaged = fs::File::options().write(true).open(data).expect("own file");
    damaged.write_all_at(b"lost in a crash", PIECE_SIZE).expect("own file");

    let store = BlobStore::open(folder.path()).await.expect("the store again");
    let unproven = store.unproven(file).await.expect("what is left");
    unproven.hash_beside();
    assert_eq!(unproven.bytes(), PIECE_SIZE + 5);
    for index in [1, 2] {
        put(&unproven, index, piece(&bytes, index).to_vec(), Giver::Origin).await;
    }
    let proof = unproven.prove().await.expect("all is there");
    assert_eq!((proof.blob, proof.sha256), (BlobRef::of(&bytes), Some(file.sha256)));
}

#[tokio::test]
async fn piece_that_comes_otherwise_a_second_time_shows_who_lied() {
    let (_folder, store) = store().await;
    let (file, bytes) = file(4 * MIB);
    let honest = Giver::Peer(PeerId([1; 32]));
    let unproven = store.unproven(file).await.expect("an empty one");
    unproven.hash_beside();
    put(&unproven, 0, piece(&bytes, 0).to_vec(), Giver::Origin).await;
    put(&unproven, 1, piece(&bytes, 1).to_vec(), honest).await;
    put(&unproven, 2, vec![7; MIB], LIAR).await;
    put(&unproven, 3, piece(&bytes, 3).to_vec(), LIAR).await;
    let proof = unproven.prove().await.expect("all is there");
    assert_ne!(proof.sha256, Some(file.sha256));

    let taken_back = unproven.distrust(|_, giver| giver == Giver::Origin).await.expect("own files");
    assert_eq!((taken_back, unproven.bytes()), (3, PIECE_SIZE));
    for index in 1..4 {
        put(&unproven, index, piece(&bytes, index).to_vec(), Giver::Origin).await;
    }
    assert_eq!(unproven.liars(), [(PeerId([9; 32]), 2)]);
    let proof = unproven.prove().await.expect("all is there");
    assert_eq!((proof.blob, proof.sha256), (BlobRef::of(&bytes), Some(file.sha256)));
    unproven.discard().await.expect("own files");
    assert_eq!(store.complete(), []);
}

#[tokio::test]
async fn file_that_nobody_goes_on_with_is_collected_and_one_that_does_not_fit_refused() {
    let (folder, store) = store().await;
    let (file, bytes) = file(2 * MIB);
    let unproven = store.unproven(file).await.expect("an empty one");
    put(&unproven, 0, piece(&bytes, 0).to_vec(), Giver::Origin).await;
    assert_eq!(store.collect(None).await.expect("own folder").partial, 0, "it is being filled");
    drop(unproven);
    assert_eq!(store.collect(None).await.expect("own folder").partial, 1);
    assert_eq!(fs::read_dir(folder.path().join("partial")).expect("own folder").count(), 0);
    store.set_quota(Some(MIB as u64));
    let refused = store.unproven(file).await;
    assert!(matches!(refused, Err(StoreError::OverQuota { .. })), "{refused:?}");
    let huge = FileRef { size: u64::MAX, ..file };
    assert!(matches!(store.unproven(huge).await, Err(StoreError::TooLarge { .. })));
}
