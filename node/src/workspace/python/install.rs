//! Wheels become an environment while they come: uv unpacks what is here of each, and the time is that of whichever
//! takes longer.
//!
//! Nothing is installed that is not proven: uv compares each wheel with its hash, and an environment counts only once
//! all of them were proven by whoever had them come, too. Not here: what becomes of the environment.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::counter::Counter;
use super::process::Step;
use super::wheels::{Wheel, gather};
use super::{Interpreter, Limits, PythonError, Uv, WheelSource};
use crate::workspace::log::PrepareLog;

/// How long it may take to make an empty environment.
const EMPTY_LIMIT: Duration = Duration::from_secs(120);
/// The file that says what is installed.
const PYLOCK: &str = "pylock.toml";
/// What the log calls it.
const WHAT: &str = "installing the wheels";

/// An environment that is made.
pub(super) struct Installing<'a> {
    pub(super) uv: &'a Uv,
    pub(super) limits: &'a Limits,
    /// Where, which is nothing yet.
    pub(super) folder: &'a Path,
    pub(super) wheels: &'a [Wheel],
}

impl Installing<'_> {
    /// Has the wheels come, and installs them into a new environment of this Python.
    pub(super) async fn run(
        &self,
        python: &Interpreter,
        files: &dyn WheelSource,
        private: bool,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<(), PythonError> {
        let opening = |source| PythonError::Io { what: "listening on the loopback".to_owned(), source };
        let counter = Counter::open(self.wheels, files).await.map_err(opening)?;
        let mut gathering = std::pin::pin!(gather(self.wheels, files, cancel));
        let install = async || {
            self.empty(python, log, cancel).await?;
            self.install(&counter, private, log, cancel).await
        };
        let mut installing = std::pin::pin!(install());
        let working = async {
            let installed = tokio::select! {
                gathered = &mut gathering => {
                    gathered?;
                    self.in_time(installing, log).await
                }
                installed = &mut installing => {
                    gathering.await?;
                    installed
                }
            };
            match installed {
                // What it was given of a file may have been taken back since; now all of them are proven.
                Err(error @ (PythonError::Failed { .. } | PythonError::Index { .. })) => {
                    log.line(&format!("{error}; once more"));
                    self.in_time(install(), log).await
                }
                installed => installed,
            }
        };
        tokio::select! {
            done = working => done,
            never = counter.serve(log) => match never {},
        }
    }

    /// What is left to do once all wheels are here.
    async fn in_time(
        &self,
        installing: impl Future<Output = Result<(), PythonError>>,
        log: &PrepareLog,
    ) -> Result<(), PythonError> {
        let limit = self.limits.install;
        let hangs = || PythonError::Hangs { step: WHAT.to_owned(), limit, tail: log.tail() };
        timeout(limit, installing).await.unwrap_or_else(|_| Err(hangs()))
    }

    async fn empty(
        &self,
        python: &Interpreter,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<(), PythonError> {
        let mut command = self.uv.offline(&["venv", "--clear", "--relocatable", "--no-project", "--python"]);
        command.arg(&python.program).arg(self.folder);
        let what = "making an empty environment";
        Step { what, command, limit: EMPTY_LIMIT }.succeed(log, cancel).await.map(|_| ())
    }

    async fn install(
        &self,
        counter: &Counter<'_>,
        private: bool,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<(), PythonError> {
        if self.wheels.is_empty() {
            return Ok(());
        }
        let pylock = self.folder.with_file_name(PYLOCK);
        std::fs::write(&pylock, counter.pylock())
            .map_err(|source| PythonError::io("writing", &pylock, source))?;
        let mut command = self.uv.command(&["pip", "install", "--no-deps", "--no-index", "--no-sources"]);
        command.args(["--no-compile-bytecode", "--python"]).arg(self.folder.join("bin/python"));
        // Files that environments share must not be open to scripts.
        command.args(["--link-mode", if private { "copy" } else { "hardlink" }]);
        command.arg("--requirements").arg(&pylock);
        counter.lead(&mut command);
        // The time that it has begins when all wheels are here.
        Step { what: WHAT, command, limit: Duration::MAX }.succeed(log, cancel).await.map(|_| ())
    }
}
