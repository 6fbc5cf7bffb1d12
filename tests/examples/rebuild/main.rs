//! Measures how long a workspace takes to be rebuilt, beside the commands that a person would type.
//!
//! `benches/rebuild`, with nothing else running. A real ComfyUI with 55 packages (1.7 GB installed, torch for the CPU),
//! from a repository and a package index of this machine. ComfyUI's own start is told apart. Not here: tests; nothing
//! fails because it was slow.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use farm_tests::{Farm, FarmOptions, PackageIndex, Process, Studio, comfyui_folder, eventually_within, uv};
use serde_json::{Value, json};
use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(600);

/// What is rebuilt, and from where.
struct Inputs {
    folder: tempfile::TempDir,
    lockfile: Value,
    index: PackageIndex,
    uv: std::path::PathBuf,
    studio: Studio,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (installed, uv) =
        comfyui_folder().zip(uv()).context("`eval \"$(tests/run env)\"` names what is needed")?;
    let folder = tempfile::tempdir()?;
    let studio = Studio::new(&installed, &folder.path().join("origin"));
    let lockfile = json!({
        "format": 1,
        "python": "3.11",
        "comfyui": studio.comfyui("ComfyUI").await?,
        "packages": studio.packages().await?,
    });
    let index = PackageIndex::serve(&installed.join("index"), std::net::TcpListener::bind("127.0.0.1:0")?)?;
    let inputs = Inputs { folder, lockfile, index, uv, studio };

    println!("| what | seconds |\n| --- | ---: |");
    line("by hand: `git clone`, `uv venv`, `uv pip install`, nothing cached", by_hand(&inputs).await?);
    let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    start_node(&mut farm, &inputs, true).await?;
    deploy(&farm, &inputs, "first", inputs.lockfile.clone()).await?;
    tell("a node, from the repository and the index", ready(&farm, 0, 1).await?);

    // The same parts under another lockfile: a custom node that is switched off is no part of the code.
    let mut other = inputs.lockfile.clone();
    other["custom_nodes"] = json!([{ "from": "file", "name": "off.py", "disabled": true }]);
    deploy(&farm, &inputs, "second", other).await?;
    tell("the same node, another lockfile of the same parts", ready(&farm, 0, 2).await?);

    std::fs::rename(inputs.folder.path().join("origin"), inputs.folder.path().join("away"))?;
    start_node(&mut farm, &inputs, false).await?;
    tell("a second node, from the first alone", ready(&farm, 1, 1).await?);
    let bytes = bytes_below(&farm.nodes[1].data.join("blobs"))?;
    line(
        &format!("moving as many bytes ({} MB) by `blob share` and `blob get`", bytes >> 20),
        carry(&inputs, bytes).await?,
    );
    Ok(())
}

fn line(what: &str, took: Duration) {
    println!("| {what} | {:.1} |", took.as_secs_f64());
}

fn tell(what: &str, (built, started): (f64, f64)) {
    println!("| {what} | {built:.1} (and ComfyUI's start {started:.1}) |");
}

/// What a person would type.
async fn by_hand(inputs: &Inputs) -> anyhow::Result<Duration> {
    let folder = inputs.folder.path().join("by-hand");
    std::fs::create_dir(&folder)?;
    let mut pins = String::new();
    for package in inputs.lockfile["packages"].as_array().context("a list")? {
        let (name, version) = (&package["name"], &package["version"]);
        let (name, version) = (name.as_str().unwrap_or_default(), version.as_str().unwrap_or_default());
        let build = if ["torch", "torchvision", "torchaudio"].contains(&name) { "+cpu" } else { "" };
        pins.push_str(&format!("{name}=={version}{build}\n"));
    }
    std::fs::write(folder.join("requirements.txt"), pins)?;
    let url = inputs.lockfile["comfyui"]["url"].as_str().unwrap_or_default();
    let (simple, torch) = (format!("{}/simple", inputs.index.url), format!("{}/torch/cpu", inputs.index.url));
    let uv = |arguments: &[&str]| {
        let mut command = Command::new(&inputs.uv);
        command.args(arguments).current_dir(&folder).env("UV_CACHE_DIR", folder.join("cache"));
        command.env("UV_NO_CONFIG", "1");
        command
    };
    let begun = Instant::now();
    let mut clone = Command::new("git");
    run(clone.args(["clone", "--quiet", url, "ComfyUI"]).current_dir(&folder)).await?;
    run(&mut uv(&["venv", "--quiet", "--python", "3.11", "venv"])).await?;
    let install =
        ["pip", "install", "--quiet", "--python", "venv/bin/python", "--no-deps", "-r", "requirements.txt"];
    let indexes = ["--default-index", &simple, "--index", &torch, "--index-strategy", "unsafe-best-match"];
    run(uv(&install).args(indexes)).await?;
    Ok(begun.elapsed())
}

async fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().await?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn start_node(farm: &mut Farm, inputs: &Inputs, has_index: bool) -> anyhow::Result<()> {
    let nowhere = "http://127.0.0.1:9";
    let url = if has_index { inputs.index.url.as_str() } else { nowhere };
    let (simple, torch) = (format!("{url}/simple"), format!("{url}/torch"));
    let flags = [
        "--engine",
        "managed",
        "--allow-private-origins",
        "--package-index",
        &simple,
        "--torch-index",
        &torch,
    ];
    let folder = inputs.uv.parent().context("uv is in a folder")?;
    let path = format!("{}:{}", folder.display(), std::env::var("PATH")?);
    farm.start_node_with(&flags, &[("PATH", &path), ("COMFY_FARM_LOG", "info")]).await
}

async fn deploy(farm: &Farm, inputs: &Inputs, name: &str, lockfile: Value) -> anyhow::Result<()> {
    let workflow = json!({
        "1": { "class_type": "EmptyImage", "inputs": { "width": 8, "height": 8, "batch_size": 1, "color": 1 } },
        "9": { "class_type": "SaveImage", "inputs": { "images": ["1", 0], "filename_prefix": "x" } },
    });
    let bundle = inputs.studio.bundle(name, &workflow, &lockfile)?;
    farm.deploy(&bundle, name, &[("input", "color=1.color"), ("output", "9")]).await.map(|_| ())
}

/// How long the `count`th workspace of a node took by its own log, without ComfyUI's start, and that; where a ComfyUI
/// that is up shows it, there is none.
async fn ready(farm: &Farm, node: usize, count: usize) -> anyhow::Result<(f64, f64)> {
    let seconds = |line: &str| line.rsplit("seconds=").next()?.split(' ').next()?.parse::<f64>().ok();
    eventually_within(PATIENCE, || async {
        let (mut ready, mut started) = (Vec::new(), 0.0);
        for line in farm.nodes[node].process.log().lines() {
            let Some(seconds) = seconds(line) else { continue };
            if line.contains("comfyui is up") {
                started = seconds;
            } else if line.contains("workspace is ready") {
                ready.push((seconds - started, started));
                started = 0.0;
            }
        }
        Ok(ready.get(count - 1).copied())
    })
    .await
}

/// Carries a file of so many bytes between two processes of this machine.
async fn carry(inputs: &Inputs, bytes: u64) -> anyhow::Result<Duration> {
    let file = inputs.folder.path().join("file");
    let mut random = std::fs::File::open("/dev/urandom")?;
    std::io::copy(&mut std::io::Read::take(&mut random, bytes), &mut std::fs::File::create(&file)?)?;
    let text = |path: &Path| path.display().to_string();
    let share = Process::comfy_farm(
        inputs.folder.path(),
        &["blob", "share", &text(&file), "--listen", "127.0.0.1:0"],
    );
    let mut share = Process::start(share, &inputs.folder.path().join("share.log"))?;
    let ticket = share.line().await?;
    let to = text(&inputs.folder.path().join("carried"));
    let begun = Instant::now();
    run(&mut Process::comfy_farm(inputs.folder.path(), &["blob", "get", &ticket, "-o", &to])).await?;
    Ok(begun.elapsed())
}

fn bytes_below(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => bytes_below(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes)
}
