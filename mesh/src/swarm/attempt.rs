//! What came of dialling one address, in words that name the address, its protocol and its port.

use std::error::Error;
use std::fmt;
use std::io;

use libp2p::core::transport::TransportError;
use libp2p::{Multiaddr, PeerId};

use crate::swarm::address::describe;

/// An address that was tried in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The multiaddress, as it was given.
    pub address: String,
    /// Why it was in vain.
    pub reason: AttemptFailure,
}

/// Why an address is of no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptFailure {
    /// Nothing answers there; with what the transport said.
    NoAnswer(String),
    /// Somebody else answers there.
    AnotherPeer,
    /// It is an address of this process.
    Ourselves,
    /// It is no address.
    NoAddress,
}

impl Attempt {
    pub(super) fn timed_out(address: &Multiaddr) -> Self {
        Self::new(address, AttemptFailure::NoAnswer("timed out".to_owned()))
    }

    pub(super) fn failed(address: &Multiaddr, error: &TransportError<io::Error>) -> Self {
        Self::new(address, AttemptFailure::NoAnswer(reason(error)))
    }

    pub(super) fn new(address: &Multiaddr, reason: AttemptFailure) -> Self {
        Self { address: without_peer(address).to_string(), reason }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = describe(&self.address);
        match &self.reason {
            AttemptFailure::NoAnswer(reason) => write!(f, "nothing answers at {place}: {reason}"),
            AttemptFailure::AnotherPeer => write!(f, "another peer answers at {place}"),
            AttemptFailure::Ourselves => write!(f, "{place} is this process itself"),
            AttemptFailure::NoAddress => write!(f, "`{}` is no address that can be dialled", self.address),
        }
    }
}

/// All of them in one sentence.
pub(super) fn list(attempts: &[Attempt]) -> String {
    attempts.iter().map(Attempt::to_string).collect::<Vec<_>>().join("; ")
}

/// The address without the `/p2p/…` that dialling puts behind it.
pub(super) fn without_peer(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|part| !matches!(part, libp2p::multiaddr::Protocol::P2p(_))).collect()
}

/// Which failure it is that this peer answered where another was looked for.
pub(super) fn wrong_peer(obtained: PeerId, ourselves: PeerId) -> AttemptFailure {
    if obtained == ourselves { AttemptFailure::Ourselves } else { AttemptFailure::AnotherPeer }
}

/// The innermost cause, as a phrase.
fn reason(error: &TransportError<io::Error>) -> String {
    let TransportError::Other(error) = error else { return "the protocol is not supported".to_owned() };
    let mut cause: &(dyn Error + 'static) = error;
    loop {
        // An `io::Error` shows what it wraps only by `get_ref`.
        let inner = cause.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        let inner = inner.map(|inner| inner as &(dyn Error + 'static));
        match inner.or_else(|| cause.source()) {
            Some(next) => cause = next,
            None => break,
        }
    }
    let text = cause.to_string();
    if text.to_lowercase().contains("timed out") || text.to_lowercase().contains("timeout") {
        return "timed out".to_owned();
    }
    let text = text.split(" (os error").next().unwrap_or_default().trim_end_matches('.');
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempt_names_address_protocol_port_and_reason() {
        let check = |address: &str, error: io::Error, expected: &str| {
            let address: Multiaddr = address.parse().expect("an address");
            assert_eq!(Attempt::failed(&address, &TransportError::Other(error)).to_string(), expected);
        };
        check(
            "/ip4/192.0.2.7/udp/4288/quic-v1",
            io::Error::other(io::Error::other("Handshake with the remote timed out.")),
            "nothing answers at 192.0.2.7, UDP port 4288 (QUIC): timed out",
        );
        check(
            "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN",
            io::Error::from_raw_os_error(111),
            "nothing answers at 127.0.0.1, TCP port 1: connection refused",
        );
    }
}
