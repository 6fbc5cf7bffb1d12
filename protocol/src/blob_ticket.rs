//! The ticket `blob1…`: what a machine needs to fetch one file, or one folder, from another with no farm at
//! all.
//!
//! It is a bearer secret. Whoever shares a file makes a farm for it alone and puts the seed of its root
//! key into the ticket; whoever has the ticket signs itself a membership with it, and so passes the same
//! gate as every member of any farm. Not here: how the bytes cross.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use crate::blob::BlobRef;
use crate::id::{FarmId, PeerId};
use crate::membership::{Membership, Role};
use crate::word::{self, ParseTicketError};

/// The most addresses that a blob's ticket carries.
pub const MAX_ADDRESSES: usize = 16;
/// The longest file name that a blob's ticket carries, in bytes.
const MAX_NAME: usize = 255;
/// How each begins.
pub const PREFIX: &str = "blob1";

/// Where one file is, and the right to fetch it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobTicket {
    /// The bytes.
    pub blob: BlobRef,
    /// Whether the bytes are the list of a [`Collection`](crate::Collection), whose files are meant.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_folder: bool,
    /// What the file or folder is called where it is shared, for people.
    pub file_name: String,
    /// Who shares it.
    pub peer: PeerId,
    /// Where it listens, best first.
    pub addresses: Vec<SocketAddr>,
    /// The seed of the root key of the farm that exists for this file, 32 bytes in hex.
    seed: String,
}

impl BlobTicket {
    /// A ticket for this blob; `seed` becomes the root key of the farm behind it. A name that could not
    /// be shown, and addresses past [`MAX_ADDRESSES`], are left out.
    pub fn new(
        blob: BlobRef,
        file_name: &str,
        peer: PeerId,
        mut addresses: Vec<SocketAddr>,
        seed: [u8; 32],
    ) -> Self {
        addresses.truncate(MAX_ADDRESSES);
        let file_name = if is_plain(file_name) { file_name } else { "unnamed" }.to_owned();
        Self { blob, is_folder: false, file_name, peer, addresses, seed: hex::encode(seed) }
    }

    /// The same for a folder: the blob is its list.
    pub fn for_folder(self) -> Self {
        Self { is_folder: true, ..self }
    }

    /// The farm that exists for this file.
    pub fn farm(&self) -> FarmId {
        FarmId(self.root().verifying_key().to_bytes())
    }

    /// The membership of this peer, who holds the ticket, from `now` in seconds since 1970.
    pub fn admit(&self, peer: PeerId, now: u64) -> Membership {
        let root = self.root();
        let certificate = Membership::for_coordinator(&root, &root, now).coordinator;
        Membership::issue(&certificate, &root, peer, Role::Node, BTreeMap::new(), now)
    }

    /// Whether only processes on the sharer's own machine can use it.
    pub fn is_loopback_only(&self) -> bool {
        self.addresses.iter().all(|address| address.ip().is_loopback())
    }

    fn root(&self) -> SigningKey {
        let mut seed = [0; 32];
        hex::decode_to_slice(&self.seed, &mut seed).expect("checked when the ticket was made or parsed");
        SigningKey::from_bytes(&seed)
    }
}

/// Whether a name is one of a file in some folder and can be shown as it is.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && !name.contains(|c: char| c.is_control() || c == '/')
}

impl fmt::Display for BlobTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&word::write(PREFIX, self))
    }
}

/// Without the seed, so that no log has it.
impl fmt::Debug for BlobTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("BlobTicket");
        text.field("blob", &self.blob).field("peer", &self.peer).field("addresses", &self.addresses);
        text.finish_non_exhaustive()
    }
}

impl FromStr for BlobTicket {
    type Err = ParseTicketError;

    fn from_str(text: &str) -> Result<Self, ParseTicketError> {
        let ticket: Self = word::read(PREFIX, text)?;
        let mut seed = [0; 32];
        hex::decode_to_slice(&ticket.seed, &mut seed).map_err(|_| ParseTicketError::Unknown)?;
        if !is_plain(&ticket.file_name) || ticket.addresses.len() > MAX_ADDRESSES {
            return Err(ParseTicketError::Unknown);
        }
        Ok(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn ticket(file_name: &str) -> BlobTicket {
        let addresses = ["192.0.2.7:4288", "127.0.0.1:4288"].map(|text| text.parse().expect("an address"));
        BlobTicket::new(BlobRef::of(b"a model"), file_name, PeerId([2; 32]), addresses.into(), [3; 32])
    }

    #[test]
    fn ticket_survives_being_written_and_read() {
        let text = ticket("model.safetensors").to_string();
        assert!(text.starts_with("blob1"));
        assert_eq!(text.parse(), Ok(ticket("model.safetensors")));
        assert!(!ticket("model.safetensors").is_loopback_only());
    }

    #[test]
    fn whoever_holds_the_ticket_is_a_member_of_its_farm_and_of_no_other() {
        let (ticket, peer) =
            (ticket("model"), PeerId(SigningKey::from_bytes(&[9; 32]).verifying_key().to_bytes()));
        let membership = ticket.admit(peer, NOW);
        assert_eq!(membership.verify(ticket.farm(), peer, NOW), Ok(()));
        assert!(membership.verify(FarmId([1; 32]), peer, NOW).is_err());
        assert!(membership.verify(ticket.farm(), PeerId([2; 32]), NOW).is_err());
    }

    #[test]
    fn names_that_lead_elsewhere_or_draw_on_the_terminal_are_refused() {
        for name in ["", "../model", "/etc/passwd", "a\u{1b}[2Jb", &"n".repeat(256)] {
            assert_eq!(ticket(name).file_name, "unnamed");
            let forged = BlobTicket { file_name: name.to_owned(), ..ticket("model") };
            assert_eq!(forged.to_string().parse::<BlobTicket>(), Err(ParseTicketError::Unknown), "{name:?}");
        }
    }

    #[test]
    fn seed_is_not_shown_by_debug() {
        assert!(!format!("{:?}", ticket("model")).contains(&"03".repeat(32)));
    }
}
