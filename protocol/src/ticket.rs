//! The ticket `farm1…`: what a machine needs to join a farm, as one word to paste.
//!
//! Canonical JSON and a checksum in lower-case base32. The checksum finds a word that was cut or
//! mistyped; only the coordinator knows whether the secret is good.

use std::fmt;
use std::str::FromStr;

use data_encoding::{Encoding, Specification};
use serde::{Deserialize, Serialize};

use crate::id::{FarmId, PeerId};

/// The longest ticket that is read, in characters.
pub const MAX_TICKET: usize = 8192;
const PREFIX: &str = "farm1";
const CHECKSUM: usize = 4;

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

/// A text that is no ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseTicketError {
    /// It does not begin as one.
    #[error("this is no ticket: one begins with `farm1`")]
    NoTicket,
    /// It is longer than any ticket.
    #[error("this is no ticket: it has more than {MAX_TICKET} characters")]
    TooLong,
    /// Letters are missing or wrong.
    #[error("the ticket is damaged: letters are missing or wrong; copy it again as a whole")]
    Damaged,
    /// Another release wrote it.
    #[error("the ticket was made by another release of comfy-farm")]
    Unknown,
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
        let mut bytes = serde_json_canonicalizer::to_vec(self).expect("a ticket has only text keys");
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(&checksum.as_bytes()[..CHECKSUM]);
        write!(f, "{PREFIX}{}", base32().encode(&bytes))
    }
}

impl FromStr for Ticket {
    type Err = ParseTicketError;

    fn from_str(text: &str) -> Result<Self, ParseTicketError> {
        let text = text.trim();
        if text.len() > MAX_TICKET {
            return Err(ParseTicketError::TooLong);
        }
        let word = text.strip_prefix(PREFIX).ok_or(ParseTicketError::NoTicket)?;
        let bytes = base32().decode(word.as_bytes()).map_err(|_| ParseTicketError::Damaged)?;
        let body_length = bytes.len().checked_sub(CHECKSUM).ok_or(ParseTicketError::Damaged)?;
        let (body, checksum) = bytes.split_at(body_length);
        if blake3::hash(body).as_bytes()[..CHECKSUM] != *checksum {
            return Err(ParseTicketError::Damaged);
        }
        let ticket: Self = serde_json::from_slice(body).map_err(|_| ParseTicketError::Unknown)?;
        let mut secret = [0; 16];
        hex::decode_to_slice(&ticket.secret, &mut secret).map_err(|_| ParseTicketError::Unknown)?;
        Ok(ticket)
    }
}

/// RFC 4648 base32 in lower case, without padding.
fn base32() -> Encoding {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().expect("32 different symbols are a base32")
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
        assert!(!ticket().is_loopback_only());
    }

    #[test]
    fn every_altered_letter_is_noticed() {
        let text = ticket().to_string();
        for position in PREFIX.len()..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[position] = if altered[position] == b'a' { b'b' } else { b'a' };
            let altered = String::from_utf8(altered).expect("ASCII");
            assert_eq!(altered.parse::<Ticket>(), Err(ParseTicketError::Damaged), "at {position}");
        }
        assert_eq!(text[..text.len() - 3].parse::<Ticket>(), Err(ParseTicketError::Damaged));
        assert_eq!("hello".parse::<Ticket>(), Err(ParseTicketError::NoTicket));
    }
}
