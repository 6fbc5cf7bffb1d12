//! Locked workspaces on a real ComfyUI: rebuilt by managed nodes from origins of the test's own, and run in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use farm_tests::{
    Farm, FarmOptions, PackageIndex, Studio, comfyui_folder, eventually, eventually_within, uv,
};
use image::{Rgb, RgbImage};
use serde_json::{Value, json};

use crate::owner::look_after;
use crate::previews::watch_on_managed_node;

/// How long a rebuild from nothing may take beside other work: 1.5 GB of packages are installed and ComfyUI starts.
pub(crate) const REBUILD: Duration = Duration::from_secs(400);
/// What the owner of the node wants of its ComfyUI.
const OWN_FLAGS: &str = "--disable-smart-memory --reserve-vram 0.5";
pub(crate) const FARM_TEST: &str = include_str!("../real/nodes/farm_test/__init__.py");

/// What an author's machine and its origins are made of; `None` where something is not installed.
pub(crate) struct Sources {
    pub(crate) installed: PathBuf,
    /// A PATH on which uv is.
    pub(crate) programs: String,
}

impl Sources {
    pub(crate) fn find() -> anyhow::Result<Option<Self>> {
        let Some((installed, uv)) = comfyui_folder().zip(uv()) else { return Ok(None) };
        let path = std::env::var("PATH")?;
        let programs = format!("{}:{path}", uv.parent().context("uv is in a folder")?.display());
        Ok(Some(Self { installed, programs }))
    }
}

/// The flags of a managed node that may read from the origins of the test.
pub(crate) fn managed(index: &PackageIndex) -> Vec<String> {
    let (simple, torch) = (format!("{}/simple", index.url), format!("{}/torch", index.url));
    ["--engine", "managed", "--allow-private-origins", "--package-index", &simple, "--torch-index", &torch]
        .map(str::to_owned)
        .to_vec()
}

/// The lockfile of the author's machine.
pub(crate) async fn lockfile(
    studio: &Studio,
    comfyui: &str,
    custom_nodes: &[Value],
    models: &[Value],
) -> anyhow::Result<Value> {
    Ok(json!({
        "format": 1,
        "python": "3.11",
        "comfyui": studio.comfyui(comfyui).await?,
        "custom_nodes": custom_nodes,
        "packages": studio.packages().await?,
        "models": models,
    }))
}

/// Enlarges a picture with a model and an op of a custom node.
pub(crate) fn upscaling() -> Value {
    json!({
        "1": { "class_type": "LoadImage", "inputs": { "image": "x.png" } },
        "2": { "class_type": "UpscaleModelLoader", "inputs": { "model_name": "tiny.safetensors" } },
        "3": { "class_type": "ImageUpscaleWithModel", "inputs": { "upscale_model": ["2", 0], "image": ["1", 0] } },
        "4": { "class_type": "TestProgress",
               "inputs": { "image": ["3", 0], "steps": 1, "seconds": 0.01, "interruptible": true } },
        "9": { "class_type": "SaveImage", "inputs": { "images": ["4", 0], "filename_prefix": "x" } },
    })
}

/// Inverts a picture.
pub(crate) fn inverting() -> Value {
    json!({
        "1": { "class_type": "LoadImage", "inputs": { "image": "x.png" } },
        "2": { "class_type": "ImageInvert", "inputs": { "image": ["1", 0] } },
        "9": { "class_type": "SaveImage", "inputs": { "images": ["2", 0], "filename_prefix": "x" } },
    })
}

/// A small picture of many colours.
pub(crate) fn picture(folder: &Path) -> anyhow::Result<PathBuf> {
    let path = folder.join("picture.png");
    RgbImage::from_fn(24, 16, |x, y| Rgb([(x * 10) as u8, (y * 15) as u8, 128])).save(&path)?;
    Ok(path)
}

/// The workspace of a workflow on a node, as `/v1/nodes` tells it, once it is in this state or will never be.
pub(crate) fn settled(nodes: &Value, peer: &str, workflow: &str, state: &str) -> Option<Value> {
    let node = nodes["nodes"].as_array()?.iter().find(|node| node["peer"] == peer)?;
    let is_of = |workspace: &&Value| {
        workspace["workflows"]
            .as_array()
            .is_some_and(|workflows| workflows.iter().any(|name| name == workflow))
    };
    let workspace = node["workspaces"].as_array()?.iter().find(is_of)?;
    let is_failed = ["failed", "refused"].iter().any(|failed| workspace["state"] == *failed);
    (is_failed || has_reached(workspace, state)).then(|| workspace.clone())
}

/// Whether a workspace is in this state, or beyond it: a self-test may have proven one that is loaded.
pub(crate) fn has_reached(workspace: &Value, state: &str) -> bool {
    workspace["state"] == state || (state == "loaded" && workspace["state"] == "proven")
}

pub(crate) async fn wait_for_workspace(farm: &Farm, workflow: &str, state: &str) -> anyhow::Result<Value> {
    wait_for_workspace_on(farm, 0, workflow, state).await
}

pub(crate) async fn wait_for_workspace_on(
    farm: &Farm,
    node: usize,
    workflow: &str,
    state: &str,
) -> anyhow::Result<Value> {
    let node = &farm.nodes[node];
    let ask = || async { Ok(settled(&farm.get("/v1/nodes").await?, &node.peer, workflow, state)) };
    let log = || format!("the node's log:\n{}", node.process.log());
    let workspace = eventually_within(REBUILD, ask).await.with_context(log)?;
    ensure!(has_reached(&workspace, state), "the workspace is {workspace}; {}", log());
    Ok(workspace)
}

#[tokio::test]
async fn node_rebuilds_what_authors_had_and_shares_what_is_equal_in_it() -> anyhow::Result<()> {
    let Some(sources) = Sources::find()? else { return Ok(()) };
    let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let origin = farm.folder.path().join("origin");
    let studio = Studio::new(&sources.installed, &origin);
    let index =
        PackageIndex::serve(&sources.installed.join("index"), std::net::TcpListener::bind("127.0.0.1:0")?)?;
    let flags = managed(&index);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let models = farm.folder.path().join("models");
    std::fs::create_dir(&models)?;
    let flags = [&flags[..], &["--models", text(&models), "--comfyui-args", OWN_FLAGS]].concat();
    farm.start_node_with(&flags, &[("PATH", sources.programs.as_str())]).await?;
    let query = [("input", "picture=1.image"), ("output", "9")];
    let lockfile_of = |comfyui, nodes| lockfile(&studio, comfyui, nodes, &[]);
    let bundle = studio.bundle("invert", &inverting(), &lockfile_of("ComfyUI", &[]).await?)?;
    farm.deploy(&bundle, "invert", &query).await?;

    // Killed in the middle of its packages it goes on where it stopped.
    let environment = [("PATH", sources.programs.as_str())];
    eventually(|| async {
        let nodes = farm.get("/v1/nodes").await?;
        let is_fetching = nodes["nodes"][0]["workspaces"][0]["step"] == "python" && index.requests() > 200;
        Ok(is_fetching.then_some(()))
    })
    .await?;
    farm.nodes[0].process.kill().await;
    farm.restart_node_with(0, &flags, &environment).await?;
    // Nobody has submitted anything: it proves itself, with a small picture of the node's own.
    wait_for_workspace(&farm, "invert@1", "proven").await?;
    let asked = index.requests();

    // Another ComfyUI with the same packages shares their environment.
    let bundle = studio.bundle("older", &inverting(), &lockfile_of("ComfyUI-0.3.52", &[]).await?)?;
    farm.deploy(&bundle, "older", &query).await?;
    wait_for_workspace(&farm, "older@1", "loaded").await?;
    let environments = farm.nodes[0].data.join("workspaces/environments");
    assert_eq!(std::fs::read_dir(environments)?.count(), 1);
    assert_eq!(index.requests(), asked, "what is here is asked of nobody");

    // A custom node that does not import is told with its traceback, and holds up nobody.
    let broken = studio.custom_node("broken", &[("__init__.py", "import nowhere_to_be_found\n")]).await?;
    let mut workflow = inverting();
    workflow["2"]["class_type"] = json!("Broken");
    let bundle = studio.bundle("broken", &workflow, &lockfile_of("ComfyUI", &[broken]).await?)?;
    farm.deploy(&bundle, "broken", &query).await?;
    let failed = wait_for_workspace(&farm, "broken@1", "failed").await?;
    let reason = failed["reason"].as_str().unwrap_or_default();
    assert!(failed["step"] == "proof" && reason.contains("Traceback"), "{failed}");
    assert!(reason.contains("No module named 'nowhere_to_be_found'"), "{failed}");

    let mut made = Vec::new();
    for workflow in ["invert", "older"] {
        let job = farm.submit(workflow, &[("picture", &picture(farm.folder.path())?)], &[]).await?;
        let job = farm.wait_for_success(job["id"].as_str().unwrap_or_default()).await?;
        made.push(image::load_from_memory(&farm.output(&job).await?)?.into_rgba8());
        wait_for_workspace(&farm, &format!("{workflow}@1"), "proven").await?;
    }
    assert!(made[0] == made[1] && made[0].dimensions() == (24, 16));
    look_after(text(&farm.nodes[0].data), "invert@1", "older@1").await?;
    watch_on_managed_node(&farm, &studio, &sources, &models).await?;

    // A killed node leaves no ComfyUI behind.
    let data = farm.nodes[0].data.join("workspaces");
    let processes = processes_in(&data);
    let calls =
        processes.iter().filter_map(|process| std::fs::read_to_string(format!("{process}/cmdline")).ok());
    let own = OWN_FLAGS.replace(' ', "\0");
    assert!(calls.into_iter().any(|call| call.contains(&own)), "its ComfyUI is warm, with the owner's flags");
    farm.nodes[0].process.kill().await;
    eventually(|| async { Ok(processes_in(&data).is_empty().then_some(())) }).await
}

/// The processes that work in a folder, or were started with something of it.
pub(crate) fn processes_in(folder: &Path) -> Vec<String> {
    let folder = text(folder);
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_in = |process: &Path| {
        let works_in = std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
        let call = std::fs::read(process.join("cmdline")).unwrap_or_default();
        works_in || String::from_utf8_lossy(&call).contains(folder)
    };
    processes
        .map(|entry| entry.path())
        .filter(|path| is_in(path))
        .map(|path| path.display().to_string())
        .collect()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("the folders of tests are in UTF-8")
}
