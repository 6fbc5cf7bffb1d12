//! Two machines, as far as the network goes: a coordinator and a node in namespaces of their own.

use anyhow::ensure;
use farm_tests::{Namespaces, Process, eventually, example, is_root, skipped};

#[tokio::test]
async fn node_on_another_machine_joins_by_the_ticket_alone_and_works() -> anyhow::Result<()> {
    if !is_root() {
        skipped("network namespaces need root");
        return Ok(());
    }
    let namespaces = Namespaces::new(1).await?;
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("coordinator");
    let data = data.to_str().expect("UTF-8");
    let arguments = ["coordinator", "--json", "--http", "127.0.0.1:8288", "--data", data];
    let command = namespaces.comfy_farm(0, folder.path(), &arguments);
    let mut coordinator = Process::start(command, &folder.path().join("coordinator.log"))?;
    let up = coordinator.json().await?;
    let (ticket, key) = (up["ticket"].as_str().expect("a ticket"), up["key"].as_str().expect("a key"));
    assert!(
        up["addresses"][0].as_str().is_some_and(|address| address.contains(&namespaces.addresses[0])),
        "{up}"
    );

    let node_data = folder.path().join("node");
    let arguments = ["node", "--yes", "--join", ticket, "--data", node_data.to_str().expect("UTF-8")];
    let mut node =
        Process::start(namespaces.comfy_farm(1, folder.path(), &arguments), &folder.path().join("node.log"))?;
    node.line().await?;

    let tool = async |arguments: &[&str]| -> anyhow::Result<serde_json::Value> {
        let mut command = namespaces.comfy_farm(0, folder.path(), arguments);
        let output = command.args(["--json", "--key", key]).output().await?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{arguments:?}: {words}\n{}\n{}", coordinator.log(), node.log());
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    eventually(|| async { Ok((tool(&["nodes"]).await?["nodes"][0]["connected"] == true).then_some(())) })
        .await?;
    let bundle = example("pixelate.cpack.zip");
    tool(&["deploy", bundle.to_str().expect("UTF-8")]).await?;
    let picture = format!("picture=@{}", example("pixelate/input/landscape.png").display());
    let out = folder.path().join("out");
    let ran = tool(&["run", "pixelate", &picture, "--out", out.to_str().expect("UTF-8")]).await?;
    let saved = image::open(ran["saved"][0].as_str().expect("a path"))?.into_rgba8();
    assert_eq!(saved, image::open(example("pixelate/expected.png"))?.into_rgba8());
    Ok(())
}
