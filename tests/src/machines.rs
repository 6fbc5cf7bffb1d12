//! A farm of two machines: the coordinator and nodes on the one, nodes on the other.
//!
//! Not here: what they are to do.

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::namespaces::Namespaces;
use crate::process::Process;

/// The farm; dropping it ends its processes.
pub struct Machines {
    /// The machines.
    pub namespaces: Namespaces,
    /// All data of the farm.
    pub folder: tempfile::TempDir,
    /// The coordinator's process.
    pub coordinator: Process,
    /// The nodes and their peer ids, in the order of their start.
    pub nodes: Vec<(Process, String)>,
    ticket: String,
    key: String,
}

impl Machines {
    /// Starts the coordinator; the machines have addresses of this subnet of 10.77.0.0/16. Needs root.
    pub async fn start(subnet: u8) -> anyhow::Result<Self> {
        let namespaces = Namespaces::new(subnet).await?;
        let folder = tempfile::tempdir()?;
        let mut command = namespaces.comfy_farm(0, folder.path(), &["coordinator", "--json"]);
        command.args(["--http", "127.0.0.1:8288", "--data"]).arg(folder.path().join("coordinator"));
        let mut coordinator = Process::start(command, &folder.path().join("coordinator.log"))?;
        let up = coordinator.json().await?;
        let said = |key: &str| up[key].as_str().unwrap_or_default().to_owned();
        let (ticket, key) = (said("ticket"), said("key"));
        Ok(Self { namespaces, folder, coordinator, nodes: Vec::new(), ticket, key })
    }

    /// Starts a node on a machine, with these variables in its environment.
    pub async fn start_node(
        &mut self,
        machine: usize,
        flags: &[String],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let data = self.folder.path().join(format!("node-{}", self.nodes.len() + 1));
        let arguments = ["node", "--yes", "--join", &self.ticket, "--data"];
        let mut command = self.namespaces.comfy_farm(machine, self.folder.path(), &arguments);
        command.arg(&data).args(flags).envs(environment.iter().copied());
        let mut node = Process::start(command, &data.with_extension("log"))?;
        let peer = node.line().await?.split_whitespace().nth(1).context("a node says who it is")?.to_owned();
        self.nodes.push((node, peer));
        Ok(())
    }

    /// A command of a person at the coordinator's machine.
    pub async fn tool(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut command = self.namespaces.comfy_farm(0, self.folder.path(), arguments);
        let output = command.args(["--json", "--key", &self.key]).output().await?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{arguments:?}: {words}\n{}", self.coordinator.log());
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}
