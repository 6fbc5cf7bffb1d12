//! Removing what no workspace needs of what they share: code, environments, repositories, wheels, Pythons. Blocks.
//!
//! A workspace needs what its record names, and a process also what it was made of before that was made anew. Nobody may
//! be building meanwhile. Not here: which workspaces go.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use protocol::{EnvironmentKey, EnvironmentLock, Sha256, error_chain};
use tracing::warn;

use super::inventory::{Kept, bytes, names};
use super::removal::remove_folder;
use super::{CareError, Caretaker};
use crate::workspace::git::GitStore;
use crate::workspace::program;
use crate::workspace::python::lock_of;

impl Caretaker {
    /// Removes what no workspace needs; says how many bytes it had.
    pub(super) fn sweep(&self) -> Result<u64, CareError> {
        let kept = self.kept()?;
        if let Some(unread) = kept.iter().find(|kept| kept.unread.is_some()) {
            let lockfile = unread.lockfile.0.fmt_short();
            warn!(%lockfile, "parts of workspaces stay, because a record cannot be read and may need them");
            return Ok(0);
        }
        let running = self.running.as_ref().map(|running| running.shelf.in_use()).unwrap_or_default();
        let swept = self.sweep_parts(&kept, &running)? + self.sweep_repositories(&kept)?;
        let named = kept.iter().filter_map(|kept| kept.record.as_ref());
        // One that was never installed goes on with what was made for it.
        let keys: Option<BTreeSet<EnvironmentKey>> = named.map(|record| record.environment).collect();
        let Some(mut keys) = keys else { return Ok(swept) };
        keys.extend(running.into_iter().map(|(_, environment)| environment));
        let folders = keys.into_iter().map(|key| self.root.join("environments").join(key.to_string()));
        let folders: Vec<PathBuf> = folders.collect();
        let locks: Option<Vec<EnvironmentLock>> = folders.iter().map(|folder| lock_of(folder)).collect();
        let Some(locks) = locks else { return Ok(swept) };
        Ok(swept + self.sweep_wheels(&locks)? + self.sweep_pythons(&folders)?)
    }

    /// Code, environments and byte code.
    fn sweep_parts(
        &self,
        kept: &[Kept],
        running: &BTreeSet<(protocol::CodeHash, EnvironmentKey)>,
    ) -> Result<u64, CareError> {
        let [code, environments, byte_code] =
            ["code", "environments", "slots/byte-code"].map(|name| self.root.join(name));
        let mut used: BTreeSet<PathBuf> = kept.iter().flat_map(|kept| kept.parts(&self.root)).collect();
        used.extend(kept.iter().filter_map(|kept| Some(byte_code.join(kept.program()?))));
        for (tree, environment) in running {
            used.insert(code.join(tree.to_string()));
            used.insert(environments.join(environment.to_string()));
            used.insert(byte_code.join(program(*tree, *environment)));
        }
        let mut swept = sweep_folder(&code, |part| used.contains(part))?;
        let of_environments = sweep_folder(&environments, |part| used.contains(part))?;
        if of_environments > 0 {
            // It has every file of an environment under a second name.
            remove_folder(&self.root.join("uv/cache"))?;
        }
        swept += of_environments + sweep_folder(&byte_code, |part| used.contains(part))?;
        Ok(swept)
    }

    /// Commits that no code is made of, submodules included. What cannot be read keeps all of them.
    fn sweep_repositories(&self, kept: &[Kept]) -> Result<u64, CareError> {
        let folder = self.root.join("git");
        if !folder.is_dir() {
            return Ok(0);
        }
        let pins = kept.iter().filter_map(|kept| kept.record.as_ref());
        let pins: Vec<_> = pins.flat_map(|record| record.code_spec().pins()).collect();
        let before = bytes(&folder);
        if let Err(error) = GitStore::open(&folder).and_then(|git| git.keep_only(&pins)) {
            warn!(error = error_chain(&error), "repositories that no workspace needs stay");
        }
        Ok(before.saturating_sub(bytes(&folder)))
    }

    /// Wheels, and what says that they were built.
    fn sweep_wheels(&self, locks: &[EnvironmentLock]) -> Result<u64, CareError> {
        let wheels = locks.iter().flat_map(|lock| {
            let built = lock.built.iter().filter_map(|built| built.wheel.as_ref());
            lock.wheels.iter().map(|wheel| &wheel.file).chain(built)
        });
        let needed: BTreeSet<Sha256> = wheels.map(|file| file.sha256).collect();
        let folder = self.root.join("uv/wheels");
        let swept = sweep_folder(&folder, |wheel| {
            let name = wheel.file_name().and_then(|name| name.to_str());
            name.and_then(|name| name.parse().ok()).is_some_and(|sha256| needed.contains(&sha256))
        })?;
        let is_here = |note: &Path| {
            let built = std::fs::read(note).ok();
            let built: Option<protocol::LockedFile> =
                built.and_then(|note| serde_json::from_slice(&note).ok());
            built.is_some_and(|file| folder.join(file.sha256.to_string()).is_dir())
        };
        Ok(swept + sweep_folder(&self.root.join("uv/built"), is_here)?)
    }

    /// Pythons that uv downloaded and that no environment is of.
    fn sweep_pythons(&self, environments: &[PathBuf]) -> Result<u64, CareError> {
        let programs = environments.iter().map(|folder| folder.join("bin/python").canonicalize());
        // One whose Python is not found may be of any.
        let Ok(programs) = programs.collect::<std::io::Result<Vec<_>>>() else { return Ok(0) };
        sweep_folder(&self.root.join("uv/python"), |python| {
            python
                .canonicalize()
                .is_ok_and(|python| programs.iter().any(|program| program.starts_with(&python)))
        })
    }
}

/// Removes what is in a folder and is not needed.
fn sweep_folder(folder: &Path, is_needed: impl Fn(&Path) -> bool) -> Result<u64, CareError> {
    let mut swept = 0;
    for name in names(folder).map_err(CareError::io("reading", folder))? {
        let part = folder.join(name);
        if !is_needed(&part) {
            let metadata = part.symlink_metadata().map_err(CareError::io("reading", &part))?;
            swept += if metadata.is_dir() { bytes(&part) } else { metadata.len() };
            remove_folder(&part)?;
        }
    }
    Ok(swept)
}
