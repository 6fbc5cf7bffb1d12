//! Who provides which blob, as the members know it among themselves: said and asked through Kademlia, with no
//! coordinator.
//!
//! Not here: the fetch, and what a coordinator knows.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use protocol::contact::Contact;
use protocol::message::{OriginLease, Provider};
use protocol::{BlobName, BlobRef, FileRef, PeerId, PieceRange};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use crate::finder::{FindError, Finder, Found};
use crate::identity::{from_libp2p, to_libp2p};
use crate::swarm::discovery::MAX_FOUND;
use crate::swarm::event_loop::Command;
use crate::swarm::records::key_of;
use crate::swarm::{Mesh, whereabouts};

/// How long [`MeshFinder`] looks for providers.
const LONGEST: Duration = Duration::from_secs(5);

impl Mesh {
    /// Says to the members that this process provides a blob, and again every hour until it stops.
    pub async fn start_providing(&self, name: &BlobName) {
        self.command(Command::Provide { key: key_of(name), is_here: true }).await;
    }

    /// Says so no more; what others know of it runs out within three hours.
    pub async fn stop_providing(&self, name: &BlobName) {
        self.command(Command::Provide { key: key_of(name), is_here: false }).await;
    }

    /// Members that say they provide a blob, each of them met just now; whoever is not met within `longest`
    /// is left out.
    pub async fn find_providers(&self, name: &BlobName, longest: Duration) -> Vec<Provider> {
        let deadline = Instant::now() + longest;
        let (found, mut providers) = mpsc::channel(MAX_FOUND);
        self.command(Command::Search { key: key_of(name), found }).await;
        let (mut meetings, mut met) = (FuturesUnordered::new(), Vec::new());
        let mut is_searching = true;
        while is_searching || !meetings.is_empty() {
            let next = async {
                tokio::select! {
                    provider = providers.recv(), if is_searching => match provider.map(from_libp2p) {
                        Some(Some(provider)) => meetings.push(self.meet_provider(provider)),
                        Some(None) => {}
                        None => is_searching = false,
                    },
                    Some(provider) = meetings.next() => met.extend(provider),
                }
            };
            if timeout_at(deadline, next).await.is_err() {
                break;
            }
        }
        met
    }

    async fn meet_provider(&self, peer: PeerId) -> Option<Provider> {
        let contact = self.meet(peer, Vec::new()).await?;
        Some(Provider { peer, addresses: contact.data })
    }

    /// Connects to a member, at these addresses and those that are known, and asks where it is reached.
    pub async fn meet(&self, peer: PeerId, addresses: Vec<String>) -> Option<Contact> {
        let peer = to_libp2p(peer)?;
        let (answer, met) = oneshot::channel();
        let addresses = addresses.iter().filter_map(|address| address.parse().ok()).collect();
        self.command(Command::Meet { peer, addresses, answer }).await;
        met.await.ok()
    }

    async fn command(&self, command: Command) {
        // A loop that has stopped does nothing, and drops what waits for its answer.
        let _ = self.shared.commands.send(command).await;
    }
}

/// Finds blobs among the members, for a process that no coordinator answers.
#[derive(Clone)]
pub struct MeshFinder {
    mesh: Mesh,
}

impl MeshFinder {
    /// A finder over this control plane.
    pub fn new(mesh: Mesh) -> Self {
        Self { mesh }
    }

    /// What a provider says it holds under this name, if it still does.
    async fn ask(&self, provider: Provider, name: BlobName) -> Option<(Provider, BlobRef)> {
        match whereabouts::ask(&self.mesh.shared, provider.peer, name).await {
            Ok(blob) => Some((provider, blob?)),
            Err(error) => {
                debug!(provider = %provider.peer.fmt_short(), %error, "provider gives no answer");
                None
            }
        }
    }
}

#[async_trait]
impl Finder for MeshFinder {
    async fn locate(&self, name: &BlobName) -> Result<Found, FindError> {
        let said = self.mesh.find_providers(name, LONGEST).await;
        let asking: FuturesUnordered<_> =
            said.into_iter().map(|provider| self.ask(provider, *name)).collect();
        let answers: Vec<(Provider, BlobRef)> = asking.filter_map(async |answer| answer).collect().await;
        // One member's word for a SHA-256 is a hint; the word of most is taken.
        let count = |blob: BlobRef| answers.iter().filter(|(_, other)| *other == blob).count();
        let blob = answers.iter().map(|(_, blob)| *blob).max_by_key(|blob| (count(*blob), blob.hash));
        let holders = answers.iter().filter(|(_, other)| Some(*other) == blob);
        let providers = holders.map(|(provider, _)| provider.clone()).collect();
        Ok(Found { blob, providers, readers: Vec::new() })
    }

    async fn read_origin(&self, _: &FileRef, _: Vec<PieceRange>, _: u64) -> Result<OriginLease, FindError> {
        Err(FindError::Offline)
    }
}
