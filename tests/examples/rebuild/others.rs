//! How others rebuild the same: the commands that a person would type, and comfy-pack.
//!
//! Not here: ours.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use farm_tests::PackageIndex;
use protocol::{CustomNode, Exposure, Lockfile, Pin, write_bundle};
use tokio::process::Command;

use crate::{Inputs, clear, text};

const MANAGER: &str = "https://github.com/ltdrdata/ComfyUI-Manager";

/// What a person would type.
pub(crate) async fn by_hand(inputs: &Inputs) -> anyhow::Result<Duration> {
    let folder = inputs.folder.path().join("by-hand");
    std::fs::create_dir(&folder)?;
    let pins: String = pins(inputs).map(|(name, version)| format!("{name}=={version}\n")).collect();
    std::fs::write(folder.join("requirements.txt"), pins)?;
    let index = serve(inputs)?;
    let url = inputs.lockfile["comfyui"]["url"].as_str().unwrap_or_default();
    let (simple, torch) = (format!("{}/simple", index.url), format!("{}/torch/cpu", index.url));
    let uv = |arguments: &[&str]| {
        let mut command = Command::new(&inputs.uv);
        command.args(arguments).current_dir(&folder).env("UV_CACHE_DIR", folder.join("cache"));
        command.env("UV_NO_CONFIG", "1");
        command
    };
    let begun = Instant::now();
    let mut clone = Command::new("git");
    run(clone.args(["clone", "--quiet", url, "ComfyUI"]).current_dir(&folder)).await?;
    run(&mut uv(&["venv", "--quiet", "--python", "3.11", "venv"])).await?;
    let install =
        ["pip", "install", "--quiet", "--python", "venv/bin/python", "--no-deps", "-r", "requirements.txt"];
    let indexes = ["--default-index", &simple, "--index", &torch, "--index-strategy", "unsafe-best-match"];
    run(uv(&install).args(indexes)).await?;
    let took = begun.elapsed();
    clear(&folder)?;
    Ok(took)
}

/// comfy-pack's `unpack` of the same commit and packages, with GitHub and the package index led to what is here;
/// `None` where `benches/rebuild` did not install it.
pub(crate) async fn comfy_pack(inputs: &Inputs) -> anyhow::Result<Option<Duration>> {
    let given = |name| std::env::var_os(name).map(PathBuf::from);
    let tools = given("COMFY_FARM_BENCH_COMFY_PACK").zip(given("COMFY_FARM_BENCH_MANAGER"));
    let Some((installed, manager)) = tools else { return Ok(None) };
    let folder = inputs.folder.path().join("comfy-pack");
    std::fs::create_dir(&folder)?;
    let head = Command::new("git").arg("-C").arg(&manager).args(["rev-parse", "HEAD"]).output().await?;
    let bundle = folder.join("first.cpack.zip");
    write_packed(&bundle, inputs, String::from_utf8(head.stdout)?.trim())?;
    let comfyui = inputs.lockfile["comfyui"]["url"].as_str().unwrap_or_default();
    let led = |from: &str, to: &str| format!("[url \"{to}\"]\n\tinsteadOf = {from}\n");
    let config = [
        led("https://github.com/comfyanonymous/ComfyUI.git", comfyui),
        led(MANAGER, &format!("file://{}", manager.display())),
        "[safe]\n\tdirectory = *\n".to_owned(),
    ];
    std::fs::write(folder.join("gitconfig"), config.concat())?;
    let index = serve(inputs)?;
    let links = installed.join("wheels");
    let mut unpack = Command::new(installed.join("bin/python"));
    // Its script names a folder that has moved since.
    unpack.args(["-c", "import comfy_pack.cli; comfy_pack.cli.main()"]);
    unpack
        .args(["unpack", text(&bundle), "--dir", "workspace", "--verbose", "--verbose"])
        .current_dir(&folder);
    unpack.env_clear().env("HOME", &folder).env("CPACK_HOME", folder.join("home")).env("DO_NOT_TRACK", "1");
    unpack.env("PATH", format!("{}:{}", installed.join("bin").display(), std::env::var("PATH")?));
    unpack.env("GIT_CONFIG_GLOBAL", folder.join("gitconfig")).env("BENTOML_DO_NOT_TRACK", "true");
    unpack
        .env("UV_CACHE_DIR", folder.join("cache"))
        .env("UV_FIND_LINKS", &links)
        .env("PIP_FIND_LINKS", &links);
    unpack.env("UV_INDEX", format!("{}/torch/cpu", index.url));
    for name in ["UV_DEFAULT_INDEX", "PIP_INDEX_URL"] {
        unpack.env(name, format!("{}/simple", index.url));
    }
    let begun = Instant::now();
    run(&mut unpack).await?;
    let took = begun.elapsed();
    eprintln!("{}", differing(inputs, &folder.join("workspace/.venv")).await?);
    clear(&folder)?;
    Ok(Some(took))
}

/// The bundle that `comfy-farm pack` would write of it.
fn write_packed(path: &Path, inputs: &Inputs, manager: &str) -> anyhow::Result<()> {
    let mut lockfile: Lockfile = serde_json::from_value(inputs.lockfile.clone())?;
    let builds: Vec<String> = pins(inputs).map(|(_, version)| version).collect();
    for (package, version) in lockfile.packages.iter_mut().zip(builds) {
        package.pin = Pin::Version(version.parse()?);
    }
    lockfile.custom_nodes = vec![CustomNode::Git {
        url: MANAGER.parse()?,
        commit: manager.parse()?,
        mirrors: Vec::new(),
        folder: None,
        disabled: false,
    }];
    lockfile.models.clear();
    let none = std::iter::empty::<(String, std::io::Result<&[u8]>)>();
    write_bundle(std::fs::File::create(path)?, b"{}", &lockfile, &Exposure::default(), none, [], [])?;
    Ok(())
}

/// Which pins an environment does not honour, in words.
async fn differing(inputs: &Inputs, environment: &Path) -> anyhow::Result<String> {
    let mut freeze = Command::new(&inputs.uv);
    freeze.args(["pip", "freeze", "--quiet", "--python"]).arg(environment.join("bin/python"));
    let frozen = freeze.output().await?;
    let spelled = |text: &str| text.to_lowercase().replace('_', "-");
    let frozen = spelled(&String::from_utf8(frozen.stdout)?);
    let is_there = |pin: &String| frozen.lines().any(|line| line == spelled(pin));
    let pins: Vec<String> = pins(inputs).map(|(name, version)| format!("{name}=={version}")).collect();
    let other: Vec<_> = pins.iter().filter(|pin| !is_there(pin)).map(String::as_str).collect();
    Ok(format!(
        "comfy-pack: {} packages, and of the {} pins it left {other:?}",
        frozen.lines().count(),
        pins.len()
    ))
}

/// What the author had, as this index has it.
fn pins(inputs: &Inputs) -> impl Iterator<Item = (&str, String)> {
    let packages = inputs.lockfile["packages"].as_array().into_iter().flatten();
    packages.map(|package| {
        let (name, version) = (&package["name"], &package["version"]);
        let (name, version) = (name.as_str().unwrap_or_default(), version.as_str().unwrap_or_default());
        let is_torch = ["torch", "torchvision", "torchaudio"].contains(&name);
        let build = if is_torch && !version.contains('+') { "+cpu" } else { "" };
        (name, format!("{version}{build}"))
    })
}

/// The package index, for this machine itself.
fn serve(inputs: &Inputs) -> anyhow::Result<PackageIndex> {
    PackageIndex::serve(&inputs.index, TcpListener::bind("127.0.0.1:0")?)
}

/// Runs a command that must succeed.
pub(crate) async fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().await.with_context(|| format!("{command:?}"))?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
    Ok(())
}
