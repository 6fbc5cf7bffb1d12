//! `comfy-farm workspace`: the workspaces of this machine's node, and what a bundle is rebuilt from; one file for each
//! subcommand.

mod plan;
mod ls;
mod rm;
mod verify;

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use mesh::control::{Custodian, CustodianError, FailureKind, Reply, Request};
use node::workspace::care::{CareReply, CareRequest, Caretaker};
use protocol::{Accelerator, error_chain};

use crate::args::DataArguments;
use crate::failure::Failure;
use crate::settings;

#[derive(Debug, Subcommand)]
pub(crate) enum WorkspaceCommand {
    /// Say what a rebuild of a bundle would fetch and install, to the last URL. Asks no network.
    Plan(PlanArguments),
    /// List the workspaces that a node has or is to have, the last used first.
    Ls(LsArguments),
    /// Remove workspaces, with the code and Python that no other one uses. A running node builds one that is
    /// wanted anew.
    Rm(RmArguments),
    /// Compare every file of workspaces with what it is to be. Ends with 1 where any differs.
    Verify(VerifyArguments),
}

#[derive(Debug, Args)]
pub(crate) struct PlanArguments {
    /// A bundle (`.cpack.zip`).
    pub(crate) file: PathBuf,
    /// For which accelerator: `cuda12.4` (the newest CUDA that the driver knows), `rocm`, `mps` or `cpu`.
    #[arg(long, default_value = "cpu")]
    pub(crate) accelerator: Accelerator,
    /// For which system. Defaults to this machine's.
    #[arg(long, value_name = "OS-ARCHITECTURE")]
    pub(crate) platform: Option<String>,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LsArguments {
    #[command(flatten)]
    pub(crate) node: DataArguments,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RmArguments {
    #[command(flatten)]
    pub(crate) node: DataArguments,
    /// The lockfile's hash, or its beginning.
    #[arg(required_unless_present = "unused")]
    pub(crate) lockfile: Option<String>,
    /// All that the farm does not want here. Only a running node knows which these are.
    #[arg(long, conflicts_with = "lockfile")]
    pub(crate) unused: bool,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    #[command(flatten)]
    pub(crate) node: DataArguments,
    /// The lockfile's hash, or its beginning. Defaults to all.
    pub(crate) lockfile: Option<String>,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

pub(super) async fn workspace(command: &WorkspaceCommand) -> anyhow::Result<()> {
    match command {
        WorkspaceCommand::Plan(arguments) => plan::plan(arguments),
        WorkspaceCommand::Ls(arguments) => ls::ls(arguments).await,
        WorkspaceCommand::Rm(arguments) => rm::rm(arguments).await,
        WorkspaceCommand::Verify(arguments) => verify::verify(arguments).await,
    }
}

/// Asks the node that runs on a data folder, or else looks after its workspaces ourselves.
async fn ask(node: &DataArguments, request: CareRequest) -> anyhow::Result<CareReply> {
    let data = settings::node_data(node.data.as_deref())?;
    let custodian = Custodian::find(&data).await?;
    if let Custodian::Ourselves { store, .. } = &custodian {
        let caretaker = Caretaker::new(data.join("workspaces"), store.clone());
        let performed = caretaker.perform(request).await;
        return performed.map_err(|error| failure(error.kind(), error_chain(&error)));
    }
    let request = Request::Role { request: serde_json::to_value(request)? };
    let reply = custodian.ask(request, |_| {}).await.map_err(|error| match error {
        CustodianError::Failed { kind, words } => failure(kind, words),
        error => error.into(),
    })?;
    let other = "the process answered something else: it may be of another version";
    let Reply::Role(reply) = reply else { return Err(anyhow!(other)) };
    serde_json::from_value(reply).context(other)
}

fn failure(kind: FailureKind, words: String) -> anyhow::Error {
    match kind {
        FailureKind::NotFound => Failure::NotFound(words).into(),
        FailureKind::Input => Failure::Input(words).into(),
        FailureKind::Other => anyhow!(words),
    }
}
