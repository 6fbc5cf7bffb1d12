//! `comfy-farm blob where`: who holds a blob, as the node on this machine or the farm's API knows.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use mesh::control::{Custodian, Reply, Request, Whereabouts};
use mesh::store::ByteSize;
use protocol::BlobName;
use protocol::message::Provider;
use serde_json::json;

use crate::args::ToolArguments;
use crate::commands::{connect, text};
use crate::settings::SettingsFile;
use crate::{environment, settings, show};

#[derive(Debug, Args)]
pub(crate) struct WhereArguments {
    /// The blob: its BLAKE3 hash, or `sha256:` and its SHA-256.
    pub(crate) name: BlobName,
    /// The data folder of the node on this machine, which is asked where it runs. Defaults to the usual one.
    #[arg(long, value_name = "DIR", env = environment::DATA)]
    pub(crate) data: Option<PathBuf>,
    /// Ask this farm's API in place of the node on this machine.
    #[arg(long, value_name = "URL")]
    pub(crate) farm: Option<String>,
    /// A key of that farm.
    #[arg(long, env = environment::KEY, hide_env_values = true)]
    pub(crate) key: Option<String>,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

pub(super) async fn locate(arguments: &WhereArguments, file: &SettingsFile) -> anyhow::Result<()> {
    let data = settings::node_data(arguments.data.as_deref())?;
    if arguments.farm.is_none() && data.is_dir() {
        let custodian = Custodian::find(&data).await?;
        if matches!(custodian, Custodian::Process(_)) {
            return ask_node(arguments, custodian).await;
        }
    }
    ask_farm(arguments, file).await
}

async fn ask_node(arguments: &WhereArguments, custodian: Custodian) -> anyhow::Result<()> {
    let Reply::Where(found) = custodian.ask(Request::Where { name: arguments.name }, |_| {}).await? else {
        bail!("the process answered something else: it may be of another version");
    };
    if arguments.json {
        show::json(&json!(found));
        return Ok(());
    }
    let Whereabouts { name, blob, here, providers, readers, silence } = found;
    match blob {
        Some(blob) => println!("blob {} of {}", blob.hash, ByteSize(blob.size)),
        None => println!("{name} is known to nobody who was asked"),
    }
    if let Some(here) = here {
        let file = here.in_place.first().map_or_else(String::new, |path| format!(" as {}", path.display()));
        let marks = [(here.pinned, ", pinned"), (!here.shared, ", private")];
        let marks: String = marks.into_iter().filter(|(is_so, _)| *is_so).map(|(_, word)| word).collect();
        println!("  here{file}{marks}");
    }
    let tell = |what: &str, providers: &[Provider]| {
        for provider in providers {
            let addresses: Vec<_> = provider.addresses.iter().map(ToString::to_string).collect();
            println!("  {what} {}  {}", provider.peer, addresses.join(" "));
        }
    };
    tell("whole  ", &providers);
    tell("reading", &readers);
    match silence {
        Some(silence) => println!("  {silence}: what others hold is not known"),
        None if providers.is_empty() && readers.is_empty() => {
            println!("  no other node of the farm holds it")
        }
        None => {}
    }
    Ok(())
}

async fn ask_farm(arguments: &WhereArguments, file: &SettingsFile) -> anyhow::Result<()> {
    let tool = ToolArguments {
        url: arguments.farm.clone(),
        key: arguments.key.clone(),
        data: None,
        json: arguments.json,
    };
    let (client, json) = connect(&tool, file);
    let blob = client.get(&format!("/v1/blobs/{}", arguments.name)).await?;
    if json {
        show::json(&blob);
        return Ok(());
    }
    match (blob["hash"].as_str(), blob["size"].as_u64()) {
        (Some(hash), Some(size)) => println!("blob {hash} of {}", ByteSize(size)),
        _ => println!("{} is known to nobody who was asked", arguments.name),
    }
    if blob["in_coordinator"] == true {
        println!("  whole   the coordinator");
    }
    let list = |key: &str| blob[key].as_array().cloned().unwrap_or_default();
    for holder in list("holders") {
        let marks =
            [(holder["pinned"] == true, ", pinned"), (holder["connected"] != true, ", not connected")];
        let marks: String = marks.into_iter().filter(|(is_so, _)| *is_so).map(|(_, word)| word).collect();
        println!("  whole   {}  {}{marks}", text(&holder, "peer"), text(&holder, "host_name"));
    }
    for part in list("parts") {
        let [here, size] = ["here", "size"].map(|key| ByteSize(part[key].as_u64().unwrap_or_default()));
        println!("  a part  {}  {}, {here} of {size}", text(&part, "peer"), text(&part, "host_name"));
    }
    if [list("holders"), list("parts")].iter().all(Vec::is_empty) {
        println!("  no node of the farm holds it");
    }
    for used in list("used_by") {
        println!("  used by {} as {}", text(&used, "workflow"), text(&used, "path"));
    }
    Ok(())
}
