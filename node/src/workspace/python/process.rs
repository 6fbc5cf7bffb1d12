//! A program of a preparation: its lines go to the log, it has a time limit, and it is killed with all that
//! it started.
//!
//! Not here: which programs, and what they see of this machine.

use std::collections::VecDeque;
use std::io;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::PythonError;
use crate::os::program::{Program, Stream};
use crate::workspace::log::PrepareLog;

/// The most lines of one program that are kept.
const LINES: usize = 200;

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
        let start = |source: io::Error| PythonError::Io { what: self.what.to_owned(), source };
        let said: Arc<Mutex<Said>> = Arc::default();
        let (keeping, logging) = (Arc::clone(&said), log.clone());
        let mut program = Program::start(&mut self.command, move |stream, line| {
            logging.line(line);
            keeping.lock().unwrap_or_else(PoisonError::into_inner).keep(stream, line);
        })
        .map_err(start)?;
        let ended = tokio::select! {
            () = cancel.cancelled() => Ended::Canceled,
            ended = timeout(self.limit, program.ended()) => ended.map_or(Ended::TooLong, Ended::Status),
        };
        program.close().await;
        match ended {
            Ended::Canceled => Err(PythonError::Canceled),
            Ended::TooLong => {
                Err(PythonError::Hangs { step: self.what.to_owned(), limit: self.limit, tail: log.tail() })
            }
            Ended::Status(status) => {
                let Said { stdout, stderr } =
                    std::mem::take(&mut *said.lock().unwrap_or_else(PoisonError::into_inner));
                let status = status.map_err(start)?;
                Ok(Finished { status, stdout: stdout.into(), stderr: stderr.into() })
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

/// The last lines of a program.
#[derive(Default)]
struct Said {
    stdout: VecDeque<String>,
    stderr: VecDeque<String>,
}

impl Said {
    fn keep(&mut self, stream: Stream, line: &str) {
        let lines = match stream {
            Stream::Out => &mut self.stdout,
            Stream::Err => &mut self.stderr,
        };
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Step<'static> {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(std::process::Stdio::null());
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
    async fn program_that_hangs_is_killed() {
        let log = PrepareLog::in_memory();
        let step = shell("sleep 1000", Duration::from_millis(500));
        let error = step.run(&log, &CancellationToken::new()).await.map(|_| ()).expect_err("it hangs");
        assert!(matches!(error, PythonError::Hangs { .. }), "{error}");
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
