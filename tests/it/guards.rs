//! What a stranger gets: another web page, a rebound name, a process without a key, a bad ticket.

use farm_tests::{Farm, FarmOptions, Process};
use reqwest::Method;
use serde_json::{Value, json};

#[tokio::test]
async fn page_of_another_site_and_a_foreign_host_reach_nothing() -> anyhow::Result<()> {
    let farm = Farm::with_example(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let status = async |request: reqwest::RequestBuilder| -> anyhow::Result<u16> {
        Ok(request.send().await?.status().as_u16())
    };
    // A form of another page can post without asking first; the browser says where from.
    let cross_site =
        farm.request(Method::POST, "/v1/workflows/pixelate/jobs").header("origin", "https://evil.example");
    assert_eq!(status(cross_site.header("content-type", "text/plain").body("{}")).await?, 403);
    let fetched = farm.request(Method::GET, "/v1/jobs").header("sec-fetch-site", "cross-site");
    assert_eq!(status(fetched).await?, 403);
    // DNS rebinding: the name is the stranger's, the address is ours.
    let rebound = farm.request(Method::GET, "/v1/jobs").header("host", "evil.example");
    assert!(matches!(status(rebound).await?, 403 | 421));
    let page = farm.request(Method::GET, "/").header("host", "evil.example");
    assert!(matches!(status(page).await?, 403 | 421));
    // The page's own origin is let in.
    let own = farm.request(Method::GET, "/v1/jobs").header("origin", &farm.url);
    assert_eq!(status(own).await?, 200);
    let response = farm.request(Method::GET, "/v1/jobs").send().await?;
    assert!(response.headers().get("access-control-allow-origin").is_none());
    Ok(())
}

#[tokio::test]
async fn call_without_a_good_key_is_refused() -> anyhow::Result<()> {
    let farm = Farm::with_example(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let http = reqwest::Client::new();
    let url = format!("{}/v1/jobs", farm.url);
    let response = http.get(&url).send().await?;
    assert_eq!(response.status(), 401);
    assert!(response.headers().contains_key("www-authenticate"));
    assert_eq!(http.get(&url).bearer_auth("cfk_wrong").send().await?.status(), 401);
    assert_eq!(http.get(format!("{url}?key={}", farm.key)).send().await?.status(), 401);
    assert_eq!(http.get(format!("{}/healthz", farm.url)).send().await?.status(), 200);
    Ok(())
}

#[tokio::test]
async fn upload_past_its_limit_is_413() -> anyhow::Result<()> {
    let farm = Farm::with_example(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let request =
        farm.request(Method::POST, "/v1/workflows?name=big").header("content-type", "application/json");
    let response = request.body(vec![b' '; 20 << 20]).send().await?;
    assert_eq!(response.status(), 413);
    let problem: Value = response.json().await?;
    assert!(
        problem["detail"].as_str().is_some_and(|detail| detail.contains("bytes") || detail.contains("MiB")),
        "{problem}"
    );
    Ok(())
}

async fn join(farm: &Farm, ticket: &str) -> anyhow::Result<(Option<i32>, String)> {
    let folder = tempfile::tempdir()?;
    let mut command =
        Process::comfy_farm(farm.folder.path(), &["node", "--yes", "--data-listen", "127.0.0.1:0"]);
    command.arg("--data").arg(folder.path().join("node")).args(["--join", ticket]);
    let output = command.output().await?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

#[tokio::test]
async fn ticket_that_is_used_up_altered_or_unreachable_says_so() -> anyhow::Result<()> {
    let farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    let invite = farm.post("/v1/invites", &json!({ "uses": 1, "lifetime_seconds": 600 })).await?;
    let once = invite["ticket"].as_str().expect("a ticket").to_owned();
    assert_eq!(invite["loopback_only"], true);
    let mut farm = farm;
    farm.ticket = once.clone();
    farm.start_node(&["--engine", "builtin"]).await?;

    let (code, words) = join(&farm, &once).await?;
    assert_eq!(code, Some(10), "{words}");
    assert!(words.contains("used up"), "{words}");
    let (code, words) = join(&farm, &once[..once.len() - 2]).await?;
    assert_eq!(code, Some(10), "{words}");
    assert!(words.contains("damaged"), "{words}");

    let short = farm.post("/v1/invites", &json!({ "uses": 1, "lifetime_seconds": 1 })).await?;
    let short = short["ticket"].as_str().expect("a ticket").to_owned();
    let expired = farm_tests::eventually(|| async {
        let (code, words) = join(&farm, &short).await?;
        Ok((code == Some(10) && words.contains("expired")).then_some(()))
    });
    // The first try may come in time and use the ticket; the second is then told that it is used up.
    let parsed: protocol::ticket::Ticket = short.parse()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    if parsed.expires > now {
        farm_tests::eventually(|| async {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
            Ok((now > parsed.expires).then_some(()))
        })
        .await?;
    }
    expired.await?;

    farm.coordinator.kill().await;
    let (code, words) = join(&farm, &once).await?;
    assert_eq!(code, Some(10), "{words}");
    for part in ["127.0.0.1", "UDP", "TCP", "port"] {
        assert!(words.contains(part), "`{part}` is not named: {words}");
    }
    Ok(())
}
