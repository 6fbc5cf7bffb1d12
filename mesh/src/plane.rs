//! A data plane: how a link between two peers is made, over which channels of bytes cross.
//!
//! A plane proves the peer's name and encrypts. Not here: the gate, which every link passes before
//! anything else crosses it, and the blob wire; both are the same on every plane.

mod race;
mod tls;
mod quinn;
mod relayed;
mod certificate;
mod ciphers;

pub use self::certificate::CertificateMakingError;
pub use self::ciphers::install_ciphers;
pub use self::quinn::QuinnPlane;
pub use self::race::RacingPlane;
pub use self::relayed::{RelayedPlane, RelayedRate};
pub use self::tls::TlsPlane;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use protocol::PeerId;

use crate::frames::{Reader, Writer};

/// One way of making links.
#[async_trait]
pub trait Plane: Send + Sync {
    /// Its name in logs.
    fn name(&self) -> &'static str;

    /// Makes a link to the peer at this address; nobody else may answer there.
    async fn dial(&self, peer: PeerId, address: SocketAddr) -> Result<Arc<dyn Link>, DialError>;

    /// Makes a link to the peer by the last resort, which takes no address, where the plane has one.
    async fn reach(&self, _peer: PeerId) -> Result<Arc<dyn Link>, DialError> {
        Err(DialError::NoWay { plane: self.name(), source: io::ErrorKind::Unsupported.into() })
    }

    /// Makes a link from our UDP port alone, where the plane has one.
    async fn dial_udp(&self, _peer: PeerId, address: SocketAddr) -> Result<Arc<dyn Link>, DialError> {
        Err(DialError::NoAnswer { address, plane: self.name(), source: io::ErrorKind::Unsupported.into() })
    }

    /// Sends a datagram of one byte from our UDP port, so that what answers it gets in.
    fn knock(&self, _address: SocketAddr) {}

    /// The next link that a peer made to us, before its Hello; `None` once the plane is closed.
    async fn accept(&self) -> Option<Arc<dyn Link>>;

    /// Where it listens: an address for each interface, the loopback last.
    fn addresses(&self) -> Vec<SocketAddr>;

    /// Closes every link and listens no more.
    async fn close(&self);
}

/// A connection to one peer, whose name the plane has proven.
#[async_trait]
pub trait Link: Send + Sync {
    /// The name of the plane that it is on.
    fn plane(&self) -> &'static str;

    /// The peer.
    fn peer(&self) -> PeerId;

    /// Where it is; an unspecified address where the bytes go through others.
    fn remote(&self) -> SocketAddr;

    /// Where its UDP port is seen from here, on a plane of UDP.
    fn seen_at(&self) -> Option<SocketAddr> {
        None
    }

    /// Says that the peer passed the gate: limits for strangers end.
    fn admit(&self);

    /// Opens a channel; the peer sees it with its first bytes.
    async fn open(&self) -> Result<Channel, io::Error>;

    /// The next channel that the peer opens; `None` once the link is closed.
    async fn accept(&self) -> Option<Channel>;

    /// Closes it at once. The reason is for the peer's log.
    fn close(&self, reason: &'static str);

    /// Whether it is closed.
    fn is_closed(&self) -> bool;

    /// Waits until it is closed.
    async fn closed(&self);
}

/// Two directions of bytes. Dropped, it is closed.
pub struct Channel {
    /// From the peer.
    pub reader: Reader,
    /// To the peer.
    pub writer: Writer,
}

/// Why an address gave no link.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nothing answers, or not in time.
    #[error("nothing answers at {address} ({plane})")]
    NoAnswer {
        /// The address.
        address: SocketAddr,
        /// The plane's name.
        plane: &'static str,
        /// What the plane said.
        source: io::Error,
    },
    /// It can be reached in no other way either.
    #[error("no other way leads to the peer ({plane})")]
    NoWay {
        /// The plane's name.
        plane: &'static str,
        /// What the plane said.
        source: io::Error,
    },
    /// Who answers is not the peer.
    #[error("another peer answers at {address} ({plane})")]
    WrongPeer {
        /// The address.
        address: SocketAddr,
        /// The plane's name.
        plane: &'static str,
    },
}

/// Why the plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The port cannot be had.
    #[error("listening on {address}, {protocol}, did not succeed")]
    Socket {
        /// The address.
        address: SocketAddr,
        /// `UDP` or `TCP`.
        protocol: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[error("TLS of the data plane cannot be set up")]
    Tls(#[source] CertificateMakingError),
    /// The ciphers are not those of QUIC.
    #[error("the ciphers of the data plane are not those of QUIC")]
    Ciphers,
}
