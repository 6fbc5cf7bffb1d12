//! An author's models, served from where they lie until the farm keeps them.

use std::io::Write;
use std::path::{Path, PathBuf};

use farm_tests::{Farm, FarmOptions, Process, eventually, example};
use protocol::BlobHash;
use serde_json::{Value, json};
use sha2::Digest;
use zip::write::SimpleFileOptions;

const LICENSED: &[u8] = b"for its buyer only";

/// Two files of an author, and a bundle whose graph names both as models.
struct Author {
    comfyui: PathBuf,
    bundle: PathBuf,
}

impl Author {
    fn new(folder: &Path) -> anyhow::Result<Self> {
        let comfyui = folder.join("ComfyUI");
        let loras = comfyui.join("models/loras");
        std::fs::create_dir_all(&loras)?;
        std::fs::write(loras.join("public.safetensors"), public())?;
        std::fs::write(loras.join("licensed.safetensors"), LICENSED)?;
        let mut graph: Value =
            serde_json::from_slice(&std::fs::read(example("pixelate/workflow_api.json"))?)?;
        for (op, name) in [("20", "public.safetensors"), ("21", "licensed.safetensors")] {
            graph[op] = json!({ "class_type": "LoraLoader", "inputs": { "lora_name": name } });
        }
        let model = |name: &str, size: usize, sha256: Option<String>| {
            let filename = format!("models/loras/{name}.safetensors");
            json!({ "filename": filename, "size": size, "disabled": false, "sha256": sha256, "source": {} })
        };
        let mut snapshot: Value = serde_json::from_slice(&std::fs::read(example("pixelate/snapshot.json"))?)?;
        snapshot["models"] = json!([
            model("public", public().len(), None),
            model("licensed", LICENSED.len(), Some(hex::encode(sha2::Sha256::digest(LICENSED)))),
        ]);
        let bundle = folder.join("styled.cpack.zip");
        let mut zip = zip::ZipWriter::new(std::fs::File::create(&bundle)?);
        for (name, bytes) in [
            ("snapshot.json", serde_json::to_vec(&snapshot)?),
            ("workflow_api.json", serde_json::to_vec(&graph)?),
            ("input/landscape.png", std::fs::read(example("pixelate/input/landscape.png"))?),
        ] {
            zip.start_file(name, SimpleFileOptions::default())?;
            zip.write_all(&bytes)?;
        }
        zip.finish()?;
        Ok(Self { comfyui, bundle })
    }

    /// The command that deploys it.
    fn deploy(&self, farm: &Farm, private: &str) -> tokio::process::Command {
        let mut command = Process::comfy_farm(farm.folder.path(), &["deploy", "--name", "styled"]);
        command.arg(&self.bundle).args(["--url", &farm.url, "--key", &farm.key, "--listen", "127.0.0.1:0"]);
        command.arg("--models").arg(&self.comfyui).args(["--private", private]);
        command
    }
}

fn public() -> Vec<u8> {
    (0..5_u32 << 20).map(|at| (at >> 14) as u8).collect()
}

#[tokio::test]
async fn authors_models_outlive_the_author_and_a_private_one_never_leaves() -> anyhow::Result<()> {
    let mut farm = Farm::start(FarmOptions { nodes: 1, ..FarmOptions::default() }).await?;
    let author = Author::new(farm.folder.path())?;
    let log = farm.folder.path().join("deploy.log");
    let mut deploy = Process::start(author.deploy(&farm, "licensed.safetensors"), &log)?;
    assert!(deploy.line().await?.starts_with("deployed styled@1"));
    // One node is there: as many as there are keep it.
    loop {
        let line = deploy.line().await?;
        if line.starts_with("kept") {
            assert!(line.contains("this machine may close"), "{line}");
            break;
        }
    }
    assert!(deploy.wait().await?.success());
    assert!(deploy.log().contains("licensed.safetensors: not shared"), "{}", deploy.log());

    farm.start_node(&[]).await?;
    let hash = BlobHash::of(&public());
    let output = farm.folder.path().join("public.safetensors");
    let mut get = Process::comfy_farm(farm.folder.path(), &["blob", "get", &hash.to_string(), "-o"]);
    let got = get.arg(&output).arg("--data").arg(&farm.nodes[1].data).output().await?;
    assert!(got.status.success(), "{}", String::from_utf8_lossy(&got.stderr));
    assert!(std::fs::read(&output)? == public());
    let licensed = BlobHash::of(LICENSED);
    let held = farm.get(&format!("/v1/blobs/{licensed}")).await?;
    assert_eq!((&held["holders"], &held["hash"]), (&json!([]), &Value::Null));
    Ok(())
}

#[tokio::test]
async fn model_that_a_deploy_makes_private_is_given_no_more_by_a_node_that_had_it_before()
-> anyhow::Result<()> {
    let mut farm = Farm::start(FarmOptions { nodes: 1, ..FarmOptions::default() }).await?;
    let author = Author::new(farm.folder.path())?;
    let models = author.comfyui.join("models");
    farm.start_node(&["--models", models.to_str().expect("UTF-8")]).await?;
    let (holder, licensed) = (farm.nodes[1].peer.clone(), BlobHash::of(LICENSED));
    let are_held_by = async |hash: BlobHash, count: usize| -> anyhow::Result<()> {
        let farm = &farm;
        let look = || async move {
            let held = farm.get(&format!("/v1/blobs/{hash}")).await?;
            Ok((held["holders"].as_array().map(Vec::len) == Some(count)).then_some(()))
        };
        eventually(look).await
    };
    are_held_by(licensed, 1).await?;

    let mut deploy = Process::comfy_farm(farm.folder.path(), &["deploy", "--name", "styled"]);
    deploy.arg(&author.bundle).args(["--url", &farm.url, "--key", &farm.key]);
    let deployed = deploy.args(["--private", "licensed.safetensors", "--json"]).output().await?;
    assert!(deployed.status.success(), "{}", String::from_utf8_lossy(&deployed.stderr));
    let deployed: Value = serde_json::from_slice(&deployed.stdout)?;
    let shares = deployed["models"].as_array().into_iter().flatten();
    let shares: Vec<_> = shares.map(|model| (&model["path"], &model["share"])).collect();
    assert!(shares.contains(&(&json!("models/loras/licensed.safetensors"), &json!(false))), "{shares:?}");

    are_held_by(licensed, 0).await?;
    are_held_by(BlobHash::of(&public()), 1).await?;
    let output = farm.folder.path().join("got.safetensors");
    for name in [licensed.to_string(), format!("sha256:{}", hex::encode(sha2::Sha256::digest(LICENSED)))] {
        for from in [&[][..], &["--from", &holder]] {
            let mut get = Process::comfy_farm(farm.folder.path(), &["blob", "get", &name, "-o"]);
            let got = get.arg(&output).arg("--data").arg(&farm.nodes[0].data).args(from).output().await?;
            let words = String::from_utf8_lossy(&got.stderr);
            assert!(!got.status.success() && !output.exists(), "{name} {from:?}: {words}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn two_of_many_nodes_keep_each_model_and_whoever_waits_is_told() -> anyhow::Result<()> {
    let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let author = Author::new(farm.folder.path())?;
    let log = farm.folder.path().join("deploy.log");
    let mut deploy = Process::start(author.deploy(&farm, "loras/licensed.safetensors"), &log)?;
    assert!(deploy.line().await?.starts_with("deployed styled@1"));
    let said = |words: &'static str| {
        let deploy = &deploy;
        eventually(move || async move { Ok(deploy.log().contains(words).then_some(())) })
    };
    said("no other node is in the farm yet").await?;
    for _ in 0..3 {
        farm.start_node(&[]).await?;
    }
    while !deploy.line().await?.starts_with("kept") {}
    assert!(deploy.wait().await?.success());
    let hash = BlobHash::of(&public());
    let held = farm.get(&format!("/v1/blobs/{hash}")).await?;
    let holders = held["holders"].as_array().cloned().unwrap_or_default();
    assert_eq!(holders.iter().filter(|holder| holder["pinned"] == true).count(), 2, "{held}");
    Ok(())
}

#[tokio::test]
async fn model_that_is_nowhere_or_another_file_is_told_by_name() -> anyhow::Result<()> {
    let farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let author = Author::new(farm.folder.path())?;
    std::fs::remove_file(author.comfyui.join("models/loras/public.safetensors"))?;
    let check = async |private: &str, expected: &str| -> anyhow::Result<()> {
        let output = author.deploy(&farm, private).env("COMFY_FARM_LOG", "error").output().await?;
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(7), "{words}");
        assert!(words.contains(expected), "{words}");
        Ok(())
    };
    check("licensed.safetensors", "model `loras/public.safetensors`").await?;
    check("licenced.safetensors", "no model of the lockfile is called `licenced.safetensors`").await
}
