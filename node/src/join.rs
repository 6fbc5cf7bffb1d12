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
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(error)?;
        serde_json::to_writer_pretty(&mut file, self).map_err(|cause| error(cause.into()))?;
        file.as_file().sync_all().map_err(error)?;
        file.persist(path).map_err(|cause| error(cause.error))?;
        Ok(())
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
