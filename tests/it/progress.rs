//! How far a node is with a workspace, as people see it while a model comes, and where the log is of what failed.

use anyhow::Context;
use farm_tests::{Farm, FarmOptions, PackageIndex, Process, Studio, eventually};
use protocol::BlobHash;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::workspaces::{Sources, inverting, managed};

const SIZE: usize = 24 << 20;
/// How fast a peer gives the model, so that it takes a while.
const RATE: &str = "4MB/s";

/// What `workspace ls` says.
async fn listed(data: &str) -> anyhow::Result<String> {
    let folder = tempfile::tempdir()?;
    let output = Process::comfy_farm(folder.path(), &["workspace", "ls", "--data", data]).output().await?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn bytes_of_a_model_are_seen_while_it_comes_and_a_failure_leaves_its_log() -> anyhow::Result<()> {
    let Some(sources) = Sources::find()? else { return Ok(()) };
    let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let folder = farm.folder.path().to_owned();
    let model = vec![7; SIZE];
    let models = folder.join("models");
    std::fs::create_dir(&models)?;
    std::fs::write(models.join("large.safetensors"), &model)?;
    let models = models.to_str().context("UTF-8")?;
    farm.start_node_with(&["--models", models, "--upload-limit", RATE], &[]).await?;
    let has_it = || async { Ok((farm.get("/v1/nodes").await?["nodes"][0]["blobs"] == 1).then_some(())) };
    eventually(has_it).await?;
    let studio = Studio::new(&sources.installed, &folder.join("origin"));
    let index =
        PackageIndex::serve(&sources.installed.join("index"), std::net::TcpListener::bind("127.0.0.1:0")?)?;
    // It needs no package, so its model is what takes time, and it never comes up.
    let code = studio.custom_node("empty", &[("main.py", "raise SystemExit('no such thing')\n")]).await?;
    let lockfile = json!({
        "format": 1,
        "python": "3.11",
        "comfyui": { "url": code["url"], "commit": code["commit"] },
        "models": [{
            "path": "models/vae/large.safetensors",
            "size": SIZE,
            "sha256": hex::encode(Sha256::digest(&model)),
            "blob": BlobHash::of(&model),
            "disabled": false,
        }],
    });
    let bundle = studio.bundle("large", &inverting(), &lockfile)?;
    let flags = managed(&index);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    farm.start_node_with(&flags, &[("PATH", sources.programs.as_str())]).await?;
    farm.deploy(&bundle, "large", &[("input", "picture=1.image"), ("output", "9")]).await?;
    let node = &farm.nodes[1];
    let data = node.data.to_str().context("UTF-8")?;

    let workspace = async || -> anyhow::Result<Value> {
        Ok(farm.get(&format!("/v1/nodes/{}", node.peer)).await?["workspaces"][0].clone())
    };
    let seen = eventually(|| async {
        let workspace = workspace().await?;
        let done = workspace["done"].as_u64().unwrap_or_default();
        let is_between = workspace["step"] == "models" && done > 0 && done < SIZE as u64;
        Ok(is_between.then_some(workspace))
    });
    let seen = seen.await.with_context(|| node.process.log())?;
    assert_eq!(seen["total"], SIZE);
    let here = listed(data).await?;
    assert!(here.contains("models, ") && here.contains(" of 24 MiB"), "{here}");

    let failed = eventually(|| async { Ok(Some(workspace().await?).filter(|it| it["state"] == "failed")) });
    let failed = failed.await.with_context(|| node.process.log())?;
    assert_eq!(failed["step"], "proof", "{failed}");
    let told = node.process.log();
    for step in ["lockfile", "code", "python", "models", "proof"] {
        let line = |line: &&str| line.contains("workspace is at a step") && line.contains(step);
        assert!(told.lines().any(|told| line(&told)), "{step} is not in:\n{told}");
    }
    let here = listed(data).await?;
    let log = here.lines().find_map(|line| line.split_once("failed last is `")?.1.strip_suffix('`'));
    let log = std::fs::read_to_string(log.with_context(|| here.clone())?)?;
    assert!(log.contains("no such thing"), "{log}");
    Ok(())
}
