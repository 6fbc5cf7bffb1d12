//! Measures how long a workspace takes to be rebuilt, beside what a person would type and beside comfy-pack.
//!
//! `benches/rebuild`, with nothing else running. A real ComfyUI with 55 packages (1.7 GB installed, torch for the CPU),
//! from a repository and a package index of this machine; the second node is in a network namespace of its own, behind
//! a link of 1 Gbit/s. ComfyUI's own start is told apart. Not here: tests; nothing fails because it was slow.

mod others;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use farm_tests::{Machines, PackageIndex, Process, Studio, comfyui_folder, eventually_within, uv};
use serde_json::{Value, json};

use crate::others::{by_hand, comfy_pack, run};

const PATIENCE: Duration = Duration::from_secs(120);
/// What the second node's link carries, in Mbit/s.
const LINK: u64 = 1000;

/// What is rebuilt, and from where.
struct Inputs {
    folder: tempfile::TempDir,
    lockfile: Value,
    /// The files of the package index.
    index: PathBuf,
    uv: PathBuf,
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
    let inputs = Inputs { folder, lockfile, index: installed.join("index"), uv, studio };

    println!("| what | seconds | and ComfyUI's start |\n| --- | ---: | ---: |");
    tell("by hand: `git clone`, `uv venv`, `uv pip install`, nothing cached", by_hand(&inputs).await?, None);
    match comfy_pack(&inputs).await? {
        Some(took) => tell("comfy-pack's `unpack`, nothing cached", took, None),
        None => eprintln!("without comfy-pack: `benches/rebuild` says how it comes in"),
    }
    let mut machines = Machines::start(3).await?;
    let index = PackageIndex::serve(&inputs.index, machines.namespaces.listen(0)?)?;
    start_node(&mut machines, 0, &inputs, &index.url).await?;
    deploy(&machines, &inputs, "first", inputs.lockfile.clone()).await?;
    let (took, start) = ready(&machines, 0, 1).await?;
    tell("a node, from the repository and the index", took, Some(start));

    // The same parts under another lockfile: a custom node that is switched off is no part of the code.
    let mut other = inputs.lockfile.clone();
    other["custom_nodes"] = json!([{ "from": "file", "name": "off.py", "disabled": true }]);
    deploy(&machines, &inputs, "second", other).await?;
    let (took, start) = ready(&machines, 0, 2).await?;
    tell("the same node, another lockfile of the same parts", took, Some(start));

    std::fs::rename(inputs.folder.path().join("origin"), inputs.folder.path().join("away"))?;
    machines.namespaces.shape(LINK).await?;
    second_node(&mut machines, &inputs, 1, "behind a link of 1 Gbit/s").await?;
    second_node(&mut machines, &inputs, 0, "over loopback").await
}

/// Rebuilds on another node that reaches nobody but the first one, and moves as many bytes the same way.
async fn second_node(
    machines: &mut Machines,
    inputs: &Inputs,
    machine: usize,
    way: &str,
) -> anyhow::Result<()> {
    start_node(machines, machine, inputs, "http://127.0.0.1:9").await?;
    let node = machines.nodes.len() - 1;
    let (took, start) = ready(machines, node, 1).await?;
    // It would give to the next one, and its ComfyUI stays up.
    machines.nodes[node].0.kill().await;
    let data = machines.folder.path().join(format!("node-{}", node + 1));
    let bytes = bytes_below(&data.join("blobs"))?;
    clear(&data)?;
    let moved = carry(machines, inputs, machine, bytes).await?;
    tell(&format!("another node, from the first alone, {way}"), took, Some(start));
    tell(
        &format!("moving as many bytes ({} MB) by `blob share` and `blob get`, {way}", bytes >> 20),
        moved,
        None,
    );
    println!("| the one by the other | x {:.2} | |", took.as_secs_f64() / moved.as_secs_f64());
    Ok(())
}

fn tell(what: &str, took: Duration, start: Option<Duration>) {
    let start = start.map(|start| format!("{:.1}", start.as_secs_f64())).unwrap_or_default();
    println!("| {what} | {:.1} | {start} |", took.as_secs_f64());
}

async fn start_node(
    machines: &mut Machines,
    machine: usize,
    inputs: &Inputs,
    index: &str,
) -> anyhow::Result<()> {
    let (simple, torch) = (format!("{index}/simple"), format!("{index}/torch"));
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
    let flags = flags.map(str::to_owned);
    machines.start_node(machine, &flags, &[("PATH", &path), ("COMFY_FARM_LOG", "info")]).await
}

async fn deploy(machines: &Machines, inputs: &Inputs, name: &str, lockfile: Value) -> anyhow::Result<()> {
    let workflow = json!({
        "1": { "class_type": "EmptyImage", "inputs": { "width": 8, "height": 8, "batch_size": 1, "color": 1 } },
        "9": { "class_type": "SaveImage", "inputs": { "images": ["1", 0], "filename_prefix": "x" } },
    });
    let bundle = inputs.studio.bundle(name, &workflow, &lockfile)?;
    let arguments = ["deploy", text(&bundle), "--input", "color=1.color", "--output", "9"];
    machines.tool(&arguments).await.map(|_| ())
}

/// How long the `count`th workspace of a node took by its own log, without ComfyUI's start, and that; where a ComfyUI
/// that is up shows it, there is none.
async fn ready(machines: &Machines, node: usize, count: usize) -> anyhow::Result<(Duration, Duration)> {
    let seconds = |line: &str| line.rsplit("seconds=").next()?.split(' ').next()?.parse::<f64>().ok();
    let log = || machines.nodes[node].0.log();
    let waited = eventually_within(PATIENCE, || async {
        let (mut ready, mut started) = (Vec::new(), 0.0);
        for line in log().lines() {
            let Some(seconds) = seconds(line) else { continue };
            if line.contains("comfyui is up") {
                started = seconds;
            } else if line.contains("workspace is ready") {
                ready.push([seconds - started, started].map(Duration::from_secs_f64));
                started = 0.0;
            }
        }
        Ok(ready.get(count - 1).map(|[took, start]| (*took, *start)))
    });
    waited.await.with_context(log)
}

/// Carries a file of so many bytes from the first machine to one of them.
async fn carry(machines: &Machines, inputs: &Inputs, machine: usize, bytes: u64) -> anyhow::Result<Duration> {
    let folder = inputs.folder.path();
    let (file, to) = (folder.join("file"), folder.join(format!("carried-{machine}")));
    let mut random = std::fs::File::open("/dev/urandom")?;
    std::io::copy(&mut std::io::Read::take(&mut random, bytes), &mut std::fs::File::create(&file)?)?;
    nix::unistd::sync();
    let namespaces = &machines.namespaces;
    let listen = format!("{}:47000", if machine == 0 { "127.0.0.1" } else { &namespaces.addresses[0] });
    let share = namespaces.comfy_farm(0, folder, &["blob", "share", text(&file), "--listen", &listen]);
    let mut share = Process::start(share, &folder.join("share.log"))?;
    let ticket = share.line().await?;
    let begun = Instant::now();
    run(&mut namespaces.comfy_farm(machine, folder, &["blob", "get", &ticket, "-o", text(&to)])).await?;
    let took = begun.elapsed();
    clear(&to)?;
    Ok(took)
}

/// Removes what nothing needs any more, and lets the disk come to rest.
fn clear(path: &Path) -> anyhow::Result<()> {
    match path.is_dir() {
        true => std::fs::remove_dir_all(path)?,
        false => std::fs::remove_file(path)?,
    }
    nix::unistd::sync();
    Ok(())
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

fn text(path: &Path) -> &str {
    path.to_str().expect("the folders of a benchmark are in UTF-8")
}
