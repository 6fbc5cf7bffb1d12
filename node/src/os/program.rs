//! Programs that the node starts: read line by line, and killed with all that they started.
//!
//! Not here: which programs, and what they see of this machine.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// The longest line, in bytes; what is longer is broken.
const LONGEST: usize = 8 << 10;
/// How long the pipes of a program that ended may stay open, held by what it left behind.
const AFTERMATH: Duration = Duration::from_secs(2);
/// Ends a program with whoever holds the other end of its input, however that one ends.
const LEASH: &str =
    r#"exec 3<&0; (cat <&3 >/dev/null; kill -KILL 0) >/dev/null 2>&1 5<&- & exec "$@" 3<&- </dev/null"#;
/// The number under which a program finds what it is lent; that which the leash closes for itself.
const LENT: i32 = 5;

/// Where a program said a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// For programs.
    Out,
    /// For people.
    Err,
}

/// A program at work. Nothing of it is left once this is dropped.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    group: Group,
    reading: AbortOnDropHandle<()>,
    /// What a leashed one is held by.
    _leash: Option<ChildStdin>,
}

/// A call of a program that ends when this process does, however that ends. It reads nothing.
pub(crate) fn leashed(program: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", LEASH, "sh"]).arg(program).stdin(Stdio::piped()).process_group(0);
    command
}

/// Lets a leashed program have an open file of ours, as its file number 5.
pub(crate) fn lend(command: &mut Command, file: OwnedFd) -> io::Result<()> {
    let lent = FdMapping { parent_fd: file, child_fd: LENT };
    command.fd_mappings(vec![lent]).map(|_| ()).map_err(io::Error::other)
}

impl Program {
    /// Starts it. Every line that it says is told, until it ended and some time after.
    pub(crate) fn start(
        command: &mut Command,
        told: impl Fn(Stream, &str) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let group = Group(child.id().and_then(|id| i32::try_from(id).ok()));
        let leash = child.stdin.take();
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(io::Error::other("it has no pipes"));
        };
        let reading = tokio::spawn(async move {
            tokio::join!(
                each_line(stdout, |line| told(Stream::Out, line)),
                each_line(stderr, |line| told(Stream::Err, line)),
            );
        });
        Ok(Self { child, group, reading: AbortOnDropHandle::new(reading), _leash: leash })
    }

    /// Waits until it ended; can be called again.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// The system's id of it, while it is at work.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Whether it ended already.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills what is left of it, and waits for its last lines.
    pub(crate) async fn close(mut self) {
        self.group.kill();
        // What it left behind outside its group may hold its pipes open for ever.
        let _ = timeout(AFTERMATH, async {
            let _ = self.child.wait().await;
            let _ = (&mut self.reading).await;
        })
        .await;
    }
}

/// The processes that a program started, killed together once this is dropped.
#[derive(Debug)]
struct Group(Option<i32>);

impl Group {
    fn kill(&mut self) {
        if let Some(group) = self.0.take() {
            // An error says that nobody is left.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn each_line(mut from: impl AsyncRead + Unpin, told: impl Fn(&str)) {
    let mut pending = Vec::new();
    let mut chunk = [0; 4096];
    let tell = |line: &[u8]| told(String::from_utf8_lossy(line).trim_end());
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        pending.extend_from_slice(&chunk[..count]);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            tell(&pending[..end]);
            pending.drain(..=end);
        }
        if pending.len() > LONGEST {
            tell(&pending);
            pending.clear();
        }
    }
    if !pending.is_empty() {
        tell(&pending);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn start(command: &mut Command) -> (Program, Receiver<String>) {
        let (tx, rx) = sync_channel(16);
        let program = Program::start(command, move |_, line| {
            let _ = tx.send(line.to_owned());
        });
        (program.expect("it starts"), rx)
    }

    async fn line(rx: &Receiver<String>) -> String {
        let line = async {
            loop {
                if let Ok(line) = rx.try_recv() {
                    return line;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, line).await.expect("it says something")
    }

    fn is_at_work(id: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    async fn until_gone(id: i32) {
        let gone = async {
            while is_at_work(id) {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, gone).await.expect("it is killed as well");
    }

    #[tokio::test]
    async fn program_is_killed_with_its_children() {
        let mut command = Command::new("sh");
        let (program, rx) = start(command.args(["-c", "sleep 1000 & echo $!; wait"]));
        let child = line(&rx).await.parse().expect("the child's id");
        assert!(is_at_work(child));
        program.close().await;
        until_gone(child).await;
    }

    #[tokio::test]
    async fn leashed_program_keeps_its_status_and_ends_with_its_leash() {
        let mut command = leashed(Path::new("sh"));
        let (mut program, rx) = start(command.args(["-c", "echo $1; exit 3", "sh", "a b"]));
        assert_eq!(line(&rx).await, "a b");
        assert_eq!(program.ended().await.expect("it ends").code(), Some(3));

        let mut command = leashed(Path::new("sh"));
        let (mut program, rx) = start(command.args(["-c", "echo $$; exec sleep 1000"]));
        let id = line(&rx).await.parse().expect("its id");
        // As the end of this process would.
        program._leash = None;
        until_gone(id).await;
    }

    #[tokio::test]
    async fn leashed_program_has_what_it_is_lent_and_its_leash_has_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).expect("bound");
        let mut command = leashed(Path::new("sh"));
        command.args(["-c", "readlink /proc/$$/fd/5; exec sleep 1000"]);
        lend(&mut command, listener.into()).expect("lent");
        let (mut program, rx) = start(&mut command);
        drop(command);
        assert!(line(&rx).await.starts_with("socket:"));
        UnixStream::connect(&path).expect("it listens");
        program.child.start_kill().expect("it is killed");
        program.ended().await.expect("it ends");
        let refused = UnixStream::connect(&path).expect_err("nobody listens");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
