//! Two planes on one port number, TLS over TCP and QUIC, and a third as the last resort.
//!
//! A dial tries both, TLS a little earlier because it is the faster plane where it gets through. It needs
//! more round trips, so QUIC does not win by answering: TLS has a moment more. The next dial to that peer
//! begins with what won, and takes it at once. Where only one is let through, by a firewall or a NAT, that
//! one is used. Not here: anything about the planes themselves.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use protocol::PeerId;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::quinn::QuinnPlane;
use super::tls::TlsPlane;
use super::{BindError, DialError, Link, Plane};
use crate::identity::Identity;

/// How much earlier the preferred plane begins.
const HEAD_START: Duration = Duration::from_millis(200);
/// How much longer TLS may take than QUIC: it begins a link with three round trips, and the machine may be
/// busy.
const GRACE: Duration = Duration::from_millis(500);
/// How often a free port is looked for that is free for both.
const TRIES: usize = 16;
/// The most peers whose plane is remembered.
const MAX_REMEMBERED: usize = 4096;

/// Links over TLS or QUIC.
pub struct RacingPlane {
    tls: Arc<dyn Plane>,
    quic: Arc<dyn Plane>,
    last_resort: Option<Arc<dyn Plane>>,
    /// Peers that were last reached over QUIC.
    over_quic: Mutex<HashSet<PeerId>>,
}

impl RacingPlane {
    /// Listens on this port, TCP and UDP; port 0 lets the system choose one that is free for both.
    pub async fn bind(identity: &Identity, address: SocketAddr) -> Result<Self, BindError> {
        let mut tries = if address.port() == 0 { TRIES } else { 1 };
        loop {
            tries -= 1;
            let tls = TlsPlane::bind(identity, address).await?;
            let port = tls.port();
            match QuinnPlane::bind(identity, SocketAddr::new(address.ip(), port)).await {
                Ok(quic) => return Ok(Self::new(Arc::new(tls), Arc::new(quic))),
                Err(error) if tries == 0 => return Err(error),
                Err(_) => tls.close().await,
            }
        }
    }

    fn new(tls: Arc<dyn Plane>, quic: Arc<dyn Plane>) -> Self {
        Self { tls, quic, last_resort: None, over_quic: Mutex::default() }
    }

    /// Takes a plane for peers that cannot be dialled; it is tried where no address gives a link.
    pub fn with_last_resort(mut self, plane: impl Plane + 'static) -> Self {
        self.last_resort = Some(Arc::new(plane));
        self
    }

    fn remember(&self, peer: PeerId, is_quic: bool) {
        let mut over_quic = self.over_quic.lock().expect("nothing panics while it holds them");
        if !is_quic {
            over_quic.remove(&peer);
        } else if over_quic.len() < MAX_REMEMBERED {
            over_quic.insert(peer);
        }
    }

    fn was_quic(&self, peer: PeerId) -> bool {
        self.over_quic.lock().expect("nothing panics while it holds them").contains(&peer)
    }
}

#[async_trait]
impl Plane for RacingPlane {
    fn name(&self) -> &'static str {
        "TLS or QUIC"
    }

    async fn dial(&self, peer: PeerId, address: SocketAddr) -> Result<Arc<dyn Link>, DialError> {
        let was_quic = self.was_quic(peer);
        let (first, second) = if was_quic { (&self.quic, &self.tls) } else { (&self.tls, &self.quic) };
        let ahead = first.dial(peer, address);
        let is_lost = Notify::new();
        let behind = async {
            tokio::select! {
                () = sleep(HEAD_START) => {}
                () = is_lost.notified() => {}
            }
            second.dial(peer, address).await
        };
        tokio::pin!(ahead, behind);
        let (link, is_first) = tokio::select! {
            link = &mut ahead => match link {
                Ok(link) => (link, true),
                Err(_) => {
                    is_lost.notify_one();
                    (behind.await?, false)
                }
            },
            link = &mut behind => match link {
                Ok(link) if was_quic => (link, false),
                Ok(link) => match timeout(GRACE, &mut ahead).await {
                    Ok(Ok(tls)) => {
                        link.close("TLS gets through as well");
                        (tls, true)
                    }
                    _ => (link, false),
                },
                Err(_) => (ahead.await?, true),
            },
        };
        self.remember(peer, is_first == was_quic);
        Ok(link)
    }

    async fn reach(&self, peer: PeerId) -> Result<Arc<dyn Link>, DialError> {
        match &self.last_resort {
            Some(plane) => plane.reach(peer).await,
            None => Err(DialError::NoWay { plane: self.name(), source: io::ErrorKind::Unsupported.into() }),
        }
    }

    async fn dial_udp(&self, peer: PeerId, address: SocketAddr) -> Result<Arc<dyn Link>, DialError> {
        self.quic.dial_udp(peer, address).await
    }

    fn knock(&self, address: SocketAddr) {
        self.quic.knock(address);
    }

    async fn accept(&self) -> Option<Arc<dyn Link>> {
        let relayed = async { self.last_resort.as_ref()?.accept().await };
        tokio::select! {
            Some(link) = self.tls.accept() => Some(link),
            Some(link) = self.quic.accept() => Some(link),
            Some(link) = relayed => Some(link),
            else => None,
        }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.tls.addresses()
    }

    async fn close(&self) {
        let relayed = async {
            if let Some(plane) = &self.last_resort {
                plane.close().await;
            }
        };
        tokio::join!(self.tls.close(), self.quic.close(), relayed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TLS from far away.
    struct Late(TlsPlane, Duration);

    #[async_trait]
    impl Plane for Late {
        fn name(&self) -> &'static str {
            self.0.name()
        }

        async fn dial(&self, peer: PeerId, address: SocketAddr) -> Result<Arc<dyn Link>, DialError> {
            sleep(self.1).await;
            self.0.dial(peer, address).await
        }

        async fn accept(&self) -> Option<Arc<dyn Link>> {
            self.0.accept().await
        }

        fn addresses(&self) -> Vec<SocketAddr> {
            self.0.addresses()
        }

        async fn close(&self) {
            self.0.close().await;
        }
    }

    #[tokio::test]
    async fn quic_waits_for_tls_that_takes_a_little_longer_and_not_for_one_that_does_not_come() {
        let identity = || Identity::generate().expect("random numbers");
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let other = identity();
        let accepting = RacingPlane::bind(&other, local).await.expect("a free port");
        for (late, expected) in [(HEAD_START + GRACE / 4, "TLS"), (Duration::from_secs(3600), "QUIC")] {
            let one = identity();
            let tls = Late(TlsPlane::bind(&one, local).await.expect("a free port"), late);
            let quic = QuinnPlane::bind(&one, local).await.expect("a free port");
            let racing = RacingPlane::new(Arc::new(tls), Arc::new(quic));
            let link = racing.dial(other.peer(), accepting.addresses()[0]).await.expect("it answers");
            assert_eq!(link.plane(), expected);
        }
    }
}
