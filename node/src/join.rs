//! How a machine becomes a member and stays one: the ticket once, renewals ever after.
//!
//! Not here: what a certificate says (`protocol::membership`) and how the request travels (`mesh`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh::gate::Credentials;
use mesh::swarm::{JoinError, Mesh};
use protocol::membership::{Membership, Role};
use protocol::message::JoinRequest;
use protocol::ticket::Ticket;
use protocol::{FarmId, PeerId};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::os::file::replace;

/// How often the certificate is looked at, and renewed where that is due.
const RENEW: Duration = Duration::from_secs(15);

/// Where a node belongs; kept in its data folder as `membership.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Belonging {
    /// The farm.
    pub farm: FarmId,
    /// Its coordinator.
    pub coordinator: PeerId,
    /// Where the coordinator listens, as multiaddresses.
    pub addresses: Vec<String>,
    /// What this node presents.
    pub membership: Membership,
}

/// Why a node does not belong to a farm.
#[derive(Debug, thiserror::Error)]
pub enum BelongError {
    /// It never joined, and no ticket was given.
    #[error("this machine has joined no farm yet: give it a ticket (`comfy-farm node --join TICKET`)")]
    NoTicket,
    /// It belongs to another farm than the ticket's.
    #[error(
        "this data folder belongs to farm `{joined}`, the ticket is for `{ticket}`: give another `--data` folder"
    )]
    OtherFarm {
        /// Where it belongs.
        joined: FarmId,
        /// Where the ticket would take it.
        ticket: FarmId,
    },
    /// The coordinator did not admit it.
    #[error("joining the farm did not succeed")]
    Join(#[source] JoinError),
    /// The file that says where it belongs cannot be read or written.
    #[error("`{}` cannot be read or written", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Belonging {
    /// Reads where the node belongs; `None` before it first joined.
    pub fn load(path: &Path) -> Result<Option<Self>, BelongError> {
        let error = |source| BelongError::File { path: path.to_owned(), source };
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|cause| error(cause.into())),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(error(cause)),
        }
    }

    /// Writes it, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), BelongError> {
        let error = |source| BelongError::File { path: path.to_owned(), source };
        let json = serde_json::to_vec_pretty(self).map_err(|cause| error(cause.into()))?;
        replace(path, &json).map_err(error)
    }

    /// Where the node belongs: as before, or by this ticket.
    pub async fn load_or_join(
        path: &Path,
        ticket: Option<&Ticket>,
        labels: BTreeMap<String, String>,
        mesh: &Mesh,
    ) -> Result<Self, BelongError> {
        let joined = Self::load(path)?;
        let ticket = match (joined, ticket) {
            (Some(joined), Some(ticket)) if joined.farm != ticket.farm => {
                return Err(BelongError::OtherFarm { joined: joined.farm, ticket: ticket.farm });
            }
            // A member needs no ticket; a fresh one may still tell where the coordinator is now.
            (Some(mut joined), ticket) => {
                if let Some(ticket) = ticket.filter(|ticket| ticket.coordinator == joined.coordinator) {
                    joined.addresses = ticket.addresses.clone();
                }
                joined.save(path)?;
                return Ok(joined);
            }
            (None, None) => return Err(BelongError::NoTicket),
            (None, Some(ticket)) => ticket,
        };
        let request =
            JoinRequest { farm: ticket.farm, secret: Some(ticket.secret()), role: Role::Node, labels };
        let accepted =
            mesh.join(ticket.coordinator, &ticket.addresses, request).await.map_err(BelongError::Join)?;
        let Ticket { farm, coordinator, addresses, .. } = ticket.clone();
        let belonging = Self { farm, coordinator, addresses, membership: accepted.membership };
        belonging.save(path)?;
        Ok(belonging)
    }

    /// Renews the certificate where half of its life is over. Returns whether it did.
    pub async fn renew_if_due(&mut self, path: &Path, mesh: &Mesh) -> Result<bool, BelongError> {
        if !self.membership.is_past_half(now()) {
            return Ok(false);
        }
        let labels = self.membership.member.body.labels.clone();
        let request = JoinRequest { farm: self.farm, secret: None, role: Role::Node, labels };
        let accepted =
            mesh.join(self.coordinator, &self.addresses, request).await.map_err(BelongError::Join)?;
        self.membership = accepted.membership;
        self.save(path)?;
        Ok(true)
    }
}

/// Renews the certificate whenever that is due, as long as it runs. It needs no session: a certificate
/// that ran out while the coordinator was away is renewed once it is back, and opens the session again.
pub(crate) async fn renew_task(
    mesh: Mesh,
    credentials: Credentials,
    mut belonging: Belonging,
    path: PathBuf,
) {
    let mut reported = String::new();
    loop {
        match belonging.renew_if_due(&path, &mesh).await {
            Ok(true) => {
                credentials.replace(belonging.membership.clone());
                reported.clear();
                info!("certificate renewed");
            }
            Ok(false) => {}
            Err(error) => {
                // The same reason over and over is told once.
                let text = match &error {
                    BelongError::Join(cause) => cause.to_string(),
                    error => error.to_string(),
                };
                if text != reported {
                    warn!(error = text, "certificate is not renewed yet; trying again");
                    reported = text;
                }
            }
        }
        sleep(RENEW).await;
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use mesh::swarm::{Incoming, MeshConfig};
    use protocol::message::{Accepted, JoinMessage, JoinRefusal};
    use tokio::time::timeout;

    use super::*;
    use crate::testing::{Farm, PATIENCE, key, loopback};

    /// A machine that joined this farm at `issued`, with its file in the folder.
    fn belonging(farm: &Farm, folder: &Path, peer: PeerId, issued: u64) -> (Belonging, PathBuf) {
        let path = folder.join("membership.json");
        let coordinator = farm.coordinator.peer();
        let membership = farm.admit(peer, issued);
        let belonging = Belonging { farm: farm.id(), coordinator, addresses: vec![], membership };
        belonging.save(&path).expect("own folder");
        (belonging, path)
    }

    fn ticket(farm: &Farm, addresses: Vec<String>) -> Ticket {
        Ticket::new(farm.id(), farm.coordinator.peer(), addresses, [7; 16], now() + 600)
    }

    async fn mesh() -> (Mesh, PeerId) {
        let identity = std::sync::Arc::new(key());
        let peer = identity.peer();
        let config = MeshConfig::new(identity, vec![]);
        (Mesh::start(config).await.expect("a mesh").0, peer)
    }

    #[tokio::test]
    async fn machine_needs_a_ticket_once_and_stays_in_its_farm() {
        let (farm, other) = (Farm::new(), Farm::new());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mesh, peer) = mesh().await;
        let path = folder.path().join("membership.json");
        let load = |ticket: Option<Ticket>| {
            let (path, mesh) = (path.clone(), mesh.clone());
            async move { Belonging::load_or_join(&path, ticket.as_ref(), BTreeMap::new(), &mesh).await }
        };
        assert!(matches!(load(None).await, Err(BelongError::NoTicket)));
        let (joined, _) = belonging(&farm, folder.path(), peer, now());
        assert_eq!(load(None).await.expect("it belongs"), joined);
        let moved = load(Some(ticket(&farm, vec!["/ip4/192.0.2.7/tcp/1".to_owned()]))).await;
        assert_eq!(moved.expect("the same farm").addresses, ["/ip4/192.0.2.7/tcp/1"]);
        let foreign = load(Some(ticket(&other, vec![]))).await;
        assert!(
            matches!(foreign, Err(BelongError::OtherFarm { joined, .. }) if joined == farm.id()),
            "{foreign:?}"
        );
    }

    #[tokio::test]
    async fn certificate_that_ran_out_is_renewed_and_a_refusal_says_why() {
        let farm = Farm::new();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (node, peer) = mesh().await;
        let identity = std::sync::Arc::clone(&farm.coordinator);
        let config = MeshConfig { accept: true, ..MeshConfig::new(identity, vec![loopback()]) };
        let (coordinator, mut incoming) = Mesh::start(config).await.expect("a mesh");

        let (mut fresh, path) = belonging(&farm, folder.path(), peer, now());
        assert!(!fresh.renew_if_due(&path, &node).await.expect("nobody is asked"));

        let (mut old, path) = belonging(&farm, folder.path(), peer, now() - 30 * 24 * 3600);
        old.addresses = coordinator.addresses();
        let answers = [
            JoinMessage::Refused(JoinRefusal::Revoked),
            JoinMessage::Accepted(Box::new(Accepted { membership: farm.admit(peer, now()) })),
        ];
        let answering = tokio::spawn(async move {
            for answer_with in answers {
                let Some(Incoming::Join { request, answer, .. }) = incoming.recv().await else { return };
                assert_eq!(request.secret, None, "a member needs no ticket");
                answer.send(answer_with).expect("it waits");
            }
        });
        let refused = old.renew_if_due(&path, &node).await;
        assert!(matches!(refused, Err(BelongError::Join(JoinError::Refused(JoinRefusal::Revoked)))));
        assert!(old.renew_if_due(&path, &node).await.expect("it is renewed"));
        timeout(PATIENCE, answering).await.expect("soon").expect("no panic");
        let kept = Belonging::load(&path).expect("own file").expect("it was written");
        assert_eq!(kept.membership.verify(farm.id(), peer, now()), Ok(()));
    }
}
