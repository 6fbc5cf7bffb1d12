//! What this node tells of the blobs that it holds: all on a new session, then what changes.
//!
//! Those of 1 MiB and more, models where they lie, and whatever is pinned. Not here: other small blobs,
//! which are told by the runs that fetched them.

use std::collections::BTreeSet;

use mesh::store::BlobEntry;
use protocol::message::{Aliases, Inventory, MAX_LIST, NodeMessage};
use protocol::{Alias, BlobHash, BlobRef};

use super::Duty;
use crate::provide::is_told;

/// What the coordinator knows of it.
#[derive(Default)]
pub(super) struct Told {
    blobs: BTreeSet<BlobRef>,
    aliases: BTreeSet<BlobHash>,
}

impl Duty {
    /// Tells what changed, where the store evicted blobs, new ones came, or models came and went in place.
    pub(super) async fn send_changed_inventory(&mut self) {
        if self.writer.is_some() && self.blobs_changed.has_changed().unwrap_or(false) {
            self.send_inventory(false).await;
        }
    }

    /// Tells which blobs this node serves, and the SHA-256 of those that it knows.
    pub(super) async fn send_inventory(&mut self, complete: bool) {
        self.blobs_changed.mark_unchanged();
        if complete {
            self.told_blobs = Told::default();
        }
        let served: BTreeSet<BlobRef> =
            self.tools.blobs.list().into_iter().filter(is_told).map(to_blob).collect();
        let added: Vec<BlobRef> = served.difference(&self.told_blobs.blobs).copied().collect();
        let removed: Vec<BlobHash> =
            self.told_blobs.blobs.difference(&served).map(|blob| blob.hash).collect();
        let mut aliases = self.tools.blobs.aliases();
        aliases.retain(|alias| {
            served.contains(&alias.blob) && !self.told_blobs.aliases.contains(&alias.blob.hash)
        });
        self.told_blobs.aliases.retain(|hash| !removed.contains(hash));
        self.told_blobs.aliases.extend(aliases.iter().map(|alias| alias.blob.hash));
        self.told_blobs.blobs = served;

        if complete && added.is_empty() {
            self.tell_change(true, &[], &[]).await;
        }
        for (index, added) in added.chunks(MAX_LIST).enumerate() {
            self.tell_change(complete && index == 0, added, &[]).await;
        }
        for removed in removed.chunks(MAX_LIST) {
            self.tell_change(false, &[], removed).await;
        }
        for aliases in aliases.chunks(MAX_LIST) {
            self.tell_aliases(aliases).await;
        }
    }

    async fn tell_change(&mut self, complete: bool, added: &[BlobRef], removed: &[BlobHash]) {
        let (added, removed) = (added.to_vec(), removed.to_vec());
        self.send(NodeMessage::Inventory(Inventory { complete, added, removed })).await;
    }

    async fn tell_aliases(&mut self, aliases: &[Alias]) {
        self.send(NodeMessage::Aliases(Aliases { aliases: aliases.to_vec() })).await;
    }
}

fn to_blob(entry: BlobEntry) -> BlobRef {
    BlobRef { hash: entry.hash, size: entry.size }
}
