//! Of the bundles that people have, those that are more than pins: packages that contradict each other, an install
//! script, changed code in a custom node.
//!
//! Not here: the farm, and the other bundles (`people`).

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use data_encoding::BASE64URL_NOPAD;
use farm_tests::{Farm, Process, Studio, eventually_within};
use image::RgbImage;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::pack::{git, json_of};
use crate::people::through;
use crate::workspaces::{
    REBUILD, Sources, has_reached, lockfile, picture, settled, text, wait_for_workspace,
};

/// A custom node of one op that makes of a picture what this expression says.
fn op(class: &str, before: &str, expression: &str) -> String {
    format!(
        "{before}
class {class}:
    RETURN_TYPES, FUNCTION, CATEGORY = ('IMAGE',), 'execute', 'test'
    @classmethod
    def INPUT_TYPES(cls):
        return {{'required': {{'image': ('IMAGE',)}}}}
    def execute(self, image):
        return ({expression},)
NODE_CLASS_MAPPINGS = {{'{class}': {class}}}
"
    )
}

/// A package index with all that another one has and a package `contrary`, which wants a Pillow that nobody has.
pub(crate) fn index_with_contrary(installed: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let (of, index) = (installed.join("index"), folder.join("index"));
    let page = index.join("simple/contrary");
    std::fs::create_dir_all(&page)?;
    std::fs::create_dir(index.join("files"))?;
    std::os::unix::fs::symlink(of.join("torch"), index.join("torch"))?;
    for shared in ["simple", "files"] {
        for entry in std::fs::read_dir(of.join(shared))? {
            let entry = entry?;
            std::os::unix::fs::symlink(entry.path(), index.join(shared).join(entry.file_name()))?;
        }
    }
    let name = "contrary-1.0-py3-none-any.whl";
    let wheel = contrary(&index.join("files").join(name))?;
    let link = format!("<a href=\"../../files/{name}#sha256={wheel}\">{name}</a>\n");
    std::fs::write(page.join("index.html"), format!("<!doctype html>\n{link}"))?;
    Ok(index)
}

/// Its wheel; says its SHA-256.
fn contrary(path: &Path) -> anyhow::Result<String> {
    let info = "contrary-1.0.dist-info";
    let mut files = vec![
        ("contrary/__init__.py".to_owned(), "VERSION = '1.0'\n".to_owned()),
        (
            format!("{info}/METADATA"),
            "Metadata-Version: 2.1\nName: contrary\nVersion: 1.0\nRequires-Dist: pillow<1\n".to_owned(),
        ),
        (
            format!("{info}/WHEEL"),
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n".to_owned(),
        ),
    ];
    let line = |(name, text): &(String, String)| {
        let hash = BASE64URL_NOPAD.encode(&Sha256::digest(text));
        format!("{name},sha256={hash},{}\n", text.len())
    };
    let record: String = files.iter().map(line).collect();
    files.push((format!("{info}/RECORD"), format!("{record}{info}/RECORD,,\n")));
    let mut zip = ZipWriter::new(std::fs::File::create(path)?);
    for (name, text) in files {
        zip.start_file(name, SimpleFileOptions::default())?;
        zip.write_all(text.as_bytes())?;
    }
    zip.finish()?;
    Ok(hex::encode(Sha256::digest(std::fs::read(path)?)))
}

/// A ComfyUI whose custom node `changed` turns pictures upside down, which is not what its commit does, as a bundle;
/// without being told to take the change along `pack` refuses it.
async fn dirty(studio: &Studio, sources: &Sources, folder: &Path) -> anyhow::Result<PathBuf> {
    let node = studio.custom_node("changed", &[("__init__.py", &op("Changed", "", "image"))]).await?;
    let url = |pin: &Value| pin["url"].as_str().unwrap_or_default().to_owned();
    git(folder, &["clone", "--quiet", &url(&studio.comfyui("ComfyUI").await?), "ComfyUI"])?;
    let comfyui = folder.join("ComfyUI");
    git(&comfyui.join("custom_nodes"), &["clone", "--quiet", &url(&node)])?;
    std::fs::create_dir_all(comfyui.join("models"))?;
    std::fs::write(comfyui.join("custom_nodes/changed/__init__.py"), op("Changed", "", "image.flip(1)"))?;
    std::fs::write(folder.join("dirty_api.json"), through("Changed").to_string())?;
    let python = sources.installed.join("venv/bin/python");
    let pack = ["pack", "--comfyui", "ComfyUI", "--workflow", "dirty_api.json", "--offline", "--json"];
    let pack = [&pack[..], &["--python", text(&python)]].concat();
    let refused = Process::comfy_farm(folder, &pack).current_dir(folder).output().await?;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(7), "{told}");
    ensure!(told.contains("changed") && told.contains("`--dirty carry`"), "{told}");
    let packed = json_of(folder, &[&pack[..], &["--dirty", "carry"]].concat()).await?;
    ensure!(packed["lockfile"]["custom_nodes"][0]["from"] == "carried", "{packed}");
    Ok(folder.join("dirty.cpack.zip"))
}

/// What a workflow makes of a picture.
async fn made(farm: &Farm, name: &str, picture: &Path) -> anyhow::Result<RgbImage> {
    let job = farm.submit(name, &[("picture", picture)], &[]).await?;
    let id = job["id"].as_str().unwrap_or_default();
    let job = farm.wait_for_success(id).await.with_context(|| name.to_owned())?;
    Ok(image::load_from_memory(&farm.output(&job).await?)?.to_rgb8())
}

/// Starts a node that runs no install scripts, which a workspace needs; lets it run them, and forbids it again.
pub(crate) async fn node_after_an_install_script(
    farm: &mut Farm,
    studio: &Studio,
    flags: &[&str],
    programs: &str,
) -> anyhow::Result<()> {
    let uses = op("Installed", "from . import made", "image.flip(made.AXIS)");
    let script = "open('made.py', 'w').write('AXIS = 1\\n')\n";
    let node = studio.custom_node("installed", &[("__init__.py", &uses), ("install.py", script)]).await?;
    let lockfile = lockfile(studio, "ComfyUI", &[node], &[]).await?;
    let bundle = studio.bundle("installed", &through("Installed"), &lockfile)?;
    let environment = [("PATH", programs)];
    farm.start_node_with(flags, &environment).await?;
    farm.deploy(&bundle, "installed", &[]).await?;
    let failed = wait_for_workspace(farm, "installed@1", "failed").await?;
    let reason = failed["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("`--allow-install-scripts`"), "{failed}");

    farm.nodes[0].process.kill().await;
    farm.restart_node_with(0, &[flags, &["--allow-install-scripts"]].concat(), &environment).await?;
    let ask = || async {
        let workspace = settled(&farm.get("/v1/nodes").await?, &farm.nodes[0].peer, "installed@1", "loaded");
        // What it was before the node was started again counts no longer.
        Ok(workspace.filter(|workspace| has_reached(workspace, "loaded")))
    };
    eventually_within(REBUILD, ask).await.with_context(|| farm.nodes[0].process.log())?;
    let picture = picture(farm.folder.path())?;
    let upside_down = image::imageops::flip_vertical(&image::open(&picture)?.to_rgb8());
    assert_eq!(made(farm, "installed", &picture).await?, upside_down, "its script ran");
    farm.nodes[0].process.kill().await;
    farm.restart_node_with(0, flags, &environment).await
}

/// Deploys the others, and sees what becomes of each.
pub(crate) async fn look_at(
    farm: &Farm,
    studio: &Studio,
    sources: &Sources,
    picture: &Path,
) -> anyhow::Result<()> {
    farm.deploy(&dirty(studio, sources, farm.folder.path()).await?, "dirty", &[]).await?;
    // The module says by itself that all is as it was recorded.
    let before =
        "import PIL, contrary\nassert contrary.VERSION == '1.0' and int(PIL.__version__.split('.')[0]) > 1";
    let node = studio.custom_node("contrary", &[("__init__.py", &op("Contrary", before, "image"))]).await?;
    let mut contrary = lockfile(studio, "ComfyUI", &[node], &[]).await?;
    let packages = contrary["packages"].as_array_mut().context("a list")?;
    packages.push(json!({ "name": "contrary", "version": "1.0" }));
    farm.deploy(&studio.bundle("contrary", &through("Contrary"), &contrary)?, "contrary", &[]).await?;

    for name in ["dirty", "contrary"] {
        wait_for_workspace(farm, &format!("{name}@1"), "loaded").await.context(name)?;
    }
    let given = image::open(picture)?.to_rgb8();
    assert_eq!(made(farm, "contrary", picture).await?, given);
    let upside_down = image::imageops::flip_vertical(&given);
    assert_eq!(made(farm, "dirty", picture).await?, upside_down, "as it was changed");
    Ok(())
}
