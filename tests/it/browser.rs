//! The page in Debian's Chromium: sign in, fill the form, see the picture, in the making too.

use std::path::Path;

use farm_tests::{Farm, FarmOptions, comfyui_folder, driver_folder, example};
use serde_json::Value;
use tokio::process::Command;

use crate::previews::sampling_farm;

#[tokio::test]
async fn job_submitted_through_the_form_shows_its_picture() -> anyhow::Result<()> {
    if driver_folder().is_none() {
        return Ok(());
    }
    let farm = Farm::with_example(FarmOptions { nodes: 2, ..FarmOptions::default() }).await?;
    let answer =
        submit(&farm, "pixelate", Some(&example("pixelate/input/landscape.png")), &["Columns=32"]).await?;
    assert_eq!(answer["pictures"][0]["width"], 512, "{answer}");
    assert_eq!(answer["previews"], 0, "this engine makes none");
    Ok(())
}

#[tokio::test]
async fn job_that_is_watched_shows_its_picture_in_the_making_until_it_is_done() -> anyhow::Result<()> {
    let (Some(_), Some(installed)) = (driver_folder(), comfyui_folder()) else { return Ok(()) };
    let (farm, _comfyui) = sampling_farm(&installed).await?;
    let answer = submit(&farm, "sampling", None, &["Seed=11"]).await?;
    assert_eq!(answer["pictures"][0]["width"], 64, "{answer}");
    assert!(answer["previews"].as_u64() >= Some(2), "the picture grows: {answer}");
    Ok(())
}

/// Submits a job through the form, and says what the page showed. The screenshot is kept, for people to look at.
async fn submit(
    farm: &Farm,
    workflow: &str,
    picture: Option<&Path>,
    fields: &[&str],
) -> anyhow::Result<Value> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/browser/submit.mjs");
    let screenshot = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{workflow}.png"));
    let output = Command::new("node")
        .args([script, &farm.url, &farm.key, workflow])
        .arg(picture.unwrap_or(Path::new("-")))
        .arg(&screenshot)
        .args(fields)
        .output()
        .await?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer: Value = serde_json::from_str(stdout.trim()).unwrap_or_default();
    assert_eq!(answer["ok"], true, "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    println!("screenshot: {}", screenshot.display());
    assert!(std::fs::metadata(&screenshot)?.len() > 10_000);
    Ok(answer)
}
