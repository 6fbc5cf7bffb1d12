//! The binary under test, as a process that ends with its test.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::tools::skipped;

/// The `comfy-farm` that was built with these tests.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a file");
    let folder = test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps");
    let binary = folder.join("comfy-farm");
    assert!(binary.exists(), "`{}` is missing: run `cargo build --workspace --bins` first", binary.display());
    binary
}

/// A command behind a program that starts it.
fn behind(program: &str, options: &[&str], plain: &Command) -> Command {
    let plain = plain.as_std();
    let mut command = Command::new(program);
    command.args(options).arg(plain.get_program()).args(plain.get_args());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// A process that this test started.
pub struct Process {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Process {
    /// Starts a command, its log in a file.
    pub fn start(mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("{command:?} cannot be started"))?;
        let stdout = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Ok(Self { child, stdout, log: log.to_owned() })
    }

    /// The binary with these arguments and no settings of the person who runs the tests.
    pub fn comfy_farm(folder: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("COMFY_FARM_")) {
            command.env_remove(name);
        }
        command.env("HOME", folder).env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME");
        command.env_remove("XDG_CACHE_HOME");
        command.env("COMFY_FARM_LOG", "debug,libp2p=info,quinn=info,hyper=info,sqlx=info").args(arguments);
        command
    }

    /// The same inside a network namespace.
    pub fn comfy_farm_in(namespace: &str, folder: &Path, arguments: &[&str]) -> Command {
        behind("ip", &["netns", "exec", namespace], &Self::comfy_farm(folder, arguments))
    }

    /// The same with no network at all, not even a loopback that is up; `None` where this user may not have that.
    pub async fn comfy_farm_alone(folder: &Path, arguments: &[&str]) -> anyhow::Result<Option<Command>> {
        let alone = ["--map-root-user", "--net", "--"];
        let tried = Command::new("unshare").args(alone).arg("true").output().await?;
        if !tried.status.success() {
            skipped(&format!("no network of its own: {}", String::from_utf8_lossy(&tried.stderr).trim()));
            return Ok(None);
        }
        Ok(Some(behind("unshare", &alone, &Self::comfy_farm(folder, arguments))))
    }

    /// The next line of stdout, within a minute.
    pub async fn line(&mut self) -> anyhow::Result<String> {
        match tokio::time::timeout(Duration::from_secs(60), self.stdout.next_line()).await {
            Ok(Ok(Some(line))) => Ok(line),
            _ => bail!("no line came; its log:\n{}", self.log()),
        }
    }

    /// The next line of stdout as JSON.
    pub async fn json(&mut self) -> anyhow::Result<Value> {
        let line = self.line().await?;
        serde_json::from_str(&line).with_context(|| format!("`{line}` is no JSON"))
    }

    /// All further lines of stdout, until its end; within a minute.
    pub async fn rest(&mut self) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::new();
        let reading = async {
            while let Some(line) = self.stdout.next_line().await? {
                lines.push(line);
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(Duration::from_secs(60), reading).await??;
        Ok(lines)
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("it runs");
        kill(Pid::from_raw(i32::try_from(pid).expect("a pid")), signal).expect("it is ours");
    }

    /// Ends it as a power cut would, and waits until it is gone.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it is ours");
    }

    /// Waits for its end, within a minute.
    pub async fn wait(&mut self) -> anyhow::Result<std::process::ExitStatus> {
        Ok(tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await??)
    }
}
