//! `comfy-farm blob`: the blobs on this machine, one file for each subcommand.

mod ls;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::environment;

#[derive(Debug, Subcommand)]
pub(crate) enum BlobCommand {
    /// List the blobs that a data folder holds.
    Ls(LsArguments),
}

/// Whose blobs they are.
#[derive(Debug, Args)]
pub(crate) struct StoreArguments {
    /// The data folder of a node or coordinator, running or not. Defaults to the node's.
    #[arg(long, value_name = "DIR", env = environment::DATA)]
    pub(crate) data: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct LsArguments {
    #[command(flatten)]
    pub(crate) store: StoreArguments,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

pub(super) async fn blob(command: BlobCommand) -> anyhow::Result<()> {
    match command {
        BlobCommand::Ls(arguments) => ls::ls(&arguments).await,
    }
}
