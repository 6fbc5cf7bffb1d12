//! What this node tells of the blobs that it holds.
//!
//! Not here: small blobs, which are told by the runs that fetched them.

use protocol::message::{Aliases, Inventory, MAX_LIST, NodeMessage};
use protocol::{Alias, BlobRef, PIECE_SIZE};

use super::Duty;

impl Duty {
    /// Tells the inventory again where the store evicted blobs, or models came and went in place.
    pub(super) async fn send_changed_inventory(&mut self) {
        if self.writer.is_some() && self.blobs_changed.has_changed().unwrap_or(false) {
            self.send_inventory().await;
        }
    }

    /// Tells which large blobs this node serves, and the SHA-256 of those that it knows.
    pub(super) async fn send_inventory(&mut self) {
        self.blobs_changed.mark_unchanged();
        let mut served = self.tools.blobs.list();
        served.retain(|entry| entry.shared && entry.size >= PIECE_SIZE);
        let blob = |hash, size| BlobRef { hash, size };
        let blobs: Vec<BlobRef> = served.iter().map(|entry| blob(entry.hash, entry.size)).collect();
        let alias = |sha256, blob| Alias { sha256, blob };
        let known = served.iter().filter_map(|entry| Some((entry.sha256?, blob(entry.hash, entry.size))));
        let aliases: Vec<Alias> = known.map(|(sha256, blob)| alias(sha256, blob)).collect();

        let mut complete = true;
        let mut chunks = blobs.chunks(MAX_LIST);
        loop {
            let added = chunks.next().unwrap_or_default().to_vec();
            if added.is_empty() && !complete {
                break;
            }
            self.send(NodeMessage::Inventory(Inventory { complete, added, removed: vec![] })).await;
            complete = false;
        }
        for aliases in aliases.chunks(MAX_LIST) {
            self.send(NodeMessage::Aliases(Aliases { aliases: aliases.to_vec() })).await;
        }
    }
}
