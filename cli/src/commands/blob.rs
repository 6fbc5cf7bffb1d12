//! `comfy-farm blob`: the blobs on this machine, one file for each subcommand.

mod ls;
mod add;
mod forget;
mod verify;
mod gc;
mod pin;
mod share;
mod get;
mod locate;
mod carry;
mod progress;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use mesh::control::{Custodian, Progress, Reply, Request};
use mesh::store::ByteSize;
use protocol::BlobHash;

use crate::settings::SettingsFile;
use crate::{environment, settings, show};

#[derive(Debug, Subcommand)]
pub(crate) enum BlobCommand {
    /// List the blobs that a data folder holds.
    Ls(LsArguments),
    /// Make models blobs where they lie: each file of the folder is hashed, none is copied.
    Add(AddArguments),
    /// Follow a folder no longer, and let its files be blobs no longer; they stay where they are.
    Forget(ForgetArguments),
    /// Read blobs again, and forget those that are not what their name says.
    Verify(VerifyArguments),
    /// Delete what transfers left behind, and the least recently used blobs over the quota.
    Gc(GcArguments),
    /// Never evict a blob.
    Pin(PinArguments),
    /// Let a blob be evicted again.
    Unpin(PinArguments),
    /// Serve one file to whoever has the ticket that this prints, with no farm: the quickest way to carry
    /// a model to another machine. The ticket is a secret like a password: whoever has it can fetch the
    /// file, as long as this runs.
    Share(share::ShareArguments),
    /// Fetch a file that another machine shares, from it and from those who fetch it as well; or a blob of
    /// the farm, through the node that runs on this machine.
    Get(get::GetArguments),
    /// Say who holds a blob.
    Where(locate::WhereArguments),
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

#[derive(Debug, Args)]
pub(crate) struct AddArguments {
    #[command(flatten)]
    pub(crate) store: StoreArguments,
    /// A folder of models, one file, or ComfyUI's `extra_model_paths.yaml`. What is listed in the folder's
    /// `.comfy-farm-private` is never served. A node follows it from now on, also after a restart, as a folder of
    /// its `--models`; `blob forget` ends that.
    pub(crate) path: PathBuf,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ForgetArguments {
    #[command(flatten)]
    pub(crate) store: StoreArguments,
    /// What `blob add` named, or a folder or file in it.
    pub(crate) path: PathBuf,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    #[command(flatten)]
    pub(crate) store: StoreArguments,
    /// The blob. Defaults to all of them.
    pub(crate) hash: Option<BlobHash>,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GcArguments {
    #[command(flatten)]
    pub(crate) store: StoreArguments,
    /// Shrink to this size, such as 200GB. Defaults to the quota of the process that runs there.
    #[arg(long, value_name = "SIZE")]
    pub(crate) quota: Option<ByteSize>,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PinArguments {
    #[command(flatten)]
    pub(crate) store: StoreArguments,
    /// The blob.
    pub(crate) hash: BlobHash,
}

pub(super) async fn blob(command: BlobCommand, file: &SettingsFile) -> anyhow::Result<()> {
    match command {
        BlobCommand::Ls(arguments) => ls::ls(&arguments).await,
        BlobCommand::Add(arguments) => add::add(&arguments).await,
        BlobCommand::Forget(arguments) => forget::forget(&arguments).await,
        BlobCommand::Verify(arguments) => verify::verify(&arguments).await,
        BlobCommand::Gc(arguments) => gc::gc(&arguments).await,
        BlobCommand::Pin(arguments) => pin::set_pinned(&arguments, true).await,
        BlobCommand::Unpin(arguments) => pin::set_pinned(&arguments, false).await,
        BlobCommand::Share(arguments) => share::share(&arguments).await,
        BlobCommand::Get(arguments) => get::get(&arguments).await,
        BlobCommand::Where(arguments) => locate::locate(&arguments, file).await,
    }
}

/// Asks whoever has the store, and shows on the way how far it is.
async fn ask(store: &StoreArguments, request: Request) -> anyhow::Result<Reply> {
    let data = settings::node_data(store.data.as_deref())?;
    let progress = show::ByteProgress::new();
    let custodian = Custodian::find(&data).await?;
    let reply = custodian.ask(request, move |now| {
        if let Progress::Reading(now) = now {
            progress.show(now);
        }
    });
    Ok(reply.await?)
}
