//! `comfy-farm workspace`: what a bundle is rebuilt from, without a farm; one file for each subcommand.

mod plan;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use protocol::Accelerator;

#[derive(Debug, Subcommand)]
pub(crate) enum WorkspaceCommand {
    /// Say what a rebuild of a bundle would fetch and install, to the last URL. Asks no network.
    Plan(PlanArguments),
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

pub(super) fn workspace(command: &WorkspaceCommand) -> anyhow::Result<()> {
    match command {
        WorkspaceCommand::Plan(arguments) => plan::plan(arguments),
    }
}
