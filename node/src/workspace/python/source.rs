//! A wheel from a package's source, for what has none for this platform.
//!
//! Building runs the package's code and asks the index for what it is built with. No two builds are equal,
//! so the wheel gets a hash of its own, which the lock then names. Not here: whether building is allowed.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::{BuildSource, GitSource, LockedFile, Sha256, normalized};
use sha2::{Digest, Sha256 as Hasher};
use tokio_util::sync::CancellationToken;

use super::process::Step;
use super::wheels::get;
use super::{Interpreter, PythonError, Uv, WheelSource};
use crate::os::file::copy_tree;
use crate::workspace::log::PrepareLog;

/// What old sources need that say nothing of it, and that later releases of setuptools have no more.
const OLD_SETUPTOOLS: &str = "setuptools<81";
/// How the lack of it is told.
const NO_PKG_RESOURCES: &str = "No module named 'pkg_resources'";

/// How packages are built from their sources.
pub(super) struct Building<'a> {
    pub(super) uv: &'a Uv,
    pub(super) python: &'a Interpreter,
    /// How long one may take.
    pub(super) limit: Duration,
    pub(super) log: &'a PrepareLog,
    pub(super) cancel: &'a CancellationToken,
}

impl Building<'_> {
    /// Has a source come and builds it. The wheel is kept beside the other files of locks.
    pub(super) async fn build(
        &self,
        name: &str,
        source: &BuildSource,
        files: &dyn WheelSource,
    ) -> Result<(PathBuf, LockedFile), PythonError> {
        match self.build_with(name, source, files, None).await {
            Err(PythonError::Failed { tail, .. })
                if tail.iter().any(|line| line.contains(NO_PKG_RESOURCES)) =>
            {
                self.log.line(&format!("once more, with `{OLD_SETUPTOOLS}`"));
                self.build_with(name, source, files, Some(OLD_SETUPTOOLS)).await
            }
            built => built,
        }
    }

    async fn build_with(
        &self,
        name: &str,
        source: &BuildSource,
        files: &dyn WheelSource,
        constraint: Option<&str>,
    ) -> Result<(PathBuf, LockedFile), PythonError> {
        let Self { uv, python, limit, log, cancel } = *self;
        let workshop = uv.workshop()?;
        let folder = workshop.path();
        let build = ["build", "--wheel", "--no-create-gitignore"];
        let mut command = workshop.uv(uv, &build, &python.program)?;
        let shown = match source {
            BuildSource::File(file) => {
                let source = get(file, files, &uv.folder("wheels"), cancel).await?;
                // Where it lies, because a link may lead out of the walls.
                let copied = folder.join(file.file_name.as_str());
                std::fs::copy(&source, &copied)
                    .map_err(|error| PythonError::io("reading", &source, error))?;
                command.arg(&copied);
                file.file_name.to_string()
            }
            BuildSource::Git(source) => {
                let copied = folder.join("source");
                lay_out(uv, source, files, &copied, cancel).await?;
                command.arg(match &source.subdirectory {
                    Some(below) => copied.join(below.as_str()),
                    None => copied,
                });
                // What asks git for its version finds no past to tell it by.
                let variable = normalized(name).to_ascii_uppercase().replace('-', "_");
                let version = format!("0+g{}", &source.commit.as_str()[..9]);
                command.env(format!("SETUPTOOLS_SCM_PRETEND_VERSION_FOR_{variable}"), version);
                format!("{name} of {}@{}", source.url, source.commit)
            }
        };
        if let Some(constraint) = constraint {
            let path = folder.join("constraints.txt");
            std::fs::write(&path, constraint).map_err(|source| PythonError::io("writing", &path, source))?;
            command.arg("--build-constraints").arg(path);
        }
        command.arg("--out-dir").arg(folder).arg("--python").arg(&python.program);
        // A date in it would make two builds differ that need not.
        command.env("SOURCE_DATE_EPOCH", "315532800");
        let what = format!("building `{shown}`");
        let made = Step { what: &what, command, limit }.succeed(log, cancel).await;
        made.map_err(|error| match error {
            PythonError::Hangs { step, limit, tail } => PythonError::BuildHangs { step, limit, tail },
            error => error,
        })?;
        take(uv, folder, &what, log).await
    }
}

/// Lays out a commit where its build can write beside it.
async fn lay_out(
    uv: &Uv,
    source: &GitSource,
    files: &dyn WheelSource,
    into: &Path,
    cancel: &CancellationToken,
) -> Result<(), PythonError> {
    let temporary = uv.temporary()?;
    let tree = temporary.path().join("tree");
    let pin = source.pin();
    // Broken off, it ends by itself: until then it writes where nobody is to clear up.
    let fetched = files.repository(&pin, &tree).await;
    if cancel.is_cancelled() {
        return Err(PythonError::Canceled);
    }
    fetched?;
    let (from, to) = (tree.clone(), into.to_owned());
    let copied = tokio::task::spawn_blocking(move || copy_tree(&from, &to)).await;
    let copied = copied.unwrap_or_else(|broken| Err(io::Error::other(broken)));
    copied.map_err(|source| PythonError::io("copying", &tree, source))
}

/// Takes the wheel that a build left in this folder, and nothing else of it.
async fn take(
    uv: &Uv,
    folder: &Path,
    what: &str,
    log: &PrepareLog,
) -> Result<(PathBuf, LockedFile), PythonError> {
    let reading = |source| PythonError::io("reading", folder, source);
    let mut built = None;
    for entry in std::fs::read_dir(folder).map_err(reading)? {
        let entry = entry.map_err(reading)?;
        let path = entry.path();
        // The build may have left a link, to a file that it was not to see.
        let is_file = entry.file_type().map_err(reading)?.is_file();
        if is_file && path.extension().is_some_and(|extension| extension == "whl") {
            built = Some(path);
        }
    }
    let failed = || PythonError::Failed { step: what.to_owned(), tail: log.tail() };
    let built = built.ok_or_else(failed)?;
    let name = built.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let hashing = built.clone();
    let hashed = tokio::task::spawn_blocking(move || hash(&hashing)).await;
    let (sha256, size) = hashed
        .map_err(|_| PythonError::Canceled)?
        .map_err(|source| PythonError::io("reading", &built, source))?;
    let file_name = name.parse().map_err(|_| failed())?;
    let kept = uv.folder("wheels").join(sha256.to_string());
    let keeping = |source| PythonError::io("making", &kept, source);
    std::fs::create_dir_all(&kept).map_err(keeping)?;
    std::fs::rename(&built, kept.join(&name)).map_err(keeping)?;
    let file = LockedFile { file_name, sha256, size, blob: None, urls: Vec::new() };
    Ok((kept.join(name), file))
}

/// The SHA-256 and size of a file.
pub(super) fn hash(path: &Path) -> io::Result<(Sha256, u64)> {
    let mut hasher = Hasher::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0;
    loop {
        let count = io::Read::read(&mut file, &mut buffer)?;
        if count == 0 {
            return Ok((Sha256(hasher.finalize().into()), size));
        }
        hasher.update(&buffer[..count]);
        size += count as u64;
    }
}
