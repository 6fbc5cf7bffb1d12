//! The page in Debian's Chromium: sign in, fill the form, see the picture.

use std::path::Path;

use farm_tests::{Farm, FarmOptions, driver_folder, example};
use serde_json::Value;
use tokio::process::Command;

#[tokio::test]
async fn job_submitted_through_the_form_shows_its_picture() -> anyhow::Result<()> {
    if driver_folder().is_none() {
        return Ok(());
    }
    let farm = Farm::with_example(FarmOptions { nodes: 2, ..FarmOptions::default() }).await?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/browser/submit.mjs");
    // Kept after the test, for people to look at.
    let screenshot = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page.png");
    let output = Command::new("node")
        .arg(script)
        .args([&farm.url, &farm.key, "pixelate"])
        .arg(example("pixelate/input/landscape.png"))
        .arg(&screenshot)
        .arg("Columns=32")
        .output()
        .await?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer: Value = serde_json::from_str(stdout.trim()).unwrap_or_default();
    assert_eq!(answer["ok"], true, "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(answer["pictures"][0]["width"], 512, "{answer}");
    println!("screenshot: {}", screenshot.display());
    assert!(std::fs::metadata(&screenshot)?.len() > 10_000);
    Ok(())
}
