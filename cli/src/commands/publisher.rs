//! `comfy-farm publisher`: keys that vouch for bundles, and whom a node trusts; one file for each side of it.

mod key;
mod trust;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use protocol::PublisherKey;

use crate::args::DataArguments;

#[derive(Debug, Subcommand)]
pub(crate) enum PublisherCommand {
    /// Make a key with which to sign bundles, and print its public half, which owners of nodes trust.
    New(NewArguments),
    /// Sign the lockfile of a bundle.
    Sign(SignArguments),
    /// Have this machine's node rebuild what a publisher signed.
    Trust(TrustArguments),
    /// Have it rebuild and run nothing more of a publisher.
    Untrust(TrustArguments),
    /// List whom it trusts, beside the farm.
    Ls(LsArguments),
}

#[derive(Debug, Args)]
pub(crate) struct NewArguments {
    /// The file, which must not be there yet. Whoever can read it can sign as you.
    #[arg(long, short, value_name = "FILE", default_value = "publisher.key")]
    pub(crate) output: PathBuf,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SignArguments {
    /// A bundle (`.cpack.zip`).
    pub(crate) bundle: PathBuf,
    /// The key, as `comfy-farm publisher new` makes one.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
    /// Where the signed bundle is written. Defaults to the bundle itself.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TrustArguments {
    #[command(flatten)]
    pub(crate) node: DataArguments,
    /// The publisher's public key: 64 hex digits.
    pub(crate) key: PublisherKey,
}

#[derive(Debug, Args)]
pub(crate) struct LsArguments {
    #[command(flatten)]
    pub(crate) node: DataArguments,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

pub(super) fn publisher(command: &PublisherCommand) -> anyhow::Result<()> {
    match command {
        PublisherCommand::New(arguments) => key::new(arguments),
        PublisherCommand::Sign(arguments) => key::sign(arguments),
        PublisherCommand::Trust(arguments) => trust::trust(arguments),
        PublisherCommand::Untrust(arguments) => trust::untrust(arguments),
        PublisherCommand::Ls(arguments) => trust::ls(arguments),
    }
}
