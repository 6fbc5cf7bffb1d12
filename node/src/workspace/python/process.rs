//! A program of a preparation: its lines go to the log, it has a time limit, and it is killed with all that
//! it started.
//!
//! Not here: which programs, and what they see of this machine.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::PythonError;
use crate::workspace::log::PrepareLog;

/// The most lines of one program that are kept.
const LINES: usize = 200;
/// The longest line, in bytes; what is longer is broken.
const LONGEST: usize = 8 << 10;
/// How long the pipes of a program that ended may stay open, held by what it left behind.
const AFTERMATH: Duration = Duration::from_secs(2);

/// One program to run.
pub(super) struct Step<'a> {
    /// What it does, for the log and the error.
    pub(super) what: &'a str,
    /// The program.
    pub(super) command: Command,
    /// How long it may take.
    pub(super) limit: Duration,
}

/// A program that ended.
pub(super) struct Finished {
    /// Whether it says that it succeeded.
    pub(super) status: ExitStatus,
    /// What it printed for programs, line by line.
    pub(super) stdout: Vec<String>,
    /// What it printed for people, line by line.
    pub(super) stderr: Vec<String>,
}

impl Finished {
    /// The last lines, what was printed for people at the end.
    pub(super) fn lines(&self) -> Vec<String> {
        self.stdout.iter().chain(&self.stderr).cloned().collect()
    }
}

impl Step<'_> {
    /// Runs it to its end, however it ends. Nothing of it is left when this returns or is dropped.
    pub(super) async fn run(
        mut self,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<Finished, PythonError> {
        log.line(&format!("== {}", self.what));
        let program = self.command.as_std().get_program().to_string_lossy().into_owned();
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let start = |source: io::Error| PythonError::Io { what: format!("starting `{program}`"), source };
        let mut child = self.command.spawn().map_err(start)?;
        let group = Group(child.id().and_then(|id| i32::try_from(id).ok()));
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(start(io::Error::other("it has no pipes")));
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut reading = Box::pin(async {
            tokio::join!(read_lines(stdout, log, &mut out), read_lines(stderr, log, &mut err));
        });
        let mut drained = false;
        let ending = async {
            loop {
                // Both at once, or a program that prints more than a pipe holds would wait for ever.
                tokio::select! {
                    status = child.wait() => return status,
                    () = &mut reading, if !drained => drained = true,
                }
            }
        };
        let ended = tokio::select! {
            () = cancel.cancelled() => Ended::Canceled,
            ended = timeout(self.limit, ending) => ended.map_or(Ended::TooLong, Ended::Status),
        };
        drop(group);
        let _ = timeout(AFTERMATH, async {
            let _ = child.wait().await;
            if !drained {
                reading.as_mut().await;
            }
        })
        .await;
        drop(reading);
        match ended {
            Ended::Canceled => Err(PythonError::Canceled),
            Ended::TooLong => {
                Err(PythonError::Hangs { step: self.what.to_owned(), limit: self.limit, tail: log.tail() })
            }
            Ended::Status(status) => {
                Ok(Finished { status: status.map_err(start)?, stdout: out, stderr: err })
            }
        }
    }

    /// Runs it and takes any end but success for a failure.
    pub(super) async fn succeed(
        self,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<Finished, PythonError> {
        let what = self.what.to_owned();
        let finished = self.run(log, cancel).await?;
        if finished.status.success() {
            return Ok(finished);
        }
        Err(PythonError::of(&what, &finished.lines(), &[]))
    }
}

enum Ended {
    Canceled,
    TooLong,
    Status(io::Result<ExitStatus>),
}

/// The processes that a program started, killed together once this is dropped.
struct Group(Option<i32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // An error says that nobody is left.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

async fn read_lines(mut from: impl AsyncRead + Unpin, log: &PrepareLog, lines: &mut Vec<String>) {
    let mut pending = Vec::new();
    let mut chunk = [0; 4096];
    let mut take = |line: &[u8]| {
        let line = String::from_utf8_lossy(line).trim_end().to_owned();
        log.line(&line);
        if lines.len() == LINES {
            lines.remove(0);
        }
        lines.push(line);
    };
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        pending.extend_from_slice(&chunk[..count]);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            take(&pending[..end]);
            pending.drain(..=end);
        }
        if pending.len() > LONGEST {
            take(&pending);
            pending.clear();
        }
    }
    if !pending.is_empty() {
        take(&pending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Step<'static> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Step { what: "a shell", command, limit }
    }

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn lines_of_a_program_are_logged_and_kept() {
        let log = PrepareLog::in_memory();
        let step = shell("echo one; echo two >&2; exit 3", PATIENCE);
        let finished = step.run(&log, &CancellationToken::new()).await.expect("it ends");
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!((finished.stdout, finished.stderr), (vec!["one".to_owned()], vec!["two".to_owned()]));
        assert_eq!(log.tail().len(), 3);
    }

    #[tokio::test]
    async fn program_that_hangs_is_killed_with_its_children() {
        let log = PrepareLog::in_memory();
        let step = shell("sleep 1000 & echo $!; wait", Duration::from_millis(500));
        let error = step.run(&log, &CancellationToken::new()).await.map(|_| ()).expect_err("it hangs");
        assert!(matches!(error, PythonError::Hangs { .. }), "{error}");
        let child: i32 = log.tail()[1].parse().expect("the child's id");
        let gone = async {
            while nix::sys::signal::kill(Pid::from_raw(child), None).is_ok() && !is_zombie(child) {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, gone).await.expect("the child is killed as well");
    }

    fn is_zombie(id: i32) -> bool {
        std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    }

    #[tokio::test]
    async fn program_is_cancelled_while_it_works() {
        let (log, cancel) = (PrepareLog::in_memory(), CancellationToken::new());
        let step = shell("sleep 1000", PATIENCE);
        cancel.cancel();
        let error = step.run(&log, &cancel).await.map(|_| ()).expect_err("it is cancelled");
        assert!(matches!(error, PythonError::Canceled), "{error}");
    }

    #[tokio::test]
    async fn what_a_program_leaves_behind_does_not_hold_it_up() {
        let log = PrepareLog::in_memory();
        let step = shell("sleep 1000 & exit 0", PATIENCE);
        let finished = step.run(&log, &CancellationToken::new()).await.expect("it ends");
        assert!(finished.status.success());
    }
}
