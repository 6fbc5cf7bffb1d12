//! The farm on a real ComfyUI: equal pixels, its owner's prompts untouched, its errors told.

use std::net::TcpListener;
use std::path::Path;

use anyhow::Context;
use farm_tests::{Farm, FarmOptions, Process, comfyui_folder, eventually, example};
use image::{Rgba, RgbaImage};
use serde_json::{Value, json};
use tokio::process::Command;

/// A ComfyUI with folders of its own.
pub(crate) struct Comfyui {
    process: Process,
    pub(crate) url: String,
    http: reqwest::Client,
    _folder: tempfile::TempDir,
}

impl Comfyui {
    async fn start(installed: &Path) -> anyhow::Result<Self> {
        Self::start_with(installed, &[]).await
    }

    /// The same, with more arguments.
    pub(crate) async fn start_with(installed: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
        let mut command = Command::new(installed.join("venv/bin/python"));
        command.current_dir(installed.join("ComfyUI")).env("PYTHONDONTWRITEBYTECODE", "1");
        command.args(["main.py", "--cpu", "--listen", "127.0.0.1", "--port", &port, "--disable-api-nodes"]);
        command.arg("--front-end-root").arg(installed.join("front"));
        for name in ["input", "output", "temp", "user"] {
            let own = folder.path().join(name);
            std::fs::create_dir(&own)?;
            command.arg(format!("--{name}-directory")).arg(own);
        }
        let database = format!("sqlite:///{}", folder.path().join("user/comfyui.db").display());
        command.args(["--database-url", &database]).args(arguments);
        let process = Process::start(command, &folder.path().join("comfyui.log"))?;
        let url = format!("http://127.0.0.1:{port}");
        let comfyui = Self { process, url, http: reqwest::Client::new(), _folder: folder };
        let up = eventually(|| async { Ok(comfyui.get("/system_stats").await.ok()) }).await;
        up.with_context(|| format!("ComfyUI did not come up:\n{}", comfyui.process.log()))?;
        Ok(comfyui)
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        Ok(self.http.get(format!("{}{path}", self.url)).send().await?.error_for_status()?.json().await?)
    }

    /// A prompt of the owner's own.
    async fn prompt(&self, workflow: Value) -> anyhow::Result<String> {
        let request = self.http.post(format!("{}/prompt", self.url)).json(&json!({ "prompt": workflow }));
        let answer: Value = request.send().await?.error_for_status()?.json().await?;
        Ok(answer["prompt_id"].as_str().context("an id")?.to_owned())
    }

    /// Waits for the end of a prompt; gives its status.
    async fn ended(&self, prompt: &str) -> anyhow::Result<String> {
        eventually(|| async {
            let history = self.get(&format!("/history/{prompt}")).await?;
            Ok(history[prompt]["status"]["status_str"].as_str().map(str::to_owned))
        })
        .await
    }

    async fn queue_length(&self) -> anyhow::Result<usize> {
        let queue = self.get("/queue").await?;
        let length = |key: &str| queue[key].as_array().map_or(0, Vec::len);
        Ok(length("queue_running") + length("queue_pending"))
    }
}

/// Busy for so many steps of a tenth of a second.
fn slow_workflow(steps: u32) -> Value {
    json!({
        "1": { "class_type": "EmptyImage", "inputs": { "width": 16, "height": 16, "batch_size": 1, "color": steps } },
        "2": { "class_type": "TestProgress",
               "inputs": { "image": ["1", 0], "steps": steps, "seconds": 0.1, "interruptible": true } },
        "3": { "class_type": "SaveImage", "inputs": { "images": ["2", 0], "filename_prefix": "slow" } },
    })
}

/// Workflows of the built-in engine's ops, each with the op that saves.
fn comparable_workflows() -> Vec<(&'static str, Value)> {
    let load = json!({ "class_type": "LoadImage", "inputs": { "image": "x.png" } });
    let save = |from: &str| json!({ "class_type": "SaveImage", "inputs": { "images": [from, 0], "filename_prefix": "x" } });
    let primitive = |class: &str, value: Value| json!({ "class_type": class, "inputs": { "value": value } });
    let scale = |method: &str, width: u32, height: u32, crop: &str| {
        json!({ "class_type": "ImageScale", "inputs": {
            "image": ["1", 0], "upscale_method": method, "width": width, "height": height, "crop": crop } })
    };
    vec![
        // The picture is loaded by no op that matters: neither engine may ask for more than the output needs.
        (
            "primitives",
            json!({ "1": load, "2": primitive("PrimitiveInt", json!(33)), "3": primitive("PrimitiveInt", json!(0x336699)),
                "4": { "class_type": "EmptyImage",
                       "inputs": { "width": ["2", 0], "height": 20, "batch_size": 1, "color": ["3", 0] } },
                "9": save("4") }),
        ),
        (
            "invert",
            json!({ "1": load, "2": { "class_type": "ImageInvert", "inputs": { "image": ["1", 0] } }, "9": save("2") }),
        ),
        (
            "crop",
            json!({ "1": load, "2": { "class_type": "ImageCrop",
            "inputs": { "image": ["1", 0], "width": 13, "height": 400, "x": 11, "y": 5 } }, "9": save("2") }),
        ),
        ("shrink", json!({ "1": load, "2": scale("nearest-exact", 17, 11, "disabled"), "9": save("2") })),
        ("grow", json!({ "1": load, "2": scale("nearest-exact", 101, 77, "center"), "9": save("2") })),
        ("keep-ratio", json!({ "1": load, "2": scale("nearest-exact", 0, 50, "disabled"), "9": save("2") })),
        (
            "preview",
            json!({ "1": load, "9": { "class_type": "PreviewImage", "inputs": { "images": ["1", 0] } } }),
        ),
    ]
}

/// A picture with every value of each channel, and transparency.
fn colourful(path: &Path) -> anyhow::Result<()> {
    let pixel = |x: u32, y: u32| {
        let byte = |value: u32| (value % 256) as u8;
        Rgba([byte(x * 7 + y), byte(x * x + 3 * y), byte(1023 - x * 5 + y * y), byte(x * 11 + y * 13)])
    };
    Ok(RgbaImage::from_fn(61, 43, pixel).save(path)?)
}

#[tokio::test]
async fn builtin_engine_makes_the_pixels_of_a_real_comfyui() -> anyhow::Result<()> {
    let Some(installed) = comfyui_folder() else { return Ok(()) };
    let comfyui = Comfyui::start(&installed).await?;
    let mut farm = Farm::start(FarmOptions { nodes: 1, ..FarmOptions::default() }).await?;
    farm.start_node(&["--comfyui", &comfyui.url]).await?;
    let picture = farm.folder.path().join("colourful.png");
    colourful(&picture)?;
    for (name, workflow) in comparable_workflows() {
        let file = farm.folder.path().join(format!("{name}.json"));
        std::fs::write(&file, workflow.to_string())?;
        let query = [("input", "picture=1.image"), ("output", "9"), ("accept_attached", "true")];
        farm.deploy(&file, name, &query).await?;
    }
    let landscape = example("pixelate/input/landscape.png");
    farm.deploy(&example("pixelate.cpack.zip"), "pixelate", &[("accept_attached", "true")]).await?;

    let mut pixels: Vec<Vec<RgbaImage>> = Vec::new();
    for (at_work, other) in [(0, 1), (1, 0)] {
        let (at_work, other) = (&farm.nodes[at_work].peer, &farm.nodes[other].peer);
        farm.post(&format!("/v1/nodes/{at_work}/undrain"), &json!({})).await?;
        farm.post(&format!("/v1/nodes/{other}/drain"), &json!({})).await?;
        let mut made = Vec::new();
        let names = comparable_workflows().into_iter().map(|(name, _)| (name, &picture));
        for (name, picture) in names.chain([("pixelate", &landscape)]) {
            let job = farm.submit(name, &[("picture", picture)], &[]).await?;
            let job = farm.wait_for_success(job["id"].as_str().unwrap_or_default()).await.context(name)?;
            assert_eq!(job["run"]["node"], at_work.as_str());
            made.push(image::load_from_memory(&farm.output(&job).await?)?.into_rgba8());
        }
        pixels.push(made);
    }
    for (index, (builtin, real)) in pixels[0].iter().zip(&pixels[1]).enumerate() {
        assert!(builtin == real, "workflow {index} differs from the real ComfyUI");
    }
    assert_eq!(pixels[1].last(), Some(&image::open(example("pixelate/expected.png"))?.into_rgba8()));
    Ok(())
}

#[tokio::test]
async fn prompts_of_the_owner_are_never_touched() -> anyhow::Result<()> {
    let Some(installed) = comfyui_folder() else { return Ok(()) };
    let comfyui = Comfyui::start(&installed).await?;
    let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    farm.start_node(&["--comfyui", &comfyui.url]).await?;
    let file = farm.folder.path().join("slow.json");
    std::fs::write(&file, slow_workflow(300).to_string())?;
    let query = [("input", "steps=2.steps"), ("output", "3"), ("accept_attached", "true")];
    farm.deploy(&file, "slow", &query).await?;

    // Ours waits behind the owner's: cancelling takes it out of the queue.
    let owners = comfyui.prompt(slow_workflow(40)).await?;
    let job = farm.submit("slow", &[], &[("steps", "300")]).await?;
    let job = job["id"].as_str().unwrap_or_default().to_owned();
    eventually(|| async { Ok((comfyui.queue_length().await? == 2).then_some(())) }).await?;
    farm.post(&format!("/v1/jobs/{job}/cancel"), &json!({})).await?;
    eventually(|| async { Ok((comfyui.queue_length().await? <= 1).then_some(())) }).await?;
    assert_eq!(comfyui.ended(&owners).await?, "success");

    // Ours is at work: cancelling interrupts it, and the owner's next one runs to its end.
    let job = farm.submit("slow", &[], &[("steps", "301")]).await?;
    let job = job["id"].as_str().unwrap_or_default().to_owned();
    farm.wait_for_job(&job, |job| job["run"]["progress"]["fraction"].as_f64().is_some_and(|part| part > 0.0))
        .await?;
    let owners = comfyui.prompt(slow_workflow(3)).await?;
    farm.post(&format!("/v1/jobs/{job}/cancel"), &json!({})).await?;
    assert_eq!(comfyui.ended(&owners).await?, "success");
    assert_eq!(comfyui.queue_length().await?, 0);
    Ok(())
}

#[tokio::test]
async fn exception_in_an_op_is_told_with_its_class_and_words() -> anyhow::Result<()> {
    let Some(installed) = comfyui_folder() else { return Ok(()) };
    let comfyui = Comfyui::start(&installed).await?;
    let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    farm.start_node(&["--comfyui", &comfyui.url]).await?;
    let workflow = json!({
        "1": { "class_type": "EmptyImage", "inputs": { "width": 16, "height": 16, "batch_size": 1, "color": 0 } },
        "2": { "class_type": "TestFail", "inputs": { "image": ["1", 0], "kind": "value_error" } },
        "3": { "class_type": "SaveImage", "inputs": { "images": ["2", 0], "filename_prefix": "x" } },
    });
    let file = farm.folder.path().join("fails.json");
    std::fs::write(&file, workflow.to_string())?;
    // Without the acceptance an attached instance, which proves no lock, is not even asked.
    farm.deploy(&file, "strict", &[("input", "color=1.color"), ("output", "3")]).await?;
    let strict = farm.submit("strict", &[], &[]).await?;
    let waiting = farm.get(&format!("/v1/jobs/{}", strict["id"].as_str().unwrap_or_default())).await?;
    assert!(waiting["waits"].to_string().contains("attached"), "{waiting}");

    farm.deploy(&file, "fails", &[("input", "color=1.color"), ("output", "3"), ("accept_attached", "true")])
        .await?;
    let job = farm.submit("fails", &[], &[]).await?;
    let id = job["id"].as_str().unwrap_or_default();
    let job = farm.wait_for_job(id, |job| !job["failures"][0].is_null() || job["state"] == "failed").await?;
    let told = job.to_string();
    assert!(told.contains("TestFail") && told.contains("op_failed"), "{told}");
    Ok(())
}
