//! Folders of models as they change under the store.

use std::fs;

use protocol::{BlobHash, BlobRef, PIECE_SIZE};

use super::*;

struct Models {
    data: tempfile::TempDir,
    folder: tempfile::TempDir,
    store: BlobStore,
}

impl Models {
    async fn new() -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let folder = tempfile::tempdir().expect("a folder");
        let store = BlobStore::open(data.path()).await.expect("a store");
        Self { data, folder, store }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().expect("it lies in the folder")).expect("own folder");
        fs::write(&path, bytes).expect("own folder");
        path
    }

    async fn index(&self) -> Indexed {
        let stop = CancellationToken::new();
        index(&self.store, self.folder.path(), stop, |_| {}).await.expect("the folder can be read")
    }

    async fn serves(&self, blob: BlobRef) -> bool {
        self.store.source(blob).await.expect("no error").is_some()
    }
}

#[tokio::test]
async fn files_are_hashed_once_and_again_only_when_they_changed() {
    let models = Models::new().await;
    let one = vec![1; PIECE_SIZE as usize + 5];
    models.write("checkpoints/one.safetensors", &one);
    let two = models.write("loras/deep/two.safetensors", &[2; 100]);
    let first = models.index().await;
    assert_eq!((first.files, first.hashed, first.dropped), (2, 2, 0));
    assert!(models.serves(BlobRef::of(&one)).await);
    let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&one));
    let known = models.store.with_sha256(&sha256.parse().expect("64 hex digits"));
    assert_eq!(known, Some(BlobRef::of(&one)));
    assert_eq!(models.index().await.hashed, 0);

    fs::write(&two, [3; 100]).expect("own file");
    let changed = models.index().await;
    assert_eq!((changed.files, changed.hashed, changed.dropped), (2, 1, 1));
    assert!(!models.store.contains(BlobRef::of(&[2; 100]).hash));
    fs::remove_file(&two).expect("own file");
    let removed = models.index().await;
    assert_eq!((removed.files, removed.hashed, removed.dropped), (1, 0, 1));
    assert_eq!(models.store.complete(), [BlobRef::of(&one)]);

    let store = BlobStore::open(models.data.path()).await.expect("the store again");
    assert_eq!(store.complete(), [BlobRef::of(&one)], "it is known without being hashed again");
    assert_eq!(Models { store, ..models }.index().await.hashed, 0);
}

#[tokio::test]
async fn same_content_in_two_files_is_served_until_both_are_gone() {
    let models = Models::new().await;
    let bytes = vec![7; 40_000];
    let paths = [models.write("a.safetensors", &bytes), models.write("b.safetensors", &bytes)];
    assert_eq!(models.index().await.files, 2);
    assert_eq!(models.store.list()[0].in_place.len(), 2);
    for path in paths {
        assert!(models.serves(BlobRef::of(&bytes)).await);
        fs::remove_file(path).expect("own file");
    }
    assert!(!models.serves(BlobRef::of(&bytes)).await);
}

#[tokio::test]
async fn hidden_unfinished_and_linked_files_are_passed_over() {
    let models = Models::new().await;
    let outside = tempfile::tempdir().expect("a folder");
    fs::write(outside.path().join("secret"), b"not a model").expect("own folder");
    for name in [".hidden", ".cache/x", "a.safetensors.part", "b.crdownload", "c.aria2", "c"] {
        models.write(name, b"bytes");
    }
    models.write("put_checkpoints_here", b"");
    std::os::unix::fs::symlink(outside.path(), models.folder.path().join("folder")).expect("own folder");
    let link = models.folder.path().join("link.safetensors");
    std::os::unix::fs::symlink(outside.path().join("secret"), link).expect("own folder");
    assert_eq!(models.index().await, Indexed { links: 2, ..Indexed::default() });
}

#[tokio::test]
async fn private_files_are_held_and_never_served() {
    let models = Models::new().await;
    let private = BlobRef::of(b"a gated model");
    models.write("gated/model.safetensors", b"a gated model");
    models.write("open.safetensors", b"an open one");
    models.write(".comfy-farm-private", b"# licences\ngated/\n");
    assert_eq!(models.index().await.files, 2);
    assert!(models.store.contains(private.hash));
    assert!(!models.serves(private).await);
    let shared = models.store.list().into_iter().filter(|entry| entry.shared).map(|entry| entry.hash);
    assert_eq!(shared.collect::<Vec<_>>(), [BlobHash::of(b"an open one")]);

    models.write(".comfy-farm-private", b"");
    models.index().await;
    assert!(models.serves(private).await);
}

#[tokio::test]
async fn ten_thousand_files_are_looked_at_again_without_being_read() {
    let models = Models::new().await;
    for number in 0..10_000_u32 {
        models.write(&format!("{}/{number}", number % 100), &number.to_le_bytes());
    }
    assert_eq!(models.index().await.hashed, 10_000);
    let again = models.index().await;
    assert_eq!((again.files, again.hashed), (10_000, 0));
}

#[tokio::test]
async fn folders_of_extra_model_paths_are_indexed() {
    let models = Models::new().await;
    models.write("elsewhere/vae/v.safetensors", b"v");
    let list = models.write("extra_model_paths.yaml", b"comfyui:\n  base_path: elsewhere\n  vae: vae\n");
    let stop = CancellationToken::new();
    let indexed = index(&models.store, &list, stop, |_| {}).await.expect("the list can be read");
    assert_eq!(indexed.files, 1);
    assert!(models.serves(BlobRef::of(b"v")).await);
}

#[tokio::test]
async fn folder_that_is_not_there_is_named() {
    let models = Models::new().await;
    let missing = models.folder.path().join("missing");
    let error = index(&models.store, &missing, CancellationToken::new(), |_| {}).await.expect_err("missing");
    assert!(error.to_string().contains("missing` cannot be read"), "{error}");
}

#[tokio::test]
async fn folder_that_the_store_was_told_to_follow_is_looked_at_until_it_is_forgotten() {
    let models = Models::new().await;
    let stop = CancellationToken::new();
    let indexing = tokio::spawn(index_task(models.store.clone(), Vec::new(), stop.clone()));
    let folder = models.folder.path().to_owned();
    models.write("first.safetensors", b"the first");
    assert!(models.store.set_followed(folder.clone(), true).await.expect("there is room"));
    assert!(!models.store.set_followed(folder.clone(), true).await.expect("it is known"));
    let comes = async |bytes: &[u8]| {
        while !models.store.contains(BlobRef::of(bytes).hash) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(RESCAN / 3, comes(b"the first")).await.expect("it is followed at once");
    models.write("second.safetensors", b"the second");
    tokio::time::timeout(RESCAN / 3, comes(b"the second")).await.expect("it is watched");
    stop.cancel();
    indexing.await.expect("it ends");
    assert!(models.store.set_followed(folder.clone(), false).await.expect("there is room"));
    assert_eq!(models.store.forget_in_place(vec![folder]).await.expect("there is room"), 2);
    assert!(!models.store.contains(BlobRef::of(b"the first").hash));
}

#[tokio::test]
async fn change_of_a_watched_folder_is_found_without_waiting_for_the_next_look() {
    let models = Models::new().await;
    models.write("first.safetensors", b"the first");
    let stop = CancellationToken::new();
    let roots = vec![models.folder.path().to_owned()];
    let indexing = tokio::spawn(index_task(models.store.clone(), roots, stop.clone()));
    let holds = async |blob: BlobRef, expected: bool| {
        let waiting = async {
            while models.store.contains(blob.hash) != expected {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(RESCAN / 3, waiting).await.expect("long before the next look");
    };
    holds(BlobRef::of(b"the first"), true).await;
    let path = models.write("new/folder/second.safetensors", b"the second");
    holds(BlobRef::of(b"the second"), true).await;
    assert!(models.serves(BlobRef::of(b"the second")).await);
    fs::write(&path, b"another one").expect("own file");
    holds(BlobRef::of(b"another one"), true).await;
    assert!(!models.store.contains(BlobRef::of(b"the second").hash));
    fs::remove_dir_all(path.parent().expect("it has one")).expect("own folder");
    holds(BlobRef::of(b"another one"), false).await;
    holds(BlobRef::of(b"the first"), true).await;
    stop.cancel();
    indexing.await.expect("it ends");
}
