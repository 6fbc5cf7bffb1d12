//! How the system holds a connection back: not at all where both of its ends are on this machine.
//!
//! BBR, which some systems use, sends by a timer, some 64 KiB at a time. Within one machine there is no link to
//! be gentle to, and the timers cost a seventh of the processor. What was paced once stays so, whatever is set
//! later: so a socket begins without, and is left to the system once its other end is known to be elsewhere.
//! Not here: how much may wait in a connection.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

/// It never paces, every Linux has it, and everybody may set it.
const UNPACED: &[u8] = b"reno";

/// Connects to this address.
pub(super) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    let pacing = Pacing::put_off(&socket);
    let stream = socket.connect(address).await?;
    pacing.settle(&stream);
    Ok(stream)
}

/// What the system would do with a socket that begins without pacing.
#[derive(Clone)]
pub(super) struct Pacing {
    /// Absent where the system lets nobody choose.
    by_system: Option<Vec<u8>>,
}

impl Pacing {
    /// Puts it off for a socket that is not connected yet, or for all that a listening one will take.
    pub(super) fn put_off(socket: &impl AsFd) -> Self {
        let socket = SockRef::from(socket);
        let by_system = socket.tcp_congestion().ok();
        Self { by_system: by_system.filter(|_| socket.set_tcp_congestion(UNPACED).is_ok()) }
    }

    /// Leaves a connection to the system, unless both of its ends are on this machine.
    pub(super) fn settle(&self, stream: &TcpStream) {
        let ends = (stream.local_addr(), stream.peer_addr());
        let is_within = matches!(ends, (Ok(own), Ok(other)) if own.ip() == other.ip());
        if let Some(by_system) = self.by_system.as_ref().filter(|_| !is_within) {
            // Without it the connection is slower on some paths, and works.
            let _ = SockRef::from(stream).set_tcp_congestion(by_system);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn connection_is_left_to_the_system_unless_both_ends_are_on_one_machine() {
        let system = TcpSocket::new_v4().expect("a socket");
        let by_system = SockRef::from(&system).tcp_congestion().expect("it has one");
        // The system dials the second address from the first: two ends that are not the same.
        for (address, expected) in [("127.0.0.1:0", UNPACED), ("127.0.0.2:0", &by_system)] {
            let listener = TcpListener::bind(address).await.expect("a free port");
            let pacing = Pacing::put_off(&listener);
            let dialling = connect(listener.local_addr().expect("it listens"));
            let (dialling, taken) = tokio::join!(dialling, listener.accept());
            let (dialling, taken) = (dialling.expect("it answers"), taken.expect("it comes").0);
            pacing.settle(&taken);
            for stream in [dialling, taken] {
                let congestion = SockRef::from(&stream).tcp_congestion().expect("it has one");
                assert!(congestion.starts_with(expected), "{address}: {congestion:?}");
            }
        }
    }
}
