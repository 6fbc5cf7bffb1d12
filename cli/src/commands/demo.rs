//! `comfy-farm demo`: exactly what a person does by hand, each role in a process of its own.
//!
//! A coordinator and nodes on loopback, the example deployed, one job, its node drained, a second job
//! that takes its picture from the first node.

mod processes;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use self::processes::Farm;
use super::run::{follow, save_outputs};
use super::{asked_to_stop, text};
use crate::args::DemoArguments;
use crate::client::{Client, Terms};
use crate::picture;
use crate::settings::ClientSettings;
use crate::show;

const BUNDLE: &[u8] = include_bytes!("../../../examples/pixelate.cpack.zip");
const PICTURE: &[u8] = include_bytes!("../../../examples/pixelate/input/landscape.png");
const EXPECTED: &[u8] = include_bytes!("../../../examples/pixelate/expected.png");
const WORKFLOW: &str = "pixelate";
/// How long the nodes get to join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) async fn demo(arguments: DemoArguments) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("comfy-farm-demo-").tempdir()?;
    let out = match &arguments.out {
        Some(out) => out.clone(),
        None => tempfile::Builder::new().prefix("comfy-farm-pictures-").tempdir()?.keep(),
    };
    let mut farm = Farm::new(folder.path())?;
    // Ctrl-C in the middle of the story ends the processes as well.
    let told = tokio::select! {
        told = tell(&arguments, &mut farm, folder.path(), &out) => told,
        () = asked_to_stop() => Ok(()),
    };
    farm.stop().await;
    told
}

async fn tell(arguments: &DemoArguments, farm: &mut Farm, folder: &Path, out: &Path) -> anyhow::Result<()> {
    eprintln!("starting a coordinator and {} nodes", arguments.nodes);
    let up = farm.start_coordinator().await?;
    let (url, key) = (text(&up, "url").to_owned(), text(&up, "key").to_owned());
    let ticket = folder.join("ticket");
    std::fs::write(&ticket, text(&up, "ticket"))?;
    for number in 1..=arguments.nodes {
        farm.start_node(number, &ticket, arguments.comfyui.as_deref())?;
    }
    let client = Client::new(&ClientSettings { url: url.clone(), key: Some(key.clone()), json: false });
    wait_for_nodes(&client, farm, usize::from(arguments.nodes)).await?;

    eprintln!("deploying the example workflow `{WORKFLOW}`");
    let (bundle, input) = (folder.join("pixelate.cpack.zip"), folder.join("landscape.png"));
    std::fs::write(&bundle, BUNDLE)?;
    std::fs::write(&input, PICTURE)?;
    let accept = arguments.comfyui.is_some().to_string();
    client.deploy(&bundle, &[("name", WORKFLOW.to_owned()), ("accept_attached", accept)]).await?;

    let first = one_job(&client, &input, out).await?;
    eprintln!(
        "draining node {}: it takes no more jobs and goes on serving blobs",
        show::short_peer(&first.node)
    );
    client.post(&format!("/v1/nodes/{}/drain", first.node), &json!({})).await?;
    let second = one_job(&client, &input, out).await?;
    ensure!(second.node != first.node, "the second job ran on node {}, which was drained", first.node);
    let (from_peer, from_coordinator) =
        bytes_by_source(&second.job, &protocol::BlobHash::of(PICTURE).to_string());
    eprintln!(
        "node {} took the picture from node {}: {from_peer} bytes from the peer, {from_coordinator} from the coordinator",
        show::short_peer(&second.node),
        show::short_peer(&first.node),
    );
    ensure!(from_peer == PICTURE.len() as u64, "not all of the picture came from the first node");
    ensure!(from_coordinator == 0, "a part of the picture came from the coordinator");

    if arguments.json {
        show::json(&json!({
            "job": text(&first.job, "id"),
            "output": first.saved,
            "blake3": text(&first.job["outputs"][0], "blake3"),
            "url": url,
            "seconds": first.seconds,
            "bytes_from_peer": from_peer,
            "bytes_from_coordinator": from_coordinator,
        }));
    } else {
        println!("pictures   {}\n           {}", first.saved.display(), second.saved.display());
        println!("page       {url}\nkey        {key}");
    }
    if !arguments.once {
        eprintln!("everything stays up; Ctrl-C ends it");
        asked_to_stop().await;
    }
    Ok(())
}

/// A job of the demo that succeeded with the right pixels.
struct Done {
    job: Value,
    node: String,
    saved: PathBuf,
    seconds: f64,
}

async fn one_job(client: &Client, input: &Path, out: &Path) -> anyhow::Result<Done> {
    let begun = Instant::now();
    let files = [("picture".to_owned(), input.to_owned())];
    let job = client.submit(WORKFLOW, &[], &files, Terms { priority: 50, ttl: None }).await?;
    eprintln!("job {}", text(&job, "id"));
    let job = follow(client, text(&job, "id")).await?;
    let saved = save_outputs(client, &job, out).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let [saved] = saved.as_slice() else { bail!("the job made {} files and not one", saved.len()) };
    let expected = picture::decode(EXPECTED)?;
    if let Err(difference) = picture::compare(saved, &expected)? {
        bail!("`{}` is not the expected picture: {difference}", saved.display());
    }
    let node = text(&job["run"], "node").to_owned();
    eprintln!(
        "  {} in {seconds:.2} s on node {}, pixels as expected",
        saved.display(),
        show::short_peer(&node)
    );
    Ok(Done { node, saved: saved.clone(), seconds, job })
}

async fn wait_for_nodes(client: &Client, farm: &mut Farm, wanted: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + JOIN_TIMEOUT;
    loop {
        let answer = client.get("/v1/nodes").await?;
        let ready = |node: &&Value| {
            node["connected"] == true && node["slots"].as_array().is_some_and(|slots| !slots.is_empty())
        };
        let ready = answer["nodes"].as_array().map_or(0, |nodes| nodes.iter().filter(ready).count());
        if ready == wanted {
            return Ok(());
        }
        farm.check_alive().context("while the nodes were joining")?;
        ensure!(
            Instant::now() < deadline,
            "{ready} of {wanted} nodes are ready after {JOIN_TIMEOUT:?}: {}",
            farm.logs()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How many bytes of a blob a job's run took from other nodes, and from the coordinator.
fn bytes_by_source(job: &Value, blob: &str) -> (u64, u64) {
    let fetched =
        job["fetched"].as_array().into_iter().flatten().filter(|fetched| text(fetched, "blob") == blob);
    let (mut from_peer, mut from_coordinator) = (0, 0);
    for fetched in fetched {
        let bytes = fetched["bytes"].as_u64().unwrap_or_default();
        let coordinator = text(fetched, "from") == text(job, "coordinator");
        *(if coordinator { &mut from_coordinator } else { &mut from_peer }) += bytes;
    }
    (from_peer, from_coordinator)
}
