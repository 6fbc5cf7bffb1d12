//! Addresses of the control plane: read, resolved, described and written.
//!
//! Names are resolved by the system, so that what the machine can reach by name, the mesh can.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use tokio::time::timeout;

use crate::swarm::attempt::{Attempt, AttemptFailure};

/// How long the system may take to resolve one name.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// A text that is no address to announce.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no address to announce: give HOST:PORT, or a multiaddress such as /ip4/192.0.2.7/udp/4288/quic-v1"
)]
pub struct AnnounceError(String);

/// The multiaddresses that `--announce` means: one as it is, `HOST:PORT` by QUIC and by TCP.
pub fn announced(text: &str) -> Result<Vec<String>, AnnounceError> {
    let error = || AnnounceError(text.to_owned());
    if text.starts_with('/') {
        let address: Multiaddr = text.parse().map_err(|_| error())?;
        return if Endpoint::of(&address).is_some() { Ok(vec![address.to_string()]) } else { Err(error()) };
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
    let port: u16 = port.parse().map_err(|_| error())?;
    let host = match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(ip) => Protocol::from(ip),
        Err(_) if !host.is_empty() && host.bytes().all(is_of_a_name) => Protocol::Dns(host.into()),
        Err(_) => return Err(error()),
    };
    let base = Multiaddr::empty().with(host);
    let quic = base.clone().with(Protocol::Udp(port)).with(Protocol::QuicV1);
    Ok(vec![quic.to_string(), base.with(Protocol::Tcp(port)).to_string()])
}

fn is_of_a_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.'
}

/// The multiaddresses of a listener on this address, by QUIC and by TCP.
pub(super) fn quic(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Udp(address.port())).with(Protocol::QuicV1)
}

/// See [`quic`].
pub(super) fn tcp(address: SocketAddr) -> Multiaddr {
    Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()))
}

/// The IP address in a multiaddress.
pub(super) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    address.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip)),
        _ => None,
    })
}

/// Whether it is one that we dial: a host, and a port of QUIC or TCP.
pub(super) fn is_dialable(address: &Multiaddr) -> bool {
    Endpoint::of(address).is_some()
}

/// The port in a multiaddress.
pub(super) fn port_of(address: &Multiaddr) -> Option<u16> {
    Endpoint::of(address).map(|endpoint| endpoint.port)
}

/// An address as a sentence has it: `192.0.2.7, UDP port 4288 (QUIC)`.
pub(super) fn describe(address: &str) -> String {
    let parsed = address.parse().ok().and_then(|address| Endpoint::of(&address));
    parsed.map_or_else(|| format!("`{address}`"), |endpoint| endpoint.to_string())
}

/// Reads at most `limit` addresses and resolves their names; with what is wrong about those that are of
/// no use.
pub(super) async fn resolve(addresses: &[String], limit: usize) -> (Vec<Multiaddr>, Vec<Attempt>) {
    let (mut resolved, mut attempts) = (Vec::new(), Vec::new());
    for text in addresses.iter().take(limit) {
        let endpoint = text.parse().ok().and_then(|address: Multiaddr| Endpoint::of(&address));
        let Some(endpoint) = endpoint else {
            attempts.push(Attempt { address: text.clone(), reason: AttemptFailure::NoAddress });
            continue;
        };
        let looking_up = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port));
        let found = timeout(LOOKUP_TIMEOUT, looking_up).await;
        match found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(found) => resolved.extend(found.map(if endpoint.is_quic { quic } else { tcp })),
            Err(error) => {
                let reason = AttemptFailure::NoAnswer(error.to_string());
                attempts.push(Attempt { address: text.clone(), reason });
            }
        }
    }
    resolved.truncate(limit);
    (resolved, attempts)
}

/// The multiaddresses that we dial: a host, and a port of QUIC or TCP.
struct Endpoint {
    host: String,
    port: u16,
    is_quic: bool,
}

impl Endpoint {
    fn of(address: &Multiaddr) -> Option<Self> {
        let mut parts = address.iter();
        let host = match parts.next()? {
            Protocol::Ip4(ip) => ip.to_string(),
            Protocol::Ip6(ip) => ip.to_string(),
            Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => name.into_owned(),
            _ => return None,
        };
        let (port, is_quic) = match (parts.next()?, parts.next()) {
            (Protocol::Udp(port), Some(Protocol::QuicV1)) => (port, true),
            (Protocol::Tcp(port), None | Some(Protocol::P2p(_))) => (port, false),
            _ => return None,
        };
        Some(Self { host, port, is_quic })
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port, is_quic } = self;
        if *is_quic {
            write!(f, "{host}, UDP port {port} (QUIC)")
        } else {
            write!(f, "{host}, TCP port {port}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announced_host_and_port_means_quic_and_tcp() {
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(announced(text).ok(), Some(expected.iter().map(|text| (*text).to_owned()).collect()));
        };
        check("farm.example:4288", &["/dns/farm.example/udp/4288/quic-v1", "/dns/farm.example/tcp/4288"]);
        check("[2001:db8::7]:1", &["/ip6/2001:db8::7/udp/1/quic-v1", "/ip6/2001:db8::7/tcp/1"]);
        check("/ip4/192.0.2.7/tcp/4288", &["/ip4/192.0.2.7/tcp/4288"]);
        for wrong in ["farm.example", "farm.example:x", "a/b:1", "/ip4/192.0.2.7", ":1", "/unix/x"] {
            assert!(announced(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_dialled_is_said_and_the_rest_is_kept() {
        let addresses = ["/ip4/127.0.0.1/udp/1/quic-v1".to_owned(), "nonsense".to_owned()];
        let (resolved, attempts) = resolve(&addresses, 16).await;
        assert_eq!(resolved, ["/ip4/127.0.0.1/udp/1/quic-v1".parse().expect("an address")]);
        assert_eq!(attempts[0].to_string(), "`nonsense` is no address that can be dialled");
    }
}
