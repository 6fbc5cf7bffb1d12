//! The ticket `farm1…`: what a machine needs to join a farm, as one word to paste.
//!
//! How it is written as a word is `word`'s; only the coordinator knows whether the secret is good.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{FarmId, PeerId};
use crate::word::{self, ParseTicketError};

const PREFIX: &str = "farm1";

/// An invitation into a farm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    /// The farm.
    pub farm: FarmId,
    /// The coordinator that made it.
    pub coordinator: PeerId,
    /// Where it listens, as multiaddresses without the peer, best first.
    pub addresses: Vec<String>,
    /// 16 bytes, in hex.
    secret: String,
    /// Until when it can be used, in seconds since 1970.
    pub expires: u64,
}

impl Ticket {
    /// A ticket with this secret.
    pub fn new(
        farm: FarmId,
        coordinator: PeerId,
        addresses: Vec<String>,
        secret: [u8; 16],
        expires: u64,
    ) -> Self {
        Self { farm, coordinator, addresses, secret: hex::encode(secret), expires }
    }

    /// The secret.
    pub fn secret(&self) -> [u8; 16] {
        let mut secret = [0; 16];
        hex::decode_to_slice(&self.secret, &mut secret).expect("checked when the ticket was made or parsed");
        secret
    }

    /// Whether only processes on the coordinator's own machine can use it.
    pub fn is_loopback_only(&self) -> bool {
        let loopback = |address: &String| {
            address.starts_with("/ip4/127.")
                || address.starts_with("/ip6/::1/")
                || address.starts_with("/dns4/localhost/")
        };
        self.addresses.iter().all(loopback)
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&word::write(PREFIX, self))
    }
}

impl FromStr for Ticket {
    type Err = ParseTicketError;

    fn from_str(text: &str) -> Result<Self, ParseTicketError> {
        let ticket: Self = word::read(PREFIX, text)?;
        let mut secret = [0; 16];
        hex::decode_to_slice(&ticket.secret, &mut secret).map_err(|_| ParseTicketError::Unknown)?;
        Ok(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        let addresses =
            vec!["/ip4/192.0.2.7/udp/4288/quic-v1".to_owned(), "/ip4/127.0.0.1/tcp/4288".to_owned()];
        Ticket::new(FarmId([1; 32]), PeerId([2; 32]), addresses, [3; 16], 1_800_000_000)
    }

    #[test]
    fn ticket_survives_being_written_and_read() {
        let text = ticket().to_string();
        assert!(text.starts_with("farm1"));
        assert_eq!(format!(" {text}\n").parse(), Ok(ticket()));
        assert_eq!(ticket().secret(), [3; 16]);
        assert_eq!("blob1aaaa".parse::<Ticket>(), Err(ParseTicketError::NoTicket("farm1")));
        assert!(!ticket().is_loopback_only());
    }
}
