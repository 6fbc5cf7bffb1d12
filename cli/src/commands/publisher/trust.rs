//! `comfy-farm publisher trust`, `untrust` and `ls`: the file of a node's data folder, which the node reads for each
//! judgement.

use std::path::PathBuf;

use node::policy::TrustedPublishers;
use serde_json::json;

use super::{LsArguments, TrustArguments};
use crate::args::DataArguments;
use crate::failure::Failure;
use crate::{settings, show};

pub(super) fn trust(arguments: &TrustArguments) -> anyhow::Result<()> {
    let data = folder(&arguments.node)?;
    let mut trusted = TrustedPublishers::load(&data)?;
    let is_new = trusted.insert(arguments.key);
    trusted.save(&data)?;
    println!("publisher {} {}", arguments.key, if is_new { "is trusted" } else { "was trusted already" });
    Ok(())
}

pub(super) fn untrust(arguments: &TrustArguments) -> anyhow::Result<()> {
    let data = folder(&arguments.node)?;
    let mut trusted = TrustedPublishers::load(&data)?;
    if !trusted.remove(&arguments.key) {
        return Err(Failure::NotFound(format!("publisher {} was not trusted", arguments.key)).into());
    }
    trusted.save(&data)?;
    println!("publisher {} is trusted no more", arguments.key);
    Ok(())
}

pub(super) fn ls(arguments: &LsArguments) -> anyhow::Result<()> {
    let trusted = TrustedPublishers::load(&folder(&arguments.node)?)?;
    match arguments.json {
        true => show::json(&json!({ "publishers": trusted.iter().collect::<Vec<_>>() })),
        false => trusted.iter().for_each(|key| println!("{key}")),
    }
    Ok(())
}

/// The data folder, which may not be there before the node first starts.
fn folder(node: &DataArguments) -> anyhow::Result<PathBuf> {
    let data = settings::node_data(node.data.as_deref())?;
    let made = std::fs::create_dir_all(&data);
    made.map_err(|error| Failure::Input(format!("`{}` cannot be made: {error}", data.display())))?;
    Ok(data)
}
