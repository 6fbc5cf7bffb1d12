//! Serving the author's models until others keep them, and saying when this machine may close.
//!
//! Not here: which nodes keep them; the coordinator chooses, and is asked again and again.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use mesh::store::ByteSize;
use protocol::message::AUTHOR_LABEL;
use serde_json::{Value, json};

use super::author::Author;
use super::models::Model;
use crate::args::DeployArguments;
use crate::client::Client;
use crate::commands::bundle::read;
use crate::commands::{asked_to_stop, text};
use crate::failure::Failure;
use crate::show;

/// How many others are to keep each model, where the farm has so many.
const COPIES: usize = 2;
/// How often the farm is asked how far it is.
const LOOK: Duration = Duration::from_secs(1);

/// A model that this machine serves.
struct Served {
    name: String,
    hash: String,
    size: u64,
    told: String,
}

/// Serves the models of a deployed workflow until they are kept, or the person stops it.
pub(super) async fn keep(
    arguments: &DeployArguments,
    client: &Client,
    deployed: &Value,
) -> anyhow::Result<()> {
    let mut models = Model::all(deployed);
    models.extend(Model::nowhere(&read(&arguments.file)?, &models, &arguments.private));
    if models.is_empty() {
        eprintln!(
            "its lockfile names no models that its graph uses or that are nowhere else: there is nothing to serve"
        );
        return Ok(());
    }
    let folders = folders(arguments);
    let author = Author::find(client, arguments.listen).await?;
    let kept = tokio::select! {
        kept = serve_until_kept(&folders, client, &author, models) => kept,
        () = asked_to_stop() => Err(anyhow::anyhow!("stopped before all models were kept elsewhere; the same command goes on")),
    };
    author.stop().await?;
    let (kept, nowhere) = kept?;
    if !nowhere.is_empty() {
        let names = nowhere.join("`, `");
        bail!(Failure::Input(format!(
            "`{names}` is nowhere but on the machine that packed the bundle: deploy again with `--models` and the folder \
             that has it; all {} other models are kept",
            kept.len()
        )));
    }
    if arguments.tool.json {
        let kept: Vec<_> =
            kept.iter().map(|served| json!({ "model": served.name, "blob": served.hash })).collect();
        show::json(&json!({ "kept": kept }));
    } else {
        println!("kept: other nodes hold all {} models that were served; this machine may close", kept.len());
    }
    Ok(())
}

/// Where models are looked for: what `pack --trace` laid beside the bundle is among them.
fn folders(arguments: &DeployArguments) -> Vec<PathBuf> {
    let beside = arguments.file.with_extension("files");
    arguments.models.iter().cloned().chain(beside.is_dir().then_some(beside)).collect()
}

/// Which models others keep now, and the names of those that nobody has.
async fn serve_until_kept(
    folders: &[PathBuf],
    client: &Client,
    author: &Author,
    models: Vec<Model>,
) -> anyhow::Result<(Vec<Served>, Vec<String>)> {
    let (mut served, mut nowhere) = (Vec::new(), Vec::new());
    for model in models {
        match serve(folders, client, author, &model).await? {
            Found::Here(one) => served.push(one),
            Found::Elsewhere => {}
            Found::Nowhere => nowhere.push(model.name),
        }
    }
    if !served.is_empty() {
        eprintln!(
            "serving {} models from here: leave this running until it says that they are kept",
            served.len()
        );
    }
    loop {
        let copies = others(client, author).await?.min(COPIES);
        let mut is_kept = copies > 0 || served.is_empty();
        for one in &mut served {
            is_kept &= one.look(client, author, copies).await?;
        }
        if is_kept {
            return Ok((served, nowhere));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Where a model is.
enum Found {
    Here(Served),
    /// Or not to be shared.
    Elsewhere,
    Nowhere,
}

/// Serves one model, if it is here and may be.
async fn serve(
    folders: &[PathBuf],
    client: &Client,
    author: &Author,
    model: &Model,
) -> anyhow::Result<Found> {
    let name = &model.name;
    if !model.share {
        eprintln!("  {name}: not shared");
        return Ok(Found::Elsewhere);
    }
    let Some(file) = model.find(folders) else {
        let held = match model.blob_name() {
            Some(blob) => {
                client.get(&format!("/v1/blobs/{blob}")).await?["holders"].as_array().map_or(0, Vec::len)
            }
            None => 0,
        };
        match (held, model.has_url) {
            (0, false) if !model.is_named => {
                eprintln!("  {name}: not in these folders, held by no node, and without a URL");
                return Ok(Found::Nowhere);
            }
            (0, false) => bail!(Failure::Input(format!(
                "model `{name}` of {} is in none of the folders of `--models`, held by no node, and has no URL",
                ByteSize(model.size)
            ))),
            (0, true) => eprintln!("  {name}: not in these folders; it comes from its URL"),
            (nodes, _) => eprintln!("  {name}: not in these folders; {nodes} nodes hold it"),
        }
        return Ok(Found::Elsewhere);
    };
    let blob = author.serve(&file).await?;
    let found = blob.sha256.map(|sha256| sha256.to_string());
    if let (Some(wanted), Some(found)) = (&model.sha256, &found)
        && wanted != found
    {
        let file = file.display();
        bail!(Failure::Input(format!(
            "`{file}` is not the model `{name}` of the lockfile: its SHA-256 is {found}, not {wanted}"
        )));
    }
    let (hash, size) = (blob.hash.to_string(), blob.size);
    Ok(Found::Here(Served { name: name.clone(), hash, size, told: String::new() }))
}

/// How many other nodes there are to keep something.
async fn others(client: &Client, author: &Author) -> anyhow::Result<usize> {
    let nodes = client.get("/v1/nodes").await?;
    let is_other = |node: &&Value| {
        let is_author = node["labels"][AUTHOR_LABEL.0] == AUTHOR_LABEL.1;
        node["connected"] == true && text(node, "peer") != author.peer && !is_author
    };
    Ok(nodes["nodes"].as_array().into_iter().flatten().filter(is_other).count())
}

impl Served {
    /// Wishes again that it is kept, tells how that stands, and says whether it is.
    async fn look(&mut self, client: &Client, author: &Author, copies: usize) -> anyhow::Result<bool> {
        if copies == 0 {
            self.tell("no other node is in the farm yet".to_owned());
            return Ok(false);
        }
        let wish = json!({ "size": self.size, "copies": copies, "author": author.peer });
        let blob = client.post(&format!("/v1/blobs/{}/keep", self.hash), &wish).await?;
        let list = |key: &str| blob[key].as_array().cloned().unwrap_or_default();
        let is_kept = |holder: &&Value| {
            holder["pinned"] == true && holder["connected"] == true && text(holder, "peer") != author.peer
        };
        let kept = list("holders").iter().filter(is_kept).count();
        let mut words = format!("kept by {kept} of {copies}");
        for part in list("parts") {
            let [here, size] = ["here", "size"].map(|key| part[key].as_u64().unwrap_or_default());
            let tenths = (here * 10).checked_div(size).unwrap_or(10);
            words.push_str(&format!("; {} has {}0%", text(&part, "host_name"), tenths));
        }
        for refused in blob["keep"]["refused"].as_array().into_iter().flatten() {
            let peer = text(refused, "peer");
            let peer = &peer[peer.len().saturating_sub(10)..];
            words.push_str(&format!("; {peer} does not: {}", text(refused, "reason")));
        }
        self.tell(words);
        Ok(kept >= copies)
    }

    fn tell(&mut self, words: String) {
        if words != self.told {
            eprintln!("  {} ({}): {words}", self.name, ByteSize(self.size));
            self.told = words;
        }
    }
}
