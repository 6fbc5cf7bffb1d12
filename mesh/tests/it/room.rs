//! Fetches onto a disk that is full, and onto one where older blobs must go first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use mesh::fetch::{Exchange, FetchError, FetchFileError, OriginFile};
use mesh::limits::{Caps, Limits};
use mesh::plane::QuinnPlane;
use mesh::store::{BlobStore, ByteSize, StoreError};
use nix::unistd::Uid;
use protocol::{BlobRef, PIECE_SIZE};
use tokio::time::{Duration, timeout};

use crate::farm::{Farm, PATIENCE, Peer, bytes, exchange_config, key, loopback};
use crate::files::file_of;

/// A file system of 8 MiB, as long as this lives.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path) -> Self {
        fs::create_dir(path).expect("own folder");
        let arguments = ["-t", "tmpfs", "-o", "size=8m", "tmpfs"];
        let status = Command::new("mount").args(arguments).arg(path).status().expect("mount is installed");
        assert!(status.success(), "{status}");
        Self(path.to_owned())
    }

    /// Has it take writes, or none from now on. Nobody may have a file there open to write.
    fn set_writable(&self, is_writable: bool) {
        let options = if is_writable { "remount,rw" } else { "remount,ro" };
        let mut mount = Command::new("mount");
        let status = mount.args(["-o", options]).arg(&self.0).status().expect("mount is installed");
        assert!(status.success(), "{status}");
    }

    /// A file beside the store that takes room.
    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the store still has files open.
        if let Err(error) = Command::new("umount").arg("--lazy").arg(&self.0).status() {
            eprintln!("`{}` stays mounted: {error}", self.0.display());
        }
    }
}

/// A blob that somebody holds, and an asker whose store lies on a small disk.
struct OnSmallDisk {
    disk: SmallDisk,
    holder: Peer,
    bytes: Vec<u8>,
    blob: BlobRef,
    store: BlobStore,
    exchange: Exchange,
    _farm: Farm,
    _folder: tempfile::TempDir,
}

impl OnSmallDisk {
    /// None where nobody may mount one. `filled`, so many bytes of the disk are taken by a file beside the store.
    async fn new(filled: usize) -> Option<Self> {
        if !Uid::effective().is_root() {
            eprintln!("skipped: a file system of 8 MiB is mounted by root only");
            return None;
        }
        let (farm, folder) = (Farm::new(), tempfile::tempdir().expect("a folder"));
        let disk = SmallDisk::mount(&folder.path().join("disk"));
        let holder = farm.peer().await;
        let bytes = bytes(6 * PIECE_SIZE as usize);
        let blob = holder.store.import_bytes(&bytes).await.expect("there is room");
        if filled > 0 {
            fs::write(disk.filler(), vec![0; filled]).expect("it fits");
        }
        let asker = key();
        let store = BlobStore::open(disk.0.join("store")).await.expect("a store");
        let plane = Arc::new(QuinnPlane::bind(&asker, loopback()).await.expect("a plane"));
        let config = exchange_config(store.clone(), plane, farm.credentials(asker.peer()));
        let exchange = Exchange::start(config);
        Some(Self { disk, holder, bytes, blob, store, exchange, _farm: farm, _folder: folder })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_onto_a_full_disk_tells_the_numbers_and_goes_on_when_there_is_room() {
    let Some(setting) = OnSmallDisk::new(4 << 20).await else { return };
    let OnSmallDisk { disk, holder, bytes, blob, store, exchange, .. } = &setting;
    let full = exchange.fetch(*blob, &[holder.provider()], None).await.expect_err("the disk is full");
    let FetchError::Store(StoreError::NoRoom { wanted, free, .. }) = full else { panic!("{full}") };
    assert_eq!(wanted, blob.size);
    assert!(free < wanted, "{free}");

    fs::remove_file(disk.filler()).expect("own file");
    exchange.fetch(*blob, &[holder.provider()], None).await.expect("there is room now");
    assert_eq!(store.read_all(blob.hash, u64::MAX).await.expect("it is whole"), *bytes);
    exchange.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_that_fills_up_in_the_middle_costs_nothing_that_came_and_is_waited_for() {
    let Some(setting) = OnSmallDisk::new(0).await else { return };
    let OnSmallDisk { disk, holder, bytes, blob, store, exchange, .. } = &setting;
    let (blob, filler) = (*blob, disk.filler());
    let upload = |cap: Option<u64>| {
        let caps = Caps { upload: cap.map(ByteSize), download: None };
        holder.exchange.set_limits(Limits { caps, ..Limits::default() });
    };
    upload(Some(4 * PIECE_SIZE));
    let fetching = tokio::spawn({
        let (exchange, holder) = (exchange.clone(), holder.provider());
        async move { exchange.fetch(blob, &[holder], None).await }
    });
    let arrived = async {
        while exchange.transfers().iter().all(|transfer| transfer.here < PIECE_SIZE) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, arrived).await.expect("it comes");
    // As much as there is: the blob's room is not taken beforehand in memory.
    let filled = std::io::copy(&mut std::io::repeat(0), &mut fs::File::create(&filler).expect("it is made"));
    assert!(filled.is_err_and(|error| error.kind() == std::io::ErrorKind::StorageFull));
    let full = fetching.await.expect("no panic").expect_err("the disk is full");
    let FetchError::Store(full @ StoreError::NoRoom { wanted, free, .. }) = full else { panic!("{full}") };
    assert!(free < wanted, "{free} of {wanted}");

    let waiting = tokio::spawn(async move { full.room_comes().await });
    fs::remove_file(&filler).expect("own file");
    assert!(timeout(PATIENCE, waiting).await.expect("room comes").expect("no panic"));
    upload(None);
    let fetched = exchange.fetch(blob, &[holder.provider()], None).await.expect("there is room now");
    let came: u64 = fetched.iter().map(|fetched| fetched.bytes).sum();
    assert!(came < blob.size, "{came} bytes came again");
    assert_eq!(store.read_all(blob.hash, u64::MAX).await.expect("it is whole"), *bytes);
    // There is no room for a copy beside it.
    let copied = store.export(blob.hash, disk.0.join("out")).await.expect_err("6 and 6 are more than 8");
    let StoreError::NoRoom { wanted, free, .. } = copied else { panic!("{copied}") };
    assert!(wanted == blob.size && free < wanted, "{free} of {wanted}");
    let left = fs::read_dir(&disk.0).expect("own folder").flatten().map(|entry| entry.file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["store"]);
    exchange.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transfer_onto_a_full_or_read_only_disk_waits_and_goes_on_when_there_is_room() {
    let Some(setting) = OnSmallDisk::new(0).await else { return };
    let OnSmallDisk { disk, holder, bytes, blob, store, exchange, .. } = &setting;
    let (file, providers) = (file_of(bytes, &[]), [holder.provider()]);
    let files = [OriginFile { blob: Some(blob.hash), ..file.clone() }, file];
    let fetch = |file, patience| exchange.fetch_file_when_there_is_room(file, &providers, None, patience);
    // As a blob whose hash is known, and put together.
    holder.store.prove_sha256(*blob).await.expect("it can be read");
    for (file, is_full) in files.iter().flat_map(|file| [(file, true), (file, false)]) {
        if is_full {
            fs::write(disk.filler(), vec![0; 4 << 20]).expect("it fits");
        } else {
            disk.set_writable(false);
        }
        let refused = fetch(file, Duration::ZERO).await.expect_err("nothing can be written");
        let FetchFileError::Store(refused) = refused else { panic!("{refused}") };
        match (is_full, &refused) {
            (true, StoreError::NoRoom { wanted, free, .. }) => assert!(free < wanted, "{refused}"),
            (false, StoreError::ReadOnly { wanted, free, .. }) => {
                assert!(*wanted == blob.size && free > wanted, "{refused}");
                let words = refused.to_string();
                assert!(words.contains(&format!("{wanted} bytes are wanted and {free} are free")), "{words}");
            }
            _ => panic!("{refused}"),
        }
        let mut fetching = std::pin::pin!(fetch(file, PATIENCE));
        let early = timeout(Duration::from_millis(500), &mut fetching).await;
        assert!(early.is_err(), "it does not wait: {early:?}");
        if is_full {
            fs::remove_file(disk.filler()).expect("own file");
        } else {
            disk.set_writable(true);
        }
        let fetched = timeout(PATIENCE, fetching).await.expect("it goes on").expect("there is room");
        assert_eq!(fetched.blob, *blob);
        assert_eq!(store.read_all(blob.hash, u64::MAX).await.expect("it is whole"), *bytes);
        store.remove(blob.hash).await.expect("own folder");
    }
    exchange.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn older_blob_goes_before_the_first_byte_of_a_new_one() {
    let farm = Farm::new();
    let (holder, asker) = (farm.peer().await, farm.peer().await);
    let mut blobs = Vec::new();
    for size in [3, 4] {
        let bytes = bytes(size * PIECE_SIZE as usize);
        blobs.push(holder.store.import_bytes(&bytes).await.expect("there is room"));
    }
    asker.store.set_quota(Some(6 * PIECE_SIZE));
    for blob in &blobs {
        asker.exchange.fetch(*blob, &[holder.provider()], None).await.expect("room is made");
    }
    assert_eq!(asker.store.complete(), [blobs[1]]);
    let pinned = asker.store.set_pinned(blobs[1].hash, true).await;
    pinned.expect("it is whole");
    let refused = asker.exchange.fetch(blobs[0], &[holder.provider()], None).await;
    assert!(matches!(refused, Err(FetchError::Store(StoreError::OverQuota { .. }))), "{refused:?}");
}
