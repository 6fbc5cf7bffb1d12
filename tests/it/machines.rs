//! What one machine packs, another rebuilds and runs that reaches the first one and nobody else.
//!
//! Not here: what else `pack` records, and what several workspaces of one node share.

use std::path::Path;

use anyhow::{Context, ensure};
use farm_tests::{Machines, PackageIndex, Studio, eventually_within, is_root, skipped};
use image::RgbaImage;
use serde_json::{Value, json};

use crate::pack::{git, json_of};
use crate::previews::make_checkpoint;
use crate::workspaces::{FARM_TEST, REBUILD, Sources, has_reached, managed, picture, settled, text};

const CHECKPOINT: &str = "models/checkpoints/tiny.safetensors";
const UPSCALER: &str = "models/upscale_models/tiny.safetensors";

/// A picture that is drawn over by a sampler, and enlarged.
fn drawing() -> Value {
    let conditioning =
        json!({ "class_type": "TestConditioning", "inputs": { "text": "a cat", "width": 768 } });
    json!({
        "1": { "class_type": "LoadImage", "inputs": { "image": "x.png" } },
        "2": { "class_type": "ImageScale", "inputs": {
            "image": ["1", 0], "upscale_method": "bilinear", "width": 64, "height": 64, "crop": "disabled" } },
        "3": { "class_type": "CheckpointLoaderSimple", "inputs": { "ckpt_name": "tiny.safetensors" } },
        "4": { "class_type": "VAEEncode", "inputs": { "pixels": ["2", 0], "vae": ["3", 2] } },
        "5": conditioning,
        "6": conditioning,
        "7": { "class_type": "KSampler", "inputs": {
            "model": ["3", 0], "positive": ["5", 0], "negative": ["6", 0], "latent_image": ["4", 0],
            "seed": 1, "steps": 4, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.6 } },
        "8": { "class_type": "VAEDecode", "inputs": { "samples": ["7", 0], "vae": ["3", 2] } },
        "10": { "class_type": "UpscaleModelLoader", "inputs": { "model_name": "tiny.safetensors" } },
        "11": { "class_type": "ImageUpscaleWithModel",
                "inputs": { "upscale_model": ["10", 0], "image": ["8", 0] } },
        "9": { "class_type": "SaveImage", "inputs": { "images": ["11", 0], "filename_prefix": "x" } },
    })
}

/// The author's ComfyUI: clones of its origins, with the models that the workflow uses.
async fn author(studio: &Studio, sources: &Sources, folder: &Path) -> anyhow::Result<[Value; 2]> {
    let pins = [
        studio.comfyui("ComfyUI").await?,
        studio.custom_node("farm_test", &[("__init__.py", FARM_TEST)]).await?,
    ];
    let comfyui = folder.join("ComfyUI");
    let url = |pin: &Value| pin["url"].as_str().unwrap_or_default().to_owned();
    git(folder, &["clone", "--quiet", &url(&pins[0]), "ComfyUI"])?;
    git(&comfyui.join("custom_nodes"), &["clone", "--quiet", &url(&pins[1])])?;
    studio.upscaler(&comfyui.join("models")).await?;
    std::fs::create_dir_all(comfyui.join("models/checkpoints"))?;
    make_checkpoint(&sources.installed, &comfyui.join(CHECKPOINT)).await?;
    Ok(pins)
}

async fn wait_on_machine(machines: &Machines, node: usize, state: &str) -> anyhow::Result<()> {
    let (process, peer) = &machines.nodes[node];
    let ask = || async { Ok(settled(&machines.tool(&["nodes"]).await?, peer, "drawing@1", state)) };
    let workspace = eventually_within(REBUILD, ask).await.with_context(|| process.log())?;
    let log = || process.log();
    ensure!(has_reached(&workspace, state), "the workspace is {workspace}; the node's log:\n{}", log());
    Ok(())
}

async fn render(machines: &Machines, picture: &Path) -> anyhow::Result<RgbaImage> {
    let (picture, out) = (format!("picture=@{}", picture.display()), machines.folder.path().join("out"));
    let ran = machines.tool(&["run", "drawing", &picture, "--out", text(&out)]).await?;
    Ok(image::open(ran["saved"][0].as_str().context("a path")?)?.into_rgba8())
}

#[tokio::test]
async fn node_that_reaches_its_peer_alone_rebuilds_what_was_packed_and_makes_the_same_pixels()
-> anyhow::Result<()> {
    let Some(sources) = Sources::find()? else { return Ok(()) };
    if !is_root() {
        skipped("network namespaces need root");
        return Ok(());
    }
    let mut machines = Machines::start(2).await?;
    let folder = machines.folder.path().to_owned();
    let origin = folder.join("origin");
    let studio = Studio::new(&sources.installed, &origin);
    let [comfyui, node] = author(&studio, &sources, &folder).await?;
    std::fs::write(folder.join("drawing_api.json"), drawing().to_string())?;
    let python = sources.installed.join("venv/bin/python");
    let pack = ["pack", "--comfyui", "ComfyUI", "--workflow", "drawing_api.json", "--offline", "--json"];
    let packed = json_of(&folder, &[&pack[..], &["--python", text(&python)]].concat()).await?;
    let lockfile = &packed["lockfile"];
    assert_eq!((&lockfile["comfyui"], &lockfile["custom_nodes"]), (&comfyui, &json!([node])));
    let models = lockfile["models"].as_array().context("a list")?;
    let paths: Vec<_> = models.iter().filter_map(|model| model["path"].as_str()).collect();
    assert_eq!(paths, [CHECKPOINT, UPSCALER]);

    let index = PackageIndex::serve(&sources.installed.join("index"), machines.namespaces.listen(0)?)?;
    let models = folder.join("ComfyUI/models");
    let flags = [managed(&index), vec!["--models".to_owned(), text(&models).to_owned()]].concat();
    machines.start_node(0, &flags, &[("PATH", &sources.programs)]).await?;
    let bundle = folder.join("drawing.cpack.zip");
    machines.tool(&["deploy", text(&bundle), "--input", "picture=1.image", "--output", "9"]).await?;
    wait_on_machine(&machines, 0, "loaded").await?;
    let picture = picture(&folder)?;
    let made = render(&machines, &picture).await?;
    assert_eq!(made.dimensions(), (128, 128));
    let first = made.get_pixel(0, 0);
    assert!(made.pixels().any(|pixel| pixel != first), "something is drawn");
    wait_on_machine(&machines, 0, "proven").await?;

    // The other machine reaches this one alone: no index, and no repository.
    let asked = index.requests();
    std::fs::rename(&origin, folder.join("away"))?;
    machines.start_node(1, &managed(&index), &[("PATH", &sources.programs)]).await?;
    wait_on_machine(&machines, 1, "loaded").await?;
    assert_eq!(index.requests(), asked);
    machines.tool(&["drain", &machines.nodes[0].1]).await?;
    let same = render(&machines, &picture).await?;
    ensure!(same == made, "the second machine makes other pixels");
    wait_on_machine(&machines, 1, "proven").await
}
