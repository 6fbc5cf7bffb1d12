//! `comfy-farm blob` on a data folder, with and without the process that has it.

use std::path::Path;
use std::process::Output;

use farm_tests::{Farm, FarmOptions, Process, eventually};
use serde_json::{Value, json};

/// What a command answers in JSON.
async fn blob(data: &Path, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = output(data, &[arguments, &["--json"]].concat()).await?;
    let error = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{arguments:?}: {error}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

async fn output(data: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    let arguments = [&["blob"], arguments].concat();
    Ok(Process::comfy_farm(data, &arguments).arg("--data").arg(data).output().await?)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[tokio::test]
async fn running_node_is_asked_and_a_stopped_one_does_not_matter() -> anyhow::Result<()> {
    let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let models = farm.folder.path().join("models");
    std::fs::create_dir_all(models.join("loras"))?;
    std::fs::write(models.join("loras/one.safetensors"), b"one")?;
    farm.start_node(&["--engine", "builtin", "--quota", "1GB", "--models", text(&models)]).await?;
    let data = farm.nodes[0].data.clone();

    let two = farm.folder.path().join("two.safetensors");
    std::fs::write(&two, vec![2; 2 << 20])?;
    let added = blob(&data, &["add", text(&two)]).await?;
    assert_eq!((&added["files"], &added["hashed"]), (&json!(1), &json!(1)));
    let again = blob(&data, &["add", text(&models)]).await?;
    assert_eq!(again["files"], 1, "the node may have indexed it before: {again}");
    let listed = blob(&data, &["ls"]).await?;
    let blobs = listed["blobs"].as_array().expect("a list");
    let two_listed = blobs.iter().find(|blob| blob["size"] == 2 << 20).expect("it was added");
    let hash = two_listed["hash"].as_str().expect("a hash").to_owned();
    assert_eq!(two_listed["in_place"], json!([std::fs::canonicalize(&two)?]));
    assert!(output(&data, &["pin", &hash]).await?.status.success());
    assert_eq!(blob(&data, &["gc"]).await?["blobs"], 0);

    farm.nodes[0].process.kill().await;
    let listed = blob(&data, &["ls"]).await?;
    let kept = listed["blobs"].as_array().expect("a list").iter().find(|blob| blob["hash"] == *hash);
    assert_eq!(kept.expect("it outlives the node")["pinned"], true);
    assert_eq!(blob(&data, &["verify", &hash]).await?["good"], 1);

    // As a failing disk changes it, without a trace in the folder.
    let modified = std::fs::metadata(&two)?.modified()?;
    std::fs::write(&two, vec![3; 2 << 20])?;
    std::fs::File::options().write(true).open(&two)?.set_modified(modified)?;
    let damaged = output(&data, &["verify", &hash, "--json"]).await?;
    assert_eq!(damaged.status.code(), Some(1), "{}", String::from_utf8_lossy(&damaged.stderr));
    let gone = output(&data, &["pin", &hash]).await?;
    assert_eq!(gone.status.code(), Some(6), "{}", String::from_utf8_lossy(&gone.stderr));
    Ok(())
}

#[tokio::test]
async fn folder_that_is_added_is_followed_also_by_a_node_that_starts_later_until_it_is_forgotten()
-> anyhow::Result<()> {
    let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let models = farm.folder.path().join("models");
    std::fs::create_dir_all(&models)?;
    farm.start_node(&["--engine", "builtin"]).await?;
    let data = farm.nodes[0].data.clone();
    assert_eq!(blob(&data, &["add", text(&models)]).await?["files"], 0);
    let holds = async |size: u64| {
        let look = || async {
            let listed = blob(&data, &["ls"]).await?;
            let blobs = listed["blobs"].as_array().cloned().unwrap_or_default();
            Ok(blobs.iter().any(|blob| blob["size"] == size).then_some(()))
        };
        eventually(look).await
    };
    std::fs::write(models.join("first.safetensors"), vec![1; 1001])?;
    holds(1001).await?;
    farm.nodes[0].process.kill().await;
    std::fs::write(models.join("second.safetensors"), vec![2; 1002])?;
    farm.restart_node(0, &["--engine", "builtin"]).await?;
    holds(1002).await?;
    assert_eq!(blob(&data, &["forget", text(&models)]).await?["files"], 2);
    let listed = blob(&data, &["ls"]).await?;
    let in_place = |blob: &Value| blob["in_place"].as_array().is_some_and(|paths| !paths.is_empty());
    assert!(!listed["blobs"].as_array().expect("a list").iter().any(in_place), "{listed}");
    Ok(())
}

#[tokio::test]
async fn coordinator_lists_its_blobs_and_errors_name_what_is_wrong() -> anyhow::Result<()> {
    let farm = Farm::with_example(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let data = farm.folder.path().join("coordinator");
    let listed = blob(&data, &["ls"]).await?;
    let blobs = listed["blobs"].as_array().expect("a list").len() as u64;
    assert!(blobs > 0, "a deployed workflow has blobs");
    assert_eq!(blob(&data, &["verify"]).await?, json!({ "good": blobs, "bad": [] }));

    let missing = output(&data, &["add", "/no/such/folder"]).await?;
    assert_eq!(missing.status.code(), Some(7));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("`/no/such/folder` cannot be read"));
    let nowhere = output(&data.join("nowhere"), &["ls"]).await?;
    assert_eq!(nowhere.status.code(), Some(7));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("is no data folder"));
    Ok(())
}
