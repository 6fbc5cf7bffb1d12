//! A real ComfyUI made into a bundle, and what that bundle says of it.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use axum::Router;
use axum::routing::get;
use farm_tests::{Farm, FarmOptions, PackageIndex, Process, Studio, comfyui_folder, validator_python};
use serde_json::{Value, json};

use crate::workspaces::{
    FARM_TEST, Sources, managed, picture, upscaling, wait_for_workspace, wait_for_workspace_on,
};

/// A custom node of one file, whose op gives its picture back.
const SINGLE_FILE: &str = r#"
class TestTravelled:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "run", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    def run(self, image):
        return (image,)


NODE_CLASS_MAPPINGS = {"TestTravelled": TestTravelled}
"#;
const MANAGER: &str = "https://github.com/ltdrdata/ComfyUI-Manager.git";
const UPSTREAM: &str = "https://github.com/comfyanonymous/ComfyUI.git";

pub(crate) fn git(folder: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let own = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=master"];
    let output = Command::new("git").current_dir(folder).args(own).args(arguments).output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// What the binary prints; it is to succeed.
async fn comfy_farm(folder: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Process::comfy_farm(folder, arguments).current_dir(folder).output().await?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

pub(crate) async fn json_of(folder: &Path, arguments: &[&str]) -> anyhow::Result<Value> {
    let printed = comfy_farm(folder, arguments).await?;
    serde_json::from_str(&printed).with_context(|| printed)
}

/// A clone of the real ComfyUI, as far as git can tell, with one model in it; says its commit.
fn clone(installed: &Path, folder: &Path) -> anyhow::Result<String> {
    let copied = Command::new("cp").arg("-r").arg(installed.join("ComfyUI")).arg(folder).status()?;
    ensure!(copied.success(), "ComfyUI cannot be copied");
    let comfyui = folder.join("ComfyUI");
    git(&comfyui, &["init", "--quiet"])?;
    // The nodes of the tests are part of this upstream, beside those that come with ComfyUI.
    git(&comfyui, &["add", "--force", "custom_nodes/farm_test", "custom_nodes/websocket_image_save.py"])?;
    git(&comfyui, &["add", "."])?;
    git(&comfyui, &["commit", "--quiet", "--message", "all of it"])?;
    git(&comfyui, &["remote", "add", "origin", UPSTREAM])?;
    std::fs::write(comfyui.join("models/upscale_models/tiny.safetensors"), b"a tiny model")?;
    git(&comfyui, &["rev-parse", "HEAD"])
}

/// A server that knows one file, as Civitai does; says where it is.
async fn publisher(sha256: &str) -> anyhow::Result<String> {
    let path = format!("/api/v1/model-versions/by-hash/{}", sha256.to_uppercase());
    let file = json!({ "id": 7, "name": "tiny.safetensors", "primary": true, "hashes": { "SHA256": sha256.to_uppercase() },
                       "downloadUrl": "https://civitai.com/api/download/models/7" });
    let version = json!({ "id": 7, "modelId": 1, "name": "v1", "files": [file], "images": [] });
    let router = Router::new().route(&path, get(async move || version.to_string()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}

#[tokio::test]
async fn real_comfyui_is_packed_and_its_bundle_shown_and_planned() -> anyhow::Result<()> {
    let Some(installed) = comfyui_folder() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let commit = clone(&installed, folder)?;
    let workflow = json!({
        "1": { "class_type": "LoadImage", "inputs": { "image": "example.png" } },
        "2": { "class_type": "UpscaleModelLoader", "inputs": { "model_name": "tiny.safetensors" } },
        "3": { "class_type": "ImageUpscaleWithModel", "inputs": { "upscale_model": ["2", 0], "image": ["1", 0] } },
        "4": { "class_type": "SaveImage", "inputs": { "images": ["3", 0], "filename_prefix": "x" } },
    });
    std::fs::write(folder.join("upscale_api.json"), workflow.to_string())?;
    let python = installed.join("venv/bin/python");
    let python = python.to_str().context("UTF-8")?;
    let pack = ["pack", "--comfyui", "ComfyUI", "--workflow", "upscale_api.json", "--python", python];
    let words = comfy_farm(folder, &[&pack[..], &["--offline"]].concat()).await?;
    for expected in [
        "packed upscale.cpack.zip",
        "API       none yet: name it with `--input NAME=NODE.FIELD` and `--output NODE`",
        "unproven  packages have no hashes, because nobody was asked (`--offline`)",
        &format!("ComfyUI   {commit} of {UPSTREAM}"),
        "input     example.png",
        "deploys only if a peer holds it",
    ] {
        assert!(words.contains(expected), "{expected}: {words}");
    }

    let shown = json_of(folder, &["bundle", "show", "upscale.cpack.zip", "--json"]).await?;
    let (lockfile, manifest) = (&shown["lockfile"], &shown["manifest"]);
    assert_eq!(lockfile["comfyui"], json!({ "url": UPSTREAM, "commit": commit }));
    assert_eq!(lockfile["custom_nodes"], json!([]), "all of them are in ComfyUI's own commit");
    let listed =
        Command::new(python).args(["-c", "import platform; print(platform.python_version())"]).output()?;
    assert_eq!(lockfile["python"], String::from_utf8(listed.stdout)?.trim());
    let versions = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/real/requirements.txt"))?;
    let pinned = |package: &Value| {
        let (name, version) = (package["name"].as_str().unwrap_or_default(), package["version"].as_str());
        versions.contains(&format!("{name}=={} ", version.unwrap_or_default()))
    };
    let packages = lockfile["packages"].as_array().context("a list")?;
    let is_packed = |line: &&str| line.contains("==") && !line.starts_with("pip==");
    assert_eq!(packages.len(), versions.lines().filter(is_packed).count());
    assert!(packages.iter().all(pinned), "{packages:?}");
    let model = &lockfile["models"][0];
    assert_eq!(lockfile["models"].as_array().map(Vec::len), Some(1), "{lockfile}");
    assert_eq!(
        (&model["path"], &model["size"]),
        (&json!("models/upscale_models/tiny.safetensors"), &json!(12))
    );
    assert!(manifest["inputs"]["example.png"].is_object(), "{manifest}");
    assert_eq!(shown["repairs"], json!([]));

    let plan = json_of(folder, &["workspace", "plan", "upscale.cpack.zip", "--json"]).await?;
    assert_eq!(plan["lockfile"], shown["lockfile_hash"]);
    assert_eq!(
        plan["steps"][0],
        json!({ "step": "git", "url": UPSTREAM, "commit": commit, "path": "ComfyUI" })
    );
    assert_eq!(plan["lacking"].as_array().map(Vec::len), Some(1), "only a source of the model: {plan}");

    // The same again, with a source, is the same but for that.
    let source =
        format!("{}=https://example.org/tiny.safetensors", model["sha256"].as_str().unwrap_or_default());
    let given = json_of(folder, &[&pack[..], &["--offline", "--source", &source, "--json"]].concat()).await?;
    // Or with one that is found by the file's hash.
    let services = publisher(model["sha256"].as_str().unwrap_or_default()).await?;
    let services = [
        "--civitai",
        &services,
        "--hugging-face",
        &services,
        "--index-url",
        &services,
        "--torch-index",
        &services,
    ];
    let found = json_of(folder, &[&pack[..], &services, &["--json"]].concat()).await?;
    let url = "https://civitai.com/api/download/models/7";
    assert_eq!(found["lockfile"]["models"][0]["sources"], json!([{ "url": url }]));
    let about = "models/upscale_models/tiny.safetensors";
    assert_eq!(found["asked"], json!([{ "asked": "Civitai", "about": about, "url": url }]));
    for packed in [given, found] {
        assert_eq!(packed["without_source"], json!([]));
        let mut without = packed["lockfile"].clone();
        without["models"][0]["sources"] = json!([]);
        assert_eq!(&without, lockfile);
    }
    Ok(())
}

#[tokio::test]
async fn packed_folder_is_rebuilt_by_a_node_and_renders() -> anyhow::Result<()> {
    let Some(Sources { installed, programs }) = Sources::find()? else { return Ok(()) };
    let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let folder = farm.folder.path().to_owned();
    let studio = Studio::new(&installed, &folder.join("origin"));
    let comfyui = studio.comfyui("ComfyUI").await?;
    let node = studio.custom_node("farm_test", &[("__init__.py", FARM_TEST)]).await?;
    let url = |pin: &Value| pin["url"].as_str().unwrap_or_default().to_owned();
    git(&folder, &["clone", "--quiet", &url(&comfyui), "ComfyUI"])?;
    git(&folder.join("ComfyUI/custom_nodes"), &["clone", "--quiet", &url(&node)])?;
    let models = folder.join("ComfyUI/models");
    studio.upscaler(&models).await?;
    std::fs::write(folder.join("ComfyUI/custom_nodes/single.py"), SINGLE_FILE)?;
    let mut workflow = upscaling();
    workflow["5"] = json!({ "class_type": "TestTravelled", "inputs": { "image": ["4", 0] } });
    workflow["9"]["inputs"]["images"] = json!(["5", 0]);
    std::fs::write(folder.join("upscale_api.json"), workflow.to_string())?;
    let python = installed.join("venv/bin/python");
    let python = python.to_str().context("UTF-8")?;
    let index = PackageIndex::serve(&installed.join("index"), TcpListener::bind("127.0.0.1:0")?)?;
    let (simple, torch, services) =
        (format!("{}/simple", index.url), format!("{}/torch", index.url), publisher("").await?);
    let pack =
        ["pack", "--comfyui", "ComfyUI", "--workflow", "upscale_api.json", "--python", python, "--json"];
    let api = ["--input", "picture=1.image", "--output", "9"];
    let services = ["--civitai", &services, "--hugging-face", &services];
    let indexes = ["--index-url", &simple, "--torch-index", &torch];
    let pack = [&pack[..], &api, &services, &indexes].concat();
    let packed = json_of(&folder, &pack).await?;
    assert_eq!(packed["interface"], json!({ "inputs": ["picture=1.image"], "outputs": ["9"] }));
    assert_eq!(packed["lockfile"]["comfyui"], comfyui);
    let travelled = &packed["lockfile"]["custom_nodes"][1];
    assert_eq!((&travelled["from"], &travelled["name"]), (&json!("carried"), &json!("single.py")));
    assert_eq!(packed["lockfile"]["custom_nodes"], json!([node, travelled]));

    // Every file that was installed is one of its index, but for torch, whose plain build is not there.
    let packages = packed["lockfile"]["packages"].as_array().context("a list")?;
    let pages = installed.join("index/simple");
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let has_page = pages.join(name).is_dir();
        assert_eq!(
            package["hashes"].as_array().is_some_and(|hashes| !hashes.is_empty()),
            has_page,
            "{package}"
        );
    }
    let unresolved = packed["unresolved"].as_array().context("a list")?;
    let unresolved: Vec<_> = unresolved.iter().map(|package| &package["package"]).collect();
    assert_eq!(unresolved, ["torch", "torchaudio", "torchvision"]);

    // An index with another file of the same name and version.
    let other = folder.join("other-index");
    let copied = Command::new("cp").arg("-r").arg(&pages).arg(folder.join("pages")).status()?;
    ensure!(copied.success(), "the pages cannot be copied");
    std::fs::create_dir(&other)?;
    std::fs::rename(folder.join("pages"), other.join("simple"))?;
    for part in ["files", "torch"] {
        std::os::unix::fs::symlink(installed.join("index").join(part), other.join(part))?;
    }
    let page = other.join("simple/einops/index.html");
    let (links, hash) = (std::fs::read_to_string(&page)?, "0".repeat(64));
    let recorded = packages.iter().find(|package| package["name"] == "einops").context("it is installed")?;
    let recorded = recorded["hashes"][0].as_str().context("it has a hash")?;
    std::fs::write(&page, links.replace(recorded, &hash))?;
    let other = PackageIndex::serve(&other, TcpListener::bind("127.0.0.1:0")?)?;

    let bundle = folder.join("upscale.cpack.zip");
    farm.deploy(&bundle, "upscale", &[]).await?;
    let flags = |index: &PackageIndex| {
        [managed(index), vec!["--models".to_owned(), models.display().to_string()]].concat()
    };
    for index in [&other, &index] {
        let flags = flags(index);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        farm.start_node_with(&flags, &[("PATH", &programs)]).await?;
        if farm.nodes.len() == 1 {
            let refused = wait_for_workspace(&farm, "upscale@1", "failed").await?.to_string();
            assert!(refused.contains(recorded) && refused.contains(&hash), "{refused}");
        }
    }
    wait_for_workspace_on(&farm, 1, "upscale@1", "loaded").await?;
    let job = farm.submit("upscale", &[("picture", &picture(&folder)?)], &[]).await?;
    let job = farm.wait_for_success(job["id"].as_str().unwrap_or_default()).await?;
    assert_eq!(image::load_from_memory(&farm.output(&job).await?)?.to_rgba8().dimensions(), (48, 32));
    Ok(())
}

#[tokio::test]
async fn comfy_packs_own_unpack_takes_a_packed_bundle() -> anyhow::Result<()> {
    let (Some(installed), Some(reader)) = (comfyui_folder(), validator_python()) else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let commit = clone(&installed, folder)?;
    // comfy-pack takes nothing without it; its remote is where everybody has it from.
    let manager = folder.join("ComfyUI/custom_nodes/ComfyUI-Manager");
    std::fs::create_dir(&manager)?;
    std::fs::write(manager.join("__init__.py"), "NODE_CLASS_MAPPINGS = {}\n")?;
    git(&manager, &["init", "--quiet"])?;
    git(&manager, &["add", "."])?;
    git(&manager, &["commit", "--quiet", "--message", "all of it"])?;
    git(&manager, &["remote", "add", "origin", MANAGER])?;
    git(&manager, &["update-ref", "refs/remotes/origin/master", "HEAD"])?;
    let manager = git(&manager, &["rev-parse", "HEAD"])?;
    std::fs::create_dir(folder.join("ComfyUI/custom_nodes/private"))?;
    std::fs::write(folder.join("ComfyUI/custom_nodes/private/__init__.py"), "NODE_CLASS_MAPPINGS = {}\n")?;
    let workflow = json!({
        "1": { "class_type": "LoadImage", "inputs": { "image": "example.png" } },
        "2": { "class_type": "UpscaleModelLoader", "inputs": { "model_name": "tiny.safetensors" } },
        "3": { "class_type": "ImageUpscaleWithModel", "inputs": { "upscale_model": ["2", 0], "image": ["1", 0] } },
        "4": { "class_type": "CPackOutputImage", "inputs": { "images": ["3", 0], "filename_prefix": "x" } },
        "5": { "class_type": "CPackInputInt", "_meta": { "title": "seed" }, "inputs": { "value": 7, "min": 0, "max": 9 } },
    });
    std::fs::write(folder.join("upscale_api.json"), workflow.to_string())?;
    let python = installed.join("venv/bin/python");
    let python = python.to_str().context("UTF-8")?;
    let pack = ["pack", "--comfyui", "ComfyUI", "--workflow", "upscale_api.json", "--python", python];
    let options = ["--offline", "--carry", "private", "--json"];
    let packed = json_of(folder, &[&pack[..], &options].concat()).await?;

    let model = &packed["lockfile"]["models"][0];
    let models = folder.join("home/models");
    std::fs::create_dir_all(&models)?;
    std::fs::write(models.join(model["sha256"].as_str().unwrap_or_default()), b"a tiny model")?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/unpack.py");
    let mut unpack = Command::new(reader);
    unpack.args([script, "upscale.cpack.zip", "workspace"]).current_dir(folder);
    let output = unpack.env("CPACK_HOME", folder.join("home")).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout)?;
    let taken: Value = serde_json::from_str(printed.lines().last().unwrap_or_default()).context(printed)?;
    let started = taken["started"].as_array().context("a list")?;
    let is_started = |parts: &[&str]| {
        started.iter().any(|command| {
            parts.iter().all(|part| command.as_array().is_some_and(|c| c.contains(&json!(part))))
        })
    };
    for command in [
        &["git", "clone", UPSTREAM][..],
        &["git", "fetch", UPSTREAM, &commit],
        &["git", "fetch", MANAGER, &manager],
        &["uv", "venv", "--python", "3.11"],
        &["restore-snapshot", "--pip-non-url"],
    ] {
        assert!(is_started(command), "{command:?}: {started:?}");
    }
    assert_eq!(taken["models"], json!({ "models/upscale_models/tiny.safetensors": "a tiny model" }));
    assert_eq!(taken["inputs"], json!(["example.png"]));
    assert_eq!(taken["schema"]["properties"]["seed"]["default"], 7);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_packed_is_told_with_what_to_do() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let check = async |workflow: &str, further: &[&str], words: &str| -> anyhow::Result<()> {
        std::fs::write(folder.path().join("w.json"), workflow)?;
        let arguments = [&["pack", "--comfyui", ".", "--workflow", "w.json"], further].concat();
        let output =
            Process::comfy_farm(folder.path(), &arguments).current_dir(folder.path()).output().await?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(7), "{told}");
        assert!(told.contains(words), "{words}: {told}");
        Ok(())
    };
    check(r#"{"nodes": [], "links": []}"#, &[], "in ComfyUI save it with `Export (API)`").await?;
    let api = r#"{"1": {"class_type": "EmptyImage", "inputs": {"width": 8}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}}"#;
    check(api, &[], "name the folder of ComfyUI itself").await?;
    check(api, &["--output", "saveimage"], "no op `saveimage`, did you mean `9`?; it has `1` (`EmptyImage`)")
        .await?;
    check(api, &["--input", "w=1.wdth"], "no input `wdth`, did you mean `width`?; it has `width`").await?;
    check(api, &["--output", "1"], "saves no file, so it is no output; these do: `9` (`SaveImage`)").await?;
    Ok(())
}
