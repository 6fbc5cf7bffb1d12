//! `comfy-farm blob forget`.

use std::path::PathBuf;

use anyhow::bail;
use mesh::control::{Reply, Request};
use serde_json::json;

use super::{ForgetArguments, ask};
use crate::show;

pub(super) async fn forget(arguments: &ForgetArguments) -> anyhow::Result<()> {
    // A folder that is gone by now is forgotten by the name that it had.
    let path = std::fs::canonicalize(&arguments.path).or_else(|_| std::path::absolute(&arguments.path));
    let path: PathBuf = path?;
    let Reply::Forgotten { files } = ask(&arguments.store, Request::Forget { path }).await? else {
        bail!("the process answered something else: it may be of another version");
    };
    if arguments.json {
        show::json(&json!({ "files": files }));
    } else {
        println!("{files} files are no longer blobs; they lie where they lay");
    }
    Ok(())
}
