//! From a deployment to a version of a workflow: what its nodes must have, and the blobs that they get.
//!
//! Not here: which number the version gets; the loop gives it when the deploy is applied.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh::identity::Identity;
use mesh::store::{BlobStore, StoreError};
use protocol::{
    Argument, BlobName, BlobRef, Bundle, Filling, Input, Interface, LockedModel, Lockfile, Parameters,
    Workflow, WorkflowVersion, fill,
};
use serde_json::Value;
use time::OffsetDateTime;

use crate::handle::Deployment;
use crate::view::{DeployedWorkflow, Requirements};

/// Prepares a version; its number is filled in later.
pub(super) async fn prepare(
    deployment: Deployment,
    blobs: &BlobStore,
    publisher: &Identity,
    deployed: OffsetDateTime,
) -> Result<DeployedWorkflow, StoreError> {
    let Deployment { name, bundle, interface, accept_attached, keep_signature, notes } = deployment;
    let document = serde_json::to_vec(&interface).expect("an interface has only text keys");
    let interface_blob = blobs.import_bytes(&document).await?;
    let filled = filled(&bundle, &interface);
    let models = models(&bundle, &filled);
    let unshared = bundle.lockfile.models.iter().filter(|model| !model.share);
    let private: Vec<BlobName> = unshared.flat_map(LockedModel::names).collect();
    // The coordinator is a peer like any other.
    blobs.keep_private(private.clone()).await?;
    let lockfile = bundle.lockfile.hash();
    let can_be_rebuilt = bundle.lockfile.comfyui.is_some();
    let document = match can_be_rebuilt {
        true => {
            let lockfile = signed(&bundle.lockfile, publisher, keep_signature);
            Some(blobs.import_bytes(&lockfile.to_canonical_json()).await?)
        }
        false => None,
    };
    let requirements = Requirements {
        classes: filled.classes(),
        models: folder_names(&models),
        accept_attached,
        lockfile: can_be_rebuilt.then_some(lockfile),
    };
    Ok(DeployedWorkflow {
        id: WorkflowVersion { name, version: 0 },
        bundle: bundle.hash(),
        lockfile,
        document,
        graph: bundle.manifest.workflow,
        interface_blob,
        inputs: bundle.manifest.inputs.clone(),
        requirements,
        models,
        private,
        interface: Arc::new(interface),
        notes,
        deployed,
    })
}

/// The lockfile with a signature: that of whoever made the bundle, where it is to be kept, or else the farm's.
fn signed(lockfile: &Lockfile, publisher: &Identity, keep: bool) -> Lockfile {
    let mut lockfile = lockfile.clone();
    if !keep || lockfile.verify().is_err() {
        lockfile.sign(publisher.signing_key());
    }
    lockfile
}

/// The graph that nodes execute: where ops are replaced, its classes are not those of the deployed one.
fn filled(bundle: &Bundle, interface: &Interface) -> Workflow {
    let parameters: Parameters = interface.inputs.iter().map(stand_in).collect();
    let filling = Filling { output_prefix: String::new(), inputs: bundle.manifest.inputs.clone() };
    let filled = fill(&bundle.workflow, interface, &parameters, &filling).map(|filled| filled.workflow);
    // A graph that cannot be filled is told by its first run; its own classes are the best guess.
    filled.unwrap_or_else(|_| bundle.workflow.clone())
}

/// Any value for an input: only the graph's classes are looked at.
fn stand_in(input: &Input) -> (String, Argument) {
    let argument = match input.takes_file() {
        true => Argument::file(BlobRef::of(b""), "file"),
        false => Argument::Value(input.default.clone().unwrap_or(Value::Null)),
    };
    (input.name.clone(), argument)
}

/// The models that are in the lockfile and in the graph. A lockfile often lists all that lay in its
/// author's folders.
fn models(bundle: &Bundle, workflow: &Workflow) -> Vec<LockedModel> {
    let values = workflow.iter().flat_map(|(_, op)| op.inputs.values());
    let named: BTreeSet<&str> = values.filter_map(Value::as_str).collect();
    let is_named = |model: &&LockedModel| {
        let name = folder_name(model).and_then(|path| path.split_once('/'));
        !model.disabled && name.is_some_and(|(_, name)| named.contains(name))
    };
    bundle.lockfile.models.iter().filter(is_named).cloned().collect()
}

/// The models as ComfyUI lists them: `folder/name`.
fn folder_names(models: &[LockedModel]) -> BTreeSet<String> {
    models.iter().filter_map(folder_name).map(str::to_owned).collect()
}

fn folder_name(model: &LockedModel) -> Option<&str> {
    model.path.as_str().strip_prefix("models/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn signature_of_a_publisher_stays_only_where_it_is_kept_and_good() {
        let (farm, author) = (Identity::generate().expect("a key"), Identity::generate().expect("a key"));
        let signer =
            |lockfile: &Lockfile, keep: bool| signed(lockfile, &farm, keep).verify().expect("signed").0;
        let mut lockfile = Lockfile::default();
        assert_eq!(signer(&lockfile, true), farm.peer().0);
        lockfile.sign(author.signing_key());
        assert_eq!(signer(&lockfile, false), farm.peer().0);
        assert_eq!(signer(&lockfile, true), author.peer().0);
        lockfile.python = Some("3.11".parse().expect("a version"));
        assert_eq!(signer(&lockfile, true), farm.peer().0);
    }

    #[test]
    fn nodes_need_what_the_filled_graph_uses_and_not_what_was_replaced() {
        let graph = br#"{
            "1": {"class_type": "CPackInputImage", "_meta": {"title": "picture"}, "inputs": {"image": "cat.png"}},
            "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
            "3": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd/a.safetensors"}},
            "9": {"class_type": "CPackOutputImage", "_meta": {"title": "out"}, "inputs": {"images": ["2", 0]}}
        }"#;
        let mut bundle = Bundle::from_workflow(graph, &mut |_, reader| {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes)?;
            Ok(BlobRef::of(&bytes))
        })
        .expect("a good graph");
        for path in ["models/checkpoints/sd/a.safetensors", "models/loras/unused.safetensors"] {
            let model = serde_json::json!({"path": path, "size": 1, "sources": [], "disabled": false});
            bundle.lockfile.models.push(serde_json::from_value(model).expect("a good model"));
        }
        let interface = Interface::of(&bundle.workflow).expect("has inputs and outputs");
        let filled = filled(&bundle, &interface);
        let classes = names(&["CheckpointLoaderSimple", "ImageInvert", "LoadImage", "SaveImage"]);
        assert_eq!(filled.classes(), classes);
        let models = folder_names(&models(&bundle, &filled));
        assert_eq!(models, names(&["checkpoints/sd/a.safetensors"]));
    }
}
