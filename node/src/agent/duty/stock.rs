//! What this node tells of its store and its transfers, and the blobs that it keeps because the coordinator asks.
//!
//! Not here: which node keeps what; the coordinator chooses.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh::store::ByteSize;
use protocol::message::{Keep, KeepPrivate, KeepRefused, MAX_LIST, NodeMessage, Storage};
use protocol::{BlobHash, Fault, Transfers, error_chain};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tracing::{error, info, warn};

use super::Duty;
use crate::run::Tools;

/// How many blobs are fetched to be kept at a time.
const AT_A_TIME: usize = 2;
/// How many more may wait for that.
const MAX_WAITING: usize = 256;
/// A change of the room that is worth telling.
const ROOM_STEP: u64 = 64 << 20;

/// The blobs that are to be kept, and what the coordinator knows of the store.
pub(super) struct Stock {
    keeping: JoinSet<Kept>,
    hashes: BTreeSet<BlobHash>,
    turns: Arc<Semaphore>,
    told: Option<Storage>,
    told_transfers: Transfers,
}

/// What came of keeping a blob.
pub(super) struct Kept {
    blob: BlobHash,
    result: Result<(), String>,
}

impl Stock {
    pub(super) fn new() -> Self {
        let turns = Arc::new(Semaphore::new(AT_A_TIME));
        let (hashes, told_transfers) = (BTreeSet::new(), Transfers::default());
        Self { keeping: JoinSet::new(), hashes, turns, told: None, told_transfers }
    }

    /// The next blob that is kept, or is not.
    pub(super) async fn next(&mut self) -> Option<Result<Kept, JoinError>> {
        self.keeping.join_next().await
    }

    /// A new session: the coordinator may know nothing.
    pub(super) fn forget_told(&mut self) {
        (self.told, self.told_transfers) = (None, Transfers::default());
    }
}

impl Duty {
    /// Fetches a blob and pins it, beside the loop.
    pub(super) async fn on_keep(&mut self, keep: Keep) {
        let blob = keep.blob.hash;
        if self.stock.hashes.contains(&blob) {
            return;
        }
        if self.stock.hashes.len() >= MAX_WAITING {
            let reason = format!("{MAX_WAITING} blobs wait to be kept already");
            return self.send(NodeMessage::KeepRefused(KeepRefused { blob, reason })).await;
        }
        self.stock.hashes.insert(blob);
        let (tools, turns) = (Arc::clone(&self.tools), Arc::clone(&self.stock.turns));
        self.stock.keeping.spawn(keep_task(tools, turns, keep));
    }

    /// Serves these no more. The inventory says by itself that they are gone.
    pub(super) async fn on_keep_private(&mut self, private: KeepPrivate) {
        let names = private.names.into_iter().take(MAX_LIST).collect();
        if let Err(error) = self.tools.blobs.keep_private(names).await {
            error!(error = error_chain(&error), "files that are not to be shared could not be marked so");
        }
    }

    /// Tells what came of a blob that was to be kept.
    pub(super) async fn on_kept(&mut self, kept: Result<Kept, JoinError>) {
        match kept {
            Ok(Kept { blob, result: Ok(()) }) => {
                self.stock.hashes.remove(&blob);
                self.send_inventory(false).await;
                self.send_storage().await;
            }
            Ok(Kept { blob, result: Err(reason) }) => {
                self.stock.hashes.remove(&blob);
                self.send(NodeMessage::KeepRefused(KeepRefused { blob, reason })).await;
            }
            Err(error) => error!(%error, "keeping a blob broke off"),
        }
    }

    /// Tells how much room there is and what is pinned, where that has changed.
    pub(super) async fn send_storage(&mut self) {
        if self.writer.is_none() {
            return;
        }
        let room = self.tools.blobs.room().await.unwrap_or_else(|error| {
            warn!(error = error_chain(&error), "room in the store is not known");
            0
        });
        let pinned = self.tools.blobs.pinned().into_iter().map(|blob| blob.hash);
        let storage = Storage { room, pinned: pinned.take(MAX_LIST).collect() };
        let is_known = self.stock.told.as_ref().is_some_and(|told| {
            told.pinned == storage.pinned && told.room.abs_diff(storage.room) < ROOM_STEP
        });
        if !is_known {
            self.stock.told = Some(storage.clone());
            self.send(NodeMessage::Storage(storage)).await;
        }
    }

    /// Tells what is fetched at the moment and who sent wrong bytes, where that has changed.
    pub(super) async fn send_transfers(&mut self) {
        let exchange = &self.tools.exchange;
        let fault = |(peer, blob, reason)| Fault { peer, blob, reason };
        let faults = exchange.faults().into_iter().map(fault).collect();
        let transfers = Transfers { transfers: exchange.transfers(), faults }.bounded();
        if self.writer.is_some() && self.stock.told_transfers != transfers {
            self.stock.told_transfers = transfers.clone();
            self.send(NodeMessage::Transfers(transfers)).await;
        }
    }
}

async fn keep_task(tools: Arc<Tools>, turns: Arc<Semaphore>, keep: Keep) -> Kept {
    let blob = keep.blob.hash;
    let result = keep_impl(&tools, &turns, keep).await;
    match &result {
        Ok(()) => info!(blob = %blob.fmt_short(), "blob is kept for the farm"),
        Err(reason) => warn!(blob = %blob.fmt_short(), reason, "blob is not kept"),
    }
    Kept { blob, result }
}

async fn keep_impl(tools: &Tools, turns: &Semaphore, keep: Keep) -> Result<(), String> {
    let _turn = turns.acquire().await.map_err(|_| "the node is stopping".to_owned())?;
    let Keep { blob, providers } = keep;
    // From its last byte to its pin nobody evicts it.
    let _hold = tools.blobs.hold(blob.hash);
    if !tools.blobs.contains(blob.hash) {
        let room = tools.blobs.room().await.map_err(|error| error_chain(&error))?;
        if room < blob.size {
            return Err(format!("it has {} and there is room for {}", ByteSize(blob.size), ByteSize(room)));
        }
    }
    tools.exchange.fetch(blob, &providers, None).await.map_err(|error| error_chain(&error))?;
    tools.blobs.set_pinned(blob.hash, true).await.map_err(|error| error_chain(&error))
}
