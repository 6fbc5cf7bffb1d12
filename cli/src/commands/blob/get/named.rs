//! `comfy-farm blob get HASH`: a blob of the farm, fetched by the node that runs on this machine.
//!
//! Not here: how it is fetched; the node does that, and keeps the blob.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::bail;
use mesh::control::{Custodian, GetRequest, Progress, Reply, Request};
use protocol::{BlobName, BlobRef};
use serde_json::json;

use super::GetArguments;
use crate::commands::asked_to_stop;
use crate::commands::blob::progress::FetchProgress;
use crate::failure::Failure;
use crate::{settings, show};

pub(super) async fn get(arguments: &GetArguments, name: BlobName) -> anyhow::Result<()> {
    let output = full_path(&arguments.output)?;
    let data = settings::node_data(arguments.store.data.as_deref())?;
    let custodian = Custodian::find(&data).await?;
    let began = Instant::now();
    let shown: Arc<Mutex<Option<FetchProgress>>> = Arc::default();
    let showing = Arc::clone(&shown);
    if matches!(name, BlobName::Blake3(_)) && !arguments.url.is_empty() {
        let words = "`--url` is for a file that is named `sha256:…`: by that it is proven";
        return Err(Failure::Usage(words.to_owned()).into());
    }
    let request = Request::Get(GetRequest {
        name,
        from: arguments.from.clone(),
        urls: arguments.url.clone(),
        size: arguments.size,
        output,
    });
    let asking = custodian.ask(request, move |progress| {
        if let Progress::Fetching(transfer) = progress {
            let mut shown = showing.lock().expect("nothing panics while it is shown");
            let shown = shown.get_or_insert_with(|| match transfer.name {
                BlobName::Blake3(_) => FetchProgress::new(transfer.size, transfer.here),
                BlobName::Sha256(_) => FetchProgress::unproven(transfer.size, transfer.here),
            });
            shown.show(transfer.here, transfer.sources.len());
        }
    });
    let reply = tokio::select! {
        reply = asking => reply,
        () = asked_to_stop() => bail!("stopped; the same command goes on from here"),
    };
    if let Some(shown) = shown.lock().expect("nothing panics while it is shown").take() {
        shown.finish();
    }
    let Reply::Got(got) = reply? else {
        bail!("the process answered something else: it may be of another version");
    };
    if arguments.json {
        let from: Vec<_> =
            got.fetched.iter().map(|part| json!({ "peer": part.from, "bytes": part.bytes })).collect();
        let BlobRef { hash, size } = got.blob;
        let seconds = began.elapsed().as_secs_f64();
        show::json(
            &json!({ "file": arguments.output, "blob": hash, "size": size, "seconds": seconds, "from": from, "origin_bytes": got.origin_bytes }),
        );
    } else {
        println!("done {}", arguments.output.display());
    }
    Ok(())
}

/// The file's path for a process that runs elsewhere.
fn full_path(output: &Path) -> Result<PathBuf, Failure> {
    // It also says what is wrong with it.
    super::folder_beside(output)?;
    std::path::absolute(output).map_err(|error| Failure::Usage(error.to_string()))
}
