//! Bundles as people have them, on one managed node and unattended: each runs, or is refused with its own reason.
//!
//! The README has the table. Not here: those that are more than pins (`contrary`), and what else `pack` refuses.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use farm_tests::{Farm, FarmOptions, PackageIndex, Studio};
use protocol::BlobHash;
use serde_json::{Value, json};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::contrary::{index_with_contrary, look_at, node_after_an_install_script};
use crate::workspaces::{Sources, lockfile, managed, picture, wait_for_workspace};

const REMOTE: &str = include_str!("../real/remote.py");

/// A module with an op that turns a picture upside down.
pub(crate) fn upside_down(class: &str) -> String {
    format!(
        "
class {class}:
    RETURN_TYPES, FUNCTION, CATEGORY = ('IMAGE',), 'execute', 'test'
    @classmethod
    def INPUT_TYPES(cls):
        return {{'required': {{'image': ('IMAGE',)}}}}
    def execute(self, image):
        return (image.flip(1),)
NODE_CLASS_MAPPINGS = {{'{class}': {class}}}
"
    )
}

/// A picture that passes one op, as comfy-pack's ops declare it; the ids are those of a subgraph.
pub(crate) fn through(class: &str) -> Value {
    json!({
        "57:1": { "class_type": "CPackInputImage", "inputs": { "image": "x.png" }, "_meta": { "title": "picture" } },
        "57:2": { "class_type": class, "inputs": { "image": ["57:1", 0] } },
        "9": { "class_type": "CPackOutputImage", "inputs": { "images": ["57:2", 0], "filename_prefix": "x" } },
    })
}

/// A picture as a film of one frame.
fn film() -> Value {
    json!({
        "1": { "class_type": "CPackInputImage", "inputs": { "image": "x.png" }, "_meta": { "title": "picture" } },
        "2": { "class_type": "CreateVideo", "inputs": { "images": ["1", 0], "fps": 8.0 } },
        "9": { "class_type": "CPackOutputVideo",
               "inputs": { "video": ["2", 0], "filename_prefix": "x", "format": "mp4", "codec": "h264" } },
    })
}

/// A model of this name and these settings, which nobody has.
fn model(path: &str, more: &Value) -> Value {
    let mut model = json!({ "path": path, "size": 3, "sha256": "1".repeat(64), "disabled": false });
    for (key, value) in more.as_object().into_iter().flatten() {
        model[key] = value.clone();
    }
    model
}

/// Where comfy-pack says that ComfyUI is.
pub(crate) const COMFYUI: &str = "https://github.com/comfyanonymous/ComfyUI.git";

/// Lays what is pinned into the store of a node, as from an earlier workflow that had it from this address.
pub(crate) fn has_already(data: &Path, address: &str, pinned: &Value) -> anyhow::Result<()> {
    let text = |key: &str| pinned[key].as_str().unwrap_or_default().to_owned();
    let name = BlobHash::of(address.trim_end_matches(".git").as_bytes()).to_string();
    let store = data.join("workspaces/git").join(format!("{}.git", &name[..32]));
    let git = |arguments: &[&str]| -> anyhow::Result<()> {
        let status = Command::new("git").arg("--git-dir").arg(&store).args(arguments).status()?;
        ensure!(status.success(), "git {arguments:?}: {status}");
        Ok(())
    };
    std::fs::create_dir_all(&store)?;
    git(&["init", "--quiet", "--bare"])?;
    git(&["fetch", "--quiet", &text("url"), "HEAD"])?;
    git(&["update-ref", &format!("refs/whole/{}", text("commit")), &text("commit")])
}

/// A bundle as comfy-pack wrote it before 0.4, with a custom node. What it pins lies at public addresses, which a test
/// cannot reach: the node that is to rebuild it has these commits already, as from an earlier workflow.
async fn older(studio: &Studio, folder: &Path, data: &Path) -> anyhow::Result<PathBuf> {
    let comfyui = studio.comfyui("ComfyUI").await?;
    let node = studio.custom_node("older", &[("__init__.py", &upside_down("Older"))]).await?;
    let address = "https://github.com/someone/older-nodes.git";
    has_already(data, COMFYUI, &comfyui)?;
    has_already(data, address, &node)?;
    let snapshot = json!({
        "python": "3.11",
        "comfyui": comfyui["commit"],
        "models": [],
        "custom_nodes": [{ "url": address, "commit_hash": node["commit"], "disabled": false }],
    });
    let packages = studio.packages().await?;
    let line = |package: &Value| {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        format!("{}=={}\n", text("name"), text("version"))
    };
    let requirements: String = packages.as_array().into_iter().flatten().map(line).collect();
    let entries = [
        ("requirements.txt", requirements),
        ("snapshot.json", snapshot.to_string()),
        ("workflow_api.json", through("Older").to_string()),
        ("workflow.json", "{}".to_owned()),
    ];
    zipped(&folder.join("older.cpack.zip"), &entries)
}

/// A bundle of these entries.
pub(crate) fn zipped(path: &Path, entries: &[(&str, String)]) -> anyhow::Result<PathBuf> {
    let mut zip = ZipWriter::new(std::fs::File::create(path)?);
    for (entry, text) in entries {
        zip.start_file(*entry, SimpleFileOptions::default())?;
        zip.write_all(text.as_bytes())?;
    }
    zip.finish()?;
    Ok(path.to_owned())
}

#[tokio::test]
async fn bundles_as_people_have_them_run_or_are_refused_with_the_reason() -> anyhow::Result<()> {
    let Some(sources) = Sources::find()? else { return Ok(()) };
    let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let studio = Studio::new(&sources.installed, &farm.folder.path().join("origin"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let index = PackageIndex::serve(&index_with_contrary(&sources.installed, farm.folder.path())?, listener)?;
    let flags = managed(&index);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    node_after_an_install_script(&mut farm, &studio, &flags, &sources.programs).await?;

    let remote = studio.custom_node("remote", &[("__init__.py", REMOTE)]).await?;
    let mut rewritten = remote.clone();
    rewritten["commit"] = json!("1".repeat(40));
    let (safe, pickle) = ("models/vae/a.safetensors", "models/checkpoints/a.ckpt");
    // The name, its custom nodes, its models, the graph, and the state and words in which its workspace ends.
    let bundles = [
        ("film", vec![], vec![], film(), ("loaded", "")),
        ("subgraph", vec![], vec![], through("ImageInvert"), ("loaded", "")),
        ("download", vec![remote], vec![], through("Remote"), ("loaded", "")),
        ("rewritten", vec![rewritten], vec![], through("Remote"), ("failed", "the history was rewritten")),
        (
            "pickle",
            vec![],
            vec![model(pickle, &json!({}))],
            through("ImageInvert"),
            ("refused", "--allow-pickle"),
        ),
        ("gone", vec![], vec![model(safe, &json!({}))], through("ImageInvert"), ("failed", "did not come")),
        (
            "private",
            vec![],
            vec![model(safe, &json!({ "share": false }))],
            through("ImageInvert"),
            ("failed", "marked not to be shared"),
        ),
    ];
    for (name, nodes, models, workflow, _) in &bundles {
        let bundle = studio.bundle(name, workflow, &lockfile(&studio, "ComfyUI", nodes, models).await?)?;
        farm.deploy(&bundle, name, &[]).await.context(*name)?;
    }
    let older = older(&studio, farm.folder.path(), &farm.nodes[0].data).await?;
    farm.deploy(&older, "older", &[]).await?;
    for (name, _, _, _, (state, words)) in &bundles {
        let workspace = wait_for_workspace(&farm, &format!("{name}@1"), state).await.context(*name)?;
        let reason = workspace["reason"].as_str().unwrap_or_default();
        ensure!(reason.contains(words), "{name}: {workspace}");
    }
    wait_for_workspace(&farm, "older@1", "loaded").await?;

    let picture = picture(farm.folder.path())?;
    let run = async |name: &str| -> anyhow::Result<Value> {
        let job = farm.submit(name, &[("picture", &picture)], &[]).await?;
        let id = job["id"].as_str().unwrap_or_default();
        farm.wait_for_job(id, |job| !matches!(job["state"].as_str(), Some("queued" | "running"))).await
    };
    let inverted = run("subgraph").await?;
    assert_eq!(image::load_from_memory(&farm.output(&inverted).await?)?.to_rgb8().dimensions(), (24, 16));
    let upside_down = image::load_from_memory(&farm.output(&run("older").await?).await?)?.to_rgb8();
    assert_eq!(upside_down, image::imageops::flip_vertical(&image::open(&picture)?.to_rgb8()));
    let film = run("film").await?;
    assert_eq!(film["outputs"][0]["media_type"], "video/mp4", "{film}");
    assert!(farm.output(&film).await?.get(4..8) == Some(b"ftyp"), "a film");
    let failed = run("download").await?;
    assert_eq!(failed["error"]["kind"], "undeclared_file", "{failed}");
    look_at(&farm, &studio, &sources, &picture).await
}
