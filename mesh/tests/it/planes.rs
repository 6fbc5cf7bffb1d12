//! The planes one by one: a link carries both ways, whoever made it, and notices its end.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh::plane::{Channel, Link, Plane, QuinnPlane, RacingPlane, TlsPlane};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::farm::{PATIENCE, bytes, key, loopback, single_planes};

/// Sends on one end of a channel and reads at the other.
async fn carry(from: &dyn Link, to: &dyn Link, sent: &[u8]) -> Vec<u8> {
    let send = async {
        let Channel { mut writer, reader } = from.open().await.expect("the link is open");
        writer.write_all(sent).await.expect("the other side reads");
        writer.shutdown().await.expect("the other side reads");
        reader
    };
    let receive = async {
        let Channel { mut reader, .. } = to.accept().await.expect("the link is open");
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.expect("the other side ends it");
        received
    };
    timeout(PATIENCE, async { tokio::join!(send, receive) }).await.expect("in time").1
}

/// A link of this plane, as both ends see it.
async fn link(dialling: &dyn Plane, accepting: &dyn Plane, peer: protocol::PeerId) -> [Arc<dyn Link>; 2] {
    let address = accepting.addresses()[0];
    let (dialled, accepted) = tokio::join!(dialling.dial(peer, address), accepting.accept());
    let ends = [dialled.expect("it answers"), accepted.expect("it is dialled")];
    ends.iter().for_each(|end| end.admit());
    ends
}

#[tokio::test(flavor = "multi_thread")]
async fn either_side_opens_channels_over_a_link_that_one_side_made() {
    let (one, other) = (key(), key());
    for (dialling, accepting) in single_planes(&one).await.into_iter().zip(single_planes(&other).await) {
        let [dialled, accepted] = link(&*dialling, &*accepting, other.peer()).await;
        assert_eq!((dialled.peer(), accepted.peer()), (other.peer(), one.peer()));
        let sent = bytes(3_000_000);
        for _ in 0..3 {
            assert!(carry(&*dialled, &*accepted, &sent).await == sent, "{} forth", dialled.plane());
            assert!(carry(&*accepted, &*dialled, &sent).await == sent, "{} back", dialled.plane());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_link_ends_at_both_sides_with_its_channels() {
    let (one, other) = (key(), key());
    for (dialling, accepting) in single_planes(&one).await.into_iter().zip(single_planes(&other).await) {
        for closing in [0, 1] {
            let ends = link(&*dialling, &*accepting, other.peer()).await;
            let mut channel = ends[0].open().await.expect("the link is open");
            channel.writer.write_all(b"x").await.expect("the link is open");
            let _taken = ends[1].accept().await.expect("the link is open");
            ends[closing].close("enough");
            timeout(PATIENCE, ends[1 - closing].closed()).await.expect("the other side notices");
            let mut rest = Vec::new();
            let read =
                timeout(PATIENCE, channel.reader.read_to_end(&mut rest)).await.expect("the channel ends");
            assert!(read.is_err() || rest.is_empty(), "{}", ends[0].plane());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn race_takes_the_plane_that_gets_through() {
    let other = key();
    let racing = RacingPlane::bind(&key(), loopback()).await.expect("a plane");
    let tls = TlsPlane::bind(&other, loopback()).await.expect("a plane");
    let quic = QuinnPlane::bind(&other, loopback()).await.expect("a plane");
    let through =
        async |address: SocketAddr| racing.dial(other.peer(), address).await.expect("it answers").plane();
    assert_eq!(through(tls.addresses()[0]).await, "TLS");
    assert_eq!(through(quic.addresses()[0]).await, "QUIC");
    // Where both get through, TLS has the head start, until QUIC was the one.
    let both = RacingPlane::bind(&other, loopback()).await.expect("a plane");
    assert_eq!(through(both.addresses()[0]).await, "QUIC");
    assert_eq!(through(tls.addresses()[0]).await, "TLS");
    assert_eq!(through(both.addresses()[0]).await, "TLS");
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_names_another_peers_link_is_let_go() {
    let (one, other) = (key(), key());
    let accepting = TlsPlane::bind(&other, loopback()).await.expect("a plane");
    let dialling = TlsPlane::bind(&one, loopback()).await.expect("a plane");
    let [dialled, accepted] = link(&dialling, &accepting, other.peer()).await;
    dialled.close("");
    timeout(PATIENCE, accepted.closed()).await.expect("it is noticed");
    assert!(dialled.open().await.is_err(), "a closed link opens no channel");
}
