//! `comfy-farm blob share` and `blob get` as processes, with what they cost.
//!
//! Not here: where they run; that is the lab's.

use std::fs;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a sharer may read its file.
const SHARE_TIMEOUT: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A process that ends with this value.
pub(crate) struct Running {
    child: Child,
    /// What it says on its standard error.
    said: fs::File,
}

impl Running {
    /// Starts it; what it says is told where it fails.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let said = tempfile::tempfile()?;
        let command = command.stdin(Stdio::null()).stderr(said.try_clone()?);
        let child = command.spawn().with_context(|| format!("{command:?} cannot be run"))?;
        Ok(Self { child, said })
    }

    /// How it ended, if it did; a bad end is an error with what it said.
    fn ended(&mut self) -> Result<bool> {
        let Some(status) = self.child.try_wait()? else { return Ok(false) };
        if !status.success() {
            let mut said = String::new();
            self.said.rewind()?;
            self.said.read_to_string(&mut said)?;
            bail!("it ended with {status}: {}", said.trim());
        }
        Ok(true)
    }

    /// Waits until it serves, which it must live to see.
    pub(crate) fn until(mut self, longest: Duration, is_serving: impl Fn() -> bool) -> Result<Self> {
        wait_for("what it is to serve", longest, || {
            ensure!(!self.ended()?, "it ended before it served anything");
            Ok(is_serving())
        })?;
        Ok(self)
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn finish(mut self, longest: Duration) -> Result<()> {
        wait_for("its end", longest, || self.ended())
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).expect("process ids are small");
        Ok(kill(Pid::from_raw(pid), signal)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a sharer, whose standard output becomes the ticket, and waits until that is there.
pub(crate) fn share(command: &mut Command, ticket: &Path) -> Result<Running> {
    let sharer = Running::start(command.stdout(fs::File::create(ticket)?))?;
    sharer.until(SHARE_TIMEOUT, || fs::metadata(ticket).is_ok_and(|metadata| metadata.len() > 0))
}

/// Waits until it is so, or cannot be so any more; `what` is waited for.
fn wait_for(what: &str, longest: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + longest;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "{what} did not come within {} s", longest.as_secs());
        sleep(LOOK_EVERY);
    }
    Ok(())
}

/// The CPU seconds of the processes that this one started and that have ended.
pub(crate) fn cpu_of_ended() -> Result<f64> {
    cpu_seconds([15, 16])
}

/// The CPU seconds of this process.
pub(crate) fn cpu_of_self() -> Result<f64> {
    cpu_seconds([13, 14])
}

/// The sum of two fields of `/proc/self/stat`, counted from 0, which are in hundredths of a second.
fn cpu_seconds(fields: [usize; 2]) -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name in the second field may hold spaces; what follows it does not.
    let (_, rest) = stat.rsplit_once(')').context("`/proc/self/stat` has no name")?;
    let rest: Vec<_> = rest.split_whitespace().collect();
    let field = |index: usize| rest.get(index - 2).context("`/proc/self/stat` is too short");
    let ticks = fields.iter().map(|index| Ok(field(*index)?.parse::<u64>()?)).sum::<Result<u64>>()?;
    Ok(ticks as f64 / 100.0)
}

/// A file of random bytes, which no disk and no link can shrink.
pub(crate) fn random_file(folder: &Path, name: &str, size: u64) -> Result<PathBuf> {
    let path = folder.join(name);
    let from = fs::File::open("/dev/urandom")?;
    let mut to = fs::File::create(&path)?;
    std::io::copy(&mut from.take(size), &mut to)
        .with_context(|| format!("`{}` cannot be written", path.display()))?;
    Ok(path)
}

/// Whether two files hold the same bytes.
pub(crate) fn is_same(one: &Path, other: &Path) -> Result<bool> {
    let hash = |path: &Path| -> Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_mmap_rayon(path).with_context(|| format!("`{}` cannot be read", path.display()))?;
        Ok(hasher.finalize())
    };
    Ok(hash(one)? == hash(other)?)
}
