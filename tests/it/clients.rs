//! The clients of `examples/`, as people copy them: each runs the example workflow and saves its picture.

use std::path::{Path, PathBuf};
use std::process::Output;

use farm_tests::{Farm, FarmOptions, example};
use tokio::process::Command;

const CLIENTS: [(&str, &str); 3] = [("bash", "call.sh"), ("python3", "call.py"), ("node", "call.mjs")];

/// Runs a client on a picture; gives how it ended and where it saves.
async fn call(
    farm: &Farm,
    (program, client): (&str, &str),
    picture: &Path,
) -> anyhow::Result<(Output, PathBuf)> {
    let saved = farm.folder.path().join(client).with_extension(format!("{program}.png"));
    let mut command = Command::new(program);
    command.arg(example("clients").join(client)).arg(picture).arg(&saved);
    command.env("COMFY_FARM_URL", &farm.url).env("COMFY_FARM_KEY", &farm.key).kill_on_drop(true);
    Ok((command.output().await?, saved))
}

#[tokio::test]
async fn example_clients_save_the_expected_picture() -> anyhow::Result<()> {
    let farm = Farm::with_example(FarmOptions::default()).await?;
    let expected = image::open(example("pixelate/expected.png"))?.into_rgba8();
    for client in CLIENTS {
        let (output, saved) = call(&farm, client, &example("pixelate/input/landscape.png")).await?;
        assert!(output.status.success(), "{client:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(image::open(saved)?.into_rgba8() == expected, "{client:?} saved another picture");
    }
    Ok(())
}

#[tokio::test]
async fn example_clients_fail_where_the_farm_refuses() -> anyhow::Result<()> {
    let farm = Farm::with_example(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
    for client in CLIENTS {
        let (output, saved) = call(&farm, client, &example("clients/call.sh")).await?;
        assert!(!output.status.success() && !saved.exists(), "{client:?} took a script for a picture");
    }
    Ok(())
}
