//! `comfy-farm drain` and `undrain`.

use serde_json::{Value, json};

use crate::args::DrainArguments;
use crate::client::Client;
use crate::commands::{connect, text};
use crate::failure::Failure;
use crate::settings::SettingsFile;
use crate::show;

pub(super) async fn set_draining(
    arguments: &DrainArguments,
    file: &SettingsFile,
    draining: bool,
) -> anyhow::Result<()> {
    let (client, json) = connect(&arguments.tool, file);
    let peer = find_node(&client, &arguments.node).await?;
    let verb = if draining { "drain" } else { "undrain" };
    let node = client.post(&format!("/v1/nodes/{peer}/{verb}"), &json!({})).await?;
    if json {
        show::json(&node);
    } else if draining {
        println!("node {peer} takes no more jobs");
    } else {
        println!("node {peer} takes jobs again");
    }
    Ok(())
}

/// The one node that a word means: its peer id, the end of it, or its host name.
async fn find_node(client: &Client, word: &str) -> anyhow::Result<String> {
    let answer = client.get("/v1/nodes").await?;
    let nodes = answer["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let means = |node: &&Value| {
        let peer = text(node, "peer");
        peer == word || (word.len() >= 6 && peer.ends_with(word)) || text(node, "host_name") == word
    };
    let found: Vec<_> = nodes.iter().filter(means).collect();
    match found.as_slice() {
        [node] => Ok(text(node, "peer").to_owned()),
        [] => {
            Err(Failure::NotFound(format!("no node is called `{word}`; `comfy-farm nodes` lists them"))
                .into())
        }
        _ => {
            Err(Failure::Input(format!("{} nodes are called `{word}`: name one by its peer id", found.len()))
                .into())
        }
    }
}
