//! `comfy-farm blob ls`.

use mesh::folder::DataFolder;
use mesh::store::BlobStore;
use serde_json::json;

use super::LsArguments;
use crate::settings;
use crate::show;

pub(super) async fn ls(arguments: &LsArguments) -> anyhow::Result<()> {
    let data = settings::node_data(arguments.store.data.as_deref())?;
    let _folder = DataFolder::take(&data, "`comfy-farm blob`")?;
    let mut blobs = BlobStore::open(data.join("blobs")).await?.complete();
    blobs.sort();
    if arguments.json {
        show::json(&json!({ "blobs": blobs }));
        return Ok(());
    }
    let rows: Vec<_> = blobs.iter().map(|blob| vec![blob.hash.to_string(), blob.size.to_string()]).collect();
    show::table(&["BLOB", "BYTES"], &rows);
    Ok(())
}
