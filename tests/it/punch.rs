//! Two nodes at homes behind translators: the coordinator introduces them, and a blob crosses from one to the other
//! directly.
//!
//! Not here: the small internet, which the data plane's own tests have, and what a path that does not come about
//! costs.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use farm_tests::{Process, eventually, is_root, skipped};
use serde_json::{Value, json};

use self::internet::{HOMES, Internet, PUBLIC};
use self::translator::Mapping;

#[path = "../../mesh/tests/it/internet.rs"]
mod internet;
#[allow(dead_code, reason = "the data plane's tests use more of it")]
#[path = "../../mesh/tests/it/namespaces.rs"]
mod namespaces;
#[allow(dead_code, reason = "the data plane's tests use more of it")]
#[path = "../../mesh/tests/it/translator.rs"]
mod translator;

const SIZE: u64 = 16 << 20;

/// A coordinator on the internet and a node at each home; dropping it ends the processes.
struct Homes {
    internet: Internet,
    folder: tempfile::TempDir,
    coordinator: Process,
    nodes: Vec<(Process, PathBuf)>,
    ticket: String,
}

impl Homes {
    async fn start(internet: Internet) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let name = internet.namespaces().name(PUBLIC);
        let arguments = ["coordinator", "--json", "--http", "127.0.0.1:8288", "--data"];
        let mut command = Process::comfy_farm_in(name, folder.path(), &arguments);
        command.arg(folder.path().join("coordinator"));
        let mut coordinator = Process::start(command, &folder.path().join("coordinator.log"))?;
        let ticket = coordinator.json().await?["ticket"].as_str().context("a ticket")?.to_owned();
        Ok(Self { internet, folder, coordinator, nodes: Vec::new(), ticket })
    }

    /// Starts the node of the next home.
    async fn start_node(&mut self, flags: &[&str]) -> anyhow::Result<()> {
        let home = HOMES[self.nodes.len()];
        let data = self.folder.path().join(format!("node-{home}"));
        let arguments = ["node", "--yes", "--join", &self.ticket, "--data"];
        let name = self.internet.namespaces().name(home);
        let mut command = Process::comfy_farm_in(name, self.folder.path(), &arguments);
        command.arg(&data).args(flags);
        let mut node = Process::start(command, &data.with_extension("log"))?;
        node.line().await.with_context(|| self.coordinator.log())?;
        self.nodes.push((node, data));
        Ok(())
    }

    /// What a node says to a command about blobs; nothing where it does not succeed.
    async fn blob(&self, node: usize, arguments: &[&str]) -> anyhow::Result<Option<Value>> {
        let data = &self.nodes[node].1;
        let mut command = Process::comfy_farm(data, &[&["blob"], arguments].concat());
        let output = command.arg("--json").arg("--data").arg(data).output().await?;
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout))
            .transpose()
            .map_err(Into::into)
    }
}

fn make_models(folder: &Path) -> anyhow::Result<PathBuf> {
    let models = folder.join("models");
    std::fs::create_dir_all(&models)?;
    for seed in 1..=2_u64 {
        let bytes: Vec<u8> = (0..SIZE).map(|at| ((at >> 10) * seed) as u8).collect();
        std::fs::write(models.join(format!("{seed}.safetensors")), bytes)?;
    }
    Ok(models)
}

#[tokio::test]
async fn nodes_behind_translators_give_each_other_blobs_directly_and_the_coordinator_passes_nothing_on()
-> anyhow::Result<()> {
    if !is_root() {
        skipped("network namespaces need root");
        return Ok(());
    }
    let Some(internet) = Internet::new([Mapping::ForAll; 2]) else {
        skipped("no network namespaces with devices of a test's own");
        return Ok(());
    };
    let mut homes = Homes::start(internet).await?;
    let models = make_models(homes.folder.path())?;
    homes.start_node(&["--models", models.to_str().context("UTF-8")?]).await?;
    homes.start_node(&[]).await?;
    let listed = eventually(|| async {
        let listed = homes.blob(0, &["ls"]).await?.context("it answers")?;
        let hashes = |blob: &Value| blob["hash"].as_str().map(str::to_owned);
        let hashes: Vec<_> = listed["blobs"].as_array().into_iter().flatten().filter_map(hashes).collect();
        Ok((hashes.len() == 2).then_some(hashes))
    });
    let hashes = listed.await?;
    let log = |node: usize| homes.nodes[node].0.log();

    // The first one may come before the path does.
    let outputs = [1, 2].map(|number| homes.folder.path().join(format!("{number}.copy")));
    let [first, second] = outputs.each_ref().map(|output| output.to_str().expect("UTF-8"));
    let got = eventually(|| async { homes.blob(1, &["get", &hashes[0], "-o", first]).await }).await;
    got.with_context(|| format!("{}\n{}", log(0), log(1)))?;
    let direct = || async { Ok(log(1).contains("a direct path came about").then_some(())) };
    eventually(direct).await.with_context(|| format!("{}\n{}", log(0), log(1)))?;

    let (relayed, crossed) = (homes.internet.public_bytes(), homes.internet.direct()[1]);
    let got = homes.blob(1, &["get", &hashes[1], "-o", second]).await?;
    let got = got.with_context(|| log(1))?;
    assert_eq!((&got["size"], &got["from"][0]["bytes"]), (&json!(SIZE), &json!(SIZE)));
    let (relayed, crossed) = (homes.internet.public_bytes() - relayed, homes.internet.direct()[1] - crossed);
    ensure!(crossed > SIZE, "{crossed} bytes crossed directly; the log:\n{}", log(1));
    ensure!(relayed < SIZE / 8, "{relayed} bytes crossed by way of the coordinator; the log:\n{}", log(1));
    for (output, model) in outputs.iter().zip(&hashes) {
        ensure!(std::fs::read(output)?.len() as u64 == SIZE, "`{model}` is whole");
    }
    ensure!(log(1).contains("plane=\"QUIC\""), "the link says so; the log:\n{}", log(1));
    Ok(())
}
