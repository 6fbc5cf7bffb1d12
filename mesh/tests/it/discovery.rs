//! Finding each other with no coordinator: the Hello between members, Kademlia behind it, mDNS before it.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use libp2p::swarm::SwarmEvent;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::{Multiaddr, StreamProtocol, Swarm, SwarmBuilder, noise, tcp, yamux};
use libp2p_stream::{Behaviour, Control, IncomingStreams, OpenStreamError};
use mesh::finder::{FindError, Finder, Found};
use mesh::gate::{Credentials, Side, exchange_hellos};
use mesh::identity::Identity;
use mesh::store::BlobStore;
use mesh::swarm::{Incoming, Mesh, MeshConfig, MeshFinder};
use protocol::codec::MAX_HELLO;
use protocol::contact::{Contact, ContactMessage, HELLO_PROTOCOL};
use protocol::message::Provider;
use protocol::{BlobHash, BlobName, FileRef, PeerId};
use tokio::time::{Instant, timeout};
use tokio_util::compat::FuturesAsyncReadCompatExt;

use crate::farm::{Farm, PATIENCE, Peer, key};
use crate::namespaces::Namespaces;

/// Protocols that only members may see.
const INSIDE: [&str; 3] =
    ["/comfy-farm/kad/1", "/libp2p/circuit/relay/0.2.0/hop", "/libp2p/circuit/relay/0.2.0/stop"];

/// Asks until somebody is found.
async fn providers(mesh: &Mesh, name: &BlobName) -> Vec<Provider> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = mesh.find_providers(name, Duration::from_secs(5)).await;
        if !found.is_empty() || Instant::now() > deadline {
            return found;
        }
        tokio::task::yield_now().await;
    }
}

/// Members that each dialled the next one and know nobody else.
async fn chain(farm: &Farm, length: usize) -> Vec<(Mesh, Arc<Identity>)> {
    let mut members = Vec::new();
    for _ in 0..length {
        members.push(farm.start_mesh().await);
    }
    for pair in members.windows(2) {
        let met = pair[0].0.meet(pair[1].1.peer(), pair[1].0.addresses()).await;
        met.expect("it is a member and listens");
    }
    members
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_is_found_and_fetched_across_five_members_with_no_coordinator() {
    let farm = Farm::new();
    let members = chain(&farm, 5).await;
    let (holder, identity) = &members[4];
    let credentials = farm.credentials(identity.peer());
    let holding = Peer::start_as(identity, credentials, |plane| plane).await;
    let blob = holding.store.import_bytes(b"found without a coordinator").await.expect("there is room");
    holder.set_data_addresses(holding.exchange.addresses());
    let name = BlobName::Blake3(blob.hash);
    holder.start_providing(&name).await;

    let found = providers(&members[0].0, &name).await;
    assert_eq!(found, [holding.provider()]);
    let asker = farm.peer().await;
    let fetched = asker.exchange.fetch(blob, &found, None).await.expect("it is served");
    assert_eq!((fetched[0].from, fetched[0].bytes), (identity.peer(), blob.size));

    holder.stop_providing(&name).await;
    let sha256 = BlobName::Sha256("ab".repeat(32).parse().expect("64 digits"));
    members[2].0.start_providing(&sha256).await;
    let found = providers(&members[4].0, &sha256).await;
    assert_eq!(found.iter().map(|provider| provider.peer).collect::<Vec<_>>(), [members[2].1.peer()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn finder_names_size_and_holders_and_leaves_out_who_holds_it_no_more() {
    let farm = Farm::new();
    let members = chain(&farm, 3).await;
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let [store, emptied] = [&folders[0], &folders[1]].map(|folder| BlobStore::open(folder.path()));
    let (store, emptied) = (store.await.expect("a store"), emptied.await.expect("a store"));
    let blob = store.import_bytes(b"held").await.expect("there is room");
    let name = BlobName::Blake3(blob.hash);
    for ((member, _), store) in members[1..].iter().zip([store, emptied]) {
        member.set_store(store);
        member.start_providing(&name).await;
    }
    let deadline = Instant::now() + PATIENCE;
    let finder = MeshFinder::new(members[0].0.clone());
    let mut found = finder.locate(&name).await.expect("it can ask");
    while found.providers.is_empty() && Instant::now() < deadline {
        found = finder.locate(&name).await.expect("it can ask");
    }
    assert_eq!(found.blob, Some(blob));
    assert_eq!(found.providers, [Provider { peer: members[1].1.peer(), addresses: Vec::new() }]);
    let unknown = finder.locate(&BlobName::Blake3(BlobHash([6; 32]))).await.expect("it can ask");
    assert_eq!(unknown, Found::default());
    let file = FileRef { sha256: "ab".repeat(32).parse().expect("64 digits"), size: 1 };
    assert_eq!(finder.read_origin(&file, Vec::new(), 1).await, Err(FindError::Offline));
}

#[tokio::test(flavor = "multi_thread")]
async fn members_tell_each_other_where_they_are_reached() {
    let farm = Farm::new();
    let ((one, _), (other, identity)) = (farm.start_mesh().await, farm.start_mesh().await);
    let data: Vec<SocketAddr> = vec!["192.0.2.7:4290".parse().expect("an address")];
    other.set_data_addresses(data.clone());
    let contact = one.meet(identity.peer(), other.addresses()).await.expect("it is a member");
    let expected = Contact { control: other.addresses(), data, reachable: true, relays: false };
    assert_eq!(contact, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_of_another_farm_is_not_met() {
    let ((one, _), (other, identity)) = (Farm::new().start_mesh().await, Farm::new().start_mesh().await);
    let met = timeout(PATIENCE, one.meet(identity.peer(), other.addresses())).await;
    assert_eq!(met.expect("it is refused in time"), None);
    let name = BlobName::Blake3(BlobHash([1; 32]));
    other.start_providing(&name).await;
    assert!(one.find_providers(&name, PATIENCE).await.is_empty(), "nobody is asked");
}

/// A connection of libp2p with streams alone, to a process that listens there.
async fn connect(identity: &Identity, peer: PeerId, address: &str) -> Control {
    let (mut swarm, control) = streams_alone(identity);
    let address: Multiaddr = address.parse().expect("an address");
    let dial = DialOpts::peer_id(libp2p_id(peer)).addresses(vec![address]).build();
    swarm.dial(dial).expect("it can be dialled");
    tokio::spawn(async move { while swarm.next().await.is_some() {} });
    control
}

/// The same, for whoever dials it, and where it listens.
async fn listen(identity: &Identity) -> (Control, String) {
    let (mut swarm, control) = streams_alone(identity);
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().expect("an address")).expect("a free port");
    let address = loop {
        if let Some(SwarmEvent::NewListenAddr { address, .. }) = swarm.next().await {
            break address.to_string();
        }
    };
    tokio::spawn(async move { while swarm.next().await.is_some() {} });
    (control, address)
}

fn streams_alone(identity: &Identity) -> (Swarm<Behaviour>, Control) {
    let behaviour = Behaviour::new();
    let control = behaviour.new_control();
    let keypair = libp2p::identity::Keypair::ed25519_from_bytes(identity.signing_key().to_bytes());
    let swarm: Swarm<Behaviour> = SwarmBuilder::with_existing_identity(keypair.expect("32 bytes are a key"))
        .with_tokio()
        .with_tcp(tcp::Config::new(), noise::Config::new, yamux::Config::default)
        .expect("noise starts")
        .with_behaviour(|_| behaviour)
        .expect("it is made")
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build();
    (swarm, control)
}

fn libp2p_id(peer: PeerId) -> libp2p::PeerId {
    peer.to_string().parse().expect("the same name")
}

#[tokio::test(flavor = "multi_thread")]
async fn stranger_sees_nothing_of_what_members_run_and_a_member_does() {
    let farm = Farm::new();
    // Both ends were dialled, so that Kademlia answers and circuits are passed on.
    let identity = Arc::new(key());
    let config = MeshConfig {
        accept: true,
        relay: true,
        ..MeshConfig::new(Arc::clone(&identity), vec![([127, 0, 0, 1], 0).into()])
    };
    let (mesh, _) = Mesh::start(config).await.expect("a mesh");
    mesh.set_credentials(farm.credentials(identity.peer()));
    let (other, _) = farm.start_mesh().await;
    let contact = other.meet(identity.peer(), mesh.addresses()).await.expect("it is a member");
    assert!(contact.reachable && contact.relays, "{contact:?}");

    let tcp = &mesh.addresses()[1];
    let peer = identity.peer();
    for is_member in [false, true] {
        let ours = key();
        let mut control = connect(&ours, peer, tcp).await;
        // Whoever speaks to a stranger by itself would be heard here.
        let mut heard: Vec<_> =
            INSIDE.map(|protocol| control.accept(StreamProtocol::new(protocol)).expect("once")).into();
        let credentials =
            if is_member { farm.credentials(ours.peer()) } else { Farm::new().credentials(ours.peer()) };
        let hello = say_hello(&mut control, peer, &credentials).await;
        assert_eq!(hello.is_some(), is_member);
        let mut seen = Vec::new();
        for protocol in INSIDE {
            match control.open_stream(libp2p_id(peer), StreamProtocol::new(protocol)).await {
                Ok(_) => seen.push(protocol),
                Err(OpenStreamError::UnsupportedProtocol(_)) => {}
                Err(error) => panic!("{protocol}: {error}"),
            }
        }
        assert_eq!(seen.len(), if is_member { 3 } else { 0 }, "{seen:?}");
        mesh.find_providers(&BlobName::Blake3(BlobHash([9; 32])), PATIENCE).await;
        if !is_member {
            let spoke =
                heard.iter_mut().filter_map(|streams| futures::FutureExt::now_or_never(streams.next()));
            assert_eq!(spoke.count(), 0, "a stranger is spoken to");
        }
    }
}

/// Answers the next Hello, as a member that dials nobody; what the other side told.
async fn answer_hello(streams: &mut IncomingStreams, credentials: &Credentials) -> Option<Contact> {
    let (peer, stream) = streams.next().await?;
    let peer = PeerId::from_str(&peer.to_string()).ok()?;
    let (reader, writer) = tokio::io::split(stream.compat());
    let passed =
        exchange_hellos(Box::new(reader), Box::new(writer), credentials, peer, Side::Accepted).await.ok()?;
    let mut receiver = mesh::frames::FrameReceiver::with_limit(passed.0, MAX_HELLO);
    let mut sender = mesh::frames::FrameSender::with_limit(passed.1, MAX_HELLO);
    let ContactMessage::Contact(contact) = receiver.recv().await.ok()??;
    sender.send(&ContactMessage::Contact(Contact::default())).await.ok()?;
    Some(contact)
}

#[tokio::test(flavor = "multi_thread")]
async fn member_that_nobody_reached_answers_no_questions_until_somebody_does() {
    let (farm, ours) = (Farm::new(), key());
    let (lone, identity) = farm.start_mesh().await;
    let (mut control, listening) = listen(&ours).await;
    let mut hellos = control.accept(StreamProtocol::new(HELLO_PROTOCOL)).expect("once");
    let credentials = farm.credentials(ours.peer());
    let (met, contact) = tokio::join!(
        timeout(PATIENCE, lone.meet(ours.peer(), vec![listening])),
        timeout(PATIENCE, answer_hello(&mut hellos, &credentials)),
    );
    assert!(met.expect("in time").is_some(), "it is met");
    let contact = contact.expect("in time").expect("it says where it listens");
    assert!(!contact.reachable && !contact.relays, "{contact:?}");
    let kad = StreamProtocol::new(INSIDE[0]);
    let asked = control.open_stream(libp2p_id(identity.peer()), kad.clone()).await;
    assert!(matches!(asked, Err(OpenStreamError::UnsupportedProtocol(_))), "{asked:?}");

    let (other, _) = farm.start_mesh().await;
    other.meet(identity.peer(), lone.addresses()).await.expect("it is a member and listens");
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = control.open_stream(libp2p_id(identity.peer()), kad.clone()).await {
        assert!(Instant::now() < deadline, "{error}");
    }
}

/// What a process says to a Hello.
async fn say_hello(control: &mut Control, peer: PeerId, credentials: &Credentials) -> Option<Contact> {
    let stream = control.open_stream(libp2p_id(peer), StreamProtocol::new(HELLO_PROTOCOL)).await;
    let (reader, writer) = tokio::io::split(stream.expect("it is outside the gate").compat());
    let (reader, writer) = (Box::new(reader), Box::new(writer));
    let passed = exchange_hellos(reader, writer, credentials, peer, Side::Dialled).await.ok()?;
    let mut receiver = mesh::frames::FrameReceiver::with_limit(passed.0, MAX_HELLO);
    let mut sender = mesh::frames::FrameSender::with_limit(passed.1, MAX_HELLO);
    sender.send(&ContactMessage::Contact(Contact::default())).await.ok()?;
    let ContactMessage::Contact(contact) = receiver.recv().await.ok()??;
    Some(contact)
}

/// A member that looks around on its LAN.
async fn on_lan(identity: Identity, credentials: Credentials) -> Mesh {
    let config =
        MeshConfig { mdns: true, ..MeshConfig::new(Arc::new(identity), vec![([0, 0, 0, 0], 0).into()]) };
    let (mesh, _) = Mesh::start(config).await.expect("a mesh");
    mesh.set_credentials(credentials);
    mesh
}

#[test]
fn members_on_one_lan_find_each_other_and_nobody_of_another_farm() {
    let Some(namespaces) = Namespaces::new() else { return };
    let (farm, name) = (Farm::new(), BlobName::Blake3(BlobHash([3; 32])));
    let (provider, asker, foreigner) = (key(), key(), key());
    let expected = provider.peer();
    let provider_credentials = farm.credentials(provider.peer());
    let asker_credentials = farm.credentials(asker.peer());
    let foreign_credentials = Farm::new().credentials(foreigner.peer());
    let (done, is_done) = tokio::sync::oneshot::channel::<()>();
    let providing = namespaces.run(0, async move || {
        let mesh = on_lan(provider, provider_credentials).await;
        mesh.start_providing(&name).await;
        // Until the other side found it, or gave up.
        let _ = is_done.await;
    });
    let asking = namespaces.run(1, async move || {
        let foreign = on_lan(foreigner, foreign_credentials).await;
        let mesh = on_lan(asker, asker_credentials).await;
        let found = providers(&mesh, &name).await;
        let met = foreign.meet(expected, Vec::new()).await;
        drop(done);
        (found, met, foreign.find_providers(&name, PATIENCE).await)
    });
    let (found, met, foreign) = asking.join().expect("no panic");
    providing.join().expect("no panic");
    assert_eq!(found.iter().map(|provider| provider.peer).collect::<Vec<_>>(), [expected]);
    assert_eq!(met, None, "another farm's member is not met");
    assert!(foreign.is_empty(), "{foreign:?}");
}

#[test]
fn session_opens_to_a_coordinator_whose_address_only_the_lan_tells() {
    let Some(namespaces) = Namespaces::new() else { return };
    let (farm, node) = (Farm::new(), key());
    let (coordinator, coordinator_credentials) = (farm.coordinator(), farm.coordinator_credentials());
    let (target, node_credentials) = (coordinator.peer(), farm.credentials(node.peer()));
    let (done, is_done) = tokio::sync::oneshot::channel::<()>();
    let accepting = namespaces.run(0, async move || {
        let listen = vec![([0, 0, 0, 0], 0).into()];
        let config = MeshConfig { accept: true, mdns: true, ..MeshConfig::new(coordinator, listen) };
        let (mesh, mut incoming) = Mesh::start(config).await.expect("a mesh");
        mesh.set_credentials(coordinator_credentials);
        let session = timeout(PATIENCE, incoming.recv()).await;
        let _ = is_done.await;
        matches!(session, Ok(Some(Incoming::Session(_))))
    });
    let dialling = namespaces.run(1, async move || {
        let mesh = on_lan(node, node_credentials).await;
        // Where it was before; nobody is there now.
        let stale = ["/ip4/10.78.1.77/udp/4288/quic-v1".to_owned()];
        let deadline = Instant::now() + PATIENCE;
        let opened = loop {
            match mesh.open_session(target, &stale).await {
                Ok(session) => break Ok(session.peer),
                Err(error) if Instant::now() > deadline => break Err(error.to_string()),
                Err(_) => {}
            }
        };
        drop(done);
        opened
    });
    assert_eq!(dialling.join().expect("no panic"), Ok(target));
    assert!(accepting.join().expect("no panic"), "the session came");
}
