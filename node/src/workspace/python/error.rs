//! Why an environment could not be made, and which of these a failure of uv is.
//!
//! Not here: the steps.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::Sha256;

use super::uv::{OLDEST_UV, PINNED_UV};
use super::wheels::WheelError;
use crate::os::file::tells_full_disk;

/// The longest explanation that is kept, in characters.
const LONGEST: usize = 4000;

/// Why an environment could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PythonError {
    /// uv is not there and could not be installed.
    #[error(
        "no `uv` on the PATH, and installing uv {PINNED_UV} from the package index did not succeed: {reason}; \
         install uv (https://docs.astral.sh/uv) or python3 with its venv module, or say where uv is"
    )]
    NoUv {
        /// Why it could not be installed.
        reason: String,
    },
    /// The uv that was given is too old or none.
    #[error("`{}` is not a uv that works here: {found}; uv {OLDEST_UV} or newer is needed", program.display())]
    UnfitUv {
        /// The program.
        program: PathBuf,
        /// What it said of itself.
        found: String,
    },
    /// No Python of the version is here, and none could be downloaded.
    #[error("no Python {wanted}: {}; install it, or let uv download it", looked.join("; "))]
    NoPython {
        /// The version.
        wanted: String,
        /// Where it was looked for, and what came of it.
        looked: Vec<String>,
    },
    /// The lockfile does not say which Python it needs.
    #[error("the lockfile names no version of Python")]
    PythonUnknown,
    /// The lockfile pins one package twice.
    #[error("package `{name}` is pinned to two versions, `{first}` and `{second}`")]
    TwoVersions {
        /// The package.
        name: String,
        /// The one.
        first: String,
        /// The other.
        second: String,
    },
    /// The pins and what ComfyUI and the custom nodes ask for do not go together.
    #[error("packages are in conflict{}: {explanation}", named(pins))]
    Conflict {
        /// The pins that the explanation names, as `name==version`.
        pins: Vec<String>,
        /// uv's explanation, cut to a length.
        explanation: String,
    },
    /// An index has another file than the lockfile says.
    #[error(transparent)]
    WrongHash(Box<WrongHash>),
    /// A file of an index has no hash that could prove it.
    #[error("package `{name}` {version}: the index gives no SHA-256 for it, so nothing would prove it")]
    NoHash {
        /// The package.
        name: String,
        /// Its version.
        version: String,
    },
    /// A package has no wheel for this platform, and building is not allowed.
    #[error(
        "no wheel for this platform, and this node builds no package from its source: pin a version that has one, or \
         its owner starts it with `--allow-install-scripts`: {explanation}"
    )]
    NoWheel {
        /// Which package, in uv's or our words.
        explanation: String,
    },
    /// A package has nothing that could be installed here.
    #[error(
        "package `{name}` {version} has neither a wheel for this platform nor a source: pin a version that has"
    )]
    NoFile {
        /// The package.
        name: String,
        /// Its version.
        version: String,
    },
    /// A package comes from a repository, and building is not allowed.
    #[error(
        "package `{name}` comes from the repository `{url}` and is to be built, which runs its code: the node's owner can \
         start it with `--allow-install-scripts`, or pin a version that has a wheel"
    )]
    Repository {
        /// The package.
        name: String,
        /// The repository.
        url: String,
    },
    /// A package comes from a repository of which no commit is named.
    #[error(
        "package `{name}` comes from `{url}`, which names no commit, so it would be another one tomorrow: write all 40 \
         digits of one behind an `@`"
    )]
    NoCommit {
        /// The package.
        name: String,
        /// The repository.
        url: String,
    },
    /// A repository has another package than it should.
    #[error(
        "package `{name}` is to be built from a repository that has package `{made}`: record its own name"
    )]
    OtherPackage {
        /// The package.
        name: String,
        /// What came of it.
        made: String,
    },
    /// A lock was made for another kind of machine.
    #[error("the lock is for {wanted}, this machine is {here}")]
    OtherMachine {
        /// What the lock is for.
        wanted: String,
        /// What is here.
        here: String,
    },
    /// An index did not answer.
    #[error("the package index cannot be reached: {detail}")]
    Index {
        /// What was asked and what came of it.
        detail: String,
    },
    /// A file of the lock did not come.
    #[error(transparent)]
    File(#[from] WheelError),
    /// A step took too long and was killed.
    #[error(
        "{step} took longer than {} s and was stopped, and is tried again later: see in its last lines what it waits for: {}",
        limit.as_secs(),
        last(tail)
    )]
    Hangs {
        /// The step.
        step: String,
        /// How long it might take.
        limit: Duration,
        /// The last lines of the log.
        tail: Vec<String>,
    },
    /// Building a package took too long and was killed.
    #[error(
        "{step} took longer than {} s and was stopped, and is tried again later: pin a version that has a wheel for this platform, or see what it waits for; its last lines: {}",
        limit.as_secs(),
        last(tail)
    )]
    BuildHangs {
        /// The step.
        step: String,
        /// How long it might take.
        limit: Duration,
        /// The last lines of the log.
        tail: Vec<String>,
    },
    /// A step failed.
    #[error("{step} failed; its last lines: {}", last(tail))]
    Failed {
        /// The step.
        step: String,
        /// The last lines of the log.
        tail: Vec<String>,
    },
    /// uv wrote something that is not understood.
    #[error("uv's lock cannot be read: {0}")]
    Unreadable(String),
    /// The disk is full.
    #[error("the disk is full: {step} could not be done")]
    DiskFull {
        /// The step.
        step: String,
    },
    /// It was cancelled.
    #[error("the preparation was cancelled")]
    Canceled,
    /// A file or program of this machine could not be used.
    #[error("{what} did not succeed")]
    Io {
        /// What was attempted.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A file of an index that is not the recorded one.
#[derive(Debug, thiserror::Error)]
#[error(
    "package `{name}` {version} has another hash: `{file_name}` at `{index}` is sha256:{found}, \
     the lockfile has {}: record the index that has the recorded file, or what this one has now",
    list(expected)
)]
pub struct WrongHash {
    /// The package.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The file.
    pub file_name: String,
    /// What the lockfile names.
    pub expected: Vec<Sha256>,
    /// What the index names.
    pub found: Sha256,
    /// The index.
    pub index: String,
}

impl PythonError {
    /// A failure of the system while something was done with a path.
    pub(super) fn io(what: &str, path: &Path, source: io::Error) -> Self {
        let what = format!("{what} `{}`", path.display());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { step: what },
            _ => Self::Io { what, source },
        }
    }

    /// Which failure a program's last lines tell of. `pins` are what a conflict may be about.
    pub(super) fn of(step: &str, lines: &[String], pins: &[String]) -> Self {
        let text = lines.join("\n");
        let has = |part: &str| text.contains(part);
        if tells_full_disk(&text) {
            return Self::DiskFull { step: step.to_owned() };
        }
        let explanation = || cut(lines.iter().map(|line| line.trim()).filter(|line| !line.is_empty()));
        if has("No solution found") && has("--no-build") {
            return Self::NoWheel { explanation: explanation() };
        }
        if has("No solution found") || has("Requirements contain conflicting") {
            let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || ",;()`".contains(c)).collect();
            let pins = pins
                .iter()
                .filter(|pin| words.iter().any(|word| word.trim_end_matches('.').eq_ignore_ascii_case(pin)));
            return Self::Conflict { pins: pins.cloned().collect(), explanation: explanation() };
        }
        let unreachable = ["Failed to fetch", "error sending request", "dns error", "Connection refused"];
        if unreachable.into_iter().any(has) {
            return Self::Index { detail: explanation() };
        }
        Self::Failed { step: step.to_owned(), tail: lines.to_vec() }
    }
}

fn cut<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let text = lines.collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn named(pins: &[String]) -> String {
    if pins.is_empty() { String::new() } else { format!(" with {}", list(pins)) }
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(|item| format!("`{}`", item.to_string())).collect::<Vec<_>>().join(", ")
}

fn last(tail: &[String]) -> String {
    if tail.is_empty() { "none".to_owned() } else { tail.join(" | ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> PythonError {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        PythonError::of("a step", &lines, &["markupsafe==3.0.2".to_owned(), "torch==2.6.0".to_owned()])
    }

    #[test]
    fn failure_of_uv_is_told_by_what_it_printed() {
        let conflict = of(
            "error: No solution found when resolving dependencies\n  cause: Because workspace \
             depends on markupsafe==3.0.2 and markupsafe<3, we can conclude that your requirements are unsatisfiable.",
        );
        let PythonError::Conflict { pins, .. } = &conflict else { panic!("{conflict:?}") };
        assert_eq!(pins, &["markupsafe==3.0.2"]);
        assert!(conflict.to_string().contains("markupsafe<3"), "{conflict}");
        assert!(matches!(
            of("error: Failed to fetch: http://x/\n cause: Connection refused (os error 111)"),
            PythonError::Index { .. }
        ));
        assert!(matches!(of("cause: No space left on device (os error 28)"), PythonError::DiskFull { .. }));
        let wheel = "No solution found\nhint: building from source is disabled (i.e., with `--no-build`)";
        assert!(matches!(of(wheel), PythonError::NoWheel { .. }));
        assert!(matches!(of("boom"), PythonError::Failed { .. }));
    }

    #[test]
    fn explanation_is_cut_to_a_length() {
        let PythonError::Conflict { explanation, .. } =
            of(&format!("No solution found {}", "é".repeat(9000)))
        else {
            panic!("a conflict")
        };
        assert_eq!(explanation.chars().count(), LONGEST + 1);
    }
}
