//! Bundles as comfy-pack 0.4 writes them: with custom nodes of the Comfy registry, which the first node takes from there and
//! the next from that node, and with some that nobody can give.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use farm_tests::{Farm, FarmOptions, PackageIndex, Process, Registry, Studio};
use serde_json::{Value, json};

use crate::people::{COMFYUI, has_already, through, upside_down, zipped};
use crate::workspaces::{Sources, managed, picture, wait_for_workspace, wait_for_workspace_on};

/// A bundle of an op in an installation with more custom nodes than it needs.
async fn bundle(studio: &Studio, folder: &Path, class: &str) -> anyhow::Result<PathBuf> {
    let comfyui = studio.comfyui("ComfyUI").await?;
    let packages = studio.packages().await?;
    let pip = |package: &Value| {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        (format!("{}=={}", text("name"), text("version")), json!(""))
    };
    let pips: serde_json::Map<String, Value> = packages.as_array().into_iter().flatten().map(pip).collect();
    let snapshot = json!({
        "comfyui": comfyui["commit"],
        "git_custom_nodes": { "https://github.com/someone/switched-off": { "hash": "1".repeat(40), "disabled": true } },
        "cnr_custom_nodes": { "comfyui-flip": "1.0.8", "comfyui-gone": "0.0.1" },
        "file_custom_nodes": [
            { "filename": "websocket_image_save.py", "disabled": false },
            { "filename": "own.py", "disabled": false },
            // So that each has a lockfile of its own.
            { "filename": format!("beside_{class}.py"), "disabled": false },
        ],
        "pips": pips,
        "python": "3.11",
        "models": [{
            "filename": "models/checkpoints/not-used.safetensors", "size": 3, "atime": 1.5, "ctime": 1.5,
            "disabled": true, "sha256": "1".repeat(64), "source": {},
        }],
    });
    let entries = [
        ("snapshot.json", snapshot.to_string()),
        ("workflow_api.json", through(class).to_string()),
        ("workflow.json", "{}".to_owned()),
    ];
    zipped(&folder.join(format!("{class}.cpack.zip")), &entries)
}

#[tokio::test]
async fn node_of_the_registry_is_fetched_once_for_the_farm_and_what_no_op_needs_is_left_out()
-> anyhow::Result<()> {
    let Some(sources) = Sources::find()? else { return Ok(()) };
    let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let studio = Studio::new(&sources.installed, &farm.folder.path().join("origin"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let index = PackageIndex::serve(&sources.installed.join("index"), listener)?;
    let nodes = upside_down("Flip");
    // An op of a package with a file beside its `__init__.py`.
    let flip = [
        ("__init__.py", "from .nodes import NODE_CLASS_MAPPINGS\n"),
        ("pyproject.toml", "[project]\nname = 'comfyui-flip'\nversion = '1.0.8'\n"),
        ("nodes.py", nodes.as_str()),
    ];
    let registry = Registry::serve("comfyui-flip", "1.0.8", &flip).await?;
    let flags = [managed(&index), vec!["--comfy-registry".to_owned(), registry.url.clone()]].concat();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let environment = [("PATH", sources.programs.as_str())];
    farm.start_node_with(&flags, &environment).await?;
    // What it pins lies at a public address, which a test cannot reach.
    has_already(&farm.nodes[0].data, COMFYUI, &studio.comfyui("ComfyUI").await?)?;
    let flip = bundle(&studio, farm.folder.path(), "Flip").await?;
    farm.deploy(&flip, "flip", &[]).await?;
    let workspace = wait_for_workspace(&farm, "flip@1", "proven").await?;
    let notes: Vec<&str> =
        workspace["notes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let is_told = |name: &str| notes.iter().any(|note| note.contains(name) && note.contains("is left out"));
    ensure!(is_told("`comfyui-gone 0.0.1`") && is_told("`own.py`") && notes.len() == 3, "{workspace}");

    let picture = picture(farm.folder.path())?;
    let upside_down = image::imageops::flip_vertical(&image::open(&picture)?.to_rgb8());
    let run = async |farm: &Farm| -> anyhow::Result<image::RgbImage> {
        let job = farm.submit("flip", &[("picture", &picture)], &[]).await?;
        let job = farm.wait_for_success(job["id"].as_str().context("a job has an id")?).await?;
        Ok(image::load_from_memory(&farm.output(&job).await?)?.to_rgb8())
    };
    assert_eq!(run(&farm).await?, upside_down);
    let data = farm.nodes[0].data.to_str().context("UTF-8")?;
    let listed =
        Process::comfy_farm(farm.folder.path(), &["workspace", "ls", "--data", data]).output().await?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    ensure!(listed.contains("`comfyui-gone 0.0.1` is left out") && listed.contains("`own.py`"), "{listed}");

    // The op of another workflow is in what is left out.
    let own = bundle(&studio, farm.folder.path(), "Own").await?;
    farm.deploy(&own, "own", &[]).await?;
    let workspace = wait_for_workspace(&farm, "own@1", "failed").await?;
    let reason = workspace["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("without class `Own`") && reason.contains("`own.py` is left out"), "{workspace}");
    let asked = registry.requests();

    // The next node has only its peer: no upstream of git, and no registry.
    drop(registry);
    ensure!(asked >= 3, "two versions and the files of one, {asked} times");
    farm.start_node_with(&flags, &environment).await?;
    wait_for_workspace_on(&farm, 1, "flip@1", "loaded").await?;
    farm.nodes[0].process.kill().await;
    assert_eq!(run(&farm).await?, upside_down);
    Ok(())
}
