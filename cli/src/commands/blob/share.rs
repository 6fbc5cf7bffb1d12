//! `comfy-farm blob share`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use indicatif::BinaryBytes;
use mesh::collection::collect_folder;
use mesh::folder::PassingFolder;
use mesh::identity::Identity;
use mesh::store::BlobStore;
use protocol::blob_ticket::BlobTicket;
use tokio_util::sync::CancellationToken;

use super::carry::Listener;
use crate::args::LimitArguments;
use crate::commands::asked_to_stop;
use crate::failure::Failure;
use crate::show;

#[derive(Debug, Args)]
pub(crate) struct ShareArguments {
    /// The file, or a folder, which is shared without hidden files and symbolic links. It is served where it
    /// lies; a file that changes is served no longer.
    pub(crate) file: PathBuf,
    /// Where it is served, UDP and TCP; other machines must reach it. Defaults to a free port on all
    /// interfaces.
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:0", hide_default_value = true)]
    pub(crate) listen: SocketAddr,
    #[command(flatten)]
    pub(crate) limits: LimitArguments,
}

pub(super) async fn share(arguments: &ShareArguments) -> anyhow::Result<()> {
    let file = arguments.file.display();
    let is_folder = match std::fs::metadata(&arguments.file) {
        Ok(metadata) if metadata.is_file() || metadata.is_dir() => metadata.is_dir(),
        Ok(_) => return Err(Failure::Input(format!("`{file}` is neither a file nor a folder")).into()),
        Err(error) => return Err(Failure::Input(format!("`{file}` cannot be read: {error}")).into()),
    };
    // Before the file is read, so that a port that is taken is found at once.
    let listener = Listener::bind(arguments.listen).await?;
    let folder = PassingFolder::make("comfy-farm-share-", "a `blob share`")?;
    let store = BlobStore::open(folder.path()).await?;
    eprintln!("reading `{file}`");
    let (blob, size) = if is_folder {
        let progress = show::ByteProgress::new();
        let reading = collect_folder(&store, &arguments.file, CancellationToken::new(), move |now| {
            progress.show(now);
        });
        let (collection, list) = reading.await?;
        (list, collection.size())
    } else {
        let blob = store.import_in_place(&arguments.file).await?;
        (blob, blob.size)
    };

    // `.` and `..` have names of their own.
    let path = std::fs::canonicalize(&arguments.file)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let seed = Identity::generate()?.signing_key().to_bytes();
    let ticket = BlobTicket::new(blob, &name, listener.peer(), listener.addresses(), seed);
    let ticket = if is_folder { ticket.for_folder() } else { ticket };
    let carrier = listener.join(ticket.clone(), store);
    carrier.exchange.set_limits(arguments.limits.resolve());
    println!("{ticket}");
    eprintln!("serving {} until Ctrl-C; whoever has the ticket can fetch it:", BinaryBytes(size));
    eprintln!("  comfy-farm blob get TICKET -o {}", ticket.file_name);
    if ticket.is_loopback_only() {
        eprintln!(
            "note: this ticket works on this machine only: `--listen` names an address of the loopback"
        );
    }
    asked_to_stop().await;
    carrier.exchange.shutdown().await;
    Ok(())
}
