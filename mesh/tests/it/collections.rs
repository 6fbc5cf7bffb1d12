//! Folders that cross as collections, and many blobs from several peers at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mesh::collection::{collect_folder, fetch_collection, fetch_folder};
use mesh::fetch::FetchError;
use protocol::{BlobHash, BlobName, BlobRef, PIECE_SIZE, SourceName};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::farm::{Farm, Peer, bytes};

/// A folder's files by their path below it.
fn read_folder(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("own folder") {
            let path = entry.expect("own folder").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let below = path.strip_prefix(root).expect("it is below").to_str().expect("text");
                files.insert(below.to_owned(), fs::read(&path).expect("own file"));
            }
        }
    }
    files
}

fn write_folder(root: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (path, bytes) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("it is below")).expect("own folder");
        fs::write(path, bytes).expect("own folder");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folder_crosses_with_empty_equal_small_and_large_files() {
    let farm = Farm::new();
    let (holder, asker) = (farm.peer().await, farm.peer().await);
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join("wheels");
    let mut files: BTreeMap<_, _> =
        (0..700).map(|index| (format!("{}/{index}.whl", index % 7), bytes(index * 13))).collect();
    files.insert("large.bin".to_owned(), bytes(3 * PIECE_SIZE as usize + 5));
    files.insert("large again.bin".to_owned(), bytes(3 * PIECE_SIZE as usize + 5));
    files.insert("package/__init__.py".to_owned(), Vec::new());
    write_folder(&source, &files);

    let stop = CancellationToken::new();
    let (collection, list) =
        collect_folder(&holder.store, &source, stop, |_| {}).await.expect("it is a folder");
    assert_eq!(collection.files().len(), files.len());
    let (progress, latest) = watch::channel(0);
    let from = [holder.provider()];
    let fetched = fetch_collection(&asker.exchange, list, &from).await.expect("it is held");
    assert_eq!(fetched, collection);
    let (staging, made) = (asker.folder.path().join("staging"), asker.folder.path().join("made"));
    let came =
        fetch_folder(&asker.exchange, &fetched, &from, staging.clone(), made.clone(), Some(&progress)).await;
    let came = came.expect("the holder has everything");
    let distinct: BTreeMap<_, _> = collection.files().iter().map(|file| (file.hash, file.size)).collect();
    let size = distinct.values().sum::<u64>();
    assert_eq!(came, BTreeMap::from([(holder.id, size)]));
    assert_eq!(*latest.borrow(), size);
    assert_eq!(read_folder(&made), files);
    assert!(!staging.exists());

    // What was made is served on, where it lies.
    let third = farm.peer().await;
    let large = BlobRef::of(&files["large.bin"]);
    assert_eq!(asker.store.path_of(large.hash).map(|path| path.starts_with(&made)), Some(true));
    let (staging, made) = (third.folder.path().join("staging"), third.folder.path().join("made"));
    let from = [asker.provider()];
    fetch_folder(&third.exchange, &collection, &from, staging, made.clone(), None)
        .await
        .expect("the second holder has everything");
    assert_eq!(read_folder(&made), files);
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_come_from_whoever_holds_them_and_a_liar_is_left_out() {
    let farm = Farm::new();
    let (one, other, liar, asker) =
        (farm.peer().await, farm.peer().await, farm.peer().await, farm.peer().await);
    let mut blobs = Vec::new();
    for index in 0..100 {
        let bytes = bytes(1000 + index);
        let holder = [&one, &other][index % 2];
        blobs.push(holder.store.import_bytes(&bytes).await.expect("there is room"));
        liar.store.import_bytes(&bytes).await.expect("there is room");
        let path = liar.store.path_of(blobs[index].hash).expect("it is whole");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("own file");
        fs::write(&path, vec![0; 1000 + index]).expect("own file");
    }
    let refused = asker.exchange.fetch_many(&blobs, &[liar.provider()], None).await;
    assert!(matches!(refused, Err(FetchError::NoProvider { .. })), "{refused:?}");
    let wrong: BTreeSet<_> = asker.exchange.faults().into_iter().map(|(_, name, _)| name).collect();
    let asked_again: Vec<_> =
        blobs.iter().copied().filter(|blob| wrong.contains(&BlobName::Blake3(blob.hash))).collect();
    assert!(!asked_again.is_empty());
    let again = asker.exchange.fetch_many(&asked_again, &[liar.provider()], None).await;
    let Err(FetchError::NoProvider { tried, .. }) = &again else { panic!("{again:?}") };
    assert!(tried.iter().all(|(_, reason)| reason.starts_with("it sent wrong bytes before")), "{tried:?}");
    assert_eq!(asker.exchange.faults().len(), wrong.len(), "it was asked again");
    let providers = [&liar, &one, &other].map(Peer::provider);
    let came = asker.exchange.fetch_many(&blobs, &providers, None).await.expect("two are honest");
    assert_eq!(came.keys().copied().collect::<Vec<_>>(), {
        let mut honest = vec![one.id, other.id];
        honest.sort();
        honest
    });
    assert_eq!(came.values().sum::<u64>(), blobs.iter().map(|blob| blob.size).sum::<u64>());
    for blob in blobs {
        assert!(asker.store.verify(blob.hash).await.expect("own file"));
    }
    assert!(asker.exchange.faults().iter().all(|(peer, ..)| *peer == liar.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_that_nobody_holds_is_named_and_the_others_are_kept() {
    let farm = Farm::new();
    let (holder, asker) = (farm.peer().await, farm.peer().await);
    let held = holder.store.import_bytes(b"held").await.expect("there is room");
    let lacking = BlobRef { hash: BlobHash([7; 32]), size: 4 };
    let asked = asker.exchange.fetch_many(&[lacking, held], &[holder.provider()], None).await;
    let Err(FetchError::NoProvider { blob, tried }) = asked else { panic!("{asked:?}") };
    assert_eq!((blob, tried.len(), &tried[0].0), (lacking, 1, &SourceName::Peer(holder.id)));
    assert!(asker.store.contains(held.hash));
}
