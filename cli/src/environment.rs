//! Every environment variable that comfy-farm reads.

use std::ffi::OsString;

use mesh::origin::{CIVITAI_API_TOKEN, HF_TOKEN};

/// The farm that the tools talk to, such as `https://farm.example:8288`.
pub(crate) const URL: &str = "COMFY_FARM_URL";
/// The key that the tools show.
pub(crate) const KEY: &str = "COMFY_FARM_KEY";
/// The settings file.
pub(crate) const CONFIG: &str = "COMFY_FARM_CONFIG";
/// The folder in which a coordinator or node keeps all that it has.
pub(crate) const DATA: &str = "COMFY_FARM_DATA";
/// Where the coordinator serves HTTP.
pub(crate) const HTTP: &str = "COMFY_FARM_HTTP";
/// Where the control plane listens.
pub(crate) const LISTEN: &str = "COMFY_FARM_LISTEN";
/// Where the data plane listens.
pub(crate) const DATA_LISTEN: &str = "COMFY_FARM_DATA_LISTEN";
/// An address that tickets name besides those found.
pub(crate) const ANNOUNCE: &str = "COMFY_FARM_ANNOUNCE";
/// The ticket that a node joins with, or `@FILE`.
pub(crate) const JOIN: &str = "COMFY_FARM_JOIN";
/// The ComfyUI that a node attaches to.
pub(crate) const COMFYUI: &str = "COMFY_FARM_COMFYUI";
/// What is logged, in the words of `tracing_subscriber::EnvFilter`.
pub(crate) const LOG: &str = "COMFY_FARM_LOG";
/// `json` writes the log as JSON lines.
pub(crate) const LOG_FORMAT: &str = "COMFY_FARM_LOG_FORMAT";
/// Where the user's settings are (XDG base directory specification).
pub(crate) const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";
/// Where the user's data is (XDG base directory specification).
pub(crate) const XDG_DATA_HOME: &str = "XDG_DATA_HOME";
/// Where the user's programs keep what they can fetch again (XDG base directory specification).
pub(crate) const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
/// The hub of Hugging Face, for its own tools.
pub(crate) const HF_ENDPOINT: &str = "HF_ENDPOINT";
/// Where the hub's own tools keep all that they have.
pub(crate) const HF_HOME: &str = "HF_HOME";
/// Where the hub's own tools keep what they fetched, if that is elsewhere; the second is its older name.
pub(crate) const HF_HUB_CACHE: [&str; 2] = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"];
/// The index that uv takes packages from; the second is its older name.
pub(crate) const UV_INDEX: [&str; 2] = ["UV_DEFAULT_INDEX", "UV_INDEX_URL"];
/// Further ones of uv, by spaces; the second is its older name.
pub(crate) const UV_EXTRA_INDEXES: [&str; 2] = ["UV_INDEX", "UV_EXTRA_INDEX_URL"];
/// The user's home.
pub(crate) const HOME: &str = "HOME";

/// The token of a host on the internet, such as `HF_TOKEN`, in the variable that the host's own tools read.
pub(crate) fn host_token(name: &str) -> Option<String> {
    debug_assert!([HF_TOKEN, CIVITAI_API_TOKEN].contains(&name), "`{name}` is not listed here");
    std::env::var(name).ok()
}

/// What the tools that custom nodes download with read: whom they ask, what they show, and on which way.
const DOWNLOADS: [&str; 10] = [
    HF_ENDPOINT,
    HF_TOKEN,
    CIVITAI_API_TOKEN,
    "ALL_PROXY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "https_proxy",
    "http_proxy",
    "no_proxy",
];

/// Those of the variables for downloads that are set.
pub(crate) fn for_downloads() -> Vec<(String, OsString)> {
    DOWNLOADS.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var_os(name)?))).collect()
}

/// Those that set how a role runs; the demo's processes do not inherit them.
pub(crate) const ALL: [&str; 10] =
    [URL, KEY, CONFIG, DATA, HTTP, LISTEN, DATA_LISTEN, ANNOUNCE, JOIN, COMFYUI];

/// What all of them begin with.
const PREFIX: &str = "COMFY_FARM_";
/// Those that building and testing read, and this program does not.
const ELSEWHERE: [&str; 4] =
    ["COMFY_FARM_TEST_", "COMFY_FARM_CACHE", "COMFY_FARM_WEB_", "COMFY_FARM_UPDATE_"];

/// The first of these variables that looks like ours and is none, such as a misspelt one.
pub(crate) fn unknown(names: impl IntoIterator<Item = String>) -> Option<String> {
    let is_known = |name: &str| ALL.contains(&name) || [LOG, LOG_FORMAT].contains(&name);
    let is_elsewhere = |name: &str| ELSEWHERE.iter().any(|prefix| name.starts_with(prefix));
    let mut names = names.into_iter();
    names.find(|name| name.starts_with(PREFIX) && !is_known(name) && !is_elsewhere(name))
}
