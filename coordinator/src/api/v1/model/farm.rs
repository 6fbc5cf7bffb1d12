//! The farm as a whole, and invitations into it. Not here: its nodes and jobs.

use protocol::ticket::Ticket;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::view::FarmView;

/// The longest that a ticket can be valid, in seconds: 30 days.
pub(crate) const MAX_LIFETIME_SECONDS: u64 = 30 * 24 * 3600;
/// The most machines that one ticket can admit.
pub(crate) const MAX_USES: u32 = 1000;

/// The farm as a whole.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Farm {
    /// The farm's root key, in hex.
    farm: String,
    /// The peer id of this coordinator.
    coordinator: String,
    /// The version of comfy-farm that this coordinator runs.
    version: &'static str,
    /// Which start of the coordinator this is.
    epoch: u64,
    /// Jobs that wait.
    queued: u64,
    /// Jobs at work.
    running: u64,
    /// Nodes with an open session.
    nodes: u64,
    /// Slots of those nodes.
    slots: u64,
}

impl From<FarmView> for Farm {
    fn from(view: FarmView) -> Self {
        Self {
            farm: view.farm.to_string(),
            coordinator: view.coordinator.to_string(),
            version: env!("CARGO_PKG_VERSION"),
            epoch: view.epoch,
            queued: view.queued,
            running: view.running,
            nodes: view.nodes,
            slots: view.slots,
        }
    }
}

/// What a ticket should allow.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InviteRequest {
    /// How many machines may join with it, 1 to 1000. Defaults to 1.
    #[serde(default = "one_use")]
    #[schema(minimum = 1, maximum = 1000, default = 1)]
    pub(crate) uses: u32,
    /// For how many seconds it is valid, up to 30 days. Defaults to a day.
    #[serde(default = "one_day")]
    #[schema(minimum = 1, maximum = 2_592_000, default = 86_400)]
    pub(crate) lifetime_seconds: u64,
}

fn one_use() -> u32 {
    1
}

fn one_day() -> u64 {
    24 * 3600
}

/// A ticket to join the farm with.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Invite {
    /// The word to paste: `comfy-farm node --join TICKET`.
    ticket: String,
    /// When it ends.
    #[serde(with = "time::serde::rfc3339")]
    expires: OffsetDateTime,
    /// Whether only processes on the coordinator's own machine can use it.
    loopback_only: bool,
    /// The addresses in it, best first.
    addresses: Vec<String>,
}

impl From<Ticket> for Invite {
    fn from(ticket: Ticket) -> Self {
        let seconds = i64::try_from(ticket.expires).unwrap_or(i64::MAX);
        Self {
            ticket: ticket.to_string(),
            expires: OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH),
            loopback_only: ticket.is_loopback_only(),
            addresses: ticket.addresses,
        }
    }
}
