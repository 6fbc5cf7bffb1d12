//! Whether workspaces are still what their lockfiles say: code by its commits, Python by its wheels, models by their
//! hashes. Reads every file of them.
//!
//! Not here: what is done about it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use protocol::{BlobHash, CodeHash, EnvironmentKey, LockedModel, error_chain};

use super::{CareError, Caretaker, VerifiedWorkspace};
use crate::workspace::assemble::by_place;
use crate::workspace::code::CodeTrees;
use crate::workspace::git::GitStore;
use crate::workspace::python::{Damage, verify};
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
                models: self.models(&record, &mut found).await,
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
        let differing = self.blocking(move |care| {
            let git = GitStore::open(care.root.join("git"));
            let trees = git.map(|git| CodeTrees::new(care.root.join("code"), git));
            let differing = trees.map_err(Into::into).and_then(|trees| trees.differences(&spec));
            Ok(differing.unwrap_or_else(|error| vec![error_chain(&error)]))
        });
        let differing = differing.await?;
        found.code.insert(hash, differing.clone());
        Ok(differing)
    }

    async fn python(&self, record: &WorkspaceRecord, found: &mut Found) -> Result<Vec<String>, CareError> {
        let Some(key) = record.environment else { return Ok(vec!["it was never installed".to_owned()]) };
        if let Some(known) = found.python.get(&key) {
            return Ok(known.clone());
        }
        let folder: PathBuf = self.root.join("environments").join(key.to_string());
        let damage = self.blocking(move |_| {
            let words = |damage: Damage| {
                let missing = if damage.missing { ", which is missing" } else { "" };
                format!("{}{missing}", damage.path.display())
            };
            match verify(&folder) {
                Ok(damage) => Ok(damage.into_iter().map(words).collect::<Vec<_>>()),
                Err(error) => Ok(vec![format!("it cannot be read: {error}")]),
            }
        });
        let damage = damage.await?;
        found.python.insert(key, damage.clone());
        Ok(damage)
    }

    async fn models(&self, record: &WorkspaceRecord, found: &mut Found) -> Vec<String> {
        let mut damaged = Vec::new();
        for model in record.lockfile.models.iter().filter(|model| !model.disabled) {
            if let Some(fault) = self.model(model, found).await {
                damaged.push(format!("{}: {fault}", model.path));
            }
        }
        damaged
    }

    async fn model(&self, model: &LockedModel, found: &mut Found) -> Option<String> {
        let by_sha256 = || self.store.with_sha256(model.sha256.as_ref()?);
        let known = model.blob.and_then(|hash| self.store.get(hash)).or_else(by_sha256);
        let Some(blob) = known.or_else(|| by_place(&self.store, model)) else {
            return Some("it is not here".to_owned());
        };
        if let Some(known) = found.models.get(&blob.hash) {
            return known.clone();
        }
        let fault = match self.store.verify(blob.hash).await {
            Ok(true) => None,
            Ok(false) => Some("it was damaged, and is forgotten".to_owned()),
            Err(error) => Some(error_chain(&error)),
        };
        found.models.insert(blob.hash, fault.clone());
        fault
    }
}
