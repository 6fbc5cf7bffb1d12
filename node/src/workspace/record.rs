//! What a workspace consists of, on disk beside it: so that whoever looks after a node's disk knows what belongs to
//! what.
//!
//! It is there as soon as anything is made for the workspace. The file's time is that of its last use. Not here: who
//! reads it, which is `care`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use protocol::{CodeHash, CodeSpec, CustomNode, EnvironmentKey, Lockfile, RegistryNode, WorkflowVersion};
use serde::{Deserialize, Serialize};

use super::system;
use crate::os::file::replace;

/// Its name in the folder of a workspace.
const FILE: &str = "workspace.json";

/// What one workspace consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceRecord {
    /// All that it pins.
    pub lockfile: Lockfile,
    /// For which workflows it was wanted, as `name@version`.
    pub workflows: BTreeSet<String>,
    /// What its custom nodes of the Comfy registry came to, as far as that is known.
    #[serde(default)]
    pub registry: Vec<RegistryNode>,
    /// Its environment, once there is one.
    pub environment: Option<EnvironmentKey>,
}

impl WorkspaceRecord {
    /// That of a workspace which is about to be made: what an earlier attempt knew stays known.
    pub(super) fn begin(folder: &Path, lockfile: &Lockfile, workflow: &WorkflowVersion) -> io::Result<Self> {
        let fresh = Self {
            lockfile: lockfile.clone(),
            workflows: BTreeSet::new(),
            registry: Vec::new(),
            environment: None,
        };
        let mut record = Self::load(folder).ok().flatten().unwrap_or(fresh);
        record.lockfile = lockfile.clone();
        record.workflows.insert(workflow.to_string());
        record.save(folder)?;
        Ok(record)
    }

    /// The one in the folder of a workspace; `None` where there is none.
    pub fn load(folder: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(folder.join(FILE)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes it, unless it is there as it is: being made again is no use.
    pub(super) fn save(&self, folder: &Path) -> io::Result<()> {
        if Self::load(folder).is_ok_and(|known| known.as_ref() == Some(self)) {
            return Ok(());
        }
        std::fs::create_dir_all(folder)?;
        replace(&folder.join(FILE), &serde_json::to_vec(self)?)
    }

    /// What the code tree that it works in is made of.
    pub fn code_spec(&self) -> CodeSpec {
        CodeSpec::of(&self.lockfile, &self.registry)
    }

    /// The code tree that it works in.
    pub fn code(&self) -> CodeHash {
        self.code_spec().hash()
    }

    /// What it is without, because nobody can give it or this machine lacks it; in words. Blocks.
    pub fn left_out(&self) -> Vec<String> {
        let told = |node: CustomNode| match node {
            CustomNode::Registry { id, version } => {
                format!("custom node `{id} {version}` is left out: the Comfy registry does not give it")
            }
            CustomNode::File { name, .. } => format!(
                "custom node `{name}` is left out: the bundle does not carry this file, as one of `comfy-farm pack` does"
            ),
            CustomNode::Git { url, .. } => format!("custom node `{url}` is left out"),
            CustomNode::Carried { name, .. } => format!("custom node `{name}` is left out"),
        };
        let nodes = CodeSpec::left_out(&self.lockfile, &self.registry).into_iter().map(told);
        nodes.chain(system::lacking(&self.lockfile.system)).collect()
    }

    /// When a workspace was last used.
    pub fn used(folder: &Path) -> io::Result<SystemTime> {
        std::fs::metadata(folder.join(FILE))?.modified()
    }

    /// Notes that a workspace is used now.
    pub(super) fn note_use(folder: &Path) -> io::Result<()> {
        File::open(folder.join(FILE))?.set_modified(SystemTime::now())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn record_keeps_what_is_known_and_only_a_use_changes_its_time() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let workspace = folder.path().join("ready");
        assert_eq!(WorkspaceRecord::load(&workspace).expect("none yet"), None);
        let version = |version| WorkflowVersion { name: "fox".parse().expect("a name"), version };
        let lockfile = Lockfile::default();
        let mut record = WorkspaceRecord::begin(&workspace, &lockfile, &version(1)).expect("written");
        record.environment = Some(EnvironmentKey(protocol::BlobHash([7; 32])));
        record.save(&workspace).expect("written");
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let file = File::open(workspace.join(FILE)).expect("there");
        file.set_modified(long_ago).expect("own file");
        assert_eq!(WorkspaceRecord::begin(&workspace, &lockfile, &version(1)).expect("the same"), record);
        assert_eq!(WorkspaceRecord::used(&workspace).expect("there"), long_ago);
        WorkspaceRecord::note_use(&workspace).expect("own file");
        assert!(WorkspaceRecord::used(&workspace).expect("there") > long_ago);
        let again = WorkspaceRecord::begin(&workspace, &lockfile, &version(2)).expect("written");
        assert_eq!(again.environment, record.environment);
        assert_eq!(again.workflows.into_iter().collect::<Vec<_>>(), ["fox@1", "fox@2"]);
    }
}
