//! Walls around a program of a bundle: it sees the system read-only, what it is given, and nothing else of this
//! machine; for runs, no network either.
//!
//! Made with bubblewrap, where that is installed and the kernel lets users make namespaces. Not here: which programs
//! are put behind them, and how one without a network is talked to.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::installed;
use super::program::leashed;

mod python;

/// What a program can read of every system, as far as it is there: programs, libraries, their settings, and
/// drivers. Nobody's files, and no settings that hold secrets.
const SYSTEM: [&str; 29] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt/amdgpu",
    "/opt/cuda",
    "/opt/rocm",
    "/nix/store",
    "/run/current-system",
    "/run/opengl-driver",
    "/sys",
    "/etc/OpenCL",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/fonts",
    "/etc/group",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki",
    "/etc/ssl",
    "/etc/vulkan",
];
/// What a program needs beside that to reach the network.
const NETWORK: [&str; 3] = ["/etc/hosts", "/etc/resolv.conf", "/run/systemd/resolve"];
/// The devices of graphics cards.
const CARDS: [&str; 4] = ["nvidia", "dri", "kfd", "dxg"];
/// How long the trial of the walls may take.
const TRIAL: Duration = Duration::from_secs(10);

/// What makes walls on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    bwrap: PathBuf,
}

/// Why there are no walls to be had.
#[derive(Debug, thiserror::Error)]
pub enum NoSandbox {
    /// There is no bubblewrap.
    #[error("bubblewrap is not installed (Debian: `apt install bubblewrap`)")]
    NotInstalled,
    /// It does not work.
    #[error("bubblewrap does not work here, most likely because users may make no namespaces: {0}")]
    Broken(String),
}

/// What a program has within its walls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Walls {
    /// What it can read beside the system.
    pub(crate) read: Vec<PathBuf>,
    /// Links that are there as they are outside, with what each leads to, but nothing else of their folders.
    pub(crate) links: Vec<(PathBuf, PathBuf)>,
    /// Where it can write.
    pub(crate) write: Vec<PathBuf>,
    /// The devices of graphics cards that it has.
    pub(crate) cards: Vec<PathBuf>,
    /// Whether it reaches the network.
    pub(crate) network: bool,
}

impl Sandbox {
    /// Looks for bubblewrap, and tries it.
    pub async fn find() -> Result<Self, NoSandbox> {
        let sandbox = Self { bwrap: installed::program("bwrap").ok_or(NoSandbox::NotInstalled)? };
        let mut trial = Command::new(&sandbox.bwrap);
        trial.args(flags(&Walls::default())).args(["--", "/bin/sh", "-c", "exit 0"]).kill_on_drop(true);
        let broken = |reason: String| NoSandbox::Broken(reason);
        let output = timeout(TRIAL, trial.output()).await.map_err(|_| broken("it hangs".to_owned()))?;
        let output = output.map_err(|error| broken(error.to_string()))?;
        match output.status.success() {
            true => Ok(sandbox),
            false => Err(broken(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        }
    }

    /// A call of a program within these walls, which ends when this process does.
    pub(crate) fn command(&self, walls: &Walls, program: &Path) -> Command {
        let mut command = leashed(&self.bwrap);
        command.args(flags(walls)).arg("--").arg(program);
        command
    }
}

/// What bubblewrap is told.
fn flags(walls: &Walls) -> Vec<OsString> {
    let mut flags: Vec<OsString> = Vec::new();
    let mut say = |words: &[&str]| flags.extend(words.iter().map(OsString::from));
    say(&["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]);
    say(&["--die-with-parent", "--new-session"]);
    if !walls.network {
        say(&["--unshare-net"]);
    }
    say(&["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]);
    let system = SYSTEM.iter().chain(NETWORK.iter().filter(|_| walls.network));
    system.for_each(|path| say(&["--ro-bind-try", path, path]));
    let mut bind = |how: &str, path: &Path| flags.extend([how.into(), path.into(), path.into()]);
    walls.cards.iter().for_each(|card| bind("--dev-bind-try", card));
    walls.read.iter().for_each(|path| bind("--ro-bind", path));
    walls.write.iter().for_each(|path| bind("--bind", path));
    let is_there = |link: &Path| walls.read.iter().chain(&walls.write).any(|folder| link.starts_with(folder));
    for (link, target) in walls.links.iter().filter(|(link, _)| !is_there(link)) {
        flags.extend(["--symlink".into(), target.into(), link.into()]);
    }
    flags
}

/// The devices of all graphics cards of this machine.
pub(crate) fn every_card() -> Vec<PathBuf> {
    let Ok(devices) = std::fs::read_dir("/dev") else { return Vec::new() };
    let is_card = |name: &OsString| CARDS.iter().any(|card| name.to_string_lossy().starts_with(card));
    devices.flatten().filter(|device| is_card(&device.file_name())).map(|device| device.path()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::process::Stdio;

    use super::*;

    pub(super) async fn within(walls: &Walls, script: &str) -> Option<(bool, String)> {
        let sandbox = match Sandbox::find().await {
            Ok(sandbox) => sandbox,
            Err(reason) => {
                eprintln!("skipped: {reason}");
                return None;
            }
        };
        let mut command = sandbox.command(walls, Path::new("/bin/sh"));
        let command = command.args(["-c", script]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        // Its leash is held until it ended.
        let mut child = child;
        let _leash = child.stdin.take();
        let output = child.wait_with_output().await.expect("it ends");
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        Some((output.status.success(), said))
    }

    #[tokio::test]
    async fn program_sees_what_it_is_given_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["given", "own", "secret"] {
            std::fs::create_dir(at(name)).expect("made");
            std::fs::write(at(name).join("file"), name).expect("written");
        }
        for name in ["card", "other-card"] {
            std::fs::write(at(name), "").expect("written");
        }
        let (read, write) = (vec![at("given")], vec![at("own")]);
        let cards = vec![at("card"), at("gone-card")];
        let walls = Walls { read, write, cards, ..Walls::default() };
        let root = folder.path().display();
        let check = async |script: &str, expected: bool| {
            let Some((succeeds, said)) = within(&walls, script).await else { return };
            assert_eq!(succeeds, expected, "{script}: {said}");
        };
        check(&format!("cat {root}/given/file"), true).await;
        check(&format!("echo x > {root}/given/file"), false).await;
        check(&format!("echo x > {root}/own/new"), true).await;
        check(&format!("cat {root}/secret/file"), false).await;
        check(&format!("echo x > {root}/card"), true).await;
        check(&format!("test -e {root}/other-card || test -e {root}/gone-card"), false).await;
        check("cat /etc/shadow", false).await;
        check("echo x > /usr/x", false).await;
        check("ls /root/. /home/.", false).await;
        // Only its own loopback is there.
        check("test $(ls /sys/class/net | wc -l) -ge 1 && test $(wc -l < /proc/net/route) -le 1", true).await;
        assert_eq!(at("own").join("new").exists(), Sandbox::find().await.is_ok());
    }
}
