//! The rows that need a lab of their own, one function each.
//!
//! What every one of them does: some nodes hold a file, others fetch it with `blob get`, and the time runs
//! from the start of the fetch until the file lies verified in its place. Not here: rows that the rivals
//! take part in; those are the script's.

mod faults;
mod loss;
mod origin;

pub(crate) use self::faults::{liar, stall};
pub(crate) use self::loss::loss;
pub(crate) use self::origin::{origin, origin_killed};

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::lab::Lab;
use crate::left::{self, MEMORY};
use crate::processes::{Running, cpu_of_ended, is_same, random_file, share};
use crate::settings::Settings;
use crate::table::{Beside, GIB, Line};

/// When a transfer is given up.
const LONGEST: Duration = Duration::from_secs(600);

/// Where a row keeps its files: in memory, so that no disk is measured.
fn in_memory() -> Result<TempDir> {
    let (mut builder, tag) = (tempfile::Builder::new(), left::folder_tag());
    builder.prefix(&tag);
    let memory = Path::new(MEMORY);
    Ok(if memory.is_dir() { builder.tempdir_in(memory)? } else { builder.tempdir()? })
}

/// A lab with a sharer in its first node, and what the others fetch.
struct Scene<'a> {
    settings: &'a Settings,
    lab: Lab,
    folder: TempDir,
    file: PathBuf,
    ticket: PathBuf,
}

impl<'a> Scene<'a> {
    fn new(settings: &'a Settings, nodes: usize, folder: TempDir, mib: u64) -> Result<Self> {
        let file = random_file(folder.path(), "shared", mib << 20)?;
        let ticket = folder.path().join("ticket");
        Ok(Self { settings, lab: Lab::new(nodes)?, folder, file, ticket })
    }

    fn size(&self) -> Result<f64> {
        Ok(fs::metadata(&self.file)?.len() as f64)
    }

    /// A `comfy-farm blob` in a node that listens there.
    fn blob(&self, node: usize, action: &str) -> Command {
        let farm = self.settings.farm.to_string_lossy();
        let mut command = self.lab.command(node, &farm);
        command.args(["blob", action, "--listen", &self.lab.address(node).to_string()]);
        command
    }

    fn share(&self) -> Result<Running> {
        share(self.blob(0, "share").arg(&self.file), &self.ticket)
    }

    fn output(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("got-{node}"))
    }

    fn get(&self, node: usize) -> Command {
        let mut command = self.blob(node, "get");
        command.arg(format!("@{}", self.ticket.display())).arg("-o").arg(self.output(node));
        command.stdout(std::process::Stdio::null());
        command
    }

    /// Lets a node fetch the file and go on serving it.
    fn provider(&self, node: usize) -> Result<Running> {
        let provider = Running::start(self.get(node).arg("--keep-serving"))?;
        provider.until(LONGEST, || self.output(node).exists())
    }

    /// Lets these nodes fetch at once; the seconds until the last has everything.
    fn fetch(&self, nodes: impl Iterator<Item = usize>) -> Result<f64> {
        let nodes: Vec<_> = nodes.collect();
        let began = Instant::now();
        let getting = nodes.iter().map(|node| Running::start(&mut self.get(*node)));
        let getting = getting.collect::<Result<Vec<_>>>()?;
        getting.into_iter().try_for_each(|getting| getting.finish(LONGEST))?;
        let took = began.elapsed().as_secs_f64();
        for node in nodes {
            ensure!(is_same(&self.file, &self.output(node))?, "node {node} has other bytes");
        }
        Ok(took)
    }
}

/// Four sources of 50, 100, 200 and 200 Mbit/s, and a sink of 1 Gbit/s.
pub(crate) fn unequal(settings: &Settings) -> Result<Line> {
    const LINKS: [u64; 4] = [50, 100, 200, 200];
    let scene = Scene::new(settings, 5, in_memory()?, settings.mib(512))?;
    let sharer = scene.share()?;
    let providers = (1..4).map(|node| scene.provider(node)).collect::<Result<Vec<_>>>()?;
    for (node, mbit) in LINKS.into_iter().chain([1000]).enumerate() {
        scene.lab.shape(node, mbit)?;
    }
    let took = scene.fetch([4].into_iter())?;
    drop((sharer, providers));
    let least = scene.size()? * 8.0 / (LINKS.iter().sum::<u64>() as f64 * 1e6);
    let note = format!("{} MiB from 50, 100, 200 and 200 Mbit/s", settings.mib(512));
    Ok(Line::new("unequal sources", "comfy-farm", took, Beside::Links(least)).with_note(note))
}

/// One file that is larger than many memories to four nodes on the disk. All of them share that disk, so the seed has
/// its file in memory.
pub(crate) fn disk(settings: &Settings) -> Result<Line> {
    let (memory, folder) = (in_memory()?, tempfile::tempdir_in(".")?);
    let file = random_file(memory.path(), "shared", settings.mib(6656) << 20)?;
    let ticket = folder.path().join("ticket");
    let scene = Scene { settings, lab: Lab::new(5)?, folder, file, ticket };
    let cpu = cpu_of_ended()?;
    let sharer = scene.share()?;
    let took = scene.fetch(1..5)?;
    let copies = scene.lab.sent_by(0)? as f64 / scene.size()?;
    sharer.signal(Signal::SIGINT)?;
    sharer.finish(LONGEST)?;
    let cpu = (cpu_of_ended()? - cpu) / (4.0 * scene.size()? / GIB);
    let note = format!("{} MiB each, the seed sent {copies:.2} copies", settings.mib(6656));
    let line = Line::new("one file to 4 nodes on the disk", "comfy-farm", took, Beside::Nothing);
    Ok(line.with_cpu(cpu).with_note(note))
}

/// A folder of files as small as Python's wheels.
pub(crate) fn collection(settings: &Settings) -> Result<Line> {
    const SIZE: usize = 20 << 10;
    let files = settings.count(10_000);
    let folder = in_memory()?;
    let wheels = folder.path().join("wheels");
    fs::create_dir(&wheels)?;
    for index in 0..files {
        let mut bytes = vec![0; SIZE];
        bytes[..8].copy_from_slice(&index.to_le_bytes());
        fs::write(wheels.join(format!("wheel-{index}")), bytes)?;
    }
    let ticket = folder.path().join("ticket");
    let scene = Scene { settings, lab: Lab::new(2)?, folder, file: wheels, ticket };
    let sharer = scene.share()?;
    let began = Instant::now();
    Running::start(&mut scene.get(1))?.finish(LONGEST)?;
    let took = began.elapsed().as_secs_f64();
    drop(sharer);
    let came = fs::read_dir(scene.output(1))?.count() as u64;
    ensure!(came == files, "{came} of {files} files came");
    for file in fs::read_dir(&scene.file)? {
        let file = file?;
        let is_same = fs::read(file.path())? == fs::read(scene.output(1).join(file.file_name()))?;
        ensure!(is_same, "{} came with other bytes", file.path().display());
    }
    let note = format!("{files} files of 20 KiB, {:.0} files a second", files as f64 / took);
    Ok(Line::new("collection", "comfy-farm", took, Beside::Nothing).with_note(note))
}
