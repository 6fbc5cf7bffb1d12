//! The commands as a person types them: what they print and how they end.

use farm_tests::{Farm, FarmOptions, Process, example};
use serde_json::Value;

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

async fn comfy_farm(farm: Option<&Farm>, arguments: &[&str]) -> anyhow::Result<Ran> {
    let folder = tempfile::tempdir()?;
    let mut command = Process::comfy_farm(folder.path(), arguments);
    command.env("COMFY_FARM_LOG", "error");
    if let Some(farm) = farm {
        command.env("COMFY_FARM_URL", &farm.url).env("COMFY_FARM_KEY", &farm.key);
    }
    let output = command.output().await?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) })
}

#[tokio::test]
async fn deploy_run_and_look_by_hand() -> anyhow::Result<()> {
    let farm = Farm::start(FarmOptions::default()).await?;
    let bundle = example("pixelate.cpack.zip");
    let ran = comfy_farm(Some(&farm), &["deploy", bundle.to_str().expect("UTF-8")]).await?;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("deployed pixelate@1"), "{}", ran.stdout);

    let out = tempfile::tempdir()?;
    let picture = format!("picture=@{}", example("pixelate/input/landscape.png").display());
    let out_text = out.path().to_str().expect("UTF-8");
    let ran = comfy_farm(Some(&farm), &["run", "pixelate", &picture, "columns=32", "-o", out_text]).await?;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let saved = ran.stdout.trim();
    assert!(saved.starts_with(out_text) && std::path::Path::new(saved).exists(), "{saved}");

    let ran = comfy_farm(Some(&farm), &["jobs"]).await?;
    assert!(ran.stdout.contains("pixelate@1  succeeded"), "{}", ran.stdout);
    let ran = comfy_farm(Some(&farm), &["nodes"]).await?;
    assert!(ran.stdout.contains("builtin") && ran.stdout.contains("connected"), "{}", ran.stdout);
    let short = &farm.nodes[0].peer[farm.nodes[0].peer.len() - 10..];
    let ran = comfy_farm(Some(&farm), &["drain", short]).await?;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let ran = comfy_farm(Some(&farm), &["nodes"]).await?;
    assert!(ran.stdout.contains("draining"), "{}", ran.stdout);
    let ran = comfy_farm(Some(&farm), &["undrain", short, "--json"]).await?;
    let node: Value = serde_json::from_str(&ran.stdout)?;
    assert_eq!(node["draining"], false);
    let ran = comfy_farm(Some(&farm), &["invite"]).await?;
    assert!(ran.stdout.starts_with("farm1") && ran.stdout.lines().count() == 1, "{}", ran.stdout);
    assert!(ran.stderr.contains("this machine only"), "{}", ran.stderr);
    Ok(())
}

#[tokio::test]
async fn each_kind_of_failure_has_its_exit_code() -> anyhow::Result<()> {
    let farm = Farm::with_example(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let check =
        async |farm: Option<&Farm>, arguments: &[&str], code: i32, words: &str| -> anyhow::Result<()> {
            let ran = comfy_farm(farm, arguments).await?;
            assert_eq!(ran.code, Some(code), "{arguments:?}: {}", ran.stderr);
            assert!(ran.stderr.contains(words), "{arguments:?}: {}", ran.stderr);
            Ok(())
        };
    let farm_url = farm.url.as_str();
    check(None, &["frobnicate"], 2, "frobnicate").await?;
    check(None, &["--config", "no-such-file.toml", "jobs"], 3, "no-such-file.toml").await?;
    check(None, &["jobs", "--url", "http://127.0.0.1:9"], 4, "no farm answers").await?;
    check(None, &["jobs", "--farm", farm_url, "--key", "cfk_wrong"], 5, "key").await?;
    check(None, &["blob", "get", "zzz", "-o", "nowhere"], 10, "`zzz` is neither a ticket").await?;
    check(Some(&farm), &["run", "pixelat"], 6, "did you mean `pixelate`?").await?;
    check(Some(&farm), &["run", "nothing"], 6, "nothing").await?;
    check(Some(&farm), &["drain", "nobody"], 6, "nobody").await?;
    check(Some(&farm), &["run", "pixelate", "columns=many"], 7, "columns").await?;
    check(Some(&farm), &["run", "pixelate", "columns"], 2, "KEY=VALUE").await?;
    check(Some(&farm), &["jobs", "--state", "lost"], 2, "queued").await?;
    check(None, &["node", "--yes", "--comfyui", "nonsense"], 3, "nonsense").await?;
    check(None, &["node", "--yes", "--slots", "0"], 3, "from 1 to 32").await?;
    check(None, &["node", "--yes", "--slots", "33"], 3, "from 1 to 32").await?;
    let attached = ["node", "--yes", "--slots", "2", "--comfyui", "http://127.0.0.1:9"];
    check(None, &attached, 3, "one run at a time").await?;
    check(None, &["node", "--yes", "--join", "farm1x"], 10, "damaged").await?;
    check(None, &["node"], 12, "--yes").await?;
    check(None, &["node", "--yes"], 10, "ticket").await?;
    let data = farm.folder.path().join("coordinator");
    let data = data.to_str().expect("UTF-8");
    check(None, &["coordinator", "--data", data, "--http", "127.0.0.1:0"], 11, "in use").await?;
    Ok(())
}

#[tokio::test]
async fn misspelt_variable_of_the_environment_is_an_error_that_names_the_nearest() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut command = Process::comfy_farm(folder.path(), &["jobs"]);
    let output = command.env("COMFY_FARM_HTPP", "127.0.0.1:1").output().await?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{words}");
    assert!(words.contains("`COMFY_FARM_HTPP`; did you mean `COMFY_FARM_HTTP`?"), "{words}");
    Ok(())
}

#[tokio::test]
async fn bare_workflow_with_nothing_exposed_lists_what_it_could_expose() -> anyhow::Result<()> {
    let farm = Farm::start(FarmOptions::default()).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("Invert It.json");
    let workflow = serde_json::json!({
        "1": { "class_type": "EmptyImage", "inputs": { "width": 8, "height": 8, "batch_size": 1, "color": 255 } },
        "2": { "class_type": "ImageInvert", "inputs": { "image": ["1", 0] } },
        "3": { "class_type": "SaveImage", "inputs": { "images": ["2", 0], "filename_prefix": "x" } },
    });
    std::fs::write(&file, workflow.to_string())?;
    let file = file.to_str().expect("UTF-8");
    let ran = comfy_farm(Some(&farm), &["deploy", file]).await?;
    assert_eq!(ran.code, Some(7), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("--input color=1.color") && ran.stderr.contains("--output 3"),
        "{}",
        ran.stderr
    );

    let ran = comfy_farm(Some(&farm), &["deploy", file, "--input", "paint=1.color", "--output", "3"]).await?;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("deployed invert-it@1"), "{}", ran.stdout);
    let out = tempfile::tempdir()?;
    let out = out.path().to_str().expect("UTF-8");
    let ran = comfy_farm(Some(&farm), &["run", "invert-it", "paint=16711680", "--out", out]).await?;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let picture = image::open(ran.stdout.trim())?.into_rgb8();
    assert!(picture.pixels().all(|pixel| pixel.0 == [0, 255, 255]));
    Ok(())
}

#[tokio::test]
async fn schema_has_the_form_of_the_recorded_facts() -> anyhow::Result<()> {
    let bundle = example("pixelate.cpack.zip");
    let ran = comfy_farm(None, &["schema", bundle.to_str().expect("UTF-8"), "--json"]).await?;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let schema: Value = serde_json::from_str(&ran.stdout)?;
    assert_eq!(schema["input_nodes"], serde_json::json!({ "picture": "1", "columns": "2", "rows": "3" }));
    assert_eq!(schema["output_nodes"], serde_json::json!({ "pixelated": "6" }));
    assert_eq!(schema["input_json_schema"]["required"], serde_json::json!(["picture"]));
    Ok(())
}

#[tokio::test]
async fn terms_are_printed_before_a_node_joins() -> anyhow::Result<()> {
    let ran = comfy_farm(None, &["node", "--yes"]).await?;
    for word in ["Engine", "Models", "Code", "Disk", "When", "Who"] {
        assert!(ran.stderr.contains(word), "`{word}` is missing: {}", ran.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn bundle_is_explained_compared_and_checked_without_a_farm() -> anyhow::Result<()> {
    let bundle = |name: &str| format!("{}/comfy-pack/cpack/{name}.cpack.zip", farm_tests::facts().display());
    let (tiny, bare) = (bundle("tiny"), bundle("tiny-nothing-selected"));
    let ran = comfy_farm(None, &["bundle", "show", &tiny]).await?;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    for expected in [
        "Python    3.11",
        "ComfyUI   ca457f7ba1ff33bd0d724cd7324131509efcf3ec of https://github.com/comfyanonymous/ComfyUI.git",
        "API       prompt, height, width, seed -> image_output",
        "ComfyUI_essentials  9d9f4bedfc9f0321c19faf71855e228c93bd0dc9, switched off",
        "torch  2.6.0+cu124",
        "sha256:24df29bdb4f342de29df1b0be92771f9e09092ad176523c61e8045eaaa2123e2",
        "`mylocal @ file:///opt/mylocal` is left out",
    ] {
        assert!(ran.stdout.contains(expected), "{expected} in {}", ran.stdout);
    }
    let ran = comfy_farm(None, &["bundle", "diff", &tiny, &bare, "--json"]).await?;
    let changes: Value = serde_json::from_str(&ran.stdout)?;
    let parts: Vec<_> =
        changes["changes"].as_array().into_iter().flatten().map(|change| &change["part"]).collect();
    assert_eq!(parts, ["input", "input", "model"], "{changes}");
    let ran = comfy_farm(None, &["bundle", "diff", &tiny, &tiny]).await?;
    assert_eq!(ran.stdout, "no difference\n");
    let ran = comfy_farm(None, &["bundle", "verify", &tiny]).await?;
    assert_eq!(ran.code, Some(0), "a node of the registry can be had there: {}", ran.stdout);
    assert!(ran.stdout.contains("not signed: whoever deploys it vouches for it"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("websocket_image_save.py"), "it comes with ComfyUI: {}", ran.stdout);
    let ran = comfy_farm(None, &["bundle", "verify", &bundle("evil-model-path")]).await?;
    assert_eq!(ran.code, Some(7));
    assert!(ran.stderr.contains("`../outside/evil.safetensors` is not a path below"), "{}", ran.stderr);
    Ok(())
}

#[tokio::test]
async fn publisher_makes_a_key_signs_a_bundle_and_is_trusted_by_the_owner_of_a_node() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (key, signed, data) = (path("me.key"), path("signed.cpack.zip"), path("node"));
    let bundle = format!("{}/comfy-pack/cpack/tiny.cpack.zip", farm_tests::facts().display());
    let ran = comfy_farm(None, &["publisher", "new", "-o", &key]).await?;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let publisher = ran.stdout.trim();
    assert_eq!(publisher.len(), 64, "{publisher}");
    let again = comfy_farm(None, &["publisher", "new", "-o", &key]).await?;
    assert_eq!(again.code, Some(7));
    assert!(again.stderr.contains("a key is never overwritten"), "{}", again.stderr);

    let ran = comfy_farm(None, &["publisher", "sign", &bundle, "--key", &key, "-o", &signed]).await?;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains(&format!("is signed by publisher {publisher}")), "{}", ran.stdout);
    let ran = comfy_farm(None, &["bundle", "diff", &bundle, &signed]).await?;
    assert_eq!(ran.stdout, "no difference\n");
    let farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let ran = comfy_farm(Some(&farm), &["deploy", &signed, "--name", "signed", "--keep-signature"]).await?;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let ran = comfy_farm(Some(&farm), &["deploy", &bundle, "--keep-signature"]).await?;
    assert_eq!(ran.code, Some(7));
    assert!(ran.stderr.contains("keep_signature: it is not signed by any publisher"), "{}", ran.stderr);

    let check = async |arguments: &[&str], code: i32, words: &str| -> anyhow::Result<()> {
        let arguments = [&["publisher"], arguments, &["--data", &data]].concat();
        let ran = comfy_farm(None, &arguments).await?;
        assert_eq!((ran.code, format!("{}{}", ran.stdout, ran.stderr).as_str()), (Some(code), words));
        Ok(())
    };
    check(&["ls"], 0, "").await?;
    check(&["trust", publisher], 0, &format!("publisher {publisher} is trusted\n")).await?;
    check(&["trust", publisher], 0, &format!("publisher {publisher} was trusted already\n")).await?;
    check(&["ls"], 0, &format!("{publisher}\n")).await?;
    check(&["ls", "--json"], 0, &format!("{{\"publishers\":[\"{publisher}\"]}}\n")).await?;
    check(&["untrust", publisher], 0, &format!("publisher {publisher} is trusted no more\n")).await?;
    check(&["untrust", publisher], 6, &format!("error: publisher {publisher} was not trusted\n")).await?;
    Ok(())
}

#[tokio::test]
async fn rebuild_of_the_older_bundle_is_planned_to_the_last_url_without_a_network() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let bundle = format!("{}/comfy-pack/cpack/example-old-format.cpack.zip", farm_tests::facts().display());
    let arguments = ["workspace", "plan", &bundle, "--accelerator", "cuda12.4", "--json"];
    let Some(mut command) = Process::comfy_farm_alone(folder.path(), &arguments).await? else {
        return Ok(());
    };
    let output = command.output().await?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let plan: Value = serde_json::from_slice(&output.stdout)?;
    let steps = plan["steps"].as_array().expect("a list");
    let of = |kind: &'static str| steps.iter().filter(move |step| step["step"] == kind);
    let text = |step: &Value, key: &str| step[key].as_str().unwrap_or_default().to_owned();
    let git: Vec<String> = of("git").map(|step| text(step, "url")).collect();
    let expected = ["comfyanonymous/ComfyUI", "ltdrdata/ComfyUI-Manager", "bentoml/comfy-pack"];
    assert_eq!(git, expected.map(|repository| format!("https://github.com/{repository}.git")));
    assert_eq!((of("python").count(), of("package").count()), (1, 120), "{plan}");
    assert_eq!(steps.len(), 3 + 1 + 120 + 1, "{plan}");
    for step in of("package") {
        // The page of the package itself, or the archive or repository that it is pinned to.
        let name = text(step, "name").to_lowercase().replace(['_', '.'], "-");
        let (url, pin) = (text(step, "url"), text(step, "pin"));
        let is_page = ["https://pypi.org/simple", "https://download.pytorch.org/whl"]
            .iter()
            .any(|index| url == format!("{index}/{name}/"));
        assert!(is_page || pin.starts_with("https://"), "{step}");
    }
    let models: Vec<&Value> = of("model").collect();
    let [model] = models.as_slice() else { panic!("{plan}") };
    assert_eq!(model["path"], "ComfyUI/models/checkpoints/pixelArtDiffusionXL_spriteShaper.safetensors");
    assert_eq!(model["size"], 6_938_040_682_u64);
    assert_eq!(model["sha256"], "7adffa28d4003a773c2d4e5f10ae1ba63c33573967864a7f9a4a3be9c9f04a93");
    let url = "https://huggingface.co/IronBullXD/AI_Mooodeeels/resolve/11e721aed56491605270aae3c4d65316d59fcb54/\
               pixelArtDiffusionXL_spriteShaper%20(1).safetensors?download=true";
    assert_eq!(model["urls"], serde_json::json!([url]));
    assert_eq!(plan["lacking"], serde_json::json!([]), "{plan}");
    Ok(())
}

#[tokio::test]
async fn command_ends_quietly_where_nobody_reads_what_it_prints() -> anyhow::Result<()> {
    let (folder, bundle) = (tempfile::tempdir()?, example("pixelate.cpack.zip"));
    let mut command =
        Process::comfy_farm(folder.path(), &["bundle", "show", bundle.to_str().expect("UTF-8")]);
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let ended = command.stdout(writer).stderr(std::process::Stdio::piped()).output().await?;
    assert_eq!((ended.status.code(), ended.stderr), (Some(0), vec![]));
    Ok(())
}
