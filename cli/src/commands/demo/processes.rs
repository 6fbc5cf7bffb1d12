//! The processes of a demo: started from this very binary, logged into a folder, ended with it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::environment;

/// How long the coordinator gets to come up.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a process gets to end in good order.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The processes, in the order of their start.
pub(super) struct Farm {
    folder: PathBuf,
    processes: Vec<Process>,
}

struct Process {
    name: String,
    child: Child,
}

impl Farm {
    pub(super) fn new(folder: &Path) -> anyhow::Result<Self> {
        // The person's own settings are not the demo's.
        std::fs::write(folder.join("config.toml"), "")?;
        Ok(Self { folder: folder.to_owned(), processes: Vec::new() })
    }

    /// Starts the coordinator and gives what it says when it is up.
    pub(super) async fn start_coordinator(&mut self) -> anyhow::Result<Value> {
        let mut command = self.command("coordinator")?;
        command.args(["coordinator", "--json", "--http", "127.0.0.1:0", "--listen", "127.0.0.1:0"]);
        command.args(["--data-listen", "127.0.0.1:0"]).stdout(Stdio::piped());
        let mut child = command.spawn().context("the coordinator cannot be started")?;
        let stdout = child.stdout.take().context("the coordinator has no output")?;
        self.processes.push(Process { name: "coordinator".to_owned(), child });
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(START_TIMEOUT, lines.next_line()).await;
        match line {
            Ok(Ok(Some(line))) => {
                serde_json::from_str(&line).context("the coordinator's first line is no JSON")
            }
            _ => bail!("the coordinator did not come up: {}", self.logs()),
        }
    }

    /// Starts a node that joins with the ticket in a file.
    pub(super) fn start_node(
        &mut self,
        number: u16,
        ticket: &Path,
        comfyui: Option<&str>,
    ) -> anyhow::Result<()> {
        let name = format!("node-{number}");
        let mut command = self.command(&name)?;
        command.args(["node", "--yes", "--data-listen", "127.0.0.1:0", "--join"]);
        command.arg(format!("@{}", ticket.display())).stdout(Stdio::null());
        match comfyui {
            Some(url) => command.args(["--comfyui", url]),
            None => command.args(["--engine", "builtin"]),
        };
        let child = command.spawn().with_context(|| format!("{name} cannot be started"))?;
        self.processes.push(Process { name, child });
        Ok(())
    }

    /// An error where a process has ended by itself.
    pub(super) fn check_alive(&mut self) -> anyhow::Result<()> {
        for process in &mut self.processes {
            if let Some(status) = process.child.try_wait()? {
                let log = std::fs::read_to_string(self.folder.join(format!("{}.log", process.name)));
                bail!("{} ended with {status}:\n{}", process.name, log.unwrap_or_default().trim_end());
            }
        }
        Ok(())
    }

    /// The end of each process's log.
    pub(super) fn logs(&self) -> String {
        let mut text = String::new();
        for Process { name, .. } in &self.processes {
            let log = std::fs::read_to_string(self.folder.join(format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(10)..].join("\n  ");
            text.push_str(&format!("\n{name}:\n  {end}"));
        }
        text
    }

    /// Ends every process, nodes first, and waits for it.
    pub(super) async fn stop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            if let Some(pid) = process.child.id().and_then(|id| i32::try_from(id).ok()) {
                // If it has ended meanwhile, the wait below says so at once.
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            if tokio::time::timeout(STOP_TIMEOUT, process.child.wait()).await.is_err() {
                eprintln!("{} did not end in time and is killed", process.name);
                let _ = process.child.kill().await;
            }
        }
    }

    fn command(&self, name: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("this program's own file is gone")?);
        for variable in environment::ALL {
            command.env_remove(variable);
        }
        let log = std::fs::File::create(self.folder.join(format!("{name}.log")))?;
        command.arg("--config").arg(self.folder.join("config.toml"));
        command.env(environment::DATA, self.folder.join(name));
        command.stdin(Stdio::null()).stderr(log).kill_on_drop(true);
        Ok(command)
    }
}
