//! The store over a real folder: restarts, limits, damage.

use protocol::wire::PART_SIZE;
use protocol::{BlobRef, FileRef, PIECE_SIZE, Sha256};
use sha2::Digest;

use super::*;
use crate::tree::{TreeHasher, pairs_of, piece_size, upper_size};

async fn store() -> (tempfile::TempDir, BlobStore) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = BlobStore::open(folder.path()).await.expect("a store");
    (folder, store)
}

fn files_in(folder: &Path) -> usize {
    fs::read_dir(folder).expect("own folder").count()
}

#[tokio::test]
async fn blobs_survive_a_restart_and_unfinished_writes_leave_nothing() {
    let (folder, store) = store().await;
    let blob = store.import_bytes(&[7; 100_000]).await.expect("there is room");
    let mut unfinished = store.writer(u64::MAX).await.expect("there is room");
    unfinished.write(&[1; 2 << 20]).await.expect("there is room");
    drop(unfinished);
    assert_eq!(files_in(&folder.path().join("temporary")), 0);
    fs::write(folder.path().join("temporary/left"), b"by a crash").expect("own folder");

    let store = BlobStore::open(folder.path()).await.expect("the store again");
    assert_eq!(files_in(&folder.path().join("temporary")), 0);
    assert_eq!(store.complete(), [blob]);
    assert_eq!(store.read_all(blob.hash, blob.size).await.expect("it is whole"), [7; 100_000]);
    let too_large = store.read_all(blob.hash, blob.size - 1).await;
    assert!(matches!(too_large, Err(StoreError::TooLarge { .. })), "{too_large:?}");
}

#[tokio::test]
async fn writer_hashes_what_it_takes_and_keeps_to_its_limit() {
    let (_folder, store) = store().await;
    let mut writer = store.writer(3 << 20).await.expect("there is room");
    for _ in 0..3 {
        writer.write(&[5; 1 << 20]).await.expect("it is within the limit");
    }
    let over = writer.write(&[5]).await;
    assert!(matches!(over, Err(StoreError::TooLarge { limit }) if limit == 3 << 20), "{over:?}");
    assert_eq!(writer.finish().await.expect("there is room"), BlobRef::of(&[5; 3 << 20]));
}

#[tokio::test]
async fn blob_whose_disk_lies_is_forgotten_when_it_is_verified() {
    let (_folder, store) = store().await;
    let blob = store.import_bytes(&[3; 40_000]).await.expect("there is room");
    assert!(store.verify(blob.hash).await.expect("it can be read"));
    let path = store.path_of(blob.hash).expect("it is whole");
    fs::remove_file(&path).expect("own file");
    fs::write(&path, vec![4; 40_000]).expect("own folder");
    assert!(!store.verify(blob.hash).await.expect("it can be read"));
    assert!(!store.contains(blob.hash));
    assert!(!path.exists());
}

/// A blob of which only the upper pairs are there; and the pairs within each of its pieces.
async fn begun(store: &BlobStore, bytes: &[u8]) -> (BlobRef, Arc<PartialBlob>, Vec<Vec<u8>>) {
    let mut hasher = TreeHasher::default();
    hasher.update(bytes);
    let (blob, outboard) = hasher.finish();
    let partial = store.partial(blob).await.expect("an empty one");
    let mut verifier = crate::tree::OutboardVerifier::new(blob);
    let upper = &outboard[..upper_size(blob.size) as usize];
    verifier.update(upper).expect("it is the blob's");
    partial.add_tree(verifier.finish().expect("it is whole"), upper).expect("there is room");
    let pairs = (0..blob.pieces()).map(|piece| {
        let (first, length) = pairs_of(blob.size, piece);
        outboard[first as usize..][..length].to_vec()
    });
    (blob, partial, pairs.collect())
}

/// The same, with these pieces of it, after whoever fetched it has gone.
async fn left(store: &BlobStore, bytes: &[u8], pieces: &[u64]) -> (BlobRef, Vec<Vec<u8>>) {
    let (blob, partial, pairs) = begun(store, bytes).await;
    for index in pieces {
        let piece = &bytes[(index * PIECE_SIZE) as usize..][..piece_size(blob.size, *index)];
        assert!(partial.write_part(*index, 0, &pairs[*index as usize], piece).expect("there is room"));
    }
    (blob, pairs)
}

#[tokio::test]
async fn outboard_is_served_to_who_asks_as_its_blob_becomes_whole() {
    let (_folder, store) = store().await;
    let bytes = vec![5; 2 * PIECE_SIZE as usize];
    let (blob, partial, pairs) = begun(&store, &bytes).await;
    let source = store.source(blob).await.expect("it can be read").expect("it is begun");
    let piece = &bytes[..PIECE_SIZE as usize];
    assert!(partial.write_part(0, 0, &pairs[0], piece).expect("there is room"));
    let first = async |source: &Source| {
        let mut read = Vec::new();
        let (first, length) = pairs_of(blob.size, 0);
        source.read_outboard(0, 0..first as usize + length, &mut read).await.expect("it is there");
        read.split_off(first as usize)
    };
    assert_eq!(first(&source).await, pairs[0]);
    assert!(partial.write_part(1, 0, &pairs[1], piece).expect("there is room"));
    partial.finish().await.expect("it is whole");
    assert_eq!(first(&source).await, pairs[0], "of one who began to ask before");
    let whole = store.source(blob).await.expect("it can be read").expect("it is whole");
    assert_eq!(first(&whole).await, pairs[0]);
}

#[tokio::test]
async fn damaged_outboard_of_a_good_blob_is_mended_as_that_is_verified() {
    let (_folder, store) = store().await;
    let blob = store.import_bytes(&vec![5; 2 * PIECE_SIZE as usize]).await.expect("there is room");
    let path = store.outboard_path(blob.hash);
    let good = fs::read(&path).expect("own file");
    let damage: [&dyn Fn(); 2] = [&|| fs::remove_file(&path).expect("own file"), &|| {
        fs::remove_file(&path).expect("own file");
        fs::write(&path, &good[64..]).expect("own folder");
    }];
    for damage in damage {
        damage();
        assert!(store.verify(blob.hash).await.expect("it can be read"));
        assert!(fs::read(&path).expect("own file") == good);
    }
}

#[tokio::test]
async fn piece_that_came_from_another_meanwhile_makes_nobody_a_liar() {
    let (_folder, store) = store().await;
    let bytes: Vec<u8> = (0..2 * PIECE_SIZE).map(|index| (index % 251) as u8).collect();
    let (_, partial, pairs) = begun(&store, &bytes).await;
    let (first, rest) = bytes[..PIECE_SIZE as usize].split_at(PART_SIZE);
    let write = |offset, bytes| partial.write_part(0, offset, &pairs[0], bytes).expect("there is room");
    assert!(write(0, first));
    assert!(write(0, first), "a slower source begins as well");
    assert!(write(PART_SIZE, rest));
    assert!(write(PART_SIZE, rest), "and goes on");
    assert_eq!(partial.bytes(), PIECE_SIZE);
}

#[tokio::test]
async fn blob_whose_outboard_alone_was_moved_before_a_crash_is_not_fetched_again() {
    let (folder, store) = store().await;
    let bytes: Vec<u8> = (0..2 * PIECE_SIZE).map(|index| (index % 251) as u8).collect();
    let (blob, partial, pairs) = begun(&store, &bytes).await;
    for (index, piece) in bytes.chunks(PIECE_SIZE as usize).enumerate() {
        assert!(partial.write_part(index as u64, 0, &pairs[index], piece).expect("there is room"));
    }
    store.make_parent(&store.blob_path(blob.hash)).expect("own folder");
    let outboard = store.partial_path(blob.hash, "outboard");
    fs::rename(outboard, store.outboard_path(blob.hash)).expect("own folder");
    drop((partial, store));

    let store = BlobStore::open(folder.path()).await.expect("the store again");
    let partial = store.partial(blob).await.expect("what is left");
    assert!(partial.pieces().is_full() && !partial.needs_outboard());
    partial.finish().await.expect("it is whole");
    assert_eq!(store.read_all(blob.hash, blob.size).await.expect("it is whole"), bytes);
    assert!(store.verify(blob.hash).await.expect("it can be read"));
}

#[tokio::test]
async fn marked_piece_that_does_not_verify_is_fetched_again() {
    let (folder, store) = store().await;
    let bytes: Vec<u8> = (0..3 * PIECE_SIZE).map(|index| (index % 251) as u8).collect();
    let (blob, partial, pairs) = begun(&store, &bytes).await;
    for (index, piece) in bytes.chunks(PIECE_SIZE as usize).take(2).enumerate() {
        assert!(partial.write_part(index as u64, 0, &pairs[index], piece).expect("there is room"));
    }
    let wrong = &bytes[..PIECE_SIZE as usize];
    assert!(!partial.write_part(2, 0, &pairs[2], wrong).expect("it is only refused"));
    assert!(!partial.write_part(2, 0, &pairs[1], wrong).expect("it is only refused"));
    drop((partial, store));
    let data = folder.path().join(format!("partial/{}.data", blob.hash));
    let file = fs::File::options().write(true).open(data).expect("own file");
    file.write_all_at(b"lost in a crash", PIECE_SIZE).expect("own file");

    let store = BlobStore::open(folder.path()).await.expect("the store again");
    let partial = store.partial(blob).await.expect("what is left");
    assert!(!partial.needs_outboard());
    assert_eq!(partial.bytes(), PIECE_SIZE);
    assert!(partial.pieces().contains(0));
}

#[tokio::test]
async fn quota_evicts_the_least_recently_used_and_neither_pinned_nor_held() {
    let (_folder, store) = store().await;
    let mut blobs = Vec::new();
    for value in 0..4 {
        blobs.push(store.import_bytes(&[value; 100_000]).await.expect("there is room"));
    }
    store.set_pinned(blobs[0].hash, true).await.expect("it is whole");
    let hold = store.hold(blobs[1].hash);
    store.open_blob(blobs[2].hash).await.expect("no error").expect("it is whole");
    store.set_quota(Some(450_000));
    let changes = store.changes();

    let fifth = store.import_bytes(&[4; 100_000]).await.expect("one blob goes");
    assert!(changes.has_changed().expect("the store lives"));
    assert!(!store.contains(blobs[3].hash) && store.contains(fifth.hash));
    assert_eq!(store.complete().len(), 4);

    let too_large = store.import_bytes(&[5; 300_000]).await;
    assert!(
        matches!(too_large, Err(StoreError::OverQuota { wanted: 300_000, quota: 450_000, .. })),
        "{too_large:?}"
    );
    assert_eq!(store.complete().len(), 4, "nothing goes where all of it would not be enough");
    drop(hold);
    store.import_bytes(&[5; 300_000]).await.expect("the rest goes");
    assert!(store.contains(blobs[0].hash), "it is pinned");
    assert_eq!(store.complete().len(), 2);
}

#[tokio::test]
async fn order_of_use_and_pins_survive_a_restart() {
    let (folder, store) = store().await;
    let mut blobs = Vec::new();
    for value in 0..3 {
        blobs.push(store.import_bytes(&[value; 1000]).await.expect("there is room"));
    }
    store.set_pinned(blobs[1].hash, true).await.expect("it is whole");
    assert_eq!(store.read_all(blobs[0].hash, 1000).await.expect("it is whole").len(), 1000);
    drop(store);

    let store = BlobStore::open(folder.path()).await.expect("the store again");
    let collected = store.collect(Some(2000)).await.expect("own folder");
    assert_eq!(collected, Collected { blobs: 1, partial: 0, bytes: 1000 });
    assert!(!store.contains(blobs[2].hash), "it was used least recently of those that may go");
    let missing = store.set_pinned(blobs[2].hash, true).await;
    assert!(matches!(missing, Err(StoreError::Missing(_))), "{missing:?}");
}

#[tokio::test]
async fn leftovers_are_collected_unless_somebody_fills_them() {
    let (folder, store) = store().await;
    let abandoned = BlobRef { hash: BlobHash([1; 32]), size: 10 };
    drop(store.partial(abandoned).await.expect("an empty one"));
    let filled = store.partial(BlobRef { hash: BlobHash([2; 32]), size: 10 }).await.expect("an empty one");
    let collected = store.collect(None).await.expect("own folder");
    assert_eq!((collected.blobs, collected.partial), (0, 1));
    assert_eq!(
        files_in(&folder.path().join("partial")),
        3,
        "data, outboard and marks of the one that is filled"
    );
    drop(filled);
}

#[tokio::test]
async fn fetch_that_does_not_fit_is_refused_before_its_first_byte() {
    let (folder, store) = store().await;
    let free = free_bytes(folder.path()).expect("it can be asked");
    let blob = BlobRef { hash: BlobHash([1; 32]), size: free.saturating_mul(2) };
    let refused = store.partial(blob).await;
    assert!(
        matches!(&refused, Err(StoreError::NoRoom { wanted, .. }) if *wanted == blob.size),
        "{refused:?}"
    );
    store.set_quota(Some(1000));
    let refused = store.partial(BlobRef { hash: BlobHash([2; 32]), size: 1001 }).await;
    assert!(matches!(refused, Err(StoreError::OverQuota { wanted: 1001, .. })), "{refused:?}");
}

#[tokio::test]
async fn what_came_of_a_blob_is_gone_on_with_as_a_file_without_coming_or_taking_room_again() {
    let (folder, store) = store().await;
    let bytes: Vec<u8> = (0..3 * PIECE_SIZE + 5).map(|index| (index * 31 % 251) as u8).collect();
    let (blob, _) = left(&store, &bytes, &[0, 3]).await;
    let piece = |index: u64| &bytes[(index * PIECE_SIZE) as usize..][..piece_size(blob.size, index)];
    let file = FileRef { sha256: Sha256(sha2::Sha256::digest(&bytes).into()), size: blob.size };
    assert!(store.take_over(blob, file).await.expect("own folder"));
    let unproven = store.unproven(file).await.expect("its room is taken");
    assert_eq!(files_in(&folder.path().join("partial")), 3, "its bytes, what they are, and the way back");
    unproven.hash_beside();
    for index in 0..4 {
        let is_here = unproven.pieces().contains(index);
        assert_eq!(is_here, [0, 3].contains(&index), "{index}");
    }
    for index in [1, 2] {
        assert!(unproven.write_piece(index, piece(index), Giver::Origin).expect("there is room"));
    }
    let proof = unproven.prove().await.expect("all pieces are there");
    assert_eq!((proof.blob, proof.sha256), (blob, Some(file.sha256)));
    unproven.keep(proof).await.expect("there is room");
    assert_eq!(files_in(&folder.path().join("partial")), 0);
}

#[tokio::test]
async fn what_a_file_took_over_of_a_blob_and_gained_is_taken_back_as_far_as_it_is_the_blob() {
    let (folder, store) = store().await;
    let bytes: Vec<u8> = (0..3 * PIECE_SIZE + 5).map(|index| (index * 31 % 251) as u8).collect();
    let (blob, pairs) = left(&store, &bytes, &[0, 3]).await;
    let piece = |index: u64| &bytes[(index * PIECE_SIZE) as usize..][..piece_size(blob.size, index)];
    let file = FileRef { sha256: Sha256([1; 32]), size: blob.size };
    assert!(store.take_over(blob, file).await.expect("own folder"));
    let unproven = store.unproven(file).await.expect("its room is taken");
    for (index, bytes) in [(1, piece(1)), (2, vec![7; PIECE_SIZE as usize].as_slice())] {
        assert!(unproven.write_piece(index, bytes, Giver::Origin).expect("there is room"));
    }
    let meanwhile = store.partial(blob).await.expect("there is room");
    assert!(meanwhile.pieces().is_empty(), "the file is still filled");
    drop((meanwhile, unproven));
    store.remove(blob.hash).await.expect("own folder");

    let store = BlobStore::open(folder.path()).await.expect("the store again");
    let partial = store.partial(blob).await.expect("what is left");
    assert_eq!(files_in(&folder.path().join("partial")), 3, "its bytes, its tree and its marks");
    assert!(!partial.needs_outboard());
    for index in 0..4 {
        assert_eq!(partial.pieces().contains(index), index != 2, "{index}");
    }
    assert!(partial.write_part(2, 0, &pairs[2], piece(2)).expect("there is room"));
    partial.finish().await.expect("it is whole");
    let tree = fs::read(store.outboard_path(blob.hash)).expect("it has one");
    assert_eq!(tree[upper_size(blob.size) as usize..], pairs.concat(), "also of what came without its pairs");
    assert!(store.verify(blob.hash).await.expect("it can be read"));
}
