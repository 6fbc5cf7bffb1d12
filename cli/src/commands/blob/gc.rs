//! `comfy-farm blob gc`.

use anyhow::bail;
use mesh::control::{Reply, Request};
use mesh::store::ByteSize;
use serde_json::json;

use super::{GcArguments, ask};
use crate::show;

pub(super) async fn gc(arguments: &GcArguments) -> anyhow::Result<()> {
    let request = Request::Collect { quota: arguments.quota.map(|quota| quota.0) };
    let Reply::Collected(collected) = ask(&arguments.store, request).await? else {
        bail!("the process answered something else: it may be of another version");
    };
    if arguments.json {
        show::json(&json!(collected));
    } else {
        let bytes = ByteSize(collected.bytes);
        println!("{} blobs and {} unfinished ones deleted, {bytes}", collected.blobs, collected.partial);
    }
    Ok(())
}
