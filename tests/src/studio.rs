//! The machine of a workflow's author: a real ComfyUI in repositories of its own, a model, and bundles of them.
//!
//! Not here: the farm, and what is expected of it.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::process::Command;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// Packages that the test's index has not: those of ComfyUI's page, and one of its older versions that nothing here
/// needs.
const NOT_THERE: [&str; 2] = ["comfyui-", "soundfile"];
/// Writes an upscaler that ComfyUI's loader takes for one (see shared/facts/real-comfyui.md), of random weights.
const UPSCALER: &str = "
import sys, torch
from safetensors.torch import save_file
random = torch.Generator().manual_seed(1)
weights = lambda *shape: torch.randn(*shape, generator=random) * 0.05
width, scale = 16, 2
model = {'body.0.weight': weights(width, 3, 3, 3), 'body.0.bias': weights(width), 'body.1.weight': torch.full((width,), 0.25)}
for at in (2, 4):
    model[f'body.{at}.weight'], model[f'body.{at}.bias'] = weights(width, width, 3, 3), weights(width)
    model[f'body.{at + 1}.weight'] = torch.full((width,), 0.25)
model['body.6.weight'], model['body.6.bias'] = weights(3 * scale * scale, width, 3, 3), weights(3 * scale * scale)
save_file({name: tensor.contiguous() for name, tensor in model.items()}, sys.argv[1])
";
/// Names each package of a Python with its version.
const PACKAGES: &str = "
import importlib.metadata, json
print(json.dumps({package.metadata['Name']: package.version for package in importlib.metadata.distributions()}))
";

/// The author's machine.
pub struct Studio {
    /// The installed ComfyUI that everything is made of.
    installed: PathBuf,
    folder: PathBuf,
}

impl Studio {
    /// With everything that it makes in this folder.
    pub fn new(installed: &Path, folder: &Path) -> Self {
        Self { installed: installed.to_owned(), folder: folder.to_owned() }
    }

    /// A ComfyUI of the installed ones (`ComfyUI`, `ComfyUI-0.3.52`) at one commit of a repository, as a lockfile
    /// pins it.
    pub async fn comfyui(&self, which: &str) -> anyhow::Result<Value> {
        let repository = self.folder.join(which);
        if repository.exists() {
            return pinned(&repository).await;
        }
        std::fs::create_dir_all(&self.folder)?;
        copy(&self.installed.join(which), &repository).await?;
        for other in ["custom_nodes/farm_test", "input", "output", "temp", "user", "models"] {
            let _ = std::fs::remove_dir_all(repository.join(other));
        }
        let requirements = repository.join("requirements.txt");
        let text = std::fs::read_to_string(&requirements)?;
        let kept = text.lines().filter(|line| !NOT_THERE.iter().any(|package| line.starts_with(package)));
        std::fs::write(&requirements, kept.map(|line| format!("{line}\n")).collect::<String>())?;
        commit(&repository).await
    }

    /// A custom node of these files at one commit of a repository, as a lockfile pins it.
    pub async fn custom_node(&self, name: &str, files: &[(&str, &str)]) -> anyhow::Result<Value> {
        let repository = self.folder.join(name);
        for (path, text) in files {
            let path = repository.join(path);
            std::fs::create_dir_all(path.parent().context("a file has a folder")?)?;
            std::fs::write(path, text)?;
        }
        let mut node = commit(&repository).await?;
        node["from"] = json!("git");
        node["disabled"] = json!(false);
        Ok(node)
    }

    /// The packages of the author's Python, as a lockfile pins them.
    pub async fn packages(&self) -> anyhow::Result<Value> {
        let said = self.python(&["-c", PACKAGES]).await?;
        let packages: serde_json::Map<String, Value> = serde_json::from_slice(&said)?;
        let pinned = packages.into_iter().filter(|(name, _)| name != "pip");
        Ok(pinned.map(|(name, version)| json!({ "name": name, "version": version })).collect())
    }

    /// A small upscaler in a models folder, and how a lockfile names it.
    pub async fn upscaler(&self, models: &Path) -> anyhow::Result<Value> {
        let path = models.join("upscale_models/tiny.safetensors");
        std::fs::create_dir_all(path.parent().context("a file has a folder")?)?;
        self.python(&["-c", UPSCALER, path.to_str().context("UTF-8")?]).await?;
        let bytes = std::fs::read(&path)?;
        Ok(json!({
            "path": "models/upscale_models/tiny.safetensors",
            "size": bytes.len(),
            "sha256": hex::encode(Sha256::digest(&bytes)),
            "disabled": false,
        }))
    }

    /// A bundle of a workflow and a lockfile.
    pub fn bundle(&self, name: &str, workflow: &Value, lockfile: &Value) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(format!("{name}.cpack.zip"));
        let mut zip = ZipWriter::new(std::fs::File::create(&path)?);
        for (entry, text) in [("workflow_api.json", workflow), ("lockfile.json", lockfile)] {
            zip.start_file(entry, SimpleFileOptions::default())?;
            zip.write_all(text.to_string().as_bytes())?;
        }
        zip.finish()?;
        Ok(path)
    }

    async fn python(&self, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
        let output = Command::new(self.installed.join("venv/bin/python")).args(arguments).output().await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }
}

async fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let status = Command::new("cp").arg("-r").args([from, to]).status().await?;
    ensure!(status.success(), "`{}` is not copied", from.display());
    Ok(())
}

/// Makes a folder a repository with one commit of all that is in it.
async fn commit(repository: &Path) -> anyhow::Result<Value> {
    git(repository, &["init", "--quiet"]).await?;
    git(repository, &["add", "--all", "--force", ".", ":!*__pycache__*"]).await?;
    git(repository, &["commit", "--quiet", "--message", "as it is"]).await?;
    pinned(repository).await
}

/// A repository at its commit, as a lockfile pins it.
async fn pinned(repository: &Path) -> anyhow::Result<Value> {
    let url = format!("file://{}", repository.display());
    Ok(json!({ "url": url, "commit": git(repository, &["rev-parse", "HEAD"]).await? }))
}

async fn git(repository: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(repository).args(["-c", "user.name=a", "-c", "user.email=a@example.org"]);
    // Nobody's own settings, and nothing of theirs ignored.
    command.args(["-c", "core.excludesFile="]).env("GIT_CONFIG_GLOBAL", "/dev/null").args(arguments);
    let output = command.output().await?;
    ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
