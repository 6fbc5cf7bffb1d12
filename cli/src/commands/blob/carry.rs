//! What both ends of carrying a file with no farm have in common: a data plane in the farm that exists
//! for the ticket alone.
//!
//! Not here: what is carried.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh::fetch::{Exchange, ExchangeConfig};
use mesh::gate::Credentials;
use mesh::identity::Identity;
use mesh::plane::{Plane, RacingPlane};
use mesh::store::BlobStore;
use protocol::PeerId;
use protocol::blob_ticket::BlobTicket;
use protocol::membership::MEMBER_LIFETIME;
use tokio_util::task::AbortOnDropHandle;

/// A peer that listens and is in no farm yet. Its key lives as long as the process.
pub(super) struct Listener {
    identity: Identity,
    plane: RacingPlane,
}

impl Listener {
    pub(super) async fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let identity = Identity::generate()?;
        let plane = RacingPlane::bind(&identity, address).await?;
        Ok(Self { identity, plane })
    }

    pub(super) fn peer(&self) -> PeerId {
        self.identity.peer()
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.plane.addresses()
    }

    /// Joins the ticket's farm, and serves what is in the store.
    pub(super) fn join(self, ticket: BlobTicket, store: BlobStore) -> Carrier {
        let peer = self.peer();
        let credentials = Credentials::new(ticket.farm(), peer, ticket.admit(peer, now()));
        let exchange = Exchange::start(ExchangeConfig::new(store, Arc::new(self.plane), credentials.clone()));
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(MEMBER_LIFETIME / 2)).await;
                credentials.replace(ticket.admit(peer, now()));
            }
        });
        Carrier { exchange, _renewing: AbortOnDropHandle::new(renewing) }
    }
}

/// A member of the ticket's farm, for as long as this lives.
pub(super) struct Carrier {
    pub(super) exchange: Exchange,
    _renewing: AbortOnDropHandle<()>,
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
