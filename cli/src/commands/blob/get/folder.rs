//! `comfy-farm blob get` of a folder: its list, then its files, then the folder as a whole.

use std::collections::BTreeSet;
use std::path::Path;

use mesh::collection::{fetch_collection, fetch_folder};
use mesh::fetch::{Exchange, Progress};
use protocol::blob_ticket::BlobTicket;
use tokio::sync::watch;

use super::{Brought, sharer};
use crate::commands::blob::progress::FetchProgress;

/// Fetches a folder and moves it to its place; until then its files lie in `beside`.
pub(super) async fn bring(
    exchange: &Exchange,
    ticket: &BlobTicket,
    beside: &Path,
    output: &Path,
    here: &watch::Sender<Progress>,
) -> anyhow::Result<Brought> {
    let sharer = [sharer(ticket)];
    let collection = fetch_collection(exchange, ticket.blob, &sharer).await?;
    let size = collection.size();
    eprintln!("{} files", collection.files().len());
    let (bytes, mut news) = watch::channel(0);
    let staging = beside.join("folder");
    let fetching = fetch_folder(exchange, &collection, &sharer, staging, output.to_owned(), Some(&bytes));
    let mut progress = FetchProgress::new(size, 0);
    let showing = async {
        while news.changed().await.is_ok() {
            let bytes = *news.borrow_and_update();
            // Small files come many at a time, and from how many is not known.
            let transfers = exchange.transfers();
            let sources =
                transfers.iter().flat_map(|transfer| &transfer.sources).map(|source| source.from.to_string());
            let sources = sources.collect::<BTreeSet<_>>().len();
            here.send_replace(Progress { bytes, sources, ..Progress::default() });
            progress.show(bytes, sources);
        }
        std::future::pending().await
    };
    let from = tokio::select! {
        from = fetching => from?,
        () = showing => unreachable!("it never ends"),
    };
    progress.finish();
    Ok(Brought { size, from: from.into_iter().collect() })
}
