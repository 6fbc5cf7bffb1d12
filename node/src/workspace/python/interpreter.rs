//! The Python of an environment: one of the machine's, else one that uv downloads.
//!
//! Patch releases of one minor version stand for each other: they run the same wheels. Not here: which
//! version a workspace needs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::Token;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::process::Step;
use super::tags::{Libc, Tags, linux, macos};
use super::{PythonError, Uv};
use crate::workspace::log::PrepareLog;

/// How long a Python may take to say what it is.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a download of one may take.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(600);
/// What it is asked.
const QUESTION: &str = "import json, os, platform, sys, sysconfig
print(json.dumps({'version': platform.python_version(), 'implementation': sys.implementation.name,
  'platform': sysconfig.get_platform(), 'libc': platform.libc_ver(), 'mac': platform.mac_ver()[0],
  'musl': any(name.startswith('ld-musl') for name in (os.listdir('/lib') if os.path.isdir('/lib') else [])),
  'home': sys.base_prefix}))";

/// A Python that is here.
#[derive(Clone, Debug)]
pub struct Interpreter {
    /// The program.
    pub program: PathBuf,
    /// Its full version.
    pub version: Token,
    /// The folder that it is installed in, which a process of an environment must be able to read.
    pub home: PathBuf,
    pub(super) tags: Tags,
}

impl Uv {
    /// A Python of this version (`3.11` or `3.11.7`): the very one, else one of the same minor version, else
    /// one that is downloaded, the very one first. The log says where it is another one.
    pub(super) async fn python(
        &self,
        wanted: &Token,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<Interpreter, PythonError> {
        let minor = minor_of(wanted.as_str());
        let mut looked = Vec::new();
        let mut requests = vec![wanted.to_string(), minor.clone()];
        requests.dedup();
        for request in &requests {
            if let Some(found) = self.find_python(request, &mut looked, log, cancel).await? {
                return Ok(stands_for(wanted, found, log));
            }
        }
        if !self.config.download_python {
            looked.push("downloading one is not allowed".to_owned());
            return Err(PythonError::NoPython { wanted: wanted.to_string(), looked });
        }
        for request in &requests {
            let command = self.command(&["python", "install", "--no-bin", request]);
            let what = format!("downloading Python {request}");
            let finished = Step { what: &what, command, limit: DOWNLOAD_LIMIT }.run(log, cancel).await?;
            if !finished.status.success() {
                let last = finished.lines().into_iter().next_back().unwrap_or_default();
                looked.push(format!("{what} did not succeed ({})", last.trim()));
            } else if let Some(found) = self.find_python(request, &mut looked, log, cancel).await? {
                return Ok(stands_for(wanted, found, log));
            }
        }
        Err(PythonError::NoPython { wanted: wanted.to_string(), looked })
    }

    async fn find_python(
        &self,
        request: &str,
        looked: &mut Vec<String>,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<Option<Interpreter>, PythonError> {
        let command = self.command(&["python", "find", "--system", &format!("cpython{request}")]);
        let what = format!("looking for Python {request}");
        let finished = Step { what: &what, command, limit: LIMIT }.run(log, cancel).await?;
        let program = finished.stdout.first().filter(|_| finished.status.success()).map(PathBuf::from);
        let Some(program) = program else {
            looked.push(format!("no {request} on the PATH or in `{}`", self.folder("python").display()));
            return Ok(None);
        };
        match self.interpreter(&program, log, cancel).await {
            Ok(found) if format!("{}.", found.version).starts_with(&format!("{request}.")) => Ok(Some(found)),
            Ok(found) => {
                looked.push(format!("`{}` is {}", program.display(), found.version));
                Ok(None)
            }
            Err(PythonError::Canceled) => Err(PythonError::Canceled),
            Err(error) => {
                looked.push(format!("`{}` does not work: {error}", program.display()));
                Ok(None)
            }
        }
    }

    /// Asks a Python what it is.
    async fn interpreter(
        &self,
        program: &Path,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<Interpreter, PythonError> {
        let mut command = self.other(program);
        command.args(["-I", "-c", QUESTION]);
        let what = format!("asking `{}` what it is", program.display());
        let finished = Step { what: &what, command, limit: LIMIT }.succeed(log, cancel).await?;
        let unknown =
            |reason: &str| PythonError::Unreadable(format!("`{}` says {reason}", program.display()));
        let answer: Answer = serde_json::from_str(finished.stdout.last().map_or("", String::as_str))
            .map_err(|error| unknown(&error.to_string()))?;
        let tags = answer.tags().ok_or_else(|| unknown("that it is for no platform that is known here"))?;
        let version = answer.version.parse().map_err(|_| unknown("no version"))?;
        Ok(Interpreter { program: program.to_owned(), version, home: answer.home.into(), tags })
    }
}

/// Says in the log where it is another patch release.
fn stands_for(wanted: &Token, found: Interpreter, log: &PrepareLog) -> Interpreter {
    if *wanted != found.version && wanted.as_str() != minor_of(wanted.as_str()) {
        log.line(&format!("Python {} stands for {wanted}, which is not here", found.version));
    }
    found
}

/// What a Python says of itself.
#[derive(Deserialize)]
struct Answer {
    version: String,
    implementation: String,
    platform: String,
    libc: (String, String),
    musl: bool,
    mac: String,
    home: String,
}

impl Answer {
    fn tags(&self) -> Option<Tags> {
        if self.implementation != "cpython" {
            return None;
        }
        let pair = |text: &str| -> Option<(u16, u16)> {
            let mut parts = text.split('.');
            Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
        };
        let (3, minor) = pair(&self.version)? else { return None };
        let platforms = if let Some(arch) = self.platform.strip_prefix("linux-") {
            let libc = match self.libc.0.as_str() {
                "glibc" => pair(&self.libc.1).map(|(major, minor)| Libc::Glibc(major, minor))?,
                "musl" => pair(&self.libc.1).map(|(major, minor)| Libc::Musl(major, minor))?,
                _ if self.musl => Libc::Musl(1, 2),
                _ => return None,
            };
            linux(arch, libc)
        } else if let Some(rest) = self.platform.strip_prefix("macosx-") {
            let (major, minor) = pair(&self.mac)?;
            // A Python for both kinds of Mac runs as what the machine is.
            let arch = match rest.rsplit('-').next()? {
                "universal2" if std::env::consts::ARCH == "aarch64" => "arm64",
                "universal2" => "x86_64",
                arch => arch,
            };
            macos(arch, major, minor)
        } else {
            return None;
        };
        Some(Tags::of(minor, &platforms))
    }
}

/// The minor version (`3.11`) of a version.
pub(super) fn minor_of(version: &str) -> String {
    version.split('.').take(2).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_real_interpreters_have_tags() {
        let check = |platform: &str, libc: (&str, &str), mac: &str, fits: &str| {
            let answer = Answer {
                version: "3.11.7".to_owned(),
                implementation: "cpython".to_owned(),
                platform: platform.to_owned(),
                libc: (libc.0.to_owned(), libc.1.to_owned()),
                musl: libc.0.is_empty(),
                mac: mac.to_owned(),
                home: "/usr".to_owned(),
            };
            let tags = answer.tags().expect(platform);
            assert!(tags.rank(&format!("a-1-{fits}.whl")).is_some(), "{platform} {fits}");
        };
        check("linux-x86_64", ("glibc", "2.36"), "", "cp311-cp311-manylinux_2_28_x86_64");
        check("linux-aarch64", ("", ""), "", "cp311-cp311-musllinux_1_2_aarch64");
        check("macosx-11.0-arm64", ("", ""), "14.5", "cp311-cp311-macosx_12_0_arm64");
    }

    #[test]
    fn minor_version_is_the_first_two_numbers() {
        assert_eq!(minor_of("3.11.7"), "3.11");
        assert_eq!(minor_of("3.11"), "3.11");
    }
}
