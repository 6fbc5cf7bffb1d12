//! Whether workspaces are still what their lockfiles say: code by its commits, Python by its lock and wheels, models by
//! their hashes and places. Reads every file of them.
//!
//! Not here: what is done about it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use protocol::{BlobHash, CodeHash, EnvironmentKey, LockedModel, error_chain};

use super::inventory::note_damage;
use super::{CareError, Caretaker, VerifiedWorkspace};
use crate::workspace::assemble::by_place;
use crate::workspace::code::{CodeError, CodeTrees};
use crate::workspace::git::GitStore;
use crate::workspace::python::{Changed, Damage, missing_packages, verify};
use crate::workspace::record::WorkspaceRecord;

/// What was found of parts, each of which is looked at once.
#[derive(Default)]
struct Found {
    code: BTreeMap<CodeHash, Vec<String>>,
    python: BTreeMap<EnvironmentKey, Vec<String>>,
    models: BTreeMap<BlobHash, Option<String>>,
}

impl Caretaker {
    /// Compares one, or all.
    pub(super) async fn verify(&self, prefix: Option<&str>) -> Result<Vec<VerifiedWorkspace>, CareError> {
        let prefix = prefix.map(str::to_owned);
        let kept = self.blocking(move |care| care.named(prefix.as_deref())).await?;
        let (mut found, mut verified) = (Found::default(), Vec::new());
        for kept in kept {
            let Some(record) = kept.record else { continue };
            verified.push(VerifiedWorkspace {
                lockfile: kept.lockfile,
                code: self.code(&record, &mut found).await?,
                python: self.python(&record, &mut found).await?,
                models: self.models(&record, &kept.folder.join("files"), &mut found).await,
                workflows: record.workflows,
            });
        }
        Ok(verified)
    }

    async fn code(&self, record: &WorkspaceRecord, found: &mut Found) -> Result<Vec<String>, CareError> {
        let hash = record.code();
        if let Some(known) = found.code.get(&hash) {
            return Ok(known.clone());
        }
        let spec = record.code_spec();
        let differing =
            self.blocking(move |care| Ok(care.differences(|trees| trees.differences(&spec)))).await?;
        note_damage(&self.root.join("code").join(hash.to_string()), !differing.is_empty());
        found.code.insert(hash, differing.clone());
        Ok(differing)
    }

    async fn python(&self, record: &WorkspaceRecord, found: &mut Found) -> Result<Vec<String>, CareError> {
        let Some(key) = record.environment else { return Ok(vec!["it was never installed".to_owned()]) };
        if let Some(known) = found.python.get(&key) {
            return Ok(known.clone());
        }
        let folder: PathBuf = self.root.join("environments").join(key.to_string());
        let (part, spec) = (folder.clone(), record.code_spec());
        let damage = self.blocking(move |care| {
            let words = |damage: Damage| {
                let missing = if damage.missing { ", which is missing" } else { "" };
                format!("{}{missing}", damage.path.display())
            };
            let looked = verify(&folder).and_then(|damage| Ok((damage, missing_packages(&folder)?)));
            let mut found = match looked {
                Ok((damage, missing)) => {
                    let missing = missing.iter().map(|name| format!("package `{name}`, which is missing"));
                    damage.into_iter().map(words).chain(missing).collect::<Vec<_>>()
                }
                Err(error) => vec![format!("it cannot be read: {error}")],
            };
            // The copy of the code in which its install scripts ran, and the processes are.
            let copy = folder.join("ComfyUI");
            if copy.is_dir() {
                let differing = care.differences(|trees| trees.differences_in(&spec, &copy));
                let scripts = Changed::load(&folder);
                let differing = differing.into_iter().filter(|file| !scripts.accounts_for(&copy, file));
                found.extend(differing.map(|file| format!("ComfyUI/{file}")));
            }
            Ok(found)
        });
        let damage = damage.await?;
        note_damage(&part, !damage.is_empty());
        found.python.insert(key, damage.clone());
        Ok(damage)
    }

    /// What of some code is not as it is to be, or why that is not known.
    fn differences(&self, compare: impl FnOnce(CodeTrees) -> Result<Vec<String>, CodeError>) -> Vec<String> {
        let git = GitStore::open(self.root.join("git"));
        let trees = git.map(|git| CodeTrees::new(self.root.join("code"), git));
        let differing = trees.map_err(CodeError::from).and_then(compare);
        differing.unwrap_or_else(|error| vec![error_chain(&error)])
    }

    async fn models(&self, record: &WorkspaceRecord, files: &Path, found: &mut Found) -> Vec<String> {
        let mut damaged = Vec::new();
        for model in record.lockfile.models.iter().filter(|model| !model.disabled) {
            if let Some(fault) = self.model(model, files, found).await {
                damaged.push(format!("{}: {fault}", model.path));
            }
        }
        damaged
    }

    async fn model(&self, model: &LockedModel, files: &Path, found: &mut Found) -> Option<String> {
        let by_sha256 = || self.store.with_sha256(model.sha256.as_ref()?);
        let known = model.blob.and_then(|hash| self.store.get(hash)).or_else(by_sha256);
        let Some(blob) = known.or_else(|| by_place(&self.store, model)) else {
            return Some("it is not here".to_owned());
        };
        if let Some(known) = found.models.get(&blob.hash) {
            return known.clone().or_else(|| self.misplaced(model, blob.hash, files));
        }
        let fault = match self.store.verify(blob.hash).await {
            Ok(true) => None,
            Ok(false) => Some("it was damaged, and is forgotten".to_owned()),
            Err(error) => Some(error_chain(&error)),
        };
        found.models.insert(blob.hash, fault.clone());
        fault.or_else(|| self.misplaced(model, blob.hash, files))
    }

    /// What is wrong with the place of a model that the store has.
    fn misplaced(&self, model: &LockedModel, hash: BlobHash, files: &Path) -> Option<String> {
        let linked = std::fs::read_link(files.join(model.path.as_str()));
        match linked {
            Ok(target) if Some(&target) == self.store.path_of(hash).as_ref() => None,
            Ok(target) => Some(format!("its place in the workspace leads to `{}`", target.display())),
            Err(_) => Some("it is not at its place in the workspace".to_owned()),
        }
    }
}
