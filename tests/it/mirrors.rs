//! One file from an office's own mirror to several nodes: the mirror sends it once.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use farm_tests::{Farm, FarmOptions, Origin, Process, eventually};
use sha2::{Digest, Sha256};
use tokio::process::{Child, Command};

const SIZE: usize = 64 << 20;
/// What the mirror sends in a second.
const RATE: u64 = 16 << 20;

/// A farm whose nodes may read from a private mirror.
struct Office {
    farm: Farm,
    origin: Origin,
    file: Vec<u8>,
}

impl Office {
    async fn start(nodes: usize) -> anyhow::Result<Self> {
        let mut farm = Farm::start(FarmOptions { nodes: 0, ..FarmOptions::default() }).await?;
        let file: Vec<u8> = (0..SIZE).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect();
        let origin = Origin::start(farm.folder.path(), file.clone(), RATE).await?;
        let trusted = origin.certificate.to_str().expect("UTF-8");
        for _ in 0..nodes {
            farm.start_node_with(&["--allow-private-origins"], &[("SSL_CERT_FILE", trusted)]).await?;
        }
        Ok(Self { farm, origin, file })
    }

    /// Asks a node for the file by its SHA-256.
    fn get(&self, node: usize) -> Command {
        let name = format!("sha256:{}", hex::encode(Sha256::digest(&self.file)));
        let size = SIZE.to_string();
        let arguments = ["blob", "get", &name, "--url", &self.origin.url, "--size", &size, "--data"];
        let data = &self.farm.nodes[node].data;
        let mut command = Process::comfy_farm(data, &arguments);
        command.arg(data).arg("-o").arg(self.output(node)).env("COMFY_FARM_LOG", "error");
        command.kill_on_drop(true);
        command
    }

    fn output(&self, node: usize) -> PathBuf {
        self.farm.folder.path().join(format!("output-{node}"))
    }

    async fn arrives(&self, mut getting: Child, node: usize) -> anyhow::Result<()> {
        let status = getting.wait().await?;
        ensure!(status.success(), "{status}; the node's log:\n{}", self.farm.nodes[node].process.log());
        ensure!(read(&self.output(node))? == self.file, "node {node} has another file");
        Ok(())
    }

    /// In hundredths of the file.
    fn sent(&self) -> u64 {
        self.origin.sent() * 100 / SIZE as u64
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    Ok(std::fs::read(path)?)
}

#[tokio::test]
async fn mirror_of_the_office_sends_a_file_once_to_two_nodes() -> anyhow::Result<()> {
    let office = Office::start(2).await?;
    let (first, second) = (office.get(0).spawn()?, office.get(1).spawn()?);
    office.arrives(first, 0).await?;
    office.arrives(second, 1).await?;
    let sent = office.sent();
    assert!((100..=105).contains(&sent), "{sent}% of the file were sent");
    Ok(())
}

#[tokio::test]
async fn mirror_sends_little_twice_when_a_reader_is_killed_in_the_middle() -> anyhow::Result<()> {
    let mut office = Office::start(2).await?;
    let (first, second) = (office.get(0).spawn()?, office.get(1).spawn()?);
    eventually(|| async { Ok((office.sent() >= 40).then_some(())) }).await?;
    assert!(office.sent() < 100, "it was too late to kill it");
    office.farm.nodes[0].process.kill().await;
    office.arrives(second, 1).await?;
    drop(first);
    let sent = office.sent();
    assert!((100..=110).contains(&sent), "{sent}% of the file were sent");
    Ok(())
}

#[tokio::test]
async fn private_mirror_is_not_read_by_a_node_that_was_not_told_to() -> anyhow::Result<()> {
    let mut office = Office::start(0).await?;
    office.farm.start_node(&[]).await?;
    let output = office.get(0).output().await?;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("no address on the internet"), "{error}");
    assert_eq!(office.origin.sent(), 0);
    Ok(())
}
