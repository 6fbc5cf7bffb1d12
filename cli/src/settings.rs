//! What the program runs on: flags, then the environment (clap reads both), then a TOML file, then
//! defaults.
//!
//! Not here: the flags themselves (`args`).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use coordinator::api::TlsFiles;
use protocol::LEASE_DURATION;
use serde::Deserialize;

use crate::args::{CoordinatorArguments, EngineChoice, NodeArguments, ToolArguments};
use crate::environment;

/// The port of the API and the page.
const HTTP_PORT: u16 = 8288;
/// The port of the control plane, UDP and TCP.
const LISTEN_PORT: u16 = 4288;
/// The port of the coordinator's data plane, TCP and UDP.
const DATA_PORT: u16 = 4289;

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

/// The settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SettingsFile {
    /// For the tools.
    client: ClientTable,
    /// For `comfy-farm coordinator`.
    coordinator: CoordinatorTable,
    /// For `comfy-farm node`.
    node: NodeTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ClientTable {
    url: Option<String>,
    key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CoordinatorTable {
    data: Option<PathBuf>,
    http: Option<SocketAddr>,
    listen: Option<SocketAddr>,
    data_listen: Option<SocketAddr>,
    announce: Vec<String>,
    allow_host: Vec<String>,
    allow_origin: Vec<String>,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    insecure_http: bool,
    lease: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NodeTable {
    join: Option<String>,
    data: Option<PathBuf>,
    data_listen: Option<SocketAddr>,
    engine: Option<EngineChoice>,
    comfyui: Option<String>,
    labels: BTreeMap<String, String>,
    yes: bool,
}

/// The keys of each table; `labels` is free below itself.
const KNOWN: [(&str, &[&str]); 3] = [
    ("client", &["url", "key"]),
    (
        "coordinator",
        &[
            "data",
            "http",
            "listen",
            "data_listen",
            "announce",
            "allow_host",
            "allow_origin",
            "tls_cert",
            "tls_key",
            "insecure_http",
            "lease",
        ],
    ),
    ("node", &["join", "data", "data_listen", "engine", "comfyui", "labels", "yes"]),
];

impl SettingsFile {
    /// Reads the named file, or the user's own where there is one.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self, SettingsError> {
        let path = match named {
            Some(path) => path.to_owned(),
            None => match user_folder(environment::XDG_CONFIG_HOME, ".config") {
                Some(folder) if folder.join("config.toml").exists() => folder.join("config.toml"),
                _ => return Ok(Self::default()),
            },
        };
        let text = std::fs::read_to_string(&path)
            .map_err(|source| SettingsError::Read { path: path.clone(), source })?;
        Self::parse(&text, &path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, SettingsError> {
        let error = |source| SettingsError::Parse { path: path.to_owned(), source };
        let table: toml::Table = toml::from_str(text).map_err(error)?;
        if let Some((key, nearest)) = unknown_key(&table) {
            return Err(SettingsError::UnknownKey { path: path.to_owned(), key, nearest });
        }
        toml::from_str(text).map_err(error)
    }
}

/// The first key that nothing reads, and the known one that looks most like it.
fn unknown_key(file: &toml::Table) -> Option<(String, Option<String>)> {
    for (name, value) in file {
        let Some((_, keys)) = KNOWN.iter().find(|(table, _)| table == name) else {
            // A key of some table may stand where only tables do.
            let inside = KNOWN.iter().flat_map(|(table, keys)| keys.iter().map(move |key| (*key, *table)));
            let tables = KNOWN.iter().map(|(table, _)| (*table, ""));
            let nearest = nearest(name, tables.chain(inside)).map(|(known, table)| match table {
                "" => known.to_owned(),
                table => format!("{table}.{known}"),
            });
            return Some((name.clone(), nearest));
        };
        let Some(table) = value.as_table() else { continue };
        if let Some(key) = table.keys().find(|key| !keys.contains(&key.as_str())) {
            let nearest = nearest(key, keys.iter().map(|known| (*known, "")));
            let nearest = nearest.map(|(known, _)| format!("{name}.{known}"));
            return Some((format!("{name}.{key}"), nearest));
        }
    }
    None
}

/// The known word that looks most like this one, with what belongs to it.
fn nearest<'a, T>(word: &str, known: impl Iterator<Item = (&'a str, T)>) -> Option<(&'a str, T)> {
    let scored = known.map(|(known, belonging)| (strsim::jaro_winkler(word, known), known, belonging));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.6).then_some((best.1, best.2))
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
    pub(crate) announce: Vec<String>,
    pub(crate) allow_host: Vec<String>,
    pub(crate) allow_origin: Vec<String>,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) insecure_http: bool,
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
            announce: first_given(arguments.announce, table.announce),
            allow_host: first_given(arguments.allow_host, table.allow_host),
            allow_origin: first_given(arguments.allow_origin, table.allow_origin),
            tls,
            insecure_http: arguments.insecure_http || table.insecure_http,
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
    pub(crate) data_listen: Option<SocketAddr>,
    /// The ComfyUI to attach to; `None` for the built-in engine.
    pub(crate) comfyui: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) yes: bool,
    pub(crate) builtin_pause: Duration,
}

impl NodeSettings {
    pub(crate) fn resolve(arguments: NodeArguments, file: SettingsFile) -> Result<Self, SettingsError> {
        let table = file.node;
        let comfyui = arguments.comfyui.or(table.comfyui);
        let comfyui = match (arguments.engine.or(table.engine), comfyui) {
            (Some(EngineChoice::Comfyui), None) => {
                let text =
                    "engine `comfyui` needs the address of one that runs: `--comfyui http://127.0.0.1:8188`";
                return Err(SettingsError::Flag(text.to_owned()));
            }
            (Some(EngineChoice::Builtin), _) => None,
            (_, comfyui) => comfyui,
        };
        let mut labels = table.labels;
        for label in arguments.label {
            let Some((key, value)) = label.split_once('=') else {
                return Err(SettingsError::Flag(format!("label `{label}` is not KEY=VALUE")));
            };
            labels.insert(key.to_owned(), value.to_owned());
        }
        Ok(Self {
            join: arguments.join.or(table.join),
            data: data_folder(arguments.data.or(table.data), "node")?,
            data_listen: arguments.data_listen.or(table.data_listen),
            comfyui,
            labels,
            yes: arguments.yes || table.yes,
            builtin_pause: Duration::from_millis(arguments.builtin_pause),
        })
    }
}

/// The data folder that is meant where a command names none: the node's.
pub(crate) fn node_data(given: Option<&Path>) -> Result<PathBuf, SettingsError> {
    data_folder(given.map(Path::to_owned), "node")
}

fn first_given(flags: Vec<String>, file: Vec<String>) -> Vec<String> {
    if flags.is_empty() { file } else { flags }
}

fn data_folder(given: Option<PathBuf>, role: &str) -> Result<PathBuf, SettingsError> {
    given.map_or_else(|| default_data(role), Ok)
}

fn default_data(role: &str) -> Result<PathBuf, SettingsError> {
    let folder = user_folder(environment::XDG_DATA_HOME, ".local/share").ok_or(SettingsError::NoHome)?;
    Ok(folder.join(role))
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

    fn parse(text: &str) -> Result<SettingsFile, SettingsError> {
        SettingsFile::parse(text, Path::new("config.toml"))
    }

    #[test]
    fn unknown_key_is_an_error_that_names_the_nearest_known_one() {
        let error = parse("[coordinator]\nhtpp = \"127.0.0.1:1\"\n").expect_err("unknown");
        let expected = "settings file `config.toml` has an unknown key `coordinator.htpp`; did you mean `coordinator.http`?";
        assert_eq!(error.to_string(), expected);
        let error = parse("[coordnator]\n").expect_err("unknown");
        assert!(error.to_string().ends_with("did you mean `coordinator`?"), "{error}");
        let error = parse("htp = \"127.0.0.1:1\"\n").expect_err("unknown");
        assert!(error.to_string().ends_with("did you mean `coordinator.http`?"), "{error}");
        let error = parse("zzz = 1\n").expect_err("unknown");
        assert!(error.to_string().ends_with("unknown key `zzz`"), "{error}");
    }

    #[test]
    fn every_known_key_is_read() {
        let text = r#"
            [client]
            url = "http://farm"
            key = "k"
            [coordinator]
            data = "d"
            http = "127.0.0.1:1"
            listen = "0.0.0.0:2"
            data_listen = "0.0.0.0:3"
            announce = ["farm.example"]
            allow_host = ["farm.example"]
            allow_origin = ["https://tools.example"]
            tls_cert = "c"
            tls_key = "k"
            insecure_http = true
            lease = 20
            [node]
            join = "farm1"
            data = "d"
            data_listen = "0.0.0.0:4"
            engine = "comfyui"
            comfyui = "http://127.0.0.1:8188"
            labels = { room = "2.14" }
            yes = true
        "#;
        parse(text).expect("all are known");
        let table: toml::Table = toml::from_str(text).expect("TOML");
        for (name, keys) in KNOWN {
            let given = table[name].as_table().expect("a table");
            assert!(keys.iter().all(|key| given.contains_key(*key)), "{name}: {keys:?}");
        }
    }

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
