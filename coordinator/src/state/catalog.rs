//! The deployed workflows: versions that never change, and which one of each name is current.
//!
//! Not here: what is in them, and how they are made from a bundle.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use protocol::{
    BlobHash, BlobName, BlobRef, LockedModel, Sha256, WorkflowName, WorkflowSelector, WorkflowVersion,
};

use crate::view::DeployedWorkflow;

/// All versions of all workflows.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    versions: BTreeMap<WorkflowVersion, Arc<DeployedWorkflow>>,
    current: BTreeMap<WorkflowName, u32>,
    /// The models of which a lockfile names the blob, by either name.
    models: BTreeMap<BlobHash, u64>,
    aliases: BTreeMap<Sha256, BlobRef>,
    /// What some lockfile says that peers may not have.
    private: BTreeSet<BlobName>,
}

impl Catalog {
    /// Keeps a version, without making it current.
    pub(crate) fn insert(&mut self, workflow: Arc<DeployedWorkflow>) {
        for LockedModel { blob, size, sha256, .. } in &workflow.models {
            let Some(hash) = *blob else { continue };
            self.models.insert(hash, *size);
            if let Some(sha256) = *sha256 {
                self.aliases.insert(sha256, BlobRef { hash, size: *size });
            }
        }
        self.private.extend(&workflow.private);
        // Versions that earlier releases wrote have no list of their own.
        let unshared = workflow.models.iter().filter(|model| !model.share);
        self.private.extend(unshared.flat_map(LockedModel::names));
        self.versions.insert(workflow.id.clone(), workflow);
    }

    /// The model that some lockfile names by this hash.
    pub(crate) fn model(&self, hash: BlobHash) -> Option<BlobRef> {
        self.models.get(&hash).map(|size| BlobRef { hash, size: *size })
    }

    /// The names of what peers may not have, as some lockfile says.
    pub(crate) fn private(&self) -> &BTreeSet<BlobName> {
        &self.private
    }

    /// The model that some lockfile names by both hashes.
    pub(crate) fn alias(&self, sha256: Sha256) -> Option<BlobRef> {
        self.aliases.get(&sha256).copied()
    }

    /// Makes a version the current one of its name.
    pub(crate) fn make_current(&mut self, id: &WorkflowVersion) {
        self.current.insert(id.name.clone(), id.version);
    }

    /// The number of the current version of each name.
    pub(crate) fn current(&self) -> &BTreeMap<WorkflowName, u32> {
        &self.current
    }

    /// The current version of each name.
    pub(crate) fn all_current(&self) -> impl Iterator<Item = &Arc<DeployedWorkflow>> {
        self.current.iter().filter_map(|(name, version)| {
            self.versions.get(&WorkflowVersion { name: name.clone(), version: *version })
        })
    }

    /// The version that the next deploy of this name gets.
    pub(crate) fn next_version(&self, name: &WorkflowName) -> u32 {
        let of_name = |id: &&WorkflowVersion| id.name == *name;
        self.versions.keys().filter(of_name).map(|id| id.version).max().unwrap_or(0) + 1
    }

    /// One version.
    pub(crate) fn get(&self, id: &WorkflowVersion) -> Option<&Arc<DeployedWorkflow>> {
        self.versions.get(id)
    }

    /// The version that a caller means.
    pub(crate) fn select(&self, selector: &WorkflowSelector) -> Option<&Arc<DeployedWorkflow>> {
        let version = selector.version.or_else(|| self.current.get(&selector.name).copied())?;
        self.versions.get(&WorkflowVersion { name: selector.name.clone(), version })
    }

    /// All, by name, the current version of each first and then the newest.
    pub(crate) fn list(&self) -> Vec<Arc<DeployedWorkflow>> {
        let mut list: Vec<_> = self.versions.values().cloned().collect();
        let is_older = |id: &WorkflowVersion| self.current.get(&id.name) != Some(&id.version);
        list.sort_by(|a, b| {
            let key = |workflow: &DeployedWorkflow| (is_older(&workflow.id), u32::MAX - workflow.id.version);
            a.id.name.cmp(&b.id.name).then_with(|| key(a).cmp(&key(b)))
        });
        list
    }
}
