//! Two machines, as far as the network goes: a coordinator and a node in namespaces of their own.

use std::path::Path;

use anyhow::ensure;
use farm_tests::{Process, eventually, example, is_root, skipped};
use tokio::process::Command;

/// Two namespaces joined by a pair of virtual links; removed with the test.
struct Namespaces {
    names: [String; 2],
}

const ADDRESSES: [&str; 2] = ["10.77.1.1", "10.77.1.2"];

impl Namespaces {
    async fn new() -> anyhow::Result<Self> {
        let pid = std::process::id();
        let names = [format!("farm-a-{pid}"), format!("farm-b-{pid}")];
        let namespaces = Self { names };
        let [a, b] = &namespaces.names;
        let (link_a, link_b) = (format!("fa{pid}"), format!("fb{pid}"));
        for name in [a, b] {
            ip(&["netns", "add", name]).await?;
        }
        ip(&["link", "add", &link_a, "netns", a, "type", "veth", "peer", "name", &link_b, "netns", b])
            .await?;
        for (name, link, address) in [(a, &link_a, ADDRESSES[0]), (b, &link_b, ADDRESSES[1])] {
            ip(&["-n", name, "address", "add", &format!("{address}/24"), "dev", link]).await?;
            ip(&["-n", name, "link", "set", link, "up"]).await?;
            ip(&["-n", name, "link", "set", "lo", "up"]).await?;
        }
        Ok(namespaces)
    }

    /// The binary inside one of the namespaces.
    fn comfy_farm(&self, index: usize, folder: &Path, arguments: &[&str]) -> Command {
        let plain = Process::comfy_farm(folder, arguments);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[index]]).arg(plain.as_std().get_program());
        command.args(plain.as_std().get_args());
        for (name, value) in plain.as_std().get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            // What cannot be removed now goes with the machine.
            let _ = std::process::Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

async fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output().await?;
    ensure!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test]
async fn node_on_another_machine_joins_by_the_ticket_alone_and_works() -> anyhow::Result<()> {
    if !is_root() {
        skipped("network namespaces need root");
        return Ok(());
    }
    let namespaces = Namespaces::new().await?;
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("coordinator");
    let data = data.to_str().expect("UTF-8");
    let arguments = ["coordinator", "--json", "--http", "127.0.0.1:8288", "--data", data];
    let command = namespaces.comfy_farm(0, folder.path(), &arguments);
    let mut coordinator = Process::start(command, &folder.path().join("coordinator.log"))?;
    let up = coordinator.json().await?;
    let (ticket, key) = (up["ticket"].as_str().expect("a ticket"), up["key"].as_str().expect("a key"));
    assert!(up["addresses"][0].as_str().is_some_and(|address| address.contains(ADDRESSES[0])), "{up}");

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
