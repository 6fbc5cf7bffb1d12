//! What a lockfile's versions of the Comfy registry come to: as the farm knows it, else as this node found it, else as
//! the registry says now.
//!
//! What the registry does not have is left out, and the proof decides whether anybody needed it; what cannot be asked at
//! the moment fails. Not here: how the registry is asked.

use std::collections::BTreeSet;

use mesh::store::BlobHold;
use protocol::{
    BlobRef, CustomNode, Lockfile, MAX_CARRIED, PrepareStep, RegistryNode, RegistryPin, Resolution,
    error_chain,
};

use super::files::Files;
use super::{Assembler, failed};
use crate::workspace::log::PrepareLog;
use crate::workspace::prepare::BuildError;
use crate::workspace::record::WorkspaceRecord;
use crate::workspace::registry::{Given, RegistryError};

impl Assembler {
    /// What each version of the Comfy registry comes to, in the order of the lockfile.
    pub(super) async fn registry_nodes(
        &self,
        lockfile: &Lockfile,
        known: &Resolution,
        record: &WorkspaceRecord,
        files: &Files<'_>,
        log: &PrepareLog,
        holds: &mut Vec<BlobHold>,
    ) -> Result<Vec<RegistryNode>, BuildError> {
        let store = self.reach.exchange.store();
        let (mut nodes, mut seen) = (Vec::new(), BTreeSet::new());
        for pin in lockfile.custom_nodes.iter().filter_map(CustomNode::registry) {
            if !seen.insert((pin.id.clone(), pin.version.clone())) {
                continue;
            }
            // Also where peers give it: it is code of that host.
            let host = self.registry.host();
            if !self.policy.allows_host(host) {
                return Err(refused(RegistryError::Host { node: pin.to_string(), host: host.to_owned() }));
            }
            // Whoever reported it may have made the size up.
            let is_taken = |node: &&RegistryNode| node.files.is_none_or(|files| files.size <= MAX_CARRIED);
            if let Some(node) = known.registry_node(&pin).filter(is_taken) {
                holds.extend(node.files.map(|files| store.hold(files.hash)));
                nodes.push(node.clone());
                continue;
            }
            let found = record.registry.iter().find(|node| node.pin == pin).and_then(|node| node.files);
            let files = match found {
                Some(found) if store.check(found.hash).await.map_err(failed)? == Some(found) => Some(found),
                _ => self.ask_registry(&pin, files, log).await?,
            };
            holds.extend(files.map(|files| store.hold(files.hash)));
            nodes.push(RegistryNode { pin, files });
        }
        Ok(nodes)
    }

    /// Has the files of those versions here that the code still needs and no peer gives.
    pub(super) async fn registry_files(
        &self,
        nodes: &[RegistryNode],
        files: &Files<'_>,
        log: &PrepareLog,
    ) -> Result<(), BuildError> {
        for RegistryNode { pin, files: archive } in nodes {
            let Some(archive) = archive else { continue };
            if self.reach.exchange.store().check(archive.hash).await.map_err(failed)? == Some(*archive) {
                continue;
            }
            let part = files.steps.part(PrepareStep::Code);
            let came = files.blob_as(*archive, &part).await;
            // It counts once, as the code takes it.
            part.set(0);
            match came {
                Ok(_) => continue,
                Err(BuildError::Canceled) => return Err(BuildError::Canceled),
                Err(error) => log.line(&format!("custom node `{pin}` comes from no peer: {error}")),
            }
            if self.ask_registry(pin, files, log).await? != Some(*archive) {
                return Err(BuildError::Failed(format!(
                    "custom node `{pin}`: no peer gives the files that the farm knows it by, and the Comfy registry gives \
                     others"
                )));
            }
        }
        Ok(())
    }

    /// Takes a version from the registry, as a blob of this node; `None` where the registry does not give it.
    async fn ask_registry(
        &self,
        pin: &RegistryPin,
        files: &Files<'_>,
        log: &PrepareLog,
    ) -> Result<Option<BlobRef>, BuildError> {
        let drafts = self.root.join("registry");
        std::fs::create_dir_all(&drafts).map_err(failed)?;
        let given = files.cancel.run_until_cancelled(self.registry.get(pin, &drafts)).await;
        let given = given.ok_or(BuildError::Canceled)?;
        match given.map_err(|error| if error.is_refusal() { refused(error) } else { failed(error) })? {
            Given::Archive(archive) => {
                let store = self.reach.exchange.store();
                let archive = store.import_file(archive.path()).await.map_err(failed)?;
                log.line(&format!("custom node `{pin}` comes from the Comfy registry"));
                Ok(Some(archive))
            }
            Given::Nothing(reason) => {
                log.line(&format!("custom node `{pin}` cannot be had: {reason}"));
                Ok(None)
            }
        }
    }
}

fn refused(error: RegistryError) -> BuildError {
    BuildError::Refused(error_chain(&error))
}
