//! A workflow whose custom node fetches files as it runs: it fails where they are not packed, and runs where they are.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, ensure};
use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use farm_tests::{Farm, FarmOptions, PackageIndex, Process, Studio};
use serde_json::{Value, json};

use crate::pack::git;
use crate::workspaces::{Sources, managed, picture, wait_for_workspace};

const FETCHING: &str = include_str!("../real/fetching.py");
/// The commit that the hub is at.
const COMMIT: &str = "ca457f7ba1ff33bd0d724cd7324131509efcf3ec";

/// A hub, which has every file as well at `/NAME`; says where it is.
async fn origin() -> anyhow::Result<String> {
    let contents = |name: &str| format!("contents of {name}");
    let of_hub = async move |Path(name): Path<String>| {
        (
            [("x-repo-commit", COMMIT), ("etag", "\"1111111111111111111111111111111111111111\"")],
            contents(&name),
        )
    };
    let router = Router::new()
        .route("/some-org/some-model/resolve/main/{name}", get(of_hub))
        .route("/{name}", get(async move |Path(name): Path<String>| contents(&name)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}

#[tokio::test]
async fn what_a_custom_node_fetches_is_there_without_a_network_once_it_was_traced() -> anyhow::Result<()> {
    let Some(Sources { installed, programs }) = Sources::find()? else { return Ok(()) };
    let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let folder = farm.folder.path().to_owned();
    let studio = Studio::new(&installed, &folder.join("origin"));
    let origin = origin().await?;
    let fetching = FETCHING.replace("http://127.0.0.1:0", &origin);
    let url = |pin: &Value| pin["url"].as_str().unwrap_or_default().to_owned();
    let comfyui = folder.join("ComfyUI");
    git(&folder, &["clone", "--quiet", &url(&studio.comfyui("ComfyUI").await?), "ComfyUI"])?;
    let node = studio.custom_node("fetching", &[("__init__.py", &fetching)]).await?;
    std::fs::create_dir_all(comfyui.join("models"))?;
    std::fs::create_dir_all(comfyui.join("input"))?;
    std::fs::create_dir_all(comfyui.join("custom_nodes"))?;
    git(&comfyui.join("custom_nodes"), &["clone", "--quiet", &url(&node)])?;
    let picture = picture(&folder)?;
    std::fs::copy(&picture, comfyui.join("input/x.png"))?;
    let workflow = json!({
        "1": { "class_type": "CPackInputImage", "inputs": { "image": "x.png" }, "_meta": { "title": "picture" } },
        "2": { "class_type": "Fetching", "inputs": { "image": ["1", 0] } },
        "9": { "class_type": "CPackOutputImage", "inputs": { "images": ["2", 0], "filename_prefix": "x" } },
    });
    std::fs::write(folder.join("face_api.json"), workflow.to_string())?;

    // The author has a program that the node will lack.
    let own_programs = folder.join("programs");
    std::fs::create_dir_all(&own_programs)?;
    std::fs::write(own_programs.join("comfy-farm-greet"), "#!/bin/sh\necho hello\n")?;
    std::fs::set_permissions(own_programs.join("comfy-farm-greet"), Permissions::from_mode(0o755))?;
    let authors = format!("{}:{programs}", own_programs.display());

    let python = installed.join("venv/bin/python");
    let python = python.to_str().context("UTF-8")?;
    let pack = async |name: &str, flags: &[&str]| -> anyhow::Result<Value> {
        let all =
            ["pack", "--comfyui", "ComfyUI", "--workflow", "face_api.json", "--python", python, "--offline"];
        let arguments = [&all[..], &["-o", name, "--json"], flags].concat();
        let mut command = Process::comfy_farm(&folder, &arguments);
        let output =
            command.current_dir(&folder).env("HF_ENDPOINT", &origin).env("PATH", &authors).output().await?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let bare = pack("bare.cpack.zip", &[]).await?;
    assert_eq!(bare["lockfile"]["models"], json!([]));
    assert_eq!(bare["lockfile"]["system"]["programs"], Value::Null);
    let traced = pack("traced.cpack.zip", &["--trace"]).await?;
    let models = traced["lockfile"]["models"].as_array().context("a list")?;
    let paths: Vec<&str> = models.iter().filter_map(|model| model["path"].as_str()).collect();
    let of_hub = "home/huggingface/hub/models--some-org--some-model";
    let expected = [
        "custom_nodes/fetching/weights/scale.json",
        &format!("{of_hub}/refs/main"),
        &format!("{of_hub}/snapshots/{COMMIT}/config.json"),
        "home/torch/hub/checkpoints/face.safetensors",
        "models/faces/landmarks.onnx",
    ];
    assert_eq!(paths, expected, "{traced}");
    let address = format!("https://huggingface.co/some-org/some-model/resolve/{COMMIT}/config.json");
    assert_eq!(models[2]["sources"], json!([{ "url": address }]));
    assert_eq!(
        (&traced["without_source"], &traced["lacking"]),
        (&json!([]), &bare["lacking"]),
        "all of it travels"
    );
    let called = &traced["lockfile"]["system"]["programs"];
    assert_eq!(*called, json!([{ "name": "comfy-farm-greet" }]));
    for untouched in ["models/faces", "custom_nodes/fetching/weights"] {
        assert!(!comfyui.join(untouched).exists(), "{untouched}: the author's own folder stays as it is");
    }
    // What was hashed is kept in the author's cache; nothing else is left.
    let left = std::fs::read_dir(&folder)?.flatten().map(|entry| entry.file_name());
    let hidden: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with('.')).collect();
    assert_eq!(hidden, [".cache"]);

    let index = PackageIndex::serve(&installed.join("index"), TcpListener::bind("127.0.0.1:0")?)?;
    let flags = managed(&index);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    farm.start_node_with(&flags, &[("PATH", &programs)]).await?;
    let run = async |name: &str| -> anyhow::Result<Value> {
        farm.deploy(&folder.join(format!("{name}.cpack.zip")), name, &[]).await?;
        let workspace = wait_for_workspace(&farm, &format!("{name}@1"), "loaded").await?;
        let lacking = json!(["custom nodes call a program that this machine lacks: comfy-farm-greet"]);
        assert_eq!(workspace["notes"], if name == "traced" { lacking } else { json!([]) });
        let job = farm.submit(name, &[("picture", &picture)], &[]).await?;
        let id = job["id"].as_str().unwrap_or_default();
        farm.wait_for_job(id, |job| !matches!(job["state"].as_str(), Some("queued" | "running"))).await
    };
    let made = run("traced").await?;
    ensure!(made["state"] == "succeeded", "{made}; the node's log:\n{}", farm.nodes[0].process.log());
    let (given, made) = (image::open(&picture)?, image::load_from_memory(&farm.output(&made).await?)?);
    assert_eq!(made.to_rgb8(), given.to_rgb8());
    // The code is the same and the ComfyUI warm, and nothing that only the other has helps this one.
    let failed = run("bare").await?;
    assert_eq!(failed["error"]["kind"], "undeclared_file", "{failed}");
    let detail = failed["error"]["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("`comfy-farm pack --trace`"), "{failed}");
    assert!(failed["error"]["url"].as_str().is_some_and(|url| detail.contains(url)), "{failed}");
    assert_eq!(failed["error"]["node"], failed["error"]["op"]["id"], "{failed}");
    Ok(())
}
