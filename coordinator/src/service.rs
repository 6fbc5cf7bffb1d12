//! The coordinator as a process: what it is made of, in the order in which it comes up, and how it
//! goes down.
//!
//! Not here: the loop that drives the state machine, which is `service::driver`.

mod commands;
mod deploy;
mod driver;
mod blame;
mod resolve;
mod work;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh::fetch::{Exchange, ExchangeConfig};
use mesh::folder::{DataFolder, FolderError};
use mesh::gate::Credentials;
use mesh::limits::{Limits, Relaying};
use mesh::plane::{BindError, RacingPlane, RelayedPlane, RelayedRate};
use mesh::store::BlobStore;
use mesh::swarm::{AnnounceError, Mesh, MeshConfig, MeshError, announced};
use protocol::message::Provider;
use protocol::{FarmId, HEARTBEAT, LEASE_DURATION, PeerId, REATTACH_GRACE};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error, info, info_span};

use self::driver::{Clock, Driver, Parts};
use crate::admission::{Admission, AdmissionError};
use crate::handle::{Command, CoordinatorHandle};
use crate::net;
use crate::state::{Settings, State};
use crate::store::{Store, StoreError};

/// The port of the control plane, UDP and TCP.
pub const DEFAULT_MESH_PORT: u16 = 4288;
/// The port of the data plane, UDP.
pub const DEFAULT_DATA_PORT: u16 = 4289;
/// How many commands wait for the loop.
const COMMANDS: usize = 1024;
/// How many events of nodes wait for it.
const EVENTS: usize = 4096;

/// What a coordinator is started with.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// The folder of all that it keeps.
    pub data: PathBuf,
    /// Where the control plane listens, UDP and TCP each. Defaults to all interfaces at
    /// [`DEFAULT_MESH_PORT`].
    pub mesh_listen: Vec<SocketAddr>,
    /// Where the data plane listens, UDP. Defaults to all interfaces at [`DEFAULT_DATA_PORT`].
    pub data_listen: SocketAddr,
    /// Whether peers on the LAN are looked for, and told of it, by mDNS. Defaults to yes.
    pub mdns: bool,
    /// Further addresses under which it is reached: `HOST:PORT`, or multiaddresses. They stand first in
    /// tickets. Defaults to none.
    pub announce: Vec<String>,
    /// How much of the machine's links its data plane may use. Defaults to no caps.
    pub limits: Limits,
    /// What it does with relays. Defaults to being one.
    pub relaying: Relaying,
    /// How long a lease lives without a renewal. Defaults to 30 seconds.
    pub lease_duration: Duration,
    /// How often nodes renew. Defaults to 5 seconds.
    pub heartbeat: Duration,
    /// How long a job waits, after a restart, for the node that was at work on it. Defaults to 30 seconds.
    pub reattach_grace: Duration,
    /// The most jobs that wait. Defaults to 200,000.
    pub max_queued: usize,
}

impl CoordinatorConfig {
    /// The defaults for a data folder.
    pub fn new(data: PathBuf) -> Self {
        let any = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
        Self {
            data,
            mesh_listen: vec![any(DEFAULT_MESH_PORT)],
            data_listen: any(DEFAULT_DATA_PORT),
            mdns: true,
            announce: Vec::new(),
            limits: Limits::default(),
            relaying: Relaying::default(),
            lease_duration: LEASE_DURATION,
            heartbeat: HEARTBEAT,
            reattach_grace: REATTACH_GRACE,
            max_queued: 200_000,
        }
    }
}

/// Why a coordinator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The coordinator's own store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store of blobs.
    #[error(transparent)]
    Blobs(#[from] mesh::store::StoreError),
    /// The farm and its keys.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// An address to announce.
    #[error(transparent)]
    Announce(#[from] AnnounceError),
    /// The control plane.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// The data plane.
    #[error(transparent)]
    DataPlane(#[from] BindError),
}

impl StartError {
    /// Whether another process has the data folder, or one of the ports.
    pub fn is_in_use(&self) -> bool {
        match self {
            Self::Folder(FolderError::InUse { .. }) => true,
            Self::Mesh(MeshError::Listen { source, .. })
            | Self::DataPlane(BindError::Socket { source, .. }) => source.kind() == io::ErrorKind::AddrInUse,
            _ => false,
        }
    }
}

/// A running coordinator.
pub struct Coordinator {
    /// The way to it.
    pub handle: CoordinatorHandle,
    /// Who it is.
    pub peer: PeerId,
    /// The farm that it coordinates.
    pub farm: FarmId,
    /// The admin key, on the first start only: it is kept nowhere.
    pub first_key: Option<String>,
    /// Where its control plane is reached, as in its tickets.
    pub addresses: Vec<String>,
    exchange: Exchange,
    mesh: Mesh,
    store: Store,
    stop: CancellationToken,
    driver: JoinHandle<()>,
    net: JoinHandle<()>,
    /// Held while the coordinator lives.
    _folder: DataFolder,
}

impl Coordinator {
    /// Brings everything up, making the farm on the first start in a folder.
    pub async fn start(config: CoordinatorConfig) -> Result<Self, StartError> {
        let data = &config.data;
        let folder = DataFolder::take(data, "the coordinator")?;
        let announced = announce(&config.announce)?;
        let store = Store::open(&data.join("coordinator.sqlite")).await?;
        let (admission, first_key) = Admission::open(data, store.clone(), net::unix_time()).await?;
        let blobs = BlobStore::open(data.join("blobs")).await?;
        let (farm, peer) = (admission.farm(), admission.identity().peer());

        let credentials = Credentials::new(farm, peer, admission.own_membership(net::unix_time()));
        let identity = admission.identity().clone();
        let plane = RacingPlane::bind(&identity, config.data_listen).await?;
        let mesh_config = MeshConfig {
            accept: true,
            mdns: config.mdns,
            relay: config.relaying.passes_on,
            relay_rate: config.relaying.passed_on(&config.limits),
            ..MeshConfig::new(identity, config.mesh_listen.clone())
        };
        let (mesh, incoming) = Mesh::start(mesh_config).await?;
        mesh.set_credentials(credentials.clone());
        let plane =
            plane.with_last_resort(RelayedPlane::new(&mesh, RelayedRate::within(config.relaying.rate)));
        let exchange =
            Exchange::start(ExchangeConfig::new(blobs.clone(), Arc::new(plane), credentials.clone()));
        exchange.set_limits(config.limits.clone());
        let addresses: Vec<String> = announced.into_iter().chain(mesh.addresses()).collect();

        // Only now, with all that can fail behind it, is this start one that counts.
        let epoch = store.raise_epoch().await?;
        let (found, newest) = store.load().await?;
        let clock = Clock::start();
        let provider = Provider { peer, addresses: data_addresses(&exchange, &config.announce) };
        mesh.set_data_addresses(provider.addresses.clone());
        let settings = Settings {
            lease_duration: config.lease_duration,
            heartbeat: config.heartbeat,
            reattach_grace: config.reattach_grace,
            provider,
            publisher: admission.publisher_key(),
        };
        let state = State::restore(settings, epoch, found, clock.now());
        // The folder of blobs may be another one than when they were deployed.
        blobs.keep_private(state.private().collect()).await?;
        info!(%peer, epoch, waiting = state.waiting(), "coordinator is up");

        let stop = CancellationToken::new();
        let (commands, command_queue) = mpsc::channel(COMMANDS);
        let (events, event_queue) = mpsc::channel(EVENTS);
        let handle = CoordinatorHandle::new(commands, blobs.clone());
        let parts = Parts {
            store: store.clone(),
            blobs,
            exchange: exchange.clone(),
            admission: admission.clone(),
            credentials,
            addresses: addresses.clone(),
        };
        let driver = Driver::new(state, parts, clock, epoch, newest, &config);
        let net = tokio::spawn(net::serve(incoming, admission, events, stop.child_token()));
        let driver = drive_task(driver, command_queue, event_queue, stop.clone());
        let driver = tokio::spawn(driver.instrument(info_span!("coordinator", epoch)));
        Ok(Self {
            handle,
            peer,
            farm,
            first_key,
            addresses,
            exchange,
            mesh,
            store,
            stop,
            driver,
            net,
            _folder: folder,
        })
    }

    /// Waits until the coordinator stops by itself, which it does only when its store fails.
    pub async fn failed(&self) {
        self.stop.cancelled().await;
    }

    /// Stops in good order: nothing half-written stays, nodes work on and come back later.
    pub async fn shutdown(self) {
        self.stop.cancel();
        for task in [self.driver, self.net] {
            if let Err(error) = task.await {
                error!(%error, "a task of the coordinator broke off");
            }
        }
        self.exchange.shutdown().await;
        self.mesh.shutdown();
        self.mesh.stopped().await;
        self.store.close().await;
        info!("coordinator has stopped");
    }
}

/// Drives the state machine to the end. A coordinator whose store fails stops: what it cannot write
/// down, it must not promise.
async fn drive_task(
    driver: Driver,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Receiver<net::NetEvent>,
    stop: CancellationToken,
) {
    if let Err(error) = driver.run(commands, events, stop.clone()).await {
        let reason: &dyn std::error::Error = &error;
        error!(error = reason, "coordinator stops because its store failed");
    }
    stop.cancel();
}

fn announce(texts: &[String]) -> Result<Vec<String>, AnnounceError> {
    let lists = texts.iter().map(|text| announced(text)).collect::<Result<Vec<_>, _>>()?;
    Ok(lists.concat())
}

/// Where the data plane is reached: also at announced addresses, where a router passes its port on.
fn data_addresses(exchange: &Exchange, announced: &[String]) -> Vec<SocketAddr> {
    let mut addresses = exchange.addresses();
    let Some(port) = addresses.first().map(SocketAddr::port) else { return addresses };
    let hosts = announced.iter().filter_map(|text| Some(text.parse::<SocketAddr>().ok()?.ip()));
    addresses.extend(hosts.map(|host: IpAddr| SocketAddr::new(host, port)));
    addresses
}

#[cfg(test)]
mod tests;
