//! uv completes pins: a question to it, and what it answers.
//!
//! Not here: what is asked (`project.rs`), and which file of a package is installed.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::interpreter::Interpreter;
use super::process::Step;
use super::project::Project;
use super::pylock::{self, Package};
use super::workshop::Workshop;
use super::{PythonError, Uv};
use crate::os::file::read_plain;
use crate::workspace::log::PrepareLog;

/// The most bytes of what uv answers; thousands of packages have a few MB.
const LONGEST_ANSWER: u64 = 64 << 20;

/// How pins are completed.
pub(super) struct Completing<'a> {
    pub(super) uv: &'a Uv,
    /// How long one question may take.
    pub(super) limit: Duration,
    /// Whether the code of a package may say what it needs.
    pub(super) build_sources: bool,
    pub(super) python: &'a Interpreter,
    pub(super) workshop: &'a Workshop,
    pub(super) log: &'a PrepareLog,
    pub(super) cancel: &'a CancellationToken,
}

impl Completing<'_> {
    /// Completes the pins. Where they contradict what packages ask for they stand all the same: that is what ran
    /// on the author's machine, and pip installs such things.
    pub(super) async fn complete(&self, project: &Project) -> Result<Vec<Package>, PythonError> {
        let conflict = match self.compile(project, false).await {
            Err(conflict @ PythonError::Conflict { .. }) => conflict,
            compiled => return compiled,
        };
        self.log.line(&format!("the pins stand all the same: {conflict}"));
        // What is in conflict even so is the reason.
        self.compile(project, true).await
    }

    async fn compile(&self, project: &Project, pins_override: bool) -> Result<Vec<Package>, PythonError> {
        // What the owner's index is asked with is not for the code of packages, which most answers do not need.
        if self.build_sources && self.uv.has_passwords() {
            match self.ask(project, pins_override, false).await {
                Err(error @ PythonError::NoWheel { .. }) => {
                    self.log.line(&format!("asked again without the owner's name and password: {error}"));
                }
                asked => return asked,
            }
        }
        self.ask(project, pins_override, self.build_sources).await
    }

    async fn ask(
        &self,
        project: &Project,
        pins_override: bool,
        build_sources: bool,
    ) -> Result<Vec<Package>, PythonError> {
        let Self { uv, python, workshop, .. } = self;
        // Under a name that nothing left behind by the code of a package could know.
        let folder = tempfile::tempdir_in(workshop.path())
            .map_err(|source| PythonError::io("making a folder in", workshop.path(), source))?;
        let (question, answer) = (folder.path().join("pyproject.toml"), folder.path().join("pylock.toml"));
        let compile = ["pip", "compile", "--format", "pylock.toml", "--quiet"];
        // What a source needs may be known only to its own code.
        let (mut command, toml) = match build_sources {
            true => (workshop.uv(uv, &compile, &python.program)?, uv.config.indexes.nameless(&project.toml)),
            false => (uv.command(&compile), project.toml.clone()),
        };
        std::fs::write(&question, toml).map_err(|source| PythonError::io("writing", &question, source))?;
        command.arg(&question).arg("--output-file").arg(&answer).arg("--python").arg(&python.program);
        if !build_sources {
            command.arg("--no-build");
        }
        if pins_override {
            let pins = folder.path().join("overrides.txt");
            std::fs::write(&pins, project.overrides().join("\n"))
                .map_err(|source| PythonError::io("writing", &pins, source))?;
            command.arg("--override").arg(&pins);
        }
        let what = "completing the packages";
        let finished = Step { what, command, limit: self.limit }.run(self.log, self.cancel).await?;
        if !finished.status.success() {
            return Err(PythonError::of(what, &finished.lines(), &project.pins));
        }
        let reading = |source| PythonError::io("reading", &answer, source);
        let text = String::from_utf8(read_plain(&answer, LONGEST_ANSWER).map_err(reading)?);
        pylock::parse(&text.map_err(|error| PythonError::Unreadable(error.to_string()))?)
    }
}
