//! Fetches onto a disk that is full, and onto one where older blobs must go first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use mesh::fetch::{Exchange, FetchError};
use mesh::plane::QuinnPlane;
use mesh::store::{BlobStore, StoreError};
use nix::unistd::Uid;
use protocol::PIECE_SIZE;

use crate::farm::{Farm, bytes, exchange_config, key, loopback};

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
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the store still has files open.
        if let Err(error) = Command::new("umount").arg("--lazy").arg(&self.0).status() {
            eprintln!("`{}` stays mounted: {error}", self.0.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fetch_onto_a_full_disk_tells_the_numbers_and_goes_on_when_there_is_room() {
    if !Uid::effective().is_root() {
        eprintln!("skipped: a file system of 8 MiB is mounted by root only");
        return;
    }
    let (farm, folder) = (Farm::new(), tempfile::tempdir().expect("a folder"));
    let disk = SmallDisk::mount(&folder.path().join("disk"));
    let holder = farm.peer().await;
    let bytes = bytes(6 * PIECE_SIZE as usize);
    let blob = holder.store.import_bytes(&bytes).await.expect("there is room");
    let filler = disk.0.join("filler");
    fs::write(&filler, vec![0; 4 << 20]).expect("it fits");

    let asker = key();
    let store = BlobStore::open(disk.0.join("store")).await.expect("a store");
    let plane = Arc::new(QuinnPlane::bind(&asker, loopback()).await.expect("a plane"));
    let exchange = Exchange::start(exchange_config(store.clone(), plane, farm.credentials(asker.peer())));
    let full = exchange.fetch(blob, &[holder.provider()], None).await.expect_err("the disk is full");
    let FetchError::Store(StoreError::NoRoom { wanted, free, .. }) = full else { panic!("{full}") };
    assert_eq!(wanted, blob.size);
    assert!(free < wanted, "{free}");

    fs::remove_file(&filler).expect("own file");
    exchange.fetch(blob, &[holder.provider()], None).await.expect("there is room now");
    assert_eq!(store.read_all(blob.hash, u64::MAX).await.expect("it is whole"), bytes);
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
