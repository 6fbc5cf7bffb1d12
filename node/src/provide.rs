//! Says among the members, through Kademlia, which blobs this node serves, so that they are found
//! when no coordinator answers.
//!
//! Not here: what the coordinator is told, which is the inventory of `agent::duty`.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh::store::{BlobEntry, BlobStore};
use mesh::swarm::Mesh;
use protocol::{BlobHash, BlobName, PIECE_SIZE};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often the store is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// Says what came and what went until `stop`.
pub(crate) async fn provide_task(mesh: Mesh, blobs: BlobStore, stop: CancellationToken) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = BTreeSet::new();
    while stop.run_until_cancelled(looks.tick()).await.is_some() {
        let held = names(&blobs);
        for name in said.difference(&held) {
            mesh.stop_providing(name).await;
        }
        for name in held.difference(&said) {
            mesh.start_providing(name).await;
        }
        said = held;
    }
}

/// Whether others are told of a blob: of a large one, a model where it lies, and whatever is pinned.
pub(crate) fn is_told(entry: &BlobEntry) -> bool {
    entry.shared && (entry.size >= PIECE_SIZE || entry.pinned || !entry.in_place.is_empty())
}

/// Both names of every blob that others are told of.
fn names(blobs: &BlobStore) -> BTreeSet<BlobName> {
    let told: BTreeSet<BlobHash> =
        blobs.list().iter().filter(|entry| is_told(entry)).map(|entry| entry.hash).collect();
    let aliases = blobs.aliases().into_iter().chain(blobs.vouched());
    let aliases = aliases.filter(|alias| told.contains(&alias.blob.hash));
    let aliases: Vec<_> = aliases.map(|alias| BlobName::Sha256(alias.sha256)).collect();
    told.into_iter().map(BlobName::Blake3).chain(aliases).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_models_are_told_of_where_they_lie_and_other_small_blobs_are_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let blobs = BlobStore::open(folder.path().join("store")).await.expect("a store");
        let embedding = folder.path().join("embedding.safetensors");
        std::fs::write(&embedding, b"small").expect("own folder");
        let embedding = blobs.import_in_place(&embedding).await.expect("it can be read");
        blobs.import_bytes(b"an input of a job").await.expect("there is room");
        let large = blobs.import_bytes(&vec![1; PIECE_SIZE as usize]).await.expect("there is room");
        let told = [embedding.hash, large.hash].map(BlobName::Blake3);
        assert_eq!(names(&blobs), BTreeSet::from(told));
    }
}
