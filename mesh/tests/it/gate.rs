//! The gate on both planes: who is refused, and that a stranger learns nothing.

use std::sync::Arc;

use mesh::fetch::FetchError;
use mesh::gate::{Credentials, GateError};
use mesh::plane::{Channel, Link};
use mesh::swarm::{ConnectError, Mesh, MeshConfig};
use protocol::codec::{MAX_FRAME, MAX_HELLO, encode};
use protocol::membership::{CLOCK_SKEW, MEMBER_LIFETIME};
use protocol::wire::{BlobRequest, MAX_BLOB_FRAME};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::farm::{Farm, PATIENCE, Peer, key, now, single_planes};

/// Credentials that pass no gate of this farm, each with its name.
fn refused_credentials(farm: &Farm, peer: protocol::PeerId) -> [(&'static str, Credentials); 3] {
    let expired = farm.admit(peer, now() - MEMBER_LIFETIME - CLOCK_SKEW - 10);
    let borrowed = farm.admit(key().peer(), now());
    [
        ("of another farm", Farm::new().credentials(peer)),
        ("expired", Credentials::new(farm.id(), peer, expired)),
        ("of another peer", Credentials::new(farm.id(), peer, borrowed)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn session_is_refused_without_a_valid_membership() {
    let farm = Farm::new();
    let (coordinator, mut incoming) = farm.start_coordinator().await;
    let identity = Arc::new(key());
    for (what, credentials) in refused_credentials(&farm, identity.peer()) {
        let config = MeshConfig::new(Arc::clone(&identity), Vec::new());
        let (mesh, _) = Mesh::start(config).await.expect("a mesh");
        mesh.set_credentials(credentials);
        let refused = mesh.open_session(farm.coordinator().peer(), &coordinator.addresses()).await;
        assert!(matches!(refused, Err(ConnectError::Gate(GateError::Closed))), "{what}: {refused:?}");
    }
    assert!(incoming.try_recv().is_err(), "nothing of a stranger comes through");
}

#[tokio::test(flavor = "multi_thread")]
async fn link_is_refused_without_a_valid_membership() {
    let farm = Farm::new();
    let holder = farm.peer().await;
    let blob = holder.store.import_bytes(b"secret").await.expect("there is room");
    let id = key().peer();
    for index in 0..refused_credentials(&farm, id).len() {
        let identity = key();
        let (what, credentials) = refused_credentials(&farm, identity.peer())[index].clone();
        let stranger = Peer::start(identity, credentials, |plane| plane).await;
        let refused = stranger.exchange.fetch(blob, &[holder.provider()], None).await;
        let Err(FetchError::NoProvider { tried, .. }) = refused else { panic!("{what}: {refused:?}") };
        assert!(tried[0].1.contains("without a Hello"), "{what}: {}", tried[0].1);
        assert!(!holder.exchange.is_linked(stranger.id), "{what}");
    }
}

/// What comes back on a channel on which this was said.
async fn answer_to(link: &dyn Link, said: &[u8]) -> Vec<u8> {
    let Channel { mut reader, mut writer } = link.open().await.expect("the link is open");
    let mut answer = Vec::new();
    // The other side may close before all is said or read, which is an answer as well.
    let _ = writer.write_all(said).await;
    let read = timeout(PATIENCE, reader.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "the channel is closed in time");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn stranger_on_the_data_plane_gets_not_one_byte() {
    let farm = Farm::new();
    let holder = farm.peer().await;
    let blob = holder.store.import_bytes(b"secret").await.expect("there is room");
    let open = encode(&BlobRequest::Open(blob), MAX_BLOB_FRAME).expect("it is small");
    let mut oversized = (MAX_HELLO as u32 + 1).to_le_bytes().to_vec();
    oversized.extend_from_slice(&vec![0; MAX_HELLO + 1]);
    let mut announced = (MAX_FRAME as u32).to_le_bytes().to_vec();
    announced.extend_from_slice(&[1, 0]);
    for stranger in single_planes(&key()).await {
        for said in [&open, &oversized, &announced, &b"GET / HTTP/1.1\r\n\r\n".to_vec(), &Vec::new()] {
            let link = stranger.dial(holder.id, holder.exchange.addresses()[0]).await.expect("it answers");
            assert!(answer_to(&*link, said).await.is_empty(), "{}, after {said:?}", link.plane());
            timeout(PATIENCE, link.closed()).await.expect("the link is closed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn second_channel_is_not_answered_before_the_hello() {
    let farm = Farm::new();
    let holder = farm.peer().await;
    let blob = holder.store.import_bytes(b"secret").await.expect("there is room");
    let open = encode(&BlobRequest::Open(blob), MAX_BLOB_FRAME).expect("it is small");
    for stranger in single_planes(&key()).await {
        let link = stranger.dial(holder.id, holder.exchange.addresses()[0]).await.expect("it answers");
        // The first channel says nothing, for as long as it is let.
        let mut first = link.open().await.expect("the link is open");
        first.writer.write_all(&[1]).await.expect("the link is open");
        assert!(answer_to(&*link, &open).await.is_empty(), "{}", link.plane());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_peer_at_the_address_is_noticed() {
    let farm = Farm::new();
    let (one, other) = (farm.peer().await, farm.peer().await);
    for plane in single_planes(&key()).await {
        let wrong = plane.dial(one.id, other.exchange.addresses()[0]).await;
        let wrong = wrong.err().expect("the other peer answers").to_string();
        assert!(wrong.starts_with("another peer answers at 127.0.0.1:"), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_peer_is_refused() {
    let farm = Farm::new();
    let identity = key();
    let credentials = farm.credentials(identity.peer());
    let holder = Peer::start(identity, credentials.clone(), |plane| plane).await;
    let blob = holder.store.import_bytes(b"secret").await.expect("there is room");
    let asker = farm.peer().await;
    credentials.revoke(1, [asker.id]);
    let refused = asker.exchange.fetch(blob, &[holder.provider()], None).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("without a Hello")));
}
