//! A wheel from a package's source, for what has none for this platform.
//!
//! Building runs the package's code and asks the index for what it is built with. No two builds are equal,
//! so the wheel gets a hash of its own, which the lock then names. Not here: whether building is allowed.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::{LockedFile, Sha256};
use sha2::{Digest, Sha256 as Hasher};
use tokio_util::sync::CancellationToken;

use super::process::Step;
use super::{Interpreter, PythonError, Uv};
use crate::workspace::log::PrepareLog;

/// Builds a source, and keeps the wheel beside the other files of locks.
pub(super) async fn build_source(
    uv: &Uv,
    python: &Interpreter,
    source: &Path,
    limit: Duration,
    log: &PrepareLog,
    cancel: &CancellationToken,
) -> Result<(PathBuf, LockedFile), PythonError> {
    let workshop = uv.workshop()?;
    let folder = workshop.path();
    let shown = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // Where it lies, because a link may lead out of the walls.
    let copied = folder.join(&shown);
    std::fs::copy(source, &copied).map_err(|error| PythonError::io("reading", source, error))?;
    let build = ["build", "--wheel", "--no-create-gitignore"];
    let mut command = workshop.uv(uv, &build, &python.program)?;
    command.arg("--out-dir").arg(folder).arg("--python").arg(&python.program).arg(&copied);
    // A date in it would make two builds differ that need not.
    command.env("SOURCE_DATE_EPOCH", "315532800");
    let what = format!("building `{shown}`");
    let made = Step { what: &what, command, limit }.succeed(log, cancel).await;
    made.map_err(|error| match error {
        PythonError::Hangs { step, limit, tail } => PythonError::BuildHangs { step, limit, tail },
        error => error,
    })?;
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
    let failed = || PythonError::Failed { step: what.clone(), tail: log.tail() };
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
