//! Two managed nodes on a real ComfyUI: what the slots of one do at once, and what becomes of one on which jobs fail.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use farm_tests::{Farm, FarmOptions, NodeHandle, PackageIndex, Process, Studio, eventually_within};
use serde_json::{Value, json};

use crate::workspaces::{Sources, lockfile, managed, processes_in, wait_for_workspace_on};

const MEETING: &str = include_str!("../real/meeting.py");
/// How long a ComfyUI may take to start beside other work, and a job to get to it.
const START: Duration = Duration::from_secs(180);

/// Passes a picture of one colour on, once it may.
fn meeting() -> Value {
    json!({
        "1": { "class_type": "EmptyImage", "inputs": { "width": 8, "height": 8, "batch_size": 1, "color": 0 } },
        "2": { "class_type": "Meeting", "inputs": { "image": ["1", 0], "name": "" } },
        "9": { "class_type": "SaveImage", "inputs": { "images": ["2", 0], "filename_prefix": "x" } },
    })
}

#[tokio::test]
async fn slots_work_at_once_and_a_node_that_fails_is_set_aside_until_it_is_well() -> anyhow::Result<()> {
    let Some(sources) = Sources::find()? else { return Ok(()) };
    let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let studio = Studio::new(&sources.installed, &farm.folder.path().join("origin"));
    let index = PackageIndex::serve(&sources.installed.join("index"), TcpListener::bind("127.0.0.1:0")?)?;
    let flags = managed(&index);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let environment = [("PATH", sources.programs.as_str())];
    let node = studio.custom_node("meeting", &[("__init__.py", MEETING)]).await?;
    let bundle = studio.bundle("meet", &meeting(), &lockfile(&studio, "ComfyUI", &[node], &[]).await?)?;

    farm.start_node_with(&[&flags[..], &["--slots", "2"]].concat(), &environment).await?;
    farm.deploy(&bundle, "meet", &[("input", "color=1.color"), ("input", "name=2.name"), ("output", "9")])
        .await?;
    wait_for_workspace_on(&farm, 0, "meet@1", "proven").await?;
    two_at_once(&farm).await?;

    farm.start_node_with(&flags, &environment).await?;
    wait_for_workspace_on(&farm, 1, "meet@1", "proven").await?;
    set_aside_and_released(&mut farm, &flags, &environment).await
}

/// The one node has two slots, and one ComfyUI, which its self-test left.
async fn two_at_once(farm: &Farm) -> anyhow::Result<()> {
    let node = &farm.nodes[0];
    // One after another they go where a ComfyUI is up.
    for color in [1, 2] {
        let job = farm.wait_for_success(&submit(farm, color, "").await?).await?;
        assert_eq!(job["run"]["slot"], 0, "{job}");
        ensure!(color_of(farm, &job).await? == color, "another picture");
    }
    assert_eq!(processes_in(&slot(node, 1)).len(), 0, "nothing was started for them");

    let jobs = [submit(farm, 3, "one").await?, submit(farm, 4, "other").await?];
    let mut slots = [wait_until_there(node, "one").await?, wait_until_there(node, "other").await?];
    slots.sort_unstable();
    assert_eq!(slots, [0, 1], "each is in a process with an output folder of its own");
    assert!(slots.iter().all(|at| !processes_in(&slot(node, *at)).is_empty()));

    let told = farm.wait_for_node(&node.peer, |_| true).await?;
    let at_work: Vec<&Value> = (0..2).map(|at| &told["slots"][at]["run"]["job"]).collect();
    assert!(jobs.iter().all(|job| at_work.iter().any(|at_work| *at_work == job)), "{told}");
    assert!(told["slots"].as_array().is_some_and(|slots| slots.len() == 2), "{told}");
    let output =
        Process::comfy_farm(farm.folder.path(), &["nodes", "--url", &farm.url, "--key", &farm.key]).output();
    let listed = String::from_utf8(output.await?.stdout)?;
    let row = listed.lines().find(|line| line.starts_with(&node.peer)).with_context(|| listed.clone())?;
    assert!(row.split_whitespace().rev().take(2).eq(["2", "2"]), "two slots, two runs: {row}");

    for name in ["one", "other"] {
        let_go(node, name).await?;
    }
    for (job, color) in jobs.iter().zip([3, 4]) {
        let job = farm.wait_for_success(job).await?;
        ensure!(color_of(farm, &job).await? == color, "another picture");
    }
    Ok(())
}

/// The second of two nodes gets a fault, and loses it.
async fn set_aside_and_released(
    farm: &mut Farm,
    flags: &[&str],
    environment: &[(&str, &str)],
) -> anyhow::Result<()> {
    let peers: Vec<String> = farm.nodes.iter().map(|node| node.peer.clone()).collect();
    let [sound, faulty] = &peers[..] else { anyhow::bail!("two nodes") };
    let fault = slot(&farm.nodes[1], 0).join("ComfyUI/output/fault");
    std::fs::write(&fault, "")?;
    farm.post(&format!("/v1/nodes/{faulty}/drain"), &json!({})).await?;
    occupy(farm, ["a", "b"]).await?;
    farm.post(&format!("/v1/nodes/{faulty}/undrain"), &json!({})).await?;

    // What fails there waits for the other one, and succeeds.
    let job = submit(farm, 7, "").await?;
    let failed = farm.wait_for_job(&job, |job| !job["failures"][0].is_null()).await?;
    assert_eq!(
        (&failed["failures"][0]["node"], &failed["state"]),
        (&json!(faulty), &json!("queued")),
        "{failed}"
    );
    ensure!(told(&failed, faulty).contains("the job failed there"), "{failed}");
    for name in ["a", "b"] {
        let_go(&farm.nodes[0], name).await?;
    }
    let job = farm.wait_for_success(&job).await?;
    assert_eq!(job["run"]["node"], json!(sound));
    let reason = "the fan of this machine stands still";
    let is_aside = |node: &Value| {
        let aside = &node["set_aside"][0];
        aside["workflow"] == "meet@1"
            && aside["others_first"] == true
            && aside["reason"].as_str().is_some_and(|told| told.contains(reason))
    };
    farm.wait_for_node(faulty, is_aside).await?;
    // It was asked for a self-test at once, which found the same.
    let is_tested = |node: &Value| {
        is_aside(node)
            && node["set_aside"][0]["reason"].as_str().is_some_and(|told| told.contains("self-test"))
    };
    farm.wait_for_node(faulty, is_tested).await?;

    // Others go first, also where it alone is free.
    occupy(farm, ["c", "d"]).await?;
    let job = submit(farm, 8, "").await?;
    let waiting = farm.get(&format!("/v1/jobs/{job}")).await?;
    ensure!(waiting["state"] == "queued" && told(&waiting, faulty).contains(reason), "{waiting}");

    // Its owner mends it, and the first self-test that succeeds has the job go there.
    std::fs::remove_file(&fault)?;
    farm.nodes[1].process.kill().await;
    farm.restart_node_with(1, flags, environment).await?;
    let ended = eventually_within(START, || async {
        let job = farm.get(&format!("/v1/jobs/{job}")).await?;
        Ok(Some(job).filter(|job| job["state"] != "queued" && job["state"] != "running"))
    });
    let ended = ended.await.with_context(|| farm.nodes[1].process.log())?;
    assert_eq!((&ended["state"], &ended["run"]["node"]), (&json!("succeeded"), &json!(faulty)), "{ended}");
    farm.wait_for_node(faulty, |node| node["set_aside"] == json!([])).await?;
    for name in ["c", "d"] {
        let_go(&farm.nodes[0], name).await?;
    }
    Ok(())
}

/// Has both slots of the first node work until they are let go.
async fn occupy(farm: &Farm, names: [&str; 2]) -> anyhow::Result<()> {
    for name in names {
        submit(farm, 5, name).await?;
        wait_until_there(&farm.nodes[0], name).await?;
    }
    Ok(())
}

async fn submit(farm: &Farm, color: u32, name: &str) -> anyhow::Result<String> {
    let job = farm.submit("meet", &[], &[("color", &color.to_string()), ("name", name)]).await?;
    Ok(job["id"].as_str().context("a job has an id")?.to_owned())
}

/// Why a node does not take a job that waits.
fn told(job: &Value, node: &str) -> String {
    let waits = job["waits"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of_node = waits.iter().find(|wait| wait["node"] == node);
    of_node.and_then(|wait| wait["reason"].as_str()).unwrap_or_default().to_owned()
}

async fn color_of(farm: &Farm, job: &Value) -> anyhow::Result<u32> {
    let picture = image::load_from_memory(&farm.output(job).await?)?.into_rgb8();
    let [red, green, blue] = picture.get_pixel(0, 0).0;
    Ok(u32::from_be_bytes([0, red, green, blue]))
}

fn slot(node: &NodeHandle, slot: u16) -> PathBuf {
    node.data.join(format!("workspaces/slots/slot-{slot}"))
}

/// The slot on which a job says that it is there.
async fn wait_until_there(node: &NodeHandle, name: &str) -> anyhow::Result<u16> {
    let is_there = |at: &u16| slot(node, *at).join(format!("ComfyUI/output/here-{name}")).exists();
    let there = eventually_within(START, || async { Ok([0, 1].into_iter().find(is_there)) });
    there.await.with_context(|| node.process.log())
}

/// Lets a job go on that is there.
async fn let_go(node: &NodeHandle, name: &str) -> anyhow::Result<()> {
    let at = wait_until_there(node, name).await?;
    Ok(std::fs::write(slot(node, at).join(format!("ComfyUI/output/go-{name}")), "")?)
}
