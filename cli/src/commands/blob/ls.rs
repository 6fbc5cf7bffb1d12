//! `comfy-farm blob ls`.

use anyhow::bail;
use mesh::control::{Reply, Request};
use mesh::store::{BlobEntry, ByteSize};
use serde_json::json;

use super::{LsArguments, ask};
use crate::show;

pub(super) async fn ls(arguments: &LsArguments) -> anyhow::Result<()> {
    let Reply::Listed(blobs) = ask(&arguments.store, Request::List).await? else {
        bail!("the process answered something else: it may be of another version");
    };
    if arguments.json {
        show::json(&json!({ "blobs": blobs }));
        return Ok(());
    }
    show::table(&["BLOB", "SIZE", "KEPT", "FILE"], &blobs.iter().map(row).collect::<Vec<_>>());
    Ok(())
}

fn row(blob: &BlobEntry) -> Vec<String> {
    let kept = match (blob.pinned, blob.shared) {
        (true, true) => "pinned",
        (true, false) => "pinned, private",
        (false, false) => "private",
        (false, true) => "",
    };
    let file = blob.in_place.first().map_or_else(String::new, |path| path.display().to_string());
    vec![blob.hash.to_string(), ByteSize(blob.size).to_string(), kept.to_owned(), file]
}
