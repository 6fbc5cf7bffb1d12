//! What the program runs on: flags, then the environment (clap reads both), then a TOML file, then
//! defaults.
//!
//! Not here: the flags themselves (`args`), and reading the file (`settings::file`).

mod file;
pub(crate) mod limits;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coordinator::api::TlsFiles;
use mesh::limits::{Limits, Relaying};
use mesh::store::ByteSize;
use node::policy::Policy;
use protocol::{LEASE_DURATION, WebUrl};

use self::file::NodeTable;
pub(crate) use self::file::{SettingsFile, check_environment};
use crate::args::{CoordinatorArguments, EngineChoice, ManagedArguments, NodeArguments, ToolArguments};
use crate::environment;

/// The port of the API and the page.
const HTTP_PORT: u16 = 8288;
/// The port of the control plane, UDP and TCP.
const LISTEN_PORT: u16 = 4288;
/// The port of the coordinator's data plane, TCP and UDP.
const DATA_PORT: u16 = 4289;
/// The most runs that a processor does at once.
const MAX_CPU_SLOTS: u16 = 32;

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    /// The file is not there or cannot be read.
    #[error("settings file `{}` cannot be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no TOML, or a value has the wrong type.
    #[error("settings file `{}` is wrong", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: toml::de::Error,
    },
    /// A key that nothing reads.
    #[error("settings file `{}` has an unknown key `{key}`{}", path.display(), nearest_words(nearest))]
    UnknownKey {
        /// Which file.
        path: PathBuf,
        /// The key, with its table.
        key: String,
        /// The known one that looks most like it.
        nearest: Option<String>,
    },
    /// A variable of the environment that nothing reads.
    #[error("the environment has an unknown variable `{name}`{}", nearest_words(nearest))]
    UnknownVariable {
        /// The variable.
        name: String,
        /// The known one that looks most like it.
        nearest: Option<String>,
    },
    /// A flag with a value that means nothing.
    #[error("{0}")]
    Flag(String),
    /// There is no home to keep things in.
    #[error("no folder to keep things in: HOME is not set; name one with `--data`")]
    NoHome,
}

fn nearest_words(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |nearest| format!("; did you mean `{nearest}`?"))
}

/// What a tool runs on.
#[derive(Debug)]
pub(crate) struct ClientSettings {
    /// The farm.
    pub(crate) url: String,
    /// The key, if one was given or found.
    pub(crate) key: Option<String>,
    /// Whether to answer in JSON.
    pub(crate) json: bool,
}

impl ClientSettings {
    pub(crate) fn resolve(arguments: &ToolArguments, file: &SettingsFile) -> Self {
        let given = arguments.url.clone().or_else(|| file.client.url.clone());
        // A key found on this machine is only for the farm on this machine.
        let found = || {
            let data = arguments.data.clone().or_else(|| file.coordinator.data.clone());
            let data = data.or_else(|| default_data("coordinator").ok())?;
            read_admin_key(&data)
        };
        let local = given.as_deref().is_none_or(is_loopback);
        let key = arguments.key.clone().or_else(|| file.client.key.clone());
        let key = key.or_else(|| local.then(found).flatten());
        let url = given.unwrap_or_else(|| format!("http://127.0.0.1:{HTTP_PORT}"));
        Self { url: url.trim_end_matches('/').to_owned(), key, json: arguments.json }
    }
}

/// Whether a URL names this machine.
fn is_loopback(url: &str) -> bool {
    let host = url.split("://").nth(1).unwrap_or(url);
    ["127.", "localhost", "[::1]"].iter().any(|name| host.starts_with(name))
}

/// The file in a coordinator's data folder that holds the admin key for tools on the same machine.
pub(crate) fn admin_key_file(data: &Path) -> PathBuf {
    data.join("admin.key")
}

fn read_admin_key(data: &Path) -> Option<String> {
    std::fs::read_to_string(admin_key_file(data)).ok().map(|text| text.trim().to_owned())
}

/// What a coordinator runs on.
#[derive(Debug)]
pub(crate) struct CoordinatorSettings {
    pub(crate) data: PathBuf,
    pub(crate) http: SocketAddr,
    pub(crate) listen: SocketAddr,
    pub(crate) data_listen: SocketAddr,
    pub(crate) mdns: bool,
    pub(crate) announce: Vec<String>,
    pub(crate) allow_host: Vec<String>,
    pub(crate) allow_origin: Vec<String>,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) insecure_http: bool,
    pub(crate) limits: Limits,
    pub(crate) relaying: Relaying,
    pub(crate) lease: Duration,
    pub(crate) json: bool,
}

impl CoordinatorSettings {
    pub(crate) fn resolve(
        arguments: CoordinatorArguments,
        file: SettingsFile,
    ) -> Result<Self, SettingsError> {
        let table = file.coordinator;
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, HTTP_PORT));
        let certificate = arguments.tls_cert.or(table.tls_cert);
        let tls = certificate.zip(arguments.tls_key.or(table.tls_key));
        let tls = tls.map(|(certificate, key)| TlsFiles { certificate, key });
        Ok(Self {
            data: data_folder(arguments.data.or(table.data), "coordinator")?,
            http: arguments.http.or(table.http).unwrap_or(loopback),
            listen: arguments.listen.or(table.listen).unwrap_or(any(LISTEN_PORT)),
            data_listen: arguments.data_listen.or(table.data_listen).unwrap_or(any(DATA_PORT)),
            mdns: !arguments.no_mdns && table.mdns.unwrap_or(true),
            announce: first_given(arguments.announce, table.announce),
            allow_host: first_given(arguments.allow_host, table.allow_host),
            allow_origin: first_given(arguments.allow_origin, table.allow_origin),
            tls,
            insecure_http: arguments.insecure_http || table.insecure_http,
            limits: limits::limits(
                &first_given(arguments.limits.upload_limit, table.upload_limit),
                &first_given(arguments.limits.download_limit, table.download_limit),
                arguments.limits.uploads.or(table.uploads),
            ),
            // Whoever cannot be reached otherwise depends on it.
            relaying: limits::relaying(
                arguments.relay.no_relay || table.relay == Some(false),
                arguments.relay.relay_rate.or(table.relay_rate),
                false,
            ),
            lease: arguments.lease.or(table.lease).map_or(LEASE_DURATION, Duration::from_secs),
            json: arguments.json,
        })
    }
}

/// What a node runs on.
#[derive(Debug)]
pub(crate) struct NodeSettings {
    pub(crate) join: Option<String>,
    pub(crate) data: PathBuf,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) data_listen: Option<SocketAddr>,
    pub(crate) mdns: bool,
    /// The engine; `None` where the machine decides.
    pub(crate) engine: Option<EngineSettings>,
    /// How long a ComfyUI may show no sign of life in a run.
    pub(crate) comfyui_stall: Option<Duration>,
    /// How many runs the processor does at once; `None` where its owner did not say.
    pub(crate) slots: Option<u16>,
    pub(crate) managed: ManagedSettings,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) quota: Option<ByteSize>,
    pub(crate) limits: Limits,
    pub(crate) relaying: Relaying,
    pub(crate) models: Vec<PathBuf>,
    pub(crate) private_origins: bool,
    pub(crate) yes: bool,
    pub(crate) builtin_pause: Duration,
}

/// Which engine, as its owner said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EngineSettings {
    Builtin,
    /// The ComfyUI to attach to.
    Attached(String),
    Managed,
}

/// What the engine `managed` runs on.
#[derive(Debug)]
pub(crate) struct ManagedSettings {
    pub(crate) policy: Policy,
    pub(crate) sandbox: bool,
    /// The owner's flags for ComfyUI.
    pub(crate) comfyui_args: Vec<String>,
    pub(crate) comfyui_idle: Option<Duration>,
    pub(crate) workspace_quota: Option<ByteSize>,
    pub(crate) comfy_registry: Option<WebUrl>,
    pub(crate) package_index: Option<String>,
    pub(crate) torch_index: Option<String>,
}

impl ManagedSettings {
    fn resolve(arguments: ManagedArguments, table: &NodeTable, private_origins: bool) -> Self {
        let hosts = first_given(arguments.code_host, table.allow_code_host.clone());
        let policy = Policy {
            trust_farm: !arguments.no_trust_farm && table.trust_farm.unwrap_or(true),
            hosts: hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect(),
            pickle: arguments.allow_pickle || table.allow_pickle,
            install_scripts: arguments.allow_install_scripts || table.allow_install_scripts,
            private_origins,
        };
        let flags = arguments.comfyui_args.or_else(|| table.comfyui_args.clone()).unwrap_or_default();
        Self {
            policy,
            sandbox: !arguments.no_sandbox && table.sandbox.unwrap_or(true),
            comfyui_args: flags.split_whitespace().map(str::to_owned).collect(),
            comfyui_idle: arguments.comfyui_idle.or(table.comfyui_idle).map(Duration::from_secs),
            workspace_quota: arguments.workspace_quota.or(table.workspace_quota),
            comfy_registry: arguments.comfy_registry.or_else(|| table.comfy_registry.clone()),
            package_index: arguments.package_index.or_else(|| table.package_index.clone()),
            torch_index: arguments.torch_index.or_else(|| table.torch_index.clone()),
        }
    }
}

impl NodeSettings {
    pub(crate) fn resolve(arguments: NodeArguments, file: SettingsFile) -> Result<Self, SettingsError> {
        let table = file.node;
        let private_origins = arguments.allow_private_origins || table.allow_private_origins;
        let managed = ManagedSettings::resolve(arguments.managed, &table, private_origins);
        let comfyui = arguments.comfyui.or(table.comfyui);
        let engine = match (arguments.engine.or(table.engine), comfyui) {
            (Some(EngineChoice::Comfyui), None) => {
                let text =
                    "engine `comfyui` needs the address of one that runs: `--comfyui http://127.0.0.1:8188`";
                return Err(SettingsError::Flag(text.to_owned()));
            }
            (Some(EngineChoice::Builtin), _) => Some(EngineSettings::Builtin),
            (Some(EngineChoice::Managed), _) => Some(EngineSettings::Managed),
            (_, comfyui) => comfyui.map(EngineSettings::Attached),
        };
        let slots = arguments.slots.or(table.slots);
        check_slots(slots, engine.as_ref())?;
        let mut labels = table.labels;
        for label in arguments.label {
            let Some((key, value)) = label.split_once('=') else {
                return Err(SettingsError::Flag(format!("label `{label}` is not KEY=VALUE")));
            };
            labels.insert(key.to_owned(), value.to_owned());
        }
        let upload = first_given(arguments.limits.upload_limit, table.upload_limit);
        let relaying = limits::relaying(
            arguments.relay.no_relay || table.relay == Some(false),
            arguments.relay.relay_rate.or(table.relay_rate),
            !upload.is_empty() && table.relay != Some(true),
        );
        Ok(Self {
            join: arguments.join.or(table.join),
            data: data_folder(arguments.data.or(table.data), "node")?,
            listen: arguments.listen.or(table.listen),
            data_listen: arguments.data_listen.or(table.data_listen),
            mdns: !arguments.no_mdns && table.mdns.unwrap_or(true),
            engine,
            comfyui_stall: arguments.comfyui_stall.or(table.comfyui_stall).map(Duration::from_secs),
            slots,
            managed,
            labels,
            quota: arguments.quota.or(table.quota),
            limits: limits::limits(
                &upload,
                &first_given(arguments.limits.download_limit, table.download_limit),
                arguments.limits.uploads.or(table.uploads),
            ),
            relaying,
            models: if arguments.models.is_empty() { table.models } else { arguments.models },
            private_origins,
            yes: arguments.yes || table.yes,
            builtin_pause: Duration::from_millis(arguments.builtin_pause),
        })
    }
}

fn check_slots(slots: Option<u16>, engine: Option<&EngineSettings>) -> Result<(), SettingsError> {
    let Some(slots) = slots else { return Ok(()) };
    let wrong = if !(1..=MAX_CPU_SLOTS).contains(&slots) {
        format!("`--slots {slots}`: a processor does from 1 to {MAX_CPU_SLOTS} runs at once")
    } else if matches!(engine, Some(EngineSettings::Attached(_))) {
        format!(
            "`--slots {slots}`: a ComfyUI that you run does one run at a time; `--engine managed` starts one for each slot"
        )
    } else {
        return Ok(());
    };
    Err(SettingsError::Flag(wrong))
}

/// The data folder that is meant where a command names none: the node's.
pub(crate) fn node_data(given: Option<&Path>) -> Result<PathBuf, SettingsError> {
    data_folder(given.map(Path::to_owned), "node")
}

/// The data folder of the process that serves an author's models in a farm, where no node runs.
pub(crate) fn author_data(farm: &str) -> Result<PathBuf, SettingsError> {
    let short = farm.get(..16).unwrap_or(farm);
    Ok(default_data("deploy")?.join(short))
}

fn first_given<T>(flags: Vec<T>, file: Vec<T>) -> Vec<T> {
    if flags.is_empty() { file } else { flags }
}

fn data_folder(given: Option<PathBuf>, role: &str) -> Result<PathBuf, SettingsError> {
    given.map_or_else(|| default_data(role), Ok)
}

fn default_data(role: &str) -> Result<PathBuf, SettingsError> {
    let folder = user_folder(environment::XDG_DATA_HOME, ".local/share").ok_or(SettingsError::NoHome)?;
    Ok(folder.join(role))
}

/// Where the tools keep what only saves time.
pub(crate) fn user_cache() -> Option<PathBuf> {
    user_folder(environment::XDG_CACHE_HOME, ".cache")
}

/// The folder `comfy-farm` in one of the user's base folders.
fn user_folder(variable: &str, below_home: &str) -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set(variable).or_else(|| Some(set(environment::HOME)?.join(below_home)))?;
    Some(base.join("comfy-farm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_found_on_this_machine_is_for_this_machine_only() {
        let data = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(admin_key_file(data.path()), "cfk_local\n").expect("writes");
        let key = |url: Option<&str>| {
            let tool = ToolArguments {
                url: url.map(str::to_owned),
                key: None,
                data: Some(data.path().to_owned()),
                json: false,
            };
            ClientSettings::resolve(&tool, &SettingsFile::default()).key
        };
        assert_eq!(key(None).as_deref(), Some("cfk_local"));
        assert_eq!(key(Some("http://localhost:9")).as_deref(), Some("cfk_local"));
        assert_eq!(key(Some("https://farm.example")), None);
    }
}
