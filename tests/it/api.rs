//! The typed API as a caller meets it: validation, waiting, outputs by range, events that resume.

use farm_tests::{Farm, FarmOptions, example};
use reqwest::Method;
use serde_json::{Value, json};

#[tokio::test]
async fn invalid_inputs_are_told_by_field_rule_and_kind() -> anyhow::Result<()> {
    let farm = Farm::with_example(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let check = async |input: Value, field: &str, rule: &str| -> anyhow::Result<()> {
        let request =
            farm.request(Method::POST, "/v1/workflows/pixelate/jobs").json(&json!({ "input": input }));
        let response = request.send().await?;
        assert_eq!(response.status(), 422);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let problem: Value = response.json().await?;
        let errors = problem["errors"].as_array().cloned().unwrap_or_default();
        let told = errors.iter().any(|error| error["field"] == field && error["rule"] == rule);
        assert!(told, "{field} {rule}: {problem}");
        Ok(())
    };
    check(json!({}), "picture", "required").await?;
    check(json!({ "columns": "64" }), "columns", "type").await?;
    check(json!({ "columns": 3 }), "columns", "minimum").await?;
    check(json!({ "columns": 4096 }), "columns", "maximum").await?;
    check(json!({ "colums": 64 }), "colums", "unknown").await?;
    check(json!({ "columns": { "$asset": "00".repeat(32) } }), "columns", "file").await?;

    let response = farm
        .request(Method::POST, "/v1/workflows/pixelate/jobs")
        .body("{")
        .header("content-type", "application/json");
    assert_eq!(response.send().await?.status(), 400);
    assert_eq!(farm.request(Method::GET, "/v1/workflows/nothing").send().await?.status(), 404);
    Ok(())
}

#[tokio::test]
async fn wait_answers_with_the_job_or_with_where_to_look() -> anyhow::Result<()> {
    let mut farm = Farm::with_example(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let asset = farm
        .request(Method::POST, "/v1/assets")
        .header("content-type", "image/png")
        .body(std::fs::read(example("pixelate/input/landscape.png"))?)
        .send()
        .await?;
    assert_eq!(asset.status(), 201);
    let asset: Value = asset.json().await?;
    let body = farm_tests::job_input(asset["hash"].as_str().expect("a hash"));

    let post = |wait: &str| {
        farm.request(Method::POST, &format!("/v1/workflows/pixelate/jobs?wait={wait}")).json(&body)
    };
    let response = post("1s").send().await?;
    assert_eq!(response.status(), 202);
    let location = response.headers()["location"].to_str()?.to_owned();
    let waiting: Value = response.json().await?;
    assert!(location.ends_with(waiting["id"].as_str().expect("an id")), "{location}");
    assert_eq!(waiting["state"], "queued");
    assert!(waiting["waits"][0]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{waiting}");

    farm.start_node(&["--engine", "builtin"]).await?;
    let post = |wait: &str| {
        farm.request(Method::POST, &format!("/v1/workflows/pixelate/jobs?wait={wait}")).json(&body)
    };
    let response = post("60s").send().await?;
    assert_eq!(response.status(), 200);
    let done: Value = response.json().await?;
    assert_eq!(done["state"], "succeeded");
    assert_eq!(done["outputs"][0]["media_type"], "image/png");
    Ok(())
}

#[tokio::test]
async fn output_is_served_by_range_and_is_the_expected_picture() -> anyhow::Result<()> {
    let farm = Farm::with_example(FarmOptions::default()).await?;
    let job = farm.submit_example().await?;
    let job = farm.wait_for_success(&job).await?;
    let whole = farm.output(&job).await?;
    let expected = image::open(example("pixelate/expected.png"))?.into_rgba8();
    assert_eq!(image::load_from_memory(&whole)?.into_rgba8(), expected);

    let path = format!("/v1/jobs/{}/outputs/pixelated", job["id"].as_str().unwrap_or_default());
    let part = farm.request(Method::GET, &path).header("range", "bytes=10-19").send().await?;
    assert_eq!(part.status(), 206);
    assert_eq!(part.headers()["content-range"], format!("bytes 10-19/{}", whole.len()));
    assert_eq!(part.bytes().await?, whole[10..20]);
    let beyond = farm.request(Method::GET, &path).header("range", "bytes=99999999-").send().await?;
    assert_eq!(beyond.status(), 416);
    Ok(())
}

#[tokio::test]
async fn events_resume_after_the_number_that_was_seen() -> anyhow::Result<()> {
    let farm = Farm::with_example(FarmOptions::default()).await?;
    let job = farm.submit_example().await?;
    farm.wait_for_success(&job).await?;
    // The stream of an ended job ends by itself.
    let path = format!("/v1/jobs/{job}/events");
    let events = async |last: Option<&str>| -> anyhow::Result<Vec<(Option<String>, String)>> {
        let mut request = farm.request(Method::GET, &path);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        Ok(parse(&request.send().await?.error_for_status()?.text().await?))
    };
    let all = events(Some("0")).await?;
    let names: Vec<_> = all.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(names, ["submitted", "ended"], "{all:?}");
    let submitted = all[0].0.clone().expect("a durable event has a number");
    let rest = events(Some(&submitted)).await?;
    assert_eq!(rest, all[1..], "resuming repeats or loses an event");
    Ok(())
}

/// Each event of a stream: its id and its name.
fn parse(stream: &str) -> Vec<(Option<String>, String)> {
    let field = |event: &str, name: &str| {
        event.lines().find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_owned()))
    };
    stream.split("\n\n").filter_map(|event| Some((field(event, "id:"), field(event, "event:")?))).collect()
}

#[tokio::test]
async fn new_deploy_is_a_new_version_and_the_old_one_can_be_called_and_restored() -> anyhow::Result<()> {
    let farm = Farm::with_example(FarmOptions::default()).await?;
    let again = farm.deploy(&example("pixelate.cpack.zip"), "pixelate", &[]).await?;
    assert_eq!(again["version"], 2);
    let picture = example("pixelate/input/landscape.png");
    let old = farm.submit("pixelate@1", &[("picture", &picture)], &[]).await?;
    assert_eq!(old["workflow"], "pixelate@1");
    farm.wait_for_success(old["id"].as_str().unwrap_or_default()).await?;
    farm.post("/v1/workflows/pixelate/restore", &json!({ "version": 1 })).await?;
    let restored = farm.submit("pixelate", &[("picture", &picture)], &[]).await?;
    assert_eq!(restored["workflow"], "pixelate@1");
    Ok(())
}

#[tokio::test]
async fn canceled_job_stops_and_frees_its_slot() -> anyhow::Result<()> {
    let farm = Farm::with_example(FarmOptions { nodes: 1, pause: 2000, lease: 30 }).await?;
    let id = farm.submit_example().await?;
    farm.wait_for_job(&id, |job| job["run"]["phase"] == "executing").await?;
    let canceled = farm.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).await?;
    assert_eq!(canceled["state"], "canceled");
    let peer = farm.nodes[0].peer.clone();
    farm.wait_for_node(&peer, |node| node["slots"][0]["run"].is_null()).await?;
    assert_eq!(farm.get(&format!("/v1/jobs/{id}")).await?["state"], "canceled");
    Ok(())
}
