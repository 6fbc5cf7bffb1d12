//! Joining and sessions over the real control plane.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use mesh::frames::FrameError;
use mesh::gate::Credentials;
use mesh::swarm::{AttemptFailure, Incoming, JoinError, Mesh, MeshConfig};
use protocol::PeerId;
use protocol::membership::{CLOCK_SKEW, MEMBER_LIFETIME, Role};
use protocol::message::{
    Accepted, CoordinatorMessage, JoinMessage, JoinRefusal, JoinRequest, Leave, NodeMessage, SetDraining,
};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::farm::{Farm, PATIENCE, key, now};

const SECRET: [u8; 16] = [3; 16];

async fn start_node() -> (Mesh, PeerId) {
    let identity = Arc::new(key());
    let peer = identity.peer();
    let config = MeshConfig::new(identity, Vec::new());
    (Mesh::start(config).await.expect("a mesh").0, peer)
}

fn request(farm: &Farm, secret: [u8; 16]) -> JoinRequest {
    JoinRequest { farm: farm.id(), secret: Some(secret), role: Role::Node, labels: BTreeMap::new() }
}

/// Answers joins as a coordinator with one ticket does, until the mesh stops.
async fn admit_by_secret(farm: Arc<Farm>, mut incoming: mpsc::Receiver<Incoming>) {
    while let Some(Incoming::Join { peer, request, answer }) = incoming.recv().await {
        let reply = match request.secret {
            Some(SECRET) => JoinMessage::Accepted(Box::new(Accepted { membership: farm.admit(peer, now()) })),
            _ => JoinMessage::Refused(JoinRefusal::UnknownTicket),
        };
        answer.send(reply).expect("the join waits for it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secret_makes_a_member_and_another_does_not() {
    let farm = Arc::new(Farm::new());
    let (coordinator, incoming) = farm.start_coordinator().await;
    tokio::spawn(admit_by_secret(Arc::clone(&farm), incoming));
    let (node, peer) = start_node().await;
    let target = farm.coordinator().peer();
    let refused = node.join(target, &coordinator.addresses(), request(&farm, [4; 16])).await;
    assert!(matches!(refused, Err(JoinError::Refused(JoinRefusal::UnknownTicket))), "{refused:?}");
    let accepted = node.join(target, &coordinator.addresses(), request(&farm, SECRET)).await;
    let accepted = accepted.expect("the secret is good");
    assert_eq!(accepted.membership.verify(farm.id(), peer, now()), Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn session_ends_with_the_certificate_that_opened_it() {
    let farm = Farm::new();
    let (coordinator, mut incoming) = farm.start_coordinator().await;
    let (node, peer) = start_node().await;
    let credentials = Credentials::new(farm.id(), peer, farm.admit(peer, now()));
    node.set_credentials(credentials.clone());
    let (target, addresses) = (farm.coordinator().peer(), coordinator.addresses());
    let mut near = None;
    // A busy machine may take longer to open it than the certificate lasts.
    for seconds in [2, 5, 15] {
        credentials.replace(farm.admit(peer, now() + seconds - MEMBER_LIFETIME - CLOCK_SKEW));
        near = node.open_session(target, &addresses).await.ok();
        if near.is_some() {
            break;
        }
    }
    let _near = near.expect("it is valid for a moment");
    let Some(Incoming::Session(mut far)) = incoming.recv().await else { panic!("a session") };
    let ended = timeout(PATIENCE, far.receiver.recv()).await.expect("it ends");
    assert!(matches!(ended, Err(FrameError::Expired)), "{ended:?}");
    drop(far);
    assert!(node.open_session(target, &addresses).await.is_err(), "it has run out");
    credentials.replace(farm.admit(peer, now()));
    node.open_session(target, &addresses).await.expect("it is renewed");
}

#[tokio::test(flavor = "multi_thread")]
async fn session_carries_messages_both_ways_over_each_transport() {
    let farm = Farm::new();
    let (coordinator, mut incoming) = farm.start_coordinator().await;
    let addresses = coordinator.addresses();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    assert!(addresses[0].ends_with("/quic-v1") && addresses[1].contains("/tcp/"), "{addresses:?}");
    for address in addresses {
        let (node, peer) = start_node().await;
        node.set_credentials(farm.credentials(peer));
        let session = node.open_session(farm.coordinator().peer(), std::slice::from_ref(&address)).await;
        let mut near = session.unwrap_or_else(|error| panic!("{address}: {error}"));
        assert_eq!(near.membership.role(), Role::Coordinator);
        let Some(Incoming::Session(mut far)) = incoming.recv().await else { panic!("a session") };
        assert_eq!((far.peer, far.membership.peer()), (peer, peer));
        assert_eq!(far.remote, Some([127, 0, 0, 1].into()));
        let leave = NodeMessage::Leave(Leave { leases: Vec::new() });
        near.sender.send(&leave).await.expect("the session is open");
        assert_eq!(far.receiver.recv().await.expect("the session is open"), Some(leave));
        let drain = CoordinatorMessage::SetDraining(SetDraining { draining: true });
        far.sender.send(&drain).await.expect("the session is open");
        assert_eq!(near.receiver.recv().await.expect("the session is open"), Some(drain));
        drop(far);
        let end = timeout(PATIENCE, near.receiver.recv()).await.expect("the end is noticed");
        assert!(!matches!(end, Ok(Some(_))), "{end:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn session_ends_with_its_coordinator_and_opens_again_after_its_restart() {
    let farm = Farm::new();
    let (coordinator, mut incoming) = farm.start_coordinator().await;
    let (node, peer) = start_node().await;
    node.set_credentials(farm.credentials(peer));
    let target = farm.coordinator().peer();
    let mut session = node.open_session(target, &coordinator.addresses()).await.expect("a session");
    assert!(matches!(incoming.recv().await, Some(Incoming::Session(_))));
    coordinator.shutdown();
    timeout(PATIENCE, coordinator.stopped()).await.expect("it stops");
    let end = timeout(PATIENCE, session.receiver.recv()).await.expect("the end is noticed");
    assert!(!matches!(end, Ok(Some(_))), "{end:?}");
    drop((session, coordinator));

    let (coordinator, mut incoming) = farm.start_coordinator().await;
    // That a connection went with the old coordinator may be noticed only as it is used; a node dials again.
    let opened = async {
        while node.open_session(target, &coordinator.addresses()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, opened).await.expect("the coordinator is back");
    assert!(matches!(incoming.recv().await, Some(Incoming::Session(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_coordinator_is_explained_address_by_address() {
    let farm = Farm::new();
    let (other, _incoming) = Farm::new().start_coordinator().await;
    let (node, _) = start_node().await;
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let closed = closed.expect("a port that was free").port();
    let addresses = [other.addresses()[0].clone(), format!("/ip4/127.0.0.1/tcp/{closed}"), "x".to_owned()];
    let error = node.join(farm.coordinator().peer(), &addresses, request(&farm, SECRET)).await;
    let error = error.expect_err("nobody is there");
    let JoinError::Unreachable { attempts } = &error else { panic!("{error}") };
    let of = |address: &str| attempts.iter().find(|attempt| attempt.address == address);
    assert_eq!(of("x").map(|attempt| &attempt.reason), Some(&AttemptFailure::NoAddress));
    assert_eq!(of(&addresses[0]).map(|attempt| &attempt.reason), Some(&AttemptFailure::AnotherPeer));
    let text = error.to_string();
    let expected = format!("nothing answers at 127.0.0.1, TCP port {closed}: connection refused");
    assert!(text.contains(&expected), "{text}");
    let nowhere = node.join(farm.coordinator().peer(), &[], request(&farm, SECRET)).await;
    assert!(matches!(nowhere, Err(JoinError::NoAddress)));
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_joins_is_held_back() {
    let farm = Arc::new(Farm::new());
    let (coordinator, incoming) = farm.start_coordinator().await;
    tokio::spawn(admit_by_secret(Arc::clone(&farm), incoming));
    let (node, _) = start_node().await;
    let (target, addresses) = (farm.coordinator().peer(), coordinator.addresses());
    let mut busy = 0;
    for _ in 0..60 {
        match node.join(target, &addresses, request(&farm, [4; 16])).await {
            Err(JoinError::Refused(JoinRefusal::Busy)) => busy += 1,
            Err(JoinError::Refused(JoinRefusal::UnknownTicket)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(busy > 0, "guessing secrets is slow");
}

#[tokio::test(flavor = "multi_thread")]
async fn node_takes_neither_joins_nor_sessions() {
    let farm = Farm::new();
    let identity = Arc::new(key());
    let config = MeshConfig::new(Arc::clone(&identity), vec![crate::farm::loopback()]);
    let (listening, _) = Mesh::start(config).await.expect("a mesh");
    let (node, _) = start_node().await;
    let refused = node.join(identity.peer(), &listening.addresses(), request(&farm, SECRET)).await;
    assert!(matches!(refused, Err(JoinError::NoCoordinator)), "{refused:?}");
}
