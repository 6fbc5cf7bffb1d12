//! The program uv: found on the PATH, given by the owner, or installed from the package index into a folder
//! of the node's.
//!
//! Not here: what it is asked to do.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::process::Step;
use super::torch::without_user;
use super::{Indexes, PythonError};
use crate::os::program::leashed;
use crate::os::sandbox::Sandbox;
use crate::workspace::log::PrepareLog;

/// The uv that is installed where there is none.
pub const PINNED_UV: &str = "0.13.9";
/// The oldest uv that has every option that is used here.
pub(super) const OLDEST_UV: &str = "0.10.0";
/// How long it may take to install it.
const INSTALL_LIMIT: Duration = Duration::from_secs(300);
/// How long it may take to say its version.
const VERSION_LIMIT: Duration = Duration::from_secs(30);

/// What a program of a preparation sees of this process's environment: where programs are, and the way to
/// the internet. Everything else, tokens first, stays here.
const PASSED: [&str; 13] = [
    "PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
];

/// What of that, and of what is set here, is an address, in which a name and a password may be.
const ADDRESSES: [&str; 8] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "UV_DEFAULT_INDEX",
    "PIP_INDEX_URL",
];

/// Which uv is used, and where it keeps its things.
#[derive(Clone, Debug)]
pub struct UvConfig {
    /// The program, as the owner says. Defaults to the one on the PATH, else one of the node's own.
    pub program: Option<PathBuf>,
    /// The folder for all that it keeps: cache, Pythons, itself.
    pub folder: PathBuf,
    /// Where packages come from. Defaults to the public indexes.
    pub indexes: Indexes,
    /// Whether it may download a Python that is not here. Defaults to true.
    pub download_python: bool,
    /// What puts walls around the code of packages and custom nodes that an installation runs. Defaults to nothing.
    pub sandbox: Option<Sandbox>,
}

impl UvConfig {
    /// The defaults, with everything in this folder.
    pub fn new(folder: PathBuf) -> Self {
        Self { program: None, folder, indexes: Indexes::default(), download_python: true, sandbox: None }
    }
}

/// A uv that works.
#[derive(Clone, Debug)]
pub struct Uv {
    /// The program.
    pub program: PathBuf,
    /// Its version.
    pub version: String,
    pub(super) config: UvConfig,
}

impl Uv {
    /// Finds it, or installs it.
    pub async fn find(
        config: UvConfig,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<Self, PythonError> {
        Self::find_in(config, std::env::var_os("PATH"), log, cancel).await
    }

    pub(super) async fn find_in(
        config: UvConfig,
        path: Option<OsString>,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<Self, PythonError> {
        for folder in ["cache", "home", "python", "wheels", "temporary"] {
            let folder = config.folder.join(folder);
            std::fs::create_dir_all(&folder).map_err(|source| PythonError::io("making", &folder, source))?;
        }
        if let Some(program) = config.program.clone() {
            return Self::at(program, &config, log, cancel).await;
        }
        let folders: Vec<PathBuf> = path.iter().flat_map(std::env::split_paths).collect();
        let own = config.folder.join(format!("uv-{PINNED_UV}/bin/uv"));
        let on_path = folders.iter().map(|folder| folder.join("uv"));
        for program in on_path.chain([own.clone()]).filter(|program| program.is_file()) {
            match Self::at(program, &config, log, cancel).await {
                Ok(uv) => return Ok(uv),
                Err(PythonError::Canceled) => return Err(PythonError::Canceled),
                Err(error) => log.line(&error.to_string()),
            }
        }
        match install(&config, log, cancel).await {
            Ok(()) => Self::at(own, &config, log, cancel).await,
            Err(PythonError::Canceled) => Err(PythonError::Canceled),
            Err(error) => Err(PythonError::NoUv { reason: protocol::error_chain(&error) }),
        }
    }

    /// The one at this path, if it is one that works.
    async fn at(
        program: PathBuf,
        config: &UvConfig,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<Self, PythonError> {
        let mut command = scrubbed(&program, config);
        command.arg("--version");
        let step = Step { what: "asking uv for its version", command, limit: VERSION_LIMIT };
        let found = match step.run(log, cancel).await {
            Ok(finished) => finished.lines().into_iter().next().unwrap_or_default(),
            Err(PythonError::Canceled) => return Err(PythonError::Canceled),
            Err(error) => protocol::error_chain(&error),
        };
        let version = found.strip_prefix("uv ").and_then(|rest| rest.split_whitespace().next());
        match version {
            Some(version) if numbers(version) >= numbers(OLDEST_UV) => {
                Ok(Self { program, version: version.to_owned(), config: config.clone() })
            }
            _ => Err(PythonError::UnfitUv { program, found }),
        }
    }

    /// A call of it that sees only what it needs, and asks the index of the node.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = scrubbed(&self.program, &self.config);
        command.args(arguments);
        command
    }

    /// The same, with no way to any index.
    pub(super) fn offline(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(arguments);
        command.env("UV_OFFLINE", "1").env_remove("UV_DEFAULT_INDEX");
        command
    }

    /// A call of another program that sees no more than uv does.
    pub(super) fn other(&self, program: &Path) -> Command {
        scrubbed(program, &self.config)
    }

    /// Gives a call of any program the environment that is built from nothing.
    pub(super) fn scrub(&self, command: &mut Command) {
        scrub(command, &self.config);
    }

    /// Whether an address that it is given has a name and a password of the owner's in it.
    pub(super) fn has_passwords(&self) -> bool {
        let command = self.command(&[]);
        let torch = self.config.indexes.torch.iter().map(String::as_str);
        let addresses = addresses(&command).into_iter().map(|(_, address)| address);
        addresses.chain(torch).any(|address| without_user(address) != address)
    }

    /// A folder of its own below its own folder.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.config.folder.join(name)
    }

    /// A new folder that is removed when it is dropped.
    pub(super) fn temporary(&self) -> Result<tempfile::TempDir, PythonError> {
        let folder = self.folder("temporary");
        tempfile::tempdir_in(&folder).map_err(|source| PythonError::io("making a folder in", &folder, source))
    }
}

/// Takes the owner's names and passwords out of what a call sees.
pub(super) fn without_passwords(command: &mut Command) {
    let stripped: Vec<_> =
        addresses(command).into_iter().map(|(name, address)| (name, without_user(address))).collect();
    command.envs(stripped);
}

fn addresses(command: &Command) -> Vec<(&'static str, &str)> {
    let values = command.as_std().get_envs().filter_map(|(name, value)| Some((name, value?.to_str()?)));
    values
        .filter_map(|(name, value)| Some((*ADDRESSES.iter().find(|address| name == **address)?, value)))
        .collect()
}

/// A call of a program with an environment that was built from nothing, which ends when this process does.
fn scrubbed(program: &Path, config: &UvConfig) -> Command {
    let mut command = leashed(program);
    scrub(&mut command, config);
    command
}

fn scrub(command: &mut Command, config: &UvConfig) {
    let folder = |name: &str| config.folder.join(name);
    command.env_clear().current_dir(folder("home"));
    for name in PASSED {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env("HOME", folder("home")).env("TMPDIR", folder("temporary")).env("LANG", "C.UTF-8");
    command.env("UV_CACHE_DIR", folder("cache")).env("UV_PYTHON_INSTALL_DIR", folder("python"));
    command.env("UV_DEFAULT_INDEX", &config.indexes.packages).env("PIP_INDEX_URL", &config.indexes.packages);
    command.env("UV_NO_CONFIG", "1").env("UV_NO_PROGRESS", "1").env("NO_COLOR", "1");
    command.env("UV_PYTHON_DOWNLOADS", "manual").env("UV_HTTP_RETRIES", "2");
    command.env("PIP_DISABLE_PIP_VERSION_CHECK", "1").env("PYTHONDONTWRITEBYTECODE", "1");
}

/// Installs the pinned uv; whole or not at all.
async fn install(config: &UvConfig, log: &PrepareLog, cancel: &CancellationToken) -> Result<(), PythonError> {
    let temporary = config.folder.join("temporary");
    let making = |source: io::Error| PythonError::io("making a folder in", &temporary, source);
    let folder = tempfile::tempdir_in(&temporary).map_err(making)?;
    let mut venv = scrubbed(Path::new("python3"), config);
    venv.args(["-m", "venv"]).arg(folder.path().join("uv"));
    let what = "making a folder for uv";
    Step { what, command: venv, limit: INSTALL_LIMIT }.succeed(log, cancel).await?;
    let mut pip = scrubbed(&folder.path().join("uv/bin/python"), config);
    pip.args([
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--retries=1",
        "--quiet",
    ]);
    pip.arg(format!("uv=={PINNED_UV}"));
    let what = "installing uv";
    Step { what, command: pip, limit: INSTALL_LIMIT }.succeed(log, cancel).await?;
    let own = config.folder.join(format!("uv-{PINNED_UV}"));
    let _ = std::fs::remove_dir_all(&own);
    std::fs::rename(folder.path().join("uv"), &own).map_err(|source| PythonError::io("making", &own, source))
}

/// The numbers of a version, to compare.
fn numbers(version: &str) -> Vec<u32> {
    version.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert!(numbers("0.13.9") > numbers("0.9.30"));
        assert!(numbers("0.8.22") < numbers(OLDEST_UV));
        assert!(numbers(PINNED_UV) >= numbers(OLDEST_UV));
    }

    #[tokio::test]
    async fn program_of_a_preparation_ends_with_the_node_that_started_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = UvConfig::new(folder.path().to_owned());
        std::fs::create_dir(folder.path().join("home")).expect("made");
        let mut child = scrubbed(Path::new("sleep"), &config).arg("1000").spawn().expect("it starts");
        // As the end of this process would.
        drop(child.stdin.take());
        let ended = tokio::time::timeout(VERSION_LIMIT, child.wait()).await;
        assert!(!ended.expect("it is killed").expect("it ends").success());
    }

    #[tokio::test]
    async fn program_that_is_no_uv_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = UvConfig::new(folder.path().to_owned());
        config.program = Some("/bin/echo".into());
        let log = PrepareLog::in_memory();
        let error = Uv::find(config, &log, &CancellationToken::new()).await.expect_err("echo is no uv");
        assert!(error.to_string().contains("`/bin/echo` is not a uv"), "{error}");
    }

    #[tokio::test]
    async fn absence_of_uv_is_explained() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = UvConfig::new(folder.path().to_owned());
        config.indexes.packages = "http://127.0.0.1:9/simple".to_owned();
        let log = PrepareLog::in_memory();
        let error = Uv::find_in(config, None, &log, &CancellationToken::new()).await.expect_err("no index");
        assert!(matches!(error, PythonError::NoUv { .. }), "{error}");
        let left: Vec<_> = std::fs::read_dir(folder.path().join("temporary")).expect("a folder").collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
