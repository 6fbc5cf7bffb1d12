//! Locked workspaces on a real ComfyUI: rebuilt by managed nodes from origins of the test's own, and run in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use farm_tests::{Farm, FarmOptions, PackageIndex, Studio, comfyui_folder, eventually_within, uv};
use image::{Rgb, RgbImage, RgbaImage};
use serde_json::{Value, json};

/// How long a rebuild from nothing may take beside other work: 1.5 GB of packages are installed and ComfyUI starts.
const REBUILD: Duration = Duration::from_secs(400);

/// A farm that rebuilds, and where it can rebuild from.
struct Office {
    farm: Farm,
    studio: Studio,
    index: PackageIndex,
    models: PathBuf,
    programs: String,
}

impl Office {
    /// `None` where there is no real ComfyUI or no uv to test with.
    async fn start() -> anyhow::Result<Option<Self>> {
        let Some((installed, uv)) = comfyui_folder().zip(uv()) else { return Ok(None) };
        let farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
        let origin = farm.folder.path().join("origin");
        std::fs::create_dir_all(&origin)?;
        let index = PackageIndex::serve(&installed.join("index")).await?;
        let path = std::env::var("PATH")?;
        let programs = format!("{}:{path}", uv.parent().context("uv is in a folder")?.display());
        let (studio, models) = (Studio::new(&installed, &origin), farm.folder.path().join("models"));
        Ok(Some(Self { farm, studio, index, models, programs }))
    }

    /// Starts a managed node that may read from the office's own origins.
    async fn managed_node(&mut self, more: &[&str]) -> anyhow::Result<()> {
        let (simple, torch) = (format!("{}/simple", self.index.url), format!("{}/torch", self.index.url));
        let mut arguments = vec!["--engine", "managed", "--allow-private-origins"];
        if !more.contains(&"--package-index") {
            arguments.extend(["--package-index", &simple, "--torch-index", &torch]);
        }
        arguments.extend(more);
        self.farm.start_node_with(&arguments, &[("PATH", &self.programs)]).await
    }

    /// The lockfile of the author's machine.
    async fn lockfile(&self, custom_nodes: &[Value], models: &[Value]) -> anyhow::Result<Value> {
        Ok(json!({
            "format": 1,
            "python": "3.11",
            "comfyui": self.studio.comfyui().await?,
            "custom_nodes": custom_nodes,
            "packages": self.studio.packages().await?,
            "models": models,
        }))
    }

    /// Waits until the node's only workspace is in one of these states; gives it as it is told.
    async fn workspace(&self, node: usize, states: &[&str]) -> anyhow::Result<Value> {
        let peer = self.farm.nodes[node].peer.as_str();
        let waited = eventually_within(REBUILD, || async {
            let nodes = self.farm.get("/v1/nodes").await?;
            let nodes = nodes["nodes"].as_array().cloned().unwrap_or_default();
            let node = nodes.into_iter().find(|node| node["peer"] == peer).unwrap_or_default();
            Ok(Some(node["workspaces"][0].clone()).filter(|workspace| {
                ["failed", "refused"].iter().chain(states).any(|state| workspace["state"] == *state)
            }))
        });
        let last = match waited.await {
            Ok(workspace) => workspace,
            Err(error) => bail!("{error}; the node's log:\n{}", self.farm.nodes[node].process.log()),
        };
        let state = last["state"].as_str().unwrap_or_default();
        if !states.contains(&state) {
            bail!("the workspace is {last}; the node's log:\n{}", self.farm.nodes[node].process.log());
        }
        Ok(last)
    }

    async fn render(&self, workflow: &str, picture: &Path) -> anyhow::Result<RgbaImage> {
        let job = self.farm.submit(workflow, &[("picture", picture)], &[]).await?;
        let job = self.farm.wait_for_success(job["id"].as_str().unwrap_or_default()).await?;
        Ok(image::load_from_memory(&self.farm.output(&job).await?)?.into_rgba8())
    }
}

/// Enlarges a picture with a model and an op of a custom node.
fn upscaling() -> Value {
    json!({
        "1": { "class_type": "LoadImage", "inputs": { "image": "x.png" } },
        "2": { "class_type": "UpscaleModelLoader", "inputs": { "model_name": "tiny.safetensors" } },
        "3": { "class_type": "ImageUpscaleWithModel", "inputs": { "upscale_model": ["2", 0], "image": ["1", 0] } },
        "4": { "class_type": "TestProgress",
               "inputs": { "image": ["3", 0], "steps": 1, "seconds": 0.01, "interruptible": true } },
        "9": { "class_type": "SaveImage", "inputs": { "images": ["4", 0], "filename_prefix": "x" } },
    })
}

const FARM_TEST: &str = include_str!("../real/nodes/farm_test/__init__.py");

#[tokio::test]
async fn node_rebuilds_the_authors_workspace_and_renders_in_it() -> anyhow::Result<()> {
    let Some(mut office) = Office::start().await? else { return Ok(()) };
    let upscaler = office.studio.upscaler(&office.models).await?;
    let node = office.studio.custom_node("farm_test", &[("__init__.py", FARM_TEST)]).await?;
    let lockfile = office.lockfile(&[node], &[upscaler]).await?;
    let bundle = office.studio.bundle("upscale", &upscaling(), &lockfile)?;
    let models = office.models.to_str().context("UTF-8")?.to_owned();
    office.managed_node(&["--models", &models]).await?;
    office.farm.deploy(&bundle, "upscale", &[("input", "picture=1.image"), ("output", "9")]).await?;
    office.workspace(0, &["loaded"]).await?;

    let picture = office.farm.folder.path().join("picture.png");
    RgbImage::from_fn(24, 16, |x, y| Rgb([(x * 10) as u8, (y * 15) as u8, 128])).save(&picture)?;
    let made = office.render("upscale", &picture).await?;
    assert_eq!(made.dimensions(), (48, 32));
    office.workspace(0, &["proven"]).await?;

    // With every origin gone, a second node has it all from the first.
    let asked = office.index.requests();
    std::fs::rename(office.farm.folder.path().join("origin"), office.farm.folder.path().join("away"))?;
    office
        .managed_node(&[
            "--package-index",
            "http://127.0.0.1:9/simple",
            "--torch-index",
            "http://127.0.0.1:9",
        ])
        .await?;
    office.workspace(1, &["loaded"]).await?;
    assert_eq!(office.index.requests(), asked);
    office.farm.post(&format!("/v1/nodes/{}/drain", office.farm.nodes[0].peer), &json!({})).await?;
    assert!(office.render("upscale", &picture).await? == made, "the second node makes other pixels");
    Ok(())
}
