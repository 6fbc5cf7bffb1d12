//! What a process listens on, and where that is reached from outside.

use std::io;
use std::net::SocketAddr;

use libp2p::Multiaddr;

use crate::interfaces::expand;
use crate::swarm::error::MeshError;
use crate::swarm::{address, address::describe};

/// What a process listens on, QUIC before TCP.
#[derive(Debug, Clone)]
pub(super) struct Listeners(pub(super) Vec<Listener>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Transport {
    Quic,
    Tcp,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    pub(super) transport: Transport,
}

impl Listeners {
    /// Where they are reached from outside, the loopback last.
    pub(super) fn addresses(&self) -> Vec<Multiaddr> {
        let expanded = self.0.iter().flat_map(|listener| {
            expand(listener.address).into_iter().map(|address| Listener { address, ..*listener })
        });
        let mut expanded: Vec<_> = expanded.collect();
        expanded.sort_by_key(|listener| (listener.address.ip().is_loopback(), listener.transport));
        expanded.iter().map(Listener::multiaddress).collect()
    }
}

impl Listener {
    pub(super) fn multiaddress(&self) -> Multiaddr {
        match self.transport {
            Transport::Quic => address::quic(self.address),
            Transport::Tcp => address::tcp(self.address),
        }
    }

    pub(super) fn failure(&self, source: io::Error) -> MeshError {
        let address = describe(&self.multiaddress().to_string());
        MeshError::Listen { address, source: words_of_the_system(source) }
    }
}

/// The error of the operating system inside those that libp2p puts around it. They pass its words on,
/// are of types that have no name, and skip it among their causes: so its code is read from its words.
fn words_of_the_system(error: io::Error) -> io::Error {
    let text = error.to_string();
    let code = text.rsplit_once("(os error ").and_then(|(_, rest)| rest.strip_suffix(')')?.parse().ok());
    code.map_or(error, io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::net::{TcpListener, UdpSocket};
    use std::sync::Arc;

    use super::*;
    use crate::identity::Identity;
    use crate::swarm::{Mesh, MeshConfig};

    #[tokio::test]
    async fn taken_port_is_told_once_and_as_in_use() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        for listen in [tcp.local_addr().unwrap(), udp.local_addr().unwrap()] {
            let identity = Arc::new(Identity::generate().unwrap());
            let config = MeshConfig { accept: true, ..MeshConfig::new(identity, vec![listen]) };
            let Err(MeshError::Listen { source, .. }) = Mesh::start(config).await.map(drop) else {
                panic!("a taken port was had");
            };
            assert_eq!(source.kind(), io::ErrorKind::AddrInUse, "{source:?}");
            assert!(source.source().is_none(), "{source:?}");
        }
    }
}
