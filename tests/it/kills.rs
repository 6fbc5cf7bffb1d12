//! Power cuts: a node or the coordinator vanishes in the middle, and no job is lost or done twice.

use farm_tests::{Farm, FarmOptions, eventually};
use serde_json::Value;

/// Slow enough that a run is caught in the middle.
const SLOW: u64 = 700;

fn is_executing(job: &Value) -> bool {
    job["run"]["phase"] == "executing"
}

fn node_index(farm: &Farm, job: &Value) -> usize {
    farm.nodes.iter().position(|node| job["run"]["node"] == node.peer.as_str()).expect("a node of this farm")
}

#[tokio::test]
async fn job_of_a_killed_node_succeeds_elsewhere_with_one_result() -> anyhow::Result<()> {
    let mut farm = Farm::with_example(FarmOptions { nodes: 2, pause: SLOW, lease: 3 }).await?;
    let id = farm.submit_example().await?;
    let running = farm.wait_for_job(&id, is_executing).await?;
    let killed = node_index(&farm, &running);
    farm.nodes[killed].process.kill().await;

    let job = farm.wait_for_success(&id).await?;
    assert_ne!(job["run"]["node"], running["run"]["node"]);
    assert_ne!(job["run"]["id"], running["run"]["id"]);
    assert_eq!(job["outputs"].as_array().map(Vec::len), Some(1));
    assert_eq!(farm.get("/v1/jobs").await?["jobs"].as_array().map(Vec::len), Some(1));
    Ok(())
}

#[tokio::test]
async fn killed_coordinator_finishes_all_jobs_and_repeats_no_run() -> anyhow::Result<()> {
    let mut farm = Farm::with_example(FarmOptions { nodes: 2, pause: 150, lease: 30 }).await?;
    let mut ids = Vec::new();
    for _ in 0..52 {
        ids.push(farm.submit_example().await?);
    }
    let running = eventually(|| async {
        let jobs = farm.get("/v1/jobs?limit=100").await?["jobs"].as_array().cloned().unwrap_or_default();
        let running: Vec<Value> = jobs.into_iter().filter(is_executing).collect();
        Ok((running.len() == 2).then_some(running))
    })
    .await?;
    farm.coordinator.kill().await;
    farm.restart_coordinator().await?;

    for id in &ids {
        let job = farm.wait_for_success(id).await?;
        assert_eq!(job["outputs"].as_array().map(Vec::len), Some(1), "{job}");
        assert_eq!(job["failures"].as_array().map(Vec::len), Some(0), "{job}");
    }
    for before in running {
        let after = farm.get(&format!("/v1/jobs/{}", before["id"].as_str().unwrap_or_default())).await?;
        assert_eq!(after["run"]["id"], before["run"]["id"], "the run was repeated");
    }
    assert_eq!(farm.get("/v1/jobs?limit=100").await?["jobs"].as_array().map(Vec::len), Some(52));
    Ok(())
}

#[tokio::test]
async fn node_that_comes_back_after_its_lease_presents_its_run() -> anyhow::Result<()> {
    let farm = Farm::with_example(FarmOptions { nodes: 1, pause: SLOW, lease: 2 }).await?;
    let id = farm.submit_example().await?;
    let running = farm.wait_for_job(&id, is_executing).await?;
    farm.freeze(0, true);
    let waiting = farm.wait_for_job(&id, |job| job["state"] == "queued").await?;
    assert!(waiting["waits"][0]["reason"].is_string(), "{waiting}");
    farm.freeze(0, false);

    let job = farm.wait_for_success(&id).await?;
    assert_eq!(job["run"]["id"], running["run"]["id"], "the finished run was not taken");
    Ok(())
}

#[tokio::test]
async fn late_run_does_not_replace_a_faster_one() -> anyhow::Result<()> {
    let mut farm = Farm::with_example(FarmOptions { nodes: 1, pause: SLOW, lease: 2 }).await?;
    let id = farm.submit_example().await?;
    let running = farm.wait_for_job(&id, is_executing).await?;
    farm.freeze(0, true);
    farm.start_node(&["--engine", "builtin"]).await?;
    let job = farm.wait_for_success(&id).await?;
    assert_ne!(job["run"]["id"], running["run"]["id"]);
    farm.freeze(0, false);

    // The frozen node reconnects, hears that its run is no longer wanted, and takes the next job.
    let peer = farm.nodes[1].peer.clone();
    farm.post(&format!("/v1/nodes/{peer}/drain"), &serde_json::json!({})).await?;
    let next = farm.submit_example().await?;
    let next = farm.wait_for_success(&next).await?;
    assert_eq!(next["run"]["node"], farm.nodes[0].peer.as_str());
    let again = farm.get(&format!("/v1/jobs/{id}")).await?;
    assert_eq!(again["run"]["id"], job["run"]["id"], "the end was recorded twice");
    Ok(())
}

#[tokio::test]
async fn stopped_node_gives_its_lease_back_and_leaves_nothing_half_written() -> anyhow::Result<()> {
    let mut farm = Farm::with_example(FarmOptions { nodes: 2, pause: SLOW, lease: 60 }).await?;
    let id = farm.submit_example().await?;
    let running = farm.wait_for_job(&id, is_executing).await?;
    let stopped = node_index(&farm, &running);
    farm.nodes[stopped].process.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(farm.nodes[stopped].process.wait().await?.success());

    // Long before the lease of a minute could run out, the other node has it.
    let job = farm.wait_for_success(&id).await?;
    assert_ne!(job["run"]["node"], running["run"]["node"]);
    assert_eq!(job["failures"].as_array().map(Vec::len), Some(0), "giving back is no failure: {job}");
    let data = &farm.nodes[stopped].data;
    for folder in ["scratch", "ends"] {
        assert_eq!(std::fs::read_dir(data.join(folder))?.count(), 0, "`{folder}` is not empty");
    }
    Ok(())
}
