//! `comfy-farm workspace rm`.

use anyhow::bail;
use mesh::store::ByteSize;
use node::workspace::care::{CareReply, CareRequest};
use serde_json::json;

use super::{RmArguments, ask};
use crate::show;

pub(super) async fn rm(arguments: &RmArguments) -> anyhow::Result<()> {
    let request = CareRequest::Remove { lockfile: arguments.lockfile.clone() };
    let CareReply::Removed(removed) = ask(&arguments.node, request).await? else {
        bail!("the process answered something else: it may be of another version");
    };
    if arguments.json {
        show::json(&json!(removed));
        return Ok(());
    }
    removed.workspaces.iter().for_each(|lockfile| println!("removed {lockfile}"));
    removed.at_work.iter().for_each(|lockfile| println!("left {lockfile}: it is at work"));
    println!("{} workspaces of {}", removed.workspaces.len(), ByteSize(removed.bytes));
    Ok(())
}
