//! `comfy-farm demo`: the first thing that anybody tries.

use farm_tests::Process;

#[tokio::test]
async fn demo_runs_two_jobs_and_the_second_takes_its_picture_from_a_peer() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut command = Process::comfy_farm(folder.path(), &["demo", "--once", "--json", "--out"]);
    command.arg(folder.path().join("out"));
    let mut demo = Process::start(command, &folder.path().join("demo.log"))?;
    let line = demo.json().await?;
    assert!(demo.wait().await?.success(), "{}", demo.log());

    let picture = std::fs::read(line["output"].as_str().expect("a path"))?;
    assert_eq!(line["blake3"], protocol::BlobHash::of(&picture).to_string());
    let size = std::fs::metadata(farm_tests::example("pixelate/input/landscape.png"))?.len();
    assert_eq!(line["bytes_from_peer"], size);
    assert_eq!(line["bytes_from_coordinator"], 0);
    assert!(line["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    assert!(line["url"].as_str().is_some_and(|url| url.starts_with("http://127.0.0.1:")));
    assert!(line["job"].as_str().is_some_and(|job| job.len() == 36));
    Ok(())
}
