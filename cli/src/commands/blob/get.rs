//! `comfy-farm blob get`: a file that another machine shares, fetched beside its place and moved there.
//!
//! What has come lies in a hidden folder beside the file until then, so that a `get` that was killed goes
//! on where it was. Not here: a blob that is named by its hash; the node fetches that (`named`).

mod folder;
mod named;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use mesh::fetch::{Exchange, FetchError, Progress};
use mesh::folder::DataFolder;
use mesh::store::BlobStore;
use protocol::blob_ticket::{BlobTicket, PREFIX};
use protocol::message::Provider;
use protocol::{Fetched, PeerId};
use serde_json::json;
use tokio::sync::watch;

use super::StoreArguments;
use super::carry::Listener;
use super::progress::FetchProgress;
use crate::args::LimitArguments;
use crate::commands::{asked_to_stop, read_ticket};
use crate::failure::Failure;
use crate::show;

#[derive(Debug, Args)]
pub(crate) struct GetArguments {
    /// The ticket that `blob share` printed, or @FILE that holds it; or the BLAKE3 hash of a blob, or
    /// `sha256:` and a SHA-256, which the node on this machine fetches from its farm.
    #[arg(value_name = "TICKET|HASH")]
    pub(crate) source: String,
    /// The file, or folder, to make. It appears when it is complete and verified; until then, what has come lies in
    /// `.FILE.comfy-farm` beside it, from where the same command goes on.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// Where others who fetch the same file can take what is here, UDP and TCP. Defaults to a free port on
    /// all interfaces.
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:0", hide_default_value = true)]
    pub(crate) listen: SocketAddr,
    #[command(flatten)]
    pub(crate) store: StoreArguments,
    /// For a hash: fetch from this peer only. Repeatable.
    #[arg(long, value_name = "PEER")]
    pub(crate) from: Vec<PeerId>,
    /// For a SHA-256: where on the internet the file is; the node reads there what no peer has. Repeatable.
    #[arg(long, value_name = "URL")]
    pub(crate) url: Vec<String>,
    /// For a hash: its size in bytes, where neither the farm nor a URL would say it.
    #[arg(long, value_name = "BYTES")]
    pub(crate) size: Option<u64>,
    #[command(flatten)]
    pub(crate) limits: LimitArguments,
    /// Go on serving the file to others until Ctrl-C.
    #[arg(long)]
    pub(crate) keep_serving: bool,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

pub(super) async fn get(arguments: &GetArguments) -> anyhow::Result<()> {
    if let Ok(name) = arguments.source.parse() {
        return named::get(arguments, name).await;
    }
    if !arguments.source.starts_with('@') && !arguments.source.starts_with(PREFIX) {
        let source = &arguments.source;
        let expected = format!(
            "a ticket (`{PREFIX}…`, or @FILE) nor a hash (64 hexadecimal digits, or `sha256:` and 64)"
        );
        return Err(Failure::Ticket(format!("`{source}` is neither {expected}")).into());
    }
    let ticket: BlobTicket = read_ticket(&arguments.source)?;
    let output = &arguments.output;
    let folder = folder_beside(output)?;
    if ticket.is_folder && output.exists() {
        return Err(Failure::Usage(format!("`{}` is there already", output.display())).into());
    }
    let listener = Listener::bind(arguments.listen).await?;
    let taken = DataFolder::take(&folder, "another `blob get` of this file")?;
    let store = BlobStore::open(&folder).await?;
    let carrier = listener.join(ticket.clone(), store);
    carrier.exchange.set_limits(arguments.limits.resolve());

    let began = Instant::now();
    let (sender, here) = watch::channel(Progress::default());
    let bringing = async {
        if ticket.is_folder {
            folder::bring(&carrier.exchange, &ticket, &folder, output, &sender).await
        } else {
            bring_file(&carrier.exchange, &ticket, output, &sender).await
        }
    };
    let brought = tokio::select! {
        brought = bringing => brought,
        () = asked_to_stop() => Err(anyhow::anyhow!("stopped; the same command goes on from here")),
    };
    let Brought { size, from } = match brought {
        Ok(brought) => brought,
        Err(error) => {
            carrier.exchange.shutdown().await;
            if here.borrow().bytes == 0 {
                remove(&folder)?;
            }
            return Err(error.context(format!("`{}` did not come whole", ticket.file_name)));
        }
    };
    if arguments.json {
        let from: Vec<_> = from.iter().map(|(peer, bytes)| json!({ "peer": peer, "bytes": bytes })).collect();
        let seconds = began.elapsed().as_secs_f64();
        let hash = ticket.blob.hash;
        show::json(&json!({ "file": output, "blob": hash, "size": size, "seconds": seconds, "from": from }));
    } else {
        println!("done {}", output.display());
    }
    if arguments.keep_serving {
        eprintln!("serving it to others until Ctrl-C");
        asked_to_stop().await;
    }
    carrier.exchange.shutdown().await;
    remove(&folder)?;
    drop(taken);
    Ok(())
}

/// What came, and from whom how many bytes of it.
struct Brought {
    size: u64,
    from: Vec<(PeerId, u64)>,
}

/// Fetches a file and moves it to its place.
async fn bring_file(
    exchange: &Exchange,
    ticket: &BlobTicket,
    output: &Path,
    here: &watch::Sender<Progress>,
) -> anyhow::Result<Brought> {
    let fetched = fetch(exchange, ticket, here).await?;
    exchange.store().hand_over(ticket.blob.hash, output).await?;
    let from = fetched.iter().map(|part| (part.from, part.bytes)).collect();
    Ok(Brought { size: ticket.blob.size, from })
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    std::fs::remove_dir_all(folder).with_context(|| format!("`{}` cannot be removed", folder.display()))
}

/// Fetches the blob from the sharer and whoever it names. A link that breaks is made again as long as
/// each one brings something.
async fn fetch(
    exchange: &Exchange,
    ticket: &BlobTicket,
    here: &watch::Sender<Progress>,
) -> anyhow::Result<Vec<Fetched>> {
    // Held until the end: what an earlier run left is verified once.
    let partial = exchange.store().partial(ticket.blob).await?;
    here.send_replace(Progress { bytes: partial.bytes(), ..Progress::default() });
    let mut news = here.subscribe();
    let mut progress = FetchProgress::new(ticket.blob.size, partial.bytes());
    let sharer = [sharer(ticket)];
    let fetching = async {
        loop {
            let before = partial.bytes();
            match exchange.fetch(ticket.blob, &sharer, Some(here)).await {
                Err(FetchError::NoProvider { .. }) if partial.bytes() > before => {}
                Err(error @ FetchError::NoProvider { .. }) => {
                    return Err(Failure::Ticket(error.to_string()).into());
                }
                result => return Ok(result?),
            }
        }
    };
    let showing = async {
        while news.changed().await.is_ok() {
            let Progress { bytes, sources, .. } = *news.borrow_and_update();
            progress.show(bytes, sources);
        }
        std::future::pending().await
    };
    let fetched = tokio::select! {
        fetched = fetching => fetched,
        () = showing => unreachable!("it never ends"),
    };
    progress.finish();
    fetched
}

fn sharer(ticket: &BlobTicket) -> Provider {
    Provider { peer: ticket.peer, addresses: ticket.addresses.clone() }
}

/// The hidden folder beside the file that is to be made.
fn folder_beside(output: &Path) -> Result<PathBuf, Failure> {
    let wrong = |what: &str| Failure::Usage(format!("`{}` {what}", output.display()));
    if output.is_dir() {
        return Err(wrong("is a folder: give the name of a file in it"));
    }
    let name = output.file_name().ok_or_else(|| wrong("names no file"))?;
    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        return Err(wrong("cannot be made: its folder does not exist"));
    }
    Ok(parent.join(format!(".{}.comfy-farm", name.to_string_lossy())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_file_lies_hidden_beside_the_whole_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let beside = folder_beside(&folder.path().join("model.bin")).expect("a file in a folder");
        assert_eq!(beside, folder.path().join(".model.bin.comfy-farm"));
        assert_eq!(
            folder_beside(Path::new("model.bin")).ok(),
            Some(PathBuf::from("./.model.bin.comfy-farm"))
        );
        for wrong in [folder.path(), Path::new("/"), Path::new("/no/such/folder/model.bin")] {
            assert!(folder_beside(wrong).is_err(), "{}", wrong.display());
        }
    }
}
