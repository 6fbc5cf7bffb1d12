//! The command line as it is typed. `settings` makes of it what the program runs on.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh::limits::Limits;
use mesh::store::ByteSize;
use protocol::{ExposedInput, Exposure, WebUrl};

use crate::commands::blob::BlobCommand;
use crate::commands::bundle::BundleCommand;
use crate::commands::pack::PackArguments;
use crate::commands::publisher::PublisherCommand;
use crate::commands::workspace::WorkspaceCommand;
use crate::settings::limits::{self, ByteRate, RateLimit};
use crate::{environment, failure};

/// A peer-to-peer render farm for ComfyUI.
#[derive(Debug, Parser)]
#[command(name = "comfy-farm", version, about, after_help = failure::EXIT_CODES, max_term_width = 100)]
pub(crate) struct Arguments {
    /// A settings file in TOML. Defaults to `comfy-farm/config.toml` in the user's settings folder.
    #[arg(long, global = true, value_name = "FILE", env = environment::CONFIG)]
    pub(crate) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Try everything on this machine: a coordinator, two nodes, an example workflow, two jobs.
    Demo(DemoArguments),
    /// Take jobs over HTTP and grant them to the nodes that join.
    Coordinator(CoordinatorArguments),
    /// Lend this machine's GPUs to a farm.
    Node(NodeArguments),
    /// Make a ticket with which machines join the farm.
    Invite(InviteArguments),
    /// Publish a bundle or a bare workflow as a typed API.
    Deploy(DeployArguments),
    /// Run a deployed workflow and save what it makes.
    Run(RunArguments),
    /// List jobs, newest first.
    Jobs(JobsArguments),
    /// List the nodes of the farm.
    Nodes(ToolArguments),
    /// Cancel a job.
    Cancel(CancelArguments),
    /// Give a node no more jobs; it finishes what it has and goes on serving blobs.
    Drain(DrainArguments),
    /// Give a node jobs again.
    Undrain(DrainArguments),
    /// Show the API that a bundle or workflow would get.
    Schema(SchemaArguments),
    /// Make a bundle of a workflow and of the ComfyUI folder in which it works, without a farm.
    Pack(PackArguments),
    /// Explain a bundle in words, without a farm.
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Look after the workspaces that this machine's node rebuilt, and say what a bundle would be rebuilt from.
    #[command(subcommand)]
    Workspace(WorkspaceCommand),
    /// Vouch for bundles with a key of your own, and say whose bundles this machine's node rebuilds.
    #[command(subcommand)]
    Publisher(PublisherCommand),
    /// Look after the blobs on this machine: models, inputs, outputs.
    #[command(subcommand)]
    Blob(BlobCommand),
}

impl Command {
    /// What is logged where the environment does not say: the daemons tell their milestones.
    pub(crate) fn log_default(&self) -> &'static str {
        match self {
            Self::Coordinator(_) | Self::Node(_) | Self::Blob(BlobCommand::Share(_)) => "info",
            _ => "error",
        }
    }
}

/// How a tool reaches the farm and how it answers.
#[derive(Debug, Args)]
pub(crate) struct ToolArguments {
    /// The farm's address. Defaults to http://127.0.0.1:8288.
    #[arg(long, visible_alias = "farm", env = environment::URL)]
    pub(crate) url: Option<String>,
    /// A key of the farm. Defaults to the admin key in the coordinator's data folder on this machine.
    #[arg(long, env = environment::KEY, hide_env_values = true)]
    pub(crate) key: Option<String>,
    /// The coordinator's data folder, where a key is looked for.
    #[arg(long, value_name = "DIR", env = environment::DATA)]
    pub(crate) data: Option<PathBuf>,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Whose node it is.
#[derive(Debug, Args)]
pub(crate) struct DataArguments {
    /// The node's data folder, running or not. Defaults to `comfy-farm/node` in the user's data folder.
    #[arg(long, value_name = "DIR", env = environment::DATA)]
    pub(crate) data: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// End after the two jobs instead of staying up.
    #[arg(long)]
    pub(crate) once: bool,
    /// Print one line of JSON about what happened.
    #[arg(long)]
    pub(crate) json: bool,
    /// How many nodes to start, from 2.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(2..=16))]
    pub(crate) nodes: u16,
    /// A running ComfyUI that all nodes attach to, in place of the built-in engine.
    #[arg(long, value_name = "URL")]
    pub(crate) comfyui: Option<String>,
    /// Where the pictures are saved. Defaults to a fresh temporary folder.
    #[arg(long, short = 'o', value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CoordinatorArguments {
    /// Where everything is kept. Defaults to `comfy-farm/coordinator` in the user's data folder.
    #[arg(long, value_name = "DIR", env = environment::DATA)]
    pub(crate) data: Option<PathBuf>,
    /// Where HTTP is served. Defaults to 127.0.0.1:8288.
    #[arg(long, value_name = "ADDR", env = environment::HTTP)]
    pub(crate) http: Option<SocketAddr>,
    /// Where nodes reach the coordinator, UDP and TCP. Defaults to 0.0.0.0:4288.
    #[arg(long, value_name = "ADDR", env = environment::LISTEN)]
    pub(crate) listen: Option<SocketAddr>,
    /// Where blobs are served, TCP and UDP. Defaults to 0.0.0.0:4289.
    #[arg(long, value_name = "ADDR", env = environment::DATA_LISTEN)]
    pub(crate) data_listen: Option<SocketAddr>,
    /// Do not look for peers on the LAN by mDNS, nor tell them of this one.
    #[arg(long)]
    pub(crate) no_mdns: bool,
    /// An address under which other machines reach this one, for tickets: a host name or IP address,
    /// with a port where it differs from the one listened on. Repeatable.
    #[arg(long, value_name = "ADDR", env = environment::ANNOUNCE)]
    pub(crate) announce: Vec<String>,
    /// A host name under which HTTP is called, besides this machine's own. Repeatable.
    #[arg(long, value_name = "NAME")]
    pub(crate) allow_host: Vec<String>,
    /// An origin whose pages may call the API, such as https://tools.example. Repeatable.
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) allow_origin: Vec<String>,
    /// The certificate chain for HTTPS, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key for HTTPS, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Serve plain HTTP to other machines: keys and pictures can be read on the way.
    #[arg(long)]
    pub(crate) insecure_http: bool,
    #[command(flatten)]
    pub(crate) limits: LimitArguments,
    #[command(flatten)]
    pub(crate) relay: RelayArguments,
    /// How long a lease lives without a renewal, in seconds. Defaults to 30.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) lease: Option<u64>,
    /// Print one line of JSON when it is up.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which engine executes workflows on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EngineChoice {
    /// A few image ops on the CPU, for trying things out.
    Builtin,
    /// A ComfyUI that runs already; see `--comfyui`.
    Comfyui,
    /// A ComfyUI of the node's own for each GPU, rebuilt as the author of each workflow had it.
    Managed,
}

/// How much of this machine's links may be used.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct LimitArguments {
    /// How much may be sent in a second, such as 20MB/s, or 22:00-06:00=200MB/s for some hours of the day;
    /// `none` lifts it for these. Repeatable. Defaults to no limit.
    #[arg(long, value_name = "LIMIT")]
    pub(crate) upload_limit: Vec<RateLimit>,
    /// How much may be received in a second, written alike. Repeatable. Defaults to no limit.
    #[arg(long, value_name = "LIMIT")]
    pub(crate) download_limit: Vec<RateLimit>,
    /// How many pieces of blobs are sent at once, to all peers together, each in its turn. Defaults to 32.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) uploads: Option<u16>,
}

/// What may go through relays.
#[derive(Debug, Default, Args)]
pub(crate) struct RelayArguments {
    /// Pass nothing on between members that cannot reach each other. A node with an upload limit passes nothing
    /// on anyway, unless `--relay-rate` is given.
    #[arg(long)]
    pub(crate) no_relay: bool,
    /// How much may go through relays in a second, such as 20MB/s: of what this process sends and receives
    /// through others, and of what it passes on for others, which is nothing under 4MiB/s and never more than
    /// `--upload-limit` allows at any hour, besides what it uploads itself. Defaults to 16 MiB/s and 128 MiB/s.
    #[arg(long, value_name = "RATE", conflicts_with = "no_relay")]
    pub(crate) relay_rate: Option<ByteRate>,
}

impl LimitArguments {
    /// What they come to, where no settings file has a say.
    pub(crate) fn resolve(&self) -> Limits {
        limits::limits(&self.upload_limit, &self.download_limit, self.uploads)
    }
}

#[derive(Debug, Args)]
pub(crate) struct NodeArguments {
    /// The ticket to join with, or @FILE that holds it. Not needed again once joined.
    #[arg(long, value_name = "TICKET", env = environment::JOIN, hide_env_values = true)]
    pub(crate) join: Option<String>,
    /// Where everything is kept. Defaults to `comfy-farm/node` in the user's data folder.
    #[arg(long, value_name = "DIR", env = environment::DATA)]
    pub(crate) data: Option<PathBuf>,
    /// Where blobs are served, TCP and UDP. Defaults to 0.0.0.0:4290, or a free port where that one is taken.
    #[arg(long, value_name = "ADDR", env = environment::DATA_LISTEN)]
    pub(crate) data_listen: Option<SocketAddr>,
    /// Where other members find this node, UDP and TCP. Defaults to port 4291 of the interface on which blobs
    /// are served, or a free port where that one is taken.
    #[arg(long, value_name = "ADDR", env = environment::LISTEN)]
    pub(crate) listen: Option<SocketAddr>,
    /// Do not look for peers on the LAN by mDNS, nor tell them of this one.
    #[arg(long)]
    pub(crate) no_mdns: bool,
    /// The engine. Defaults to `comfyui` where `--comfyui` is given, to `managed` where there is a GPU, else to
    /// `builtin`.
    #[arg(long, value_enum)]
    pub(crate) engine: Option<EngineChoice>,
    /// The ComfyUI to attach to, such as http://127.0.0.1:8188.
    #[arg(long, value_name = "URL", env = environment::COMFYUI)]
    pub(crate) comfyui: Option<String>,
    /// How long a run may show no progress before its ComfyUI counts as dead, in seconds; with `--engine managed`, how
    /// long ComfyUI may then do nothing at all. Defaults to 600.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) comfyui_stall: Option<u64>,
    /// How many runs this machine does at once, from 1 to 32, where it has no graphics card; they share the
    /// processor. Where it has some, each card is a slot. Defaults to 1.
    #[arg(long, value_name = "NUMBER")]
    pub(crate) slots: Option<u16>,
    /// How much disk the store of blobs may take, such as 200GB; then the least recently used go. Defaults
    /// to all that is free.
    #[arg(long, value_name = "SIZE")]
    pub(crate) quota: Option<ByteSize>,
    #[command(flatten)]
    pub(crate) limits: LimitArguments,
    #[command(flatten)]
    pub(crate) relay: RelayArguments,
    /// A folder of models to serve where they lie, or ComfyUI's `extra_model_paths.yaml`. Repeatable.
    #[arg(long, value_name = "DIR")]
    pub(crate) models: Vec<PathBuf>,
    /// Read also from hosts at private addresses and over plain http, such as an office's own mirror.
    #[arg(long)]
    pub(crate) allow_private_origins: bool,
    #[command(flatten)]
    pub(crate) managed: ManagedArguments,
    /// A label, such as room=2.14. Repeatable.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) label: Vec<String>,
    /// Join without asking.
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Slow each op of the built-in engine by so many milliseconds, to try out what happens in the
    /// middle of a run.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    pub(crate) builtin_pause: u64,
}

/// What the engine `managed` may do, and how.
#[derive(Debug, Default, Args)]
pub(crate) struct ManagedArguments {
    /// Do not rebuild what is deployed in the farm, only what publishers signed that you trusted.
    #[arg(long)]
    pub(crate) no_trust_farm: bool,
    /// Take code from this host alone, such as github.com, besides packages of the package indexes. Commits are then
    /// fetched from it by this node itself, and never taken from other nodes. Repeatable. Defaults to any public host.
    #[arg(long = "allow-code-host", value_name = "HOST")]
    pub(crate) code_host: Vec<String>,
    /// Take models that are pickles too, which run code as they are loaded.
    #[arg(long)]
    pub(crate) allow_pickle: bool,
    /// Run `install.py` of custom nodes, and build packages that come as sources.
    #[arg(long)]
    pub(crate) allow_install_scripts: bool,
    /// Run ComfyUI without walls around it, also where this machine could have some.
    #[arg(long)]
    pub(crate) no_sandbox: bool,
    /// Flags of your own for ComfyUI, such as "--lowvram --fp16-vae".
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true)]
    pub(crate) comfyui_args: Option<String>,
    /// How long a ComfyUI without work stays, in seconds. Defaults to 600.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) comfyui_idle: Option<u64>,
    /// How much disk the workspaces may take, such as 300GB: code, Python, repositories, built wheels and caches. Above
    /// it goes what none needs, then the least recently used of those that the farm does not want. Their models are blobs,
    /// and count towards `--quota`. Defaults to all that is free.
    #[arg(long, value_name = "SIZE")]
    pub(crate) workspace_quota: Option<ByteSize>,
    /// What answers as the Comfy registry does, from which custom nodes come that a bundle of comfy-pack names by a
    /// version. Defaults to https://api.comfy.org.
    #[arg(long, value_name = "URL")]
    pub(crate) comfy_registry: Option<WebUrl>,
    /// The index that Python packages come from. Defaults to https://pypi.org/simple.
    #[arg(long, value_name = "URL")]
    pub(crate) package_index: Option<String>,
    /// Where the builds of torch are, each below its name (`cu124`, `cpu`). Defaults to
    /// https://download.pytorch.org/whl.
    #[arg(long, value_name = "URL")]
    pub(crate) torch_index: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InviteArguments {
    #[command(flatten)]
    pub(crate) tool: ToolArguments,
    /// How many machines may use the ticket.
    #[arg(long, default_value_t = 1)]
    pub(crate) uses: u32,
    /// For how many hours it can be used.
    #[arg(long, default_value_t = 24)]
    pub(crate) hours: u64,
}

#[derive(Debug, Args)]
pub(crate) struct DeployArguments {
    #[command(flatten)]
    pub(crate) tool: ToolArguments,
    /// A bundle (`.cpack.zip`) or a `workflow_api.json`.
    pub(crate) file: PathBuf,
    /// The name to deploy under. Defaults to one made of the file's name.
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) expose: ExposeArguments,
    /// Let attached ComfyUIs run it, which prove no lock.
    #[arg(long)]
    pub(crate) accept_attached: bool,
    /// Keep the signature that the bundle's lockfile bears, in place of the farm's: then only nodes whose owners
    /// trust this publisher rebuild it.
    #[arg(long)]
    pub(crate) keep_signature: bool,
    /// Where the models of its lockfile lie on this machine: ComfyUI's folder, or its `models`. They are
    /// served from there until two other nodes keep each of them. Repeatable.
    #[arg(long, value_name = "DIR")]
    pub(crate) models: Vec<PathBuf>,
    /// A model that no peer may have, by its path below `models` or its file name: the deployed lockfile says so,
    /// and every node that holds it keeps it to itself, for good. Repeatable.
    #[arg(long, value_name = "NAME")]
    pub(crate) private: Vec<String>,
    /// Where the models are served, UDP and TCP; other machines must reach it. Defaults to all interfaces,
    /// and is not used where a node of the farm runs on this machine.
    #[arg(long, value_name = "IP:PORT", requires = "models")]
    pub(crate) listen: Option<SocketAddr>,
}

/// What of a workflow becomes its API.
#[derive(Debug, Args)]
pub(crate) struct ExposeArguments {
    /// Make an op's input a parameter, such as prompt=6.text. Repeatable; in place of those that the bundle names.
    #[arg(long, value_name = "NAME=NODE.FIELD")]
    pub(crate) input: Vec<ExposedInput>,
    /// Make what an op saves an output, by the op's id. Repeatable; in place of those that the bundle names.
    #[arg(long, value_name = "NODE")]
    pub(crate) output: Vec<String>,
}

impl ExposeArguments {
    /// What is named.
    pub(crate) fn exposure(&self) -> Exposure {
        Exposure { inputs: self.input.clone(), outputs: self.output.clone() }
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    pub(crate) tool: ToolArguments,
    /// The workflow, `name` or `name@3`.
    pub(crate) workflow: String,
    /// Its parameters: key=value, or key=@FILE.
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) parameters: Vec<String>,
    /// Where the outputs are saved.
    #[arg(long, short = 'o', value_name = "DIR", default_value = ".")]
    pub(crate) out: PathBuf,
    /// 0 to 100; a higher one goes first among jobs of the same key.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) priority: u8,
    /// How long the job may wait for a node before it expires, up to 30 days. Defaults to no limit.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=2_592_000))]
    pub(crate) ttl: Option<u64>,
    /// Only submit: print the job's id and do not wait.
    #[arg(long)]
    pub(crate) detach: bool,
}

#[derive(Debug, Args)]
pub(crate) struct JobsArguments {
    #[command(flatten)]
    pub(crate) tool: ToolArguments,
    /// Only jobs in this state.
    #[arg(long, value_parser = ["queued", "running", "succeeded", "failed", "canceled", "expired"])]
    pub(crate) state: Option<String>,
    /// Only jobs of this workflow.
    #[arg(long)]
    pub(crate) workflow: Option<String>,
    /// At most so many.
    #[arg(long, default_value_t = 50)]
    pub(crate) limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct CancelArguments {
    #[command(flatten)]
    pub(crate) tool: ToolArguments,
    /// The job.
    pub(crate) job: String,
}

#[derive(Debug, Args)]
pub(crate) struct DrainArguments {
    #[command(flatten)]
    pub(crate) tool: ToolArguments,
    /// The node: its peer id, the end of it, or its host name where that is unique.
    pub(crate) node: String,
}

#[derive(Debug, Args)]
pub(crate) struct SchemaArguments {
    /// A bundle (`.cpack.zip`) or a `workflow_api.json`.
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) expose: ExposeArguments,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
