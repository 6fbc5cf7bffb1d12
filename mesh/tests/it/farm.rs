//! A farm in a test: its root, its coordinator and as many peers as wanted, each with a folder.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh::fetch::{Exchange, ExchangeConfig};
use mesh::gate::Credentials;
use mesh::identity::Identity;
use mesh::plane::{Plane, QuinnPlane, RacingPlane, TlsPlane};
use mesh::store::BlobStore;
use mesh::swarm::{Incoming, Mesh, MeshConfig};
use protocol::membership::{Membership, Role};
use protocol::message::Provider;
use protocol::{FarmId, PeerId};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// How long a test waits for what should come soon.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A farm's keys.
pub(crate) struct Farm {
    root: Identity,
    coordinator: Arc<Identity>,
}

impl Farm {
    pub(crate) fn new() -> Self {
        Self { root: key(), coordinator: Arc::new(key()) }
    }

    pub(crate) fn id(&self) -> FarmId {
        FarmId(self.root.peer().0)
    }

    pub(crate) fn coordinator(&self) -> Arc<Identity> {
        Arc::clone(&self.coordinator)
    }

    pub(crate) fn coordinator_credentials(&self) -> Credentials {
        let keys = (self.root.signing_key(), self.coordinator.signing_key());
        let membership = Membership::for_coordinator(keys.0, keys.1, now());
        Credentials::new(self.id(), self.coordinator.peer(), membership)
    }

    /// The membership of a node that was admitted at `issued`.
    pub(crate) fn admit(&self, peer: PeerId, issued: u64) -> Membership {
        let keys = (self.root.signing_key(), self.coordinator.signing_key());
        let coordinator = Membership::for_coordinator(keys.0, keys.1, issued).coordinator;
        Membership::issue(&coordinator, keys.1, peer, Role::Node, BTreeMap::new(), issued)
    }

    pub(crate) fn credentials(&self, peer: PeerId) -> Credentials {
        Credentials::new(self.id(), peer, self.admit(peer, now()))
    }

    /// A coordinator's control plane on the loopback.
    pub(crate) async fn start_coordinator(&self) -> (Mesh, mpsc::Receiver<Incoming>) {
        let config = MeshConfig { accept: true, ..MeshConfig::new(self.coordinator(), vec![loopback()]) };
        let (mesh, incoming) = Mesh::start(config).await.expect("a mesh");
        mesh.set_credentials(self.coordinator_credentials());
        (mesh, incoming)
    }

    /// A member's control plane on the loopback.
    pub(crate) async fn start_mesh(&self) -> (Mesh, Arc<Identity>) {
        let identity = Arc::new(key());
        let config = MeshConfig::new(Arc::clone(&identity), vec![loopback()]);
        let (mesh, _incoming) = Mesh::start(config).await.expect("a mesh");
        mesh.set_credentials(self.credentials(identity.peer()));
        (mesh, identity)
    }

    /// A member with a store and a data plane.
    pub(crate) async fn peer(&self) -> Peer {
        let identity = key();
        let credentials = self.credentials(identity.peer());
        Peer::start(identity, credentials, |plane| plane).await
    }
}

/// A process with a data plane.
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) store: BlobStore,
    pub(crate) exchange: Exchange,
    pub(crate) folder: TempDir,
}

impl Peer {
    pub(crate) async fn start(
        identity: Identity,
        credentials: Credentials,
        wrap: impl FnOnce(Arc<dyn Plane>) -> Arc<dyn Plane>,
    ) -> Self {
        Self::start_as(&identity, credentials, wrap).await
    }

    /// The data plane of a process that has a control plane as well.
    pub(crate) async fn start_as(
        identity: &Identity,
        credentials: Credentials,
        wrap: impl FnOnce(Arc<dyn Plane>) -> Arc<dyn Plane>,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = BlobStore::open(folder.path()).await.expect("a store");
        let plane = RacingPlane::bind(identity, loopback()).await.expect("a plane");
        let config = exchange_config(store.clone(), wrap(Arc::new(plane)), credentials);
        Self { id: identity.peer(), store, exchange: Exchange::start(config), folder }
    }

    /// This peer as a provider that can be dialled.
    pub(crate) fn provider(&self) -> Provider {
        Provider { peer: self.id, addresses: self.exchange.addresses() }
    }
}

/// Each plane by itself, for a process that has just been made.
pub(crate) async fn single_planes(identity: &Identity) -> [Arc<dyn Plane>; 2] {
    let quic = QuinnPlane::bind(identity, loopback()).await.expect("a plane");
    let tls = TlsPlane::bind(identity, loopback()).await.expect("a plane");
    [Arc::new(quic), Arc::new(tls)]
}

/// Times that suit a test.
pub(crate) fn exchange_config(
    store: BlobStore,
    plane: Arc<dyn Plane>,
    credentials: Credentials,
) -> ExchangeConfig {
    let mut config = ExchangeConfig::new(store, plane, credentials);
    config.piece_timeout = Duration::from_secs(2);
    config.link_wait = PATIENCE;
    config
}

/// Bytes that differ from group to group.
pub(crate) fn bytes(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index ^ (index >> 8) ^ (index >> 16)) as u8).collect()
}

pub(crate) fn key() -> Identity {
    Identity::generate().expect("a key")
}

pub(crate) fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}
