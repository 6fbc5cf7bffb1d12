//! The node as a process: what it is made of, in the order in which it comes up.
//!
//! Not here: the loop that answers the coordinator, which is `agent::duty`.

mod builder;
mod duty;
mod offer;
mod session;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh::control::{ControlServer, Reach};
use mesh::fetch::{Exchange, ExchangeConfig};
use mesh::folder::{DataFolder, FolderError};
use mesh::folders::index_task;
use mesh::gate::Credentials;
use mesh::identity::{Identity, IdentityError};
use mesh::limits::{Limits, Relaying};
use mesh::origin::{OriginConfig, OriginReader, OriginSetupError, Tokens};
use mesh::plane::{BindError, RacingPlane, RelayedPlane, RelayedRate};
use mesh::store::{BlobStore, StoreError};
use mesh::swarm::{Mesh, MeshConfig, MeshError, MeshFinder};
use protocol::ticket::Ticket;
use protocol::{Device, PeerId, WantWorkspaces, error_chain};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::builder::Rebuilder;
pub use self::builder::Rebuilding;
use crate::ends::{Ends, KeepError};
use crate::engine::Engine;
use crate::finder::{Question, SessionFinder};
use crate::join::{BelongError, Belonging};
use crate::provide::provide_task;
use crate::run::Tools;
use crate::workspace::Registry;
use crate::workspace::assemble::Assembler;
use crate::workspace::care::{Caretaker, clear_drafts};
use crate::workspace::prepare::prepare_task;
use crate::workspace::shelf::Shelf;

/// The port on which a node serves blobs, unless another process has it.
pub const DEFAULT_DATA_PORT: u16 = 4290;
/// The port on which other members find a node, UDP and TCP, unless another process has it.
pub const DEFAULT_MESH_PORT: u16 = 4291;

/// What a node is started with.
pub struct AgentConfig {
    /// Its identity, its membership, its blobs: all that it keeps.
    pub data: PathBuf,
    /// The ticket, for a machine that has not joined yet.
    pub ticket: Option<Ticket>,
    /// Labels for people and placement.
    pub labels: BTreeMap<String, String>,
    /// Where it serves blobs. Defaults to all interfaces at [`DEFAULT_DATA_PORT`], or at a free port
    /// where that one is taken.
    pub data_listen: Option<SocketAddr>,
    /// Where other members find it. Defaults to the interface of `data_listen` at [`DEFAULT_MESH_PORT`],
    /// or at a free port where that one is taken.
    pub mesh_listen: Option<SocketAddr>,
    /// Whether it looks for peers on the LAN by mDNS.
    pub mdns: bool,
    /// How many bytes its store may take. Defaults to all that there are.
    pub quota: Option<u64>,
    /// How much of the machine's links its data plane may use.
    pub limits: Limits,
    /// What it does with relays: whether it is one, and how much may go through them.
    pub relaying: Relaying,
    /// Folders of models that it serves where they lie.
    pub models: Vec<PathBuf>,
    /// The tokens of hosts on the internet from which it reads models.
    pub tokens: Tokens,
    /// Whether it also reads from hosts at private addresses and over plain http, for an office's own servers.
    pub private_origins: bool,
    /// What executes workflows.
    pub engine: Arc<dyn Engine>,
    /// How it rebuilds the workspaces that this engine works in; `None` for an engine that needs none.
    pub rebuilding: Option<Rebuilding>,
    /// What the engine computes on: one slot for each.
    pub devices: Vec<Device>,
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A folder or file of the data folder cannot be made.
    #[error("`{}` cannot be made", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The node's key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The control plane.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// The data plane.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The store of blobs.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The ends of earlier runs.
    #[error(transparent)]
    Ends(#[from] KeepError),
    /// What reads from the internet.
    #[error(transparent)]
    Origins(#[from] OriginSetupError),
    /// The farm.
    #[error(transparent)]
    Belong(#[from] BelongError),
}

impl StartError {
    /// Whether another process has the data folder, or the port that was asked for.
    pub fn is_in_use(&self) -> bool {
        match self {
            Self::Folder(FolderError::InUse { .. }) | Self::Bind(BindError::Socket { .. }) => true,
            Self::Mesh(MeshError::Listen { source, .. }) => source.kind() == io::ErrorKind::AddrInUse,
            _ => false,
        }
    }
}

/// A node that belongs to a farm and is ready for duty.
pub struct Agent {
    peer: PeerId,
    mesh: Mesh,
    credentials: Credentials,
    belonging: Belonging,
    belonging_path: PathBuf,
    tools: Arc<Tools>,
    devices: Vec<Device>,
    folder: Arc<DataFolder>,
    /// What answers the commands on this machine; `None` where no socket could be made.
    control: Option<ControlServer>,
    models: Vec<PathBuf>,
    finder: SessionFinder,
    questions: mpsc::Receiver<Question>,
    /// What the coordinator wants to be prepared.
    wants: watch::Sender<Option<WantWorkspaces>>,
    /// What prepares it.
    builder: Option<Arc<Rebuilder>>,
}

impl Agent {
    /// Brings everything up, and joins the farm where that was not done before.
    pub async fn start(config: AgentConfig) -> Result<Self, StartError> {
        let data = config.data.clone();
        let folder = Arc::new(DataFolder::take(&data, "a node")?);
        let identity = Arc::new(Identity::load_or_create(&data.join("node.key"))?);
        let peer = identity.peer();
        let mesh = start_mesh(&config, &identity).await?;

        let belonging_path = data.join("membership.json");
        let belonging =
            Belonging::load_or_join(&belonging_path, config.ticket.as_ref(), config.labels, &mesh).await?;
        let credentials = Credentials::new(belonging.farm, peer, belonging.membership.clone());
        mesh.set_credentials(credentials.clone());

        let blobs = BlobStore::open(&data.join("blobs")).await?;
        blobs.set_quota(config.quota);
        let plane = bind_data_plane(config.data_listen, &identity).await?;
        let plane =
            plane.with_last_resort(RelayedPlane::new(&mesh, RelayedRate::within(config.relaying.rate)));
        let exchange =
            Exchange::start(ExchangeConfig::new(blobs.clone(), Arc::new(plane), credentials.clone()));
        exchange.set_limits(config.limits);
        mesh.set_data_addresses(exchange.addresses());
        mesh.set_store(blobs.clone());
        let (finder, questions) = SessionFinder::new();
        let farm = Arc::new(finder.or_members(MeshFinder::new(mesh.clone())));
        exchange.set_finder(farm.clone());
        let origins = OriginConfig {
            tokens: config.tokens,
            allow_http: config.private_origins,
            allow_private: config.private_origins,
            ..OriginConfig::default()
        };
        exchange.set_origins(OriginReader::new(origins)?);
        let reach = Reach { exchange: exchange.clone(), finder: farm };
        let workspaces = data.join("workspaces");
        let wants = watch::Sender::new(None);
        let shelf = config.rebuilding.is_some().then(|| Shelf::new(workspaces.join("ready")));
        let mut caretaker = Caretaker::new(workspaces.clone(), blobs.clone());
        if let Some(shelf) = &shelf {
            clear_drafts(&workspaces);
            caretaker = caretaker.with_node(shelf.clone(), wants.subscribe());
        }
        let builder =
            config.rebuilding.map(|Rebuilding { policy, registry, uv, accelerator, quota, engine }| {
                let (data, root, reach) = (data.clone(), workspaces, reach.clone());
                let registry = Registry::new(&registry, &policy)?;
                let assembler = Assembler { data, root, policy, reach, registry, uv, accelerator };
                Ok(Arc::new(Rebuilder { assembler, engine, caretaker: caretaker.clone(), quota }))
            });
        let builder = builder.transpose().map_err(StartError::Origins)?;
        let control = ControlServer::bind(&data, blobs.clone());
        let control = control.map(|server| server.with_reach(reach).with_role(Arc::new(caretaker)));
        let control = control.inspect_err(|error| warn!(error = error_chain(error), "no commands")).ok();
        let ends = Ends::open(&data.join("ends"), blobs.clone()).await?;
        let scratch = empty_folder(&data.join("scratch"))?;
        info!(%peer, coordinator = %belonging.coordinator, "node is up");

        let tools = Arc::new(Tools { engine: config.engine, exchange, blobs, ends, scratch, shelf });
        let (devices, models) = (config.devices, config.models);
        Ok(Self {
            peer,
            mesh,
            credentials,
            belonging,
            belonging_path,
            tools,
            devices,
            folder,
            control,
            models,
            finder,
            questions,
            wants,
            builder,
        })
    }

    /// Who this node is.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Who is asked where blobs are; it is answered while the agent serves.
    pub fn finder(&self) -> SessionFinder {
        self.finder.clone()
    }

    /// Where it belongs.
    pub fn belonging(&self) -> &Belonging {
        &self.belonging
    }

    /// Serves the coordinator until `stop`; then gives back every lease and ends.
    pub async fn serve(mut self, stop: CancellationToken) {
        let mut upkeep = JoinSet::new();
        if let Some(control) = self.control.take() {
            upkeep.spawn(control.serve(stop.clone()));
        }
        let models = std::mem::take(&mut self.models);
        upkeep.spawn(index_task(self.tools.blobs.clone(), models, stop.clone()));
        upkeep.spawn(provide_task(self.mesh.clone(), self.tools.blobs.clone(), stop.clone()));
        if let Some((builder, shelf)) = self.builder.take().zip(self.tools.shelf.clone()) {
            upkeep.spawn(prepare_task(builder, shelf, self.wants.subscribe(), stop.clone()));
        }
        let (exchange, mesh) = (self.tools.exchange.clone(), self.mesh.clone());
        // Held until nothing is written into it any more.
        let _folder = Arc::clone(&self.folder);
        let (duty, session_events) = duty::Duty::new(self);
        duty.serve(session_events, stop).await;
        while upkeep.join_next().await.is_some() {}
        exchange.shutdown().await;
        mesh.shutdown();
        mesh.stopped().await;
    }
}

/// A folder without what an earlier process left half-done in it.
fn empty_folder(path: &Path) -> Result<PathBuf, StartError> {
    let error = |source| StartError::File { path: path.to_owned(), source };
    if path.exists() {
        std::fs::remove_dir_all(path).map_err(error)?;
    }
    std::fs::create_dir_all(path).map_err(error)?;
    Ok(path.to_owned())
}

/// The control plane: it dials the coordinator, and other members dial it.
async fn start_mesh(agent: &AgentConfig, identity: &Arc<Identity>) -> Result<Mesh, MeshError> {
    let start = async |listen| {
        // Circuits are offered only where a member reached us.
        let config = MeshConfig {
            mdns: agent.mdns,
            relay: agent.relaying.passes_on,
            relay_rate: agent.relaying.passed_on(&agent.limits),
            ..MeshConfig::new(Arc::clone(identity), vec![listen])
        };
        Mesh::start(config).await.map(|(mesh, _incoming)| mesh)
    };
    if let Some(address) = agent.mesh_listen {
        return start(address).await;
    }
    let interface = agent.data_listen.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip());
    match start(SocketAddr::new(interface, DEFAULT_MESH_PORT)).await {
        // Several nodes may run on one machine; only the first gets the usual port.
        Err(MeshError::Listen { .. }) => start(SocketAddr::new(interface, 0)).await,
        started => started,
    }
}

async fn bind_data_plane(listen: Option<SocketAddr>, identity: &Identity) -> Result<RacingPlane, BindError> {
    if let Some(address) = listen {
        return RacingPlane::bind(identity, address).await;
    }
    let any = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    match RacingPlane::bind(identity, any(DEFAULT_DATA_PORT)).await {
        Ok(plane) => Ok(plane),
        // Several nodes may run on one machine; only the first gets the usual port.
        Err(_) => RacingPlane::bind(identity, any(0)).await,
    }
}

#[cfg(test)]
mod tests;
