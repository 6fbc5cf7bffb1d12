//! Bundles as people have them, on one managed node and unattended: each runs, or is refused with its own reason.
//!
//! The README has the table. Not here: what `pack` refuses, install scripts, and comfy-pack's older format, which have
//! tests of their own.

use anyhow::{Context, ensure};
use farm_tests::{Farm, FarmOptions, PackageIndex, Studio};
use serde_json::{Value, json};

use crate::workspaces::{Sources, lockfile, managed, picture, wait_for_workspace};

const REMOTE: &str = include_str!("../real/remote.py");

/// A picture that passes one op, as comfy-pack's ops declare it; the ids are those of a subgraph.
fn through(class: &str) -> Value {
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

#[tokio::test]
async fn bundles_as_people_have_them_run_or_are_refused_with_the_reason() -> anyhow::Result<()> {
    let Some(sources) = Sources::find()? else { return Ok(()) };
    let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let studio = Studio::new(&sources.installed, &farm.folder.path().join("origin"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let index = PackageIndex::serve(&sources.installed.join("index"), listener)?;
    let flags = managed(&index);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    farm.start_node_with(&flags, &[("PATH", sources.programs.as_str())]).await?;

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
    for (name, _, _, _, (state, words)) in &bundles {
        let workspace = wait_for_workspace(&farm, &format!("{name}@1"), state).await.context(*name)?;
        let reason = workspace["reason"].as_str().unwrap_or_default();
        ensure!(reason.contains(words), "{name}: {workspace}");
    }

    let picture = picture(farm.folder.path())?;
    let run = async |name: &str| -> anyhow::Result<Value> {
        let job = farm.submit(name, &[("picture", &picture)], &[]).await?;
        let id = job["id"].as_str().unwrap_or_default();
        farm.wait_for_job(id, |job| !matches!(job["state"].as_str(), Some("queued" | "running"))).await
    };
    let inverted = run("subgraph").await?;
    assert_eq!(image::load_from_memory(&farm.output(&inverted).await?)?.to_rgb8().dimensions(), (24, 16));
    let film = run("film").await?;
    assert_eq!(film["outputs"][0]["media_type"], "video/mp4", "{film}");
    assert!(farm.output(&film).await?.get(4..8) == Some(b"ftyp"), "a film");
    let failed = run("download").await?;
    assert_eq!(failed["error"]["kind"], "undeclared_file", "{failed}");
    Ok(())
}
