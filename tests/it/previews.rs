//! Pictures in the making, from a real sampler to whoever watches a job: of an attached ComfyUI, and of a node's own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use data_encoding::BASE64;
use farm_tests::{Farm, FarmOptions, Studio, comfyui_folder, eventually};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio::time::timeout;

use crate::real_comfyui::Comfyui;
use crate::workspaces::{FARM_TEST, Sources, lockfile, wait_for_workspace};

/// How long the job may take.
const PATIENCE: Duration = Duration::from_secs(150);

/// A checkpoint that is small, and real to ComfyUI.
pub(crate) async fn make_checkpoint(installed: &Path, file: &Path) -> anyhow::Result<()> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/real/tiny_sd15.py");
    let made = Command::new(installed.join("venv/bin/python")).arg(script).arg(file).output().await?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

/// Samples long enough to be watched.
fn sampling() -> Value {
    let conditioning =
        json!({ "class_type": "TestConditioning", "inputs": { "text": "a cat", "width": 768 } });
    json!({
        "1": { "class_type": "CheckpointLoaderSimple", "inputs": { "ckpt_name": "tiny.safetensors" } },
        "2": conditioning,
        "3": conditioning,
        "4": { "class_type": "EmptyLatentImage", "inputs": { "width": 64, "height": 64, "batch_size": 1 } },
        "5": { "class_type": "KSampler", "inputs": {
            "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0],
            "seed": 1, "steps": 48, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0 } },
        "6": { "class_type": "VAEDecode", "inputs": { "samples": ["5", 0], "vae": ["1", 2] } },
        "9": { "class_type": "SaveImage", "inputs": { "images": ["6", 0], "filename_prefix": "x" } },
    })
}

/// All events of a job until it ends, by name.
async fn events(farm: &Farm, path: &str) -> anyhow::Result<Vec<(String, Value)>> {
    let stream = farm.request(Method::GET, path).send().await?.error_for_status()?.text().await?;
    let parse = |event: &str| {
        let field = |name| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim_start);
        let data = serde_json::from_str(field("data:")?).ok()?;
        Some((field("event:")?.to_owned(), data))
    };
    Ok(stream.split("\n\n").filter_map(parse).collect())
}

#[tokio::test]
async fn whoever_watches_a_job_sees_its_picture_in_the_making() -> anyhow::Result<()> {
    let Some(installed) = comfyui_folder() else { return Ok(()) };
    let (farm, _comfyui) = sampling_farm(&installed).await?;
    watch_one(&farm).await
}

/// A farm with an attached ComfyUI, and the workflow deployed.
pub(crate) async fn sampling_farm(installed: &Path) -> anyhow::Result<(Farm, Comfyui)> {
    let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let models = farm.folder.path().join("models");
    std::fs::create_dir_all(models.join("checkpoints"))?;
    make_checkpoint(installed, &models.join("checkpoints/tiny.safetensors")).await?;
    let paths = farm.folder.path().join("models.yaml");
    std::fs::write(
        &paths,
        format!("test:\n  base_path: {}\n  checkpoints: checkpoints\n", models.display()),
    )?;
    let paths = paths.to_str().context("a name in UTF-8")?;
    let arguments = ["--preview-method", "latent2rgb", "--extra-model-paths-config", paths];
    let comfyui = Comfyui::start_with(installed, &arguments).await?;
    farm.start_node(&["--comfyui", &comfyui.url]).await?;
    let file = farm.folder.path().join("sampling.json");
    std::fs::write(&file, sampling().to_string())?;
    let query = [("input", "seed=5.seed"), ("output", "9"), ("accept_attached", "true")];
    farm.deploy(&file, "sampling", &query).await?;

    Ok((farm, comfyui))
}

/// Deploys a workflow that samples with a checkpoint of its lockfile, to a managed node that serves this folder of
/// models, and watches a job.
pub(crate) async fn watch_on_managed_node(
    farm: &Farm,
    studio: &Studio,
    sources: &Sources,
    models: &Path,
) -> anyhow::Result<()> {
    let place = "checkpoints/tiny.safetensors";
    std::fs::create_dir_all(models.join("checkpoints"))?;
    make_checkpoint(&sources.installed, &models.join(place)).await?;
    let bytes = std::fs::read(models.join(place))?;
    let sha256 = hex::encode(Sha256::digest(&bytes));
    // The node comes to know of it by watching its folder.
    eventually(|| async {
        let held = farm.get(&format!("/v1/blobs/sha256:{sha256}")).await?;
        Ok(held["holders"].as_array().is_some_and(|holders| !holders.is_empty()).then_some(()))
    })
    .await?;
    let model = json!({
        "path": format!("models/{place}"), "size": bytes.len(), "sha256": sha256, "disabled": false,
    });
    let node = studio.custom_node("farm_test", &[("__init__.py", FARM_TEST)]).await?;
    let lockfile = lockfile(studio, "ComfyUI", &[node], &[model]).await?;
    let bundle = studio.bundle("sampling", &sampling(), &lockfile)?;
    farm.deploy(&bundle, "sampling", &[("input", "seed=5.seed"), ("output", "9")]).await?;
    wait_for_workspace(farm, "sampling@1", "loaded").await?;
    watch_one(farm).await
}

/// Submits a job, and sees at least two pictures of it in the making.
async fn watch_one(farm: &Farm) -> anyhow::Result<()> {
    let job = farm.submit("sampling", &[], &[("seed", "7")]).await?;
    let id = job["id"].as_str().context("an id")?;
    let path = format!("/v1/jobs/{id}/events");
    let (watching, watched) = (format!("{path}?previews=true"), path);
    let following = async { tokio::try_join!(events(farm, &watching), events(farm, &watched)) };
    let Ok(streams) = timeout(PATIENCE, following).await else {
        bail!("the job does not end: {}", farm.get(&format!("/v1/jobs/{id}")).await?);
    };
    let (watched, followed) = streams?;
    assert_eq!(
        watched.last().map(|(name, data)| (name.as_str(), &data["state"])),
        Some(("ended", &json!("succeeded")))
    );
    let frames: Vec<Vec<u8>> = watched
        .iter()
        .filter(|(name, _)| name == "preview")
        .map(|(_, data)| {
            assert_eq!((data["job"].as_str(), data["media_type"].as_str()), (Some(id), Some("image/jpeg")));
            Ok(BASE64.decode(data["data"].as_str().unwrap_or_default().as_bytes())?)
        })
        .collect::<anyhow::Result<_>>()?;
    assert!(frames.len() >= 2, "{} frames", frames.len());
    for frame in &frames {
        image::load_from_memory(frame)?;
    }
    assert_ne!(frames.first(), frames.last(), "the picture grows");
    assert!(followed.iter().all(|(name, _)| name != "preview"), "who did not ask gets none");
    Ok(())
}
