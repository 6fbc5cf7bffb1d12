//! Says among the members, through Kademlia, which large blobs this node serves, so that they are found
//! when no coordinator answers.
//!
//! Not here: what the coordinator is told, which is the inventory of `agent::duty`.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh::store::BlobStore;
use mesh::swarm::Mesh;
use protocol::{BlobName, BlobRef, PIECE_SIZE};
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

/// Both names of every large blob that others may have.
fn names(blobs: &BlobStore) -> BTreeSet<BlobName> {
    let is_large = |blob: &BlobRef| blob.size >= PIECE_SIZE;
    let hashes = blobs.shared().into_iter().filter(is_large).map(|blob| BlobName::Blake3(blob.hash));
    let aliases = blobs.aliases().into_iter().filter(|alias| is_large(&alias.blob));
    hashes.chain(aliases.map(|alias| BlobName::Sha256(alias.sha256))).collect()
}
