//! What runs on the control plane's connections, and which of it a stranger can see.
//!
//! Outside the gate: limits, ping, streams (each of which has a gate of its own) and mDNS, of which only
//! addresses are taken. Inside: Kademlia, and circuits through relays.

use std::time::Duration;

use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{PeerId, StreamProtocol, Swarm, SwarmBuilder, kad, mdns, noise, ping, relay, tcp, yamux};
use libp2p_connection_limits::ConnectionLimits;
use libp2p_stream::Control;
use tracing::warn;

use crate::store::ByteSize;
use crate::swarm::members::MembersOnly;
use crate::swarm::records::ProviderRecords;
use crate::swarm::{MeshConfig, MeshError};

const KAD_PROTOCOL: StreamProtocol = StreamProtocol::new("/comfy-farm/kad/1");
const MAX_PENDING_INCOMING: u32 = 128;
const MAX_INCOMING: u32 = 8192;
const MAX_PER_PEER: u32 = 4;
/// How long a connection without a stream stays open.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a connection is probed, and how long the answer may take: a killed peer is noticed in ten
/// seconds, on TCP as well.
const PING: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(8);
/// How often we say again what we provide, and how long others keep it.
const PUBLICATION: Duration = Duration::from_secs(3600);
const RECORD_LIFE: Duration = Duration::from_secs(3 * 3600);
/// The longest that one question to Kademlia may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(20);
/// What a relay lends each member: one large model passes in one circuit. libp2p's own limits are for
/// strangers, and 128 KiB.
const CIRCUIT_BYTES: u64 = 64 << 30;
const CIRCUIT_DURATION: Duration = Duration::from_secs(6 * 3600);
/// How many bytes a second cross one circuit between honest members: libp2p's relay has no rate of its own.
pub const CIRCUIT_RATE: u64 = 4 << 20;
const MAX_CIRCUITS_PER_PEER: usize = 8;
const MAX_RESERVATIONS: usize = 1024;

/// Everything on a connection.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: libp2p_connection_limits::Behaviour,
    ping: ping::Behaviour,
    streams: libp2p_stream::Behaviour,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
    pub(super) members: MembersOnly<Inside>,
}

/// What only members see.
#[derive(NetworkBehaviour)]
pub(super) struct Inside {
    pub(super) kad: kad::Behaviour<ProviderRecords>,
    circuits: relay::client::Behaviour,
    relay: Toggle<relay::Behaviour>,
}

impl Behaviour {
    pub(super) fn kad(&mut self) -> &mut kad::Behaviour<ProviderRecords> {
        &mut self.members.inside().kad
    }
}

/// The swarm of a process, and the way to its streams.
pub(super) fn swarm(config: &MeshConfig) -> Result<(Swarm<Behaviour>, Control), MeshError> {
    let failure = |error: &dyn std::error::Error| MeshError::Transport(error.to_string());
    let keypair = config.identity.keypair();
    let peer = keypair.public().to_peer_id();
    let streams = libp2p_stream::Behaviour::new();
    let control = streams.new_control();
    let limits = ConnectionLimits::default()
        .with_max_pending_incoming(Some(MAX_PENDING_INCOMING))
        .with_max_established_incoming(Some(MAX_INCOMING))
        .with_max_established_per_peer(Some(MAX_PER_PEER));
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_tcp(tcp::Config::new().nodelay(true), noise::Config::new, yamux::Config::default)
        .map_err(|error| failure(&error))?
        .with_quic()
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .map_err(|error| failure(&error))?
        .with_behaviour(|_, circuits| Behaviour {
            limits: libp2p_connection_limits::Behaviour::new(limits),
            ping: ping::Behaviour::new(ping::Config::new().with_interval(PING).with_timeout(PING)),
            streams,
            mdns: neighbours(config, peer).into(),
            members: MembersOnly::new(Inside {
                kad: kademlia(peer),
                circuits,
                relay: relaying(config).map(|relaying| relay::Behaviour::new(peer, relaying)).into(),
            }),
        })
        .map_err(|error| failure(&error))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_TIMEOUT))
        .with_connection_timeout(CONNECTION_TIMEOUT)
        .build();
    Ok((swarm, control))
}

/// mDNS, for a process that others on the LAN can dial.
fn neighbours(config: &MeshConfig, peer: PeerId) -> Option<mdns::tokio::Behaviour> {
    let is_on_lan = config.listen.iter().any(|address| !address.ip().is_loopback());
    if !config.mdns || !is_on_lan {
        return None;
    }
    let mdns = mdns::tokio::Behaviour::new(mdns::Config::default(), peer);
    mdns.inspect_err(|error| warn!(%error, "mDNS does not start; peers on the LAN are not found by it")).ok()
}

/// Kademlia of this farm alone: who is asked for comes in by hand, once it passed the gate and is known to
/// be reachable.
fn kademlia(peer: PeerId) -> kad::Behaviour<ProviderRecords> {
    let mut config = kad::Config::new(KAD_PROTOCOL);
    config
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_caching(kad::Caching::Disabled)
        .set_query_timeout(QUERY_TIMEOUT)
        .set_provider_publication_interval(Some(PUBLICATION))
        .set_provider_record_ttl(Some(RECORD_LIFE))
        .set_publication_interval(None)
        .set_replication_interval(None)
        // It bootstraps whenever a peer comes in; without peers its complaint would come all the time.
        .set_periodic_bootstrap_interval(None);
    let mut kad = kad::Behaviour::with_config(peer, ProviderRecords::new(peer), config);
    // A peer that nobody reached answers no questions: whoever asks would wait for it in vain.
    kad.set_mode(Some(kad::Mode::Client));
    kad
}

fn relaying(config: &MeshConfig) -> Option<relay::Config> {
    passes_on(config).then(|| relay::Config {
        max_reservations: MAX_RESERVATIONS,
        max_circuits: circuits(config.relay_rate),
        max_circuits_per_peer: MAX_CIRCUITS_PER_PEER,
        max_circuit_duration: CIRCUIT_DURATION,
        max_circuit_bytes: CIRCUIT_BYTES,
        ..relay::Config::default()
    })
}

/// Whether a process passes anything on for others: not where its rate is under that of one circuit.
pub(super) fn passes_on(config: &MeshConfig) -> bool {
    config.relay && circuits(config.relay_rate) > 0
}

/// How many circuits keep to this rate together.
fn circuits(ByteSize(rate): ByteSize) -> usize {
    usize::try_from(rate / CIRCUIT_RATE).map_or(MAX_RESERVATIONS, |circuits| circuits.min(MAX_RESERVATIONS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{Limits, Relaying};

    #[test]
    fn relay_has_as_many_circuits_as_keep_to_its_rate() {
        let of = |rate: u64| circuits(ByteSize(rate));
        assert_eq!(
            [of(CIRCUIT_RATE - 1), of(CIRCUIT_RATE), of(10 * CIRCUIT_RATE + 1), of(u64::MAX)],
            [0, 1, 10, MAX_RESERVATIONS]
        );
        assert_eq!(circuits(Relaying::default().passed_on(&Limits::default())), 32);
    }
}
