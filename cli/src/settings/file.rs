//! The settings file: its tables, and the error for a key that nothing reads.
//!
//! Not here: what a missing key defaults to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use mesh::store::ByteSize;
use protocol::{WebUrl, nearest};
use serde::Deserialize;

use super::SettingsError;
use super::limits::{ByteRate, RateLimit};
use crate::args::EngineChoice;
use crate::environment;

/// The settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SettingsFile {
    /// For the tools.
    pub(super) client: ClientTable,
    /// For `comfy-farm coordinator`.
    pub(super) coordinator: CoordinatorTable,
    /// For `comfy-farm node`.
    pub(super) node: NodeTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ClientTable {
    pub(super) url: Option<String>,
    pub(super) key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CoordinatorTable {
    pub(super) data: Option<PathBuf>,
    pub(super) http: Option<SocketAddr>,
    pub(super) listen: Option<SocketAddr>,
    pub(super) data_listen: Option<SocketAddr>,
    pub(super) mdns: Option<bool>,
    pub(super) announce: Vec<String>,
    pub(super) allow_host: Vec<String>,
    pub(super) allow_origin: Vec<String>,
    pub(super) tls_cert: Option<PathBuf>,
    pub(super) tls_key: Option<PathBuf>,
    pub(super) insecure_http: bool,
    pub(super) upload_limit: Vec<RateLimit>,
    pub(super) download_limit: Vec<RateLimit>,
    pub(super) uploads: Option<u16>,
    pub(super) relay: Option<bool>,
    pub(super) relay_rate: Option<ByteRate>,
    pub(super) lease: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NodeTable {
    pub(super) join: Option<String>,
    pub(super) data: Option<PathBuf>,
    pub(super) listen: Option<SocketAddr>,
    pub(super) data_listen: Option<SocketAddr>,
    pub(super) mdns: Option<bool>,
    pub(super) engine: Option<EngineChoice>,
    pub(super) comfyui: Option<String>,
    pub(super) comfyui_stall: Option<u64>,
    pub(super) slots: Option<u16>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) quota: Option<ByteSize>,
    pub(super) upload_limit: Vec<RateLimit>,
    pub(super) download_limit: Vec<RateLimit>,
    pub(super) uploads: Option<u16>,
    pub(super) relay: Option<bool>,
    pub(super) relay_rate: Option<ByteRate>,
    pub(super) models: Vec<PathBuf>,
    pub(super) allow_private_origins: bool,
    pub(super) trust_farm: Option<bool>,
    pub(super) allow_code_host: Vec<String>,
    pub(super) allow_pickle: bool,
    pub(super) allow_install_scripts: bool,
    pub(super) sandbox: Option<bool>,
    pub(super) comfyui_args: Option<String>,
    pub(super) comfyui_idle: Option<u64>,
    pub(super) workspace_quota: Option<ByteSize>,
    pub(super) comfy_registry: Option<WebUrl>,
    pub(super) package_index: Option<String>,
    pub(super) torch_index: Option<String>,
    pub(super) yes: bool,
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
            "mdns",
            "announce",
            "allow_host",
            "allow_origin",
            "tls_cert",
            "tls_key",
            "insecure_http",
            "upload_limit",
            "download_limit",
            "uploads",
            "relay",
            "relay_rate",
            "lease",
        ],
    ),
    (
        "node",
        &[
            "join",
            "data",
            "listen",
            "data_listen",
            "mdns",
            "engine",
            "comfyui",
            "comfyui_stall",
            "slots",
            "labels",
            "quota",
            "upload_limit",
            "download_limit",
            "uploads",
            "relay",
            "relay_rate",
            "models",
            "allow_private_origins",
            "trust_farm",
            "allow_code_host",
            "allow_pickle",
            "allow_install_scripts",
            "sandbox",
            "comfyui_args",
            "comfyui_idle",
            "workspace_quota",
            "comfy_registry",
            "package_index",
            "torch_index",
            "yes",
        ],
    ),
];

/// An error where the environment sets something that nothing reads.
pub(crate) fn check_environment() -> Result<(), SettingsError> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let Some(name) = environment::unknown(names) else { return Ok(()) };
    let nearest = nearest(&name, environment::ALL.iter().copied()).map(str::to_owned);
    Err(SettingsError::UnknownVariable { nearest, name })
}

impl SettingsFile {
    /// Reads the named file, or the user's own where there is one.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self, SettingsError> {
        let path = match named {
            Some(path) => path.to_owned(),
            None => match super::user_folder(environment::XDG_CONFIG_HOME, ".config") {
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
            let known: Vec<(&str, &str)> = tables.chain(inside).collect();
            let meant = nearest(name, known.iter().map(|(word, _)| *word));
            let nearest = known.iter().find(|(word, _)| Some(*word) == meant).map(|found| match found {
                (table, "") => (*table).to_owned(),
                (key, table) => format!("{table}.{key}"),
            });
            return Some((name.clone(), nearest));
        };
        let Some(table) = value.as_table() else { continue };
        if let Some(key) = table.keys().find(|key| !keys.contains(&key.as_str())) {
            let nearest = nearest(key, keys.iter().copied()).map(|known| format!("{name}.{known}"));
            return Some((format!("{name}.{key}"), nearest));
        }
    }
    None
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
            mdns = false
            announce = ["farm.example"]
            allow_host = ["farm.example"]
            allow_origin = ["https://tools.example"]
            tls_cert = "c"
            tls_key = "k"
            insecure_http = true
            upload_limit = ["20MB/s"]
            download_limit = ["50MB/s"]
            uploads = 8
            relay = true
            relay_rate = "40MB/s"
            lease = 20
            [node]
            join = "farm1"
            data = "d"
            listen = "0.0.0.0:5"
            data_listen = "0.0.0.0:4"
            mdns = false
            engine = "comfyui"
            comfyui = "http://127.0.0.1:8188"
            comfyui_stall = 1800
            slots = 2
            labels = { room = "2.14" }
            quota = "200GB"
            upload_limit = ["20MB/s", "22:00-06:00=none"]
            download_limit = ["50MB/s"]
            uploads = 8
            relay = false
            relay_rate = "4MB/s"
            models = ["/srv/models"]
            allow_private_origins = true
            trust_farm = false
            allow_code_host = ["github.com"]
            allow_pickle = true
            allow_install_scripts = true
            sandbox = false
            comfyui_args = "--lowvram"
            comfyui_idle = 60
            workspace_quota = "300GB"
            comfy_registry = "https://registry.example"
            package_index = "https://pypi.example/simple"
            torch_index = "https://torch.example/whl"
            yes = true
        "#;
        parse(text).expect("all are known");
        let table: toml::Table = toml::from_str(text).expect("TOML");
        for (name, keys) in KNOWN {
            let given = table[name].as_table().expect("a table");
            assert!(keys.iter().all(|key| given.contains_key(*key)), "{name}: {keys:?}");
        }
    }
}
