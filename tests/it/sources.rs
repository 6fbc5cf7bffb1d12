//! Where a node takes what it lacks from, and what it does with wrong bytes.

use std::path::{Path, PathBuf};

use farm_tests::{Farm, FarmOptions, example};
use serde_json::{Value, json};

fn bytes_from(job: &Value, blob: &str, from: &str) -> u64 {
    let fetched = job["fetched"].as_array().into_iter().flatten();
    let matching = fetched.filter(|fetched| fetched["blob"] == blob && fetched["from"] == from);
    matching.filter_map(|fetched| fetched["bytes"].as_u64()).sum()
}

fn picture() -> anyhow::Result<(String, u64)> {
    let bytes = std::fs::read(example("pixelate/input/landscape.png"))?;
    Ok((protocol::BlobHash::of(&bytes).to_string(), bytes.len() as u64))
}

async fn run_on_first_then_drain_it(farm: &Farm) -> anyhow::Result<()> {
    farm.post(&format!("/v1/nodes/{}/drain", farm.nodes[1].peer), &json!({})).await?;
    let first = farm.submit_example().await?;
    let first = farm.wait_for_success(&first).await?;
    assert_eq!(first["run"]["node"], farm.nodes[0].peer.as_str());
    farm.post(&format!("/v1/nodes/{}/undrain", farm.nodes[1].peer), &json!({})).await?;
    farm.post(&format!("/v1/nodes/{}/drain", farm.nodes[0].peer), &json!({})).await?;
    Ok(())
}

#[tokio::test]
async fn second_node_takes_the_input_from_the_first_and_nothing_from_the_coordinator() -> anyhow::Result<()> {
    let farm = Farm::with_example(FarmOptions { nodes: 2, ..FarmOptions::default() }).await?;
    run_on_first_then_drain_it(&farm).await?;
    let second = farm.submit_example().await?;
    let second = farm.wait_for_success(&second).await?;

    let (blob, size) = picture()?;
    assert_eq!(second["run"]["node"], farm.nodes[1].peer.as_str());
    assert_eq!(bytes_from(&second, &blob, &farm.nodes[0].peer), size);
    assert_eq!(bytes_from(&second, &blob, second["coordinator"].as_str().unwrap_or_default()), 0);
    Ok(())
}

#[tokio::test]
async fn corrupt_blob_is_dropped_and_fetched_elsewhere() -> anyhow::Result<()> {
    let farm = Farm::with_example(FarmOptions { nodes: 2, ..FarmOptions::default() }).await?;
    run_on_first_then_drain_it(&farm).await?;
    let (blob, size) = picture()?;
    let stored =
        find_file(&farm.nodes[0].data.join("blobs"), &blob).expect("the first node holds the picture");
    let mut bytes = std::fs::read(&stored)?;
    bytes[20_000] ^= 1;
    let mut permissions = std::fs::metadata(&stored)?.permissions();
    #[expect(clippy::permissions_set_readonly_false, reason = "a file in a test's own folder")]
    permissions.set_readonly(false);
    std::fs::set_permissions(&stored, permissions)?;
    std::fs::write(&stored, &bytes)?;

    let second = farm.submit_example().await?;
    let second = farm.wait_for_success(&second).await?;
    assert_eq!(second["run"]["node"], farm.nodes[1].peer.as_str());
    let coordinator = second["coordinator"].as_str().unwrap_or_default();
    assert!(bytes_from(&second, &blob, coordinator) > 0, "{second}");
    assert!(bytes_from(&second, &blob, coordinator) <= size);
    let log = farm.nodes[1].process.log();
    assert!(
        log.contains(&farm.nodes[0].peer[farm.nodes[0].peer.len() - 10..]),
        "the sender is not named:\n{log}"
    );
    Ok(())
}

/// The file of a complete blob in a store.
fn find_file(folder: &Path, hash: &str) -> Option<PathBuf> {
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find_file(&path, hash) {
                return Some(found);
            }
        } else if path.file_name().is_some_and(|name| name == hash) {
            return Some(path);
        }
    }
    None
}
