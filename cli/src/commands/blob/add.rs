//! `comfy-farm blob add`.

use anyhow::bail;
use mesh::control::{Reply, Request};
use mesh::store::ByteSize;
use serde_json::json;

use super::{AddArguments, ask};
use crate::failure::Failure;
use crate::show;

pub(super) async fn add(arguments: &AddArguments) -> anyhow::Result<()> {
    // The process that has the store may run in another folder.
    let path = std::fs::canonicalize(&arguments.path)
        .map_err(|error| Failure::Input(format!("`{}` cannot be read: {error}", arguments.path.display())))?;
    let Reply::Added(indexed) = ask(&arguments.store, Request::Add { path }).await? else {
        bail!("the process answered something else: it may be of another version");
    };
    if arguments.json {
        show::json(&json!(indexed));
        return Ok(());
    }
    println!(
        "{} files of {} are blobs, {} of them new",
        indexed.files,
        ByteSize(indexed.bytes),
        indexed.hashed
    );
    if arguments.path.is_dir() {
        println!(
            "the node follows this folder; `comfy-farm blob forget {}` ends that",
            arguments.path.display()
        );
    }
    if indexed.skipped > 0 {
        println!("{} files were passed over; the log says why", indexed.skipped);
    }
    if indexed.links > 0 {
        println!(
            "{} symbolic links were not followed (`find {} -type l` lists them): add what they lead to by itself",
            indexed.links,
            arguments.path.display()
        );
    }
    Ok(())
}
