//! Rows of a file that lies on the internet, behind one uplink that all nodes of a farm share.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{LONGEST, in_memory};
use crate::lab::Lab;
use crate::origin::Origin;
use crate::processes::{Running, is_same, random_file, share};
use crate::settings::Settings;
use crate::table::{Beside, Line};

/// What the uplink carries, and the link of each node.
const UPLINK: u64 = 100;
const BETWEEN: u64 = 1000;
const NODES: usize = 8;
/// The nodes of the lab that are none of the farm's, before those that are.
const ORIGIN: usize = 0;
const COORDINATOR: usize = 1;
const FIRST: usize = 2;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Eight nodes want one file of the internet at once; the coordinator leases who reads which range.
pub(crate) fn origin(settings: &Settings) -> Result<Line> {
    measure(settings, "one file of the internet to 8 nodes", false)
}

/// The same, and whoever read most of it is killed in the middle.
pub(crate) fn origin_killed(settings: &Settings) -> Result<Line> {
    measure(settings, "the same, its first reader killed", true)
}

fn measure(settings: &Settings, row: &str, is_killed: bool) -> Result<Line> {
    let mib = settings.mib(1024);
    let folder = in_memory()?;
    let file = random_file(folder.path(), "shared", mib << 20)?;
    let size = fs::metadata(&file)?.len();
    let name = format!("sha256:{}", sha256_of(&file)?);
    let farm = OfficeFarm::start(settings, folder)?;
    let origin = Origin::start(&farm.lab, ORIGIN, &file)?;

    let began = Instant::now();
    let mut getting = Vec::new();
    for node in FIRST..FIRST + NODES {
        let mut get = Command::new(&settings.farm);
        get.args(["blob", "get", &name, "--url", &origin.url, "--size", &size.to_string(), "--data"]);
        get.arg(farm.data(node)).arg("-o").arg(farm.output(node)).stdout(Stdio::null());
        getting.push((node, Running::start(&mut get)?));
    }
    if is_killed {
        let killed = farm.kill_most_read(&origin, size / 2)?;
        // Its command has nobody to wait for any more.
        getting.retain(|(node, _)| *node != killed);
    }
    let mut ended = Vec::new();
    for (node, getting) in getting {
        getting.finish(LONGEST).with_context(|| format!("node {node}"))?;
        ended.push(node);
    }
    let took = began.elapsed().as_secs_f64();
    for node in ended {
        ensure!(is_same(&file, &farm.output(node))?, "node {node} has other bytes");
    }
    let sent: u64 = origin.sent().values().sum();
    let least = size as f64 * 8.0 / (UPLINK as f64 * 1e6);
    let note = format!("{mib} MiB, the origin sent {:.3} copies", sent as f64 / size as f64);
    Ok(Line::new(row, "comfy-farm", took, Beside::Links(least)).with_note(note))
}

fn sha256_of(path: &Path) -> Result<String> {
    let (mut file, mut hasher, mut part) = (fs::File::open(path)?, Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut part)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            length => hasher.update(&part[..length]),
        }
    }
}

/// A farm in a lab whose first node is the internet.
struct OfficeFarm {
    // In the order in which they go: the processes before what they run in.
    nodes: Vec<(usize, Running)>,
    _coordinator: Running,
    lab: Lab,
    folder: TempDir,
}

impl OfficeFarm {
    fn start(settings: &Settings, folder: TempDir) -> Result<Self> {
        let lab = Lab::new(FIRST + NODES)?;
        lab.shape(ORIGIN, UPLINK)?;
        (COORDINATOR..FIRST + NODES).try_for_each(|node| lab.shape(node, BETWEEN))?;
        let program = settings.farm.to_string_lossy();
        let command = |node: usize, role: &str| {
            let mut command = lab.command(node, &program);
            let data = lab.address(node);
            let control = lab.address_beside(node);
            command.args([role, "--no-mdns", "--listen", &control.to_string()]);
            command.args(["--data-listen", &data.to_string(), "--data"]);
            command.arg(folder.path().join(format!("data-{node}")));
            command
        };
        let up = folder.path().join("coordinator.json");
        let mut coordinator = command(COORDINATOR, "coordinator");
        let coordinator = share(coordinator.args(["--json", "--http", "127.0.0.1:8080"]), &up)?;
        let up: serde_json::Value = serde_json::from_str(&fs::read_to_string(&up)?)?;
        let ticket = up["ticket"].as_str().context("a coordinator prints a ticket")?;
        let mut nodes = Vec::new();
        for node in FIRST..FIRST + NODES {
            let mut joining = command(node, "node");
            joining.args(["--yes", "--engine", "builtin", "--allow-private-origins", "--join", ticket]);
            nodes.push((node, share(&mut joining, &folder.path().join(format!("node-{node}")))?));
        }
        Ok(Self { nodes, _coordinator: coordinator, lab, folder })
    }

    fn data(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("data-{node}"))
    }

    fn output(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("got-{node}"))
    }

    /// Waits until the origin sent so much, and kills the node that read most of it; which one that is.
    fn kill_most_read(&self, origin: &Origin, sent: u64) -> Result<usize> {
        let began = Instant::now();
        while origin.sent().values().sum::<u64>() < sent {
            ensure!(began.elapsed() < LONGEST, "the origin is hardly read");
            sleep(LOOK_EVERY);
        }
        let most = origin.sent().into_iter().max_by_key(|(_, sent)| *sent).map(|(address, _)| address);
        let of_node = |(node, _): &&(usize, Running)| Some(self.lab.address(*node).ip()) == most;
        let (node, running) = self.nodes.iter().find(of_node).context("no node reads the origin")?;
        running.signal(Signal::SIGKILL)?;
        Ok(*node)
    }
}
