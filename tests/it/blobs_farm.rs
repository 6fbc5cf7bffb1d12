//! Blobs of a farm by their names: found, fetched through a running node, and kept where nodes have room.

use std::path::{Path, PathBuf};
use std::process::Output;

use farm_tests::{Farm, FarmOptions, Process, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A farm with a model of 3 MiB in a folder of its first node, and a second node with nothing.
struct Holding {
    farm: Farm,
    model: PathBuf,
    hash: String,
    sha256: String,
}

impl Holding {
    async fn start() -> anyhow::Result<Self> {
        let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
        let models = farm.folder.path().join("models");
        std::fs::create_dir_all(models.join("loras"))?;
        let model = models.join("loras/tiny.safetensors");
        std::fs::write(&model, (0..3_u32 << 20).map(|at| (at >> 12) as u8).collect::<Vec<_>>())?;
        farm.start_node(&["--models", text(&models)]).await?;
        farm.start_node(&[]).await?;
        let data = farm.nodes[0].data.clone();
        let listed = eventually(|| async {
            let listed = blob(&data, &["ls", "--json"]).await?;
            let listed: Value = serde_json::from_slice(&listed.stdout)?;
            Ok(listed["blobs"].as_array().and_then(|blobs| blobs.first().cloned()))
        });
        let listed = listed.await?;
        let name = |key: &str| listed[key].as_str().unwrap_or_default().to_owned();
        let (hash, sha256) = (name("hash"), name("sha256"));
        let holding = Self { farm, model, hash, sha256 };
        holding.wait(|blob| blob["holders"][0]["connected"] == true).await?;
        Ok(holding)
    }

    /// Waits until the farm knows of the model what is wished.
    async fn wait(&self, wish: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let path = format!("/v1/blobs/sha256:{}", self.sha256);
        eventually(|| async {
            let blob = self.farm.get(&path).await?;
            Ok(wish(&blob).then_some(blob))
        })
        .await
    }

    /// A command that the second node is asked.
    async fn second(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        blob(&self.farm.nodes[1].data, arguments).await
    }

    fn output(&self, name: &str) -> PathBuf {
        self.farm.folder.path().join(name)
    }
}

async fn blob(data: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    let arguments = [&["blob"], arguments].concat();
    let mut command = Process::comfy_farm(data, &arguments);
    Ok(command.arg("--data").arg(data).env("COMFY_FARM_LOG", "error").output().await?)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn words(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn blob_is_found_and_fetched_by_either_name_through_the_node_on_the_machine() -> anyhow::Result<()> {
    let holding = Holding::start().await?;
    let first = holding.farm.nodes[0].peer.clone();
    let by_sha256 = format!("sha256:{}", holding.sha256);
    let (code, said, _) = words(&holding.second(&["where", &by_sha256]).await?);
    assert_eq!(code, Some(0));
    assert!(said.contains(&holding.hash) && said.contains(&first), "{said}");

    let one = holding.output("one.safetensors");
    let got = words(&holding.second(&["get", &by_sha256, "-o", text(&one)]).await?);
    assert_eq!((got.0, got.1), (Some(0), format!("done {}\n", one.display())), "{}", got.2);
    assert!(std::fs::read(&one)? == std::fs::read(&holding.model)?);
    // The node that fetched it holds it from now on.
    let second = holding.farm.nodes[1].peer.clone();
    holding
        .wait(|blob| {
            blob["holders"].as_array().is_some_and(|all| all.iter().any(|one| one["peer"] == second))
        })
        .await?;

    let other = holding.output("other.safetensors");
    let got = holding.second(&["get", &holding.hash, "-o", text(&other), "--json"]).await?;
    let got: Value = serde_json::from_slice(&got.stdout)?;
    assert_eq!((&got["size"], &got["from"]), (&json!(3 << 20), &json!([])), "it was here");
    let (_, said, _) = words(&holding.second(&["where", &holding.hash]).await?);
    assert!(said.contains("  here\n"), "{said}");

    let farm = ["where", &holding.hash, "--farm", &holding.farm.url, "--key", &holding.farm.key];
    let (code, said, error) = words(&holding.second(&farm).await?);
    assert_eq!(code, Some(0), "{error}");
    assert!(said.contains(&first) && said.contains(&second), "{said}");
    Ok(())
}

#[tokio::test]
async fn what_nobody_holds_is_told_with_whom_was_asked() -> anyhow::Result<()> {
    let holding = Holding::start().await?;
    let output = holding.output("none.safetensors");
    let nobody = "ab".repeat(32);
    let check = async |arguments: &[&str], expected: &str| -> anyhow::Result<()> {
        let (code, said, error) =
            words(&holding.second(&[&["get", "-o", text(&output)], arguments].concat()).await?);
        assert_eq!((code, said), (Some(6), String::new()), "{error}");
        assert!(error.contains(expected), "{error}");
        assert!(!output.exists());
        Ok(())
    };
    check(&[&nobody], "asked the coordinator, which knows of no node that has it").await?;
    let (first, second) = (holding.farm.nodes[0].peer.clone(), holding.farm.nodes[1].peer.clone());
    check(&[&holding.hash, "--from", &second], &first).await?;
    // What the internet said is told by URL; a host of our own network is none of it.
    let url = "https://127.0.0.1:1/model.safetensors";
    let by_sha256 = format!("sha256:{nobody}");
    check(&[&by_sha256, "--size", "9", "--url", url], url).await?;
    holding.farm.coordinator.signal(Signal::SIGKILL);
    let log = || holding.farm.nodes[1].process.log();
    eventually(|| async { Ok(log().contains("session lost").then_some(())) }).await?;
    let asked = "asked this node and the members that it reaches: no coordinator can be reached";
    check(&[&nobody], asked).await?;
    let (code, said, _) = words(&holding.second(&["where", &nobody]).await?);
    assert_eq!(code, Some(0));
    assert!(said.contains("no coordinator can be reached"), "{said}");
    Ok(())
}

#[tokio::test]
async fn model_is_kept_by_a_node_with_room_and_outlives_the_one_that_brought_it() -> anyhow::Result<()> {
    let mut holding = Holding::start().await?;
    let author = holding.farm.nodes[0].peer.clone();
    let wish = json!({ "size": 3 << 20, "copies": 1, "author": author });
    holding.farm.post(&format!("/v1/blobs/{}/keep", holding.hash), &wish).await?;
    let second = holding.farm.nodes[1].peer.clone();
    let kept = |blob: &Value| {
        let holders = blob["holders"].as_array().cloned().unwrap_or_default();
        holders.iter().any(|holder| holder["peer"] == second && holder["pinned"] == true)
    };
    holding.wait(kept).await?;
    holding.farm.nodes[0].process.kill().await;
    let output = holding.output("kept.safetensors");
    let got = words(&holding.second(&["get", &holding.hash, "-o", text(&output)]).await?);
    assert_eq!(got.0, Some(0), "{}", got.2);
    assert!(std::fs::read(&output)? == std::fs::read(&holding.model)?);
    Ok(())
}
