//! `comfy-farm bundle verify`: what another machine could not rebuild from a bundle, and why.

use protocol::{Bundle, CustomNode, SignatureError};
use serde_json::json;

use super::{BundleArguments, read};
use crate::failure::Failure;
use crate::show;

pub(super) fn verify(arguments: &BundleArguments) -> anyhow::Result<()> {
    let bundle = read(&arguments.file)?;
    let lacking = lacking(&bundle);
    let signed = match bundle.lockfile.verify() {
        Ok(publisher) => format!("signed by {publisher}"),
        Err(SignatureError::Unsigned) => "not signed: whoever deploys it vouches for it".to_owned(),
        Err(SignatureError::Wrong) => {
            return Err(Failure::Input(SignatureError::Wrong.to_string()).into());
        }
    };
    if arguments.json {
        show::json(&json!({
            "bundle": bundle.hash(), "signed": signed, "lacking": lacking, "repairs": bundle.repairs,
        }));
    } else {
        println!("bundle {} can be read; {signed}", bundle.hash());
        bundle.repairs.iter().for_each(|repair| println!("repaired  {repair}"));
        lacking.iter().for_each(|lacking| println!("lacking   {lacking}"));
    }
    match lacking.len() {
        0 => Ok(()),
        count => {
            Err(Failure::Input(format!("not all can be rebuilt from the bundle alone: {count} lacking"))
                .into())
        }
    }
}

/// What the lockfile does not say and a rebuild would need.
fn lacking(bundle: &Bundle) -> Vec<String> {
    let mut lacking = Vec::new();
    match bundle.interface() {
        Err(error) => lacking.push(format!("an interface: {error}")),
        Ok(interface) if interface.outputs.is_empty() => lacking.push(
            "an interface: whoever deploys it has to name its inputs and outputs; \
             `comfy-farm pack --input NAME=NODE.FIELD --output NODE` records them"
                .to_owned(),
        ),
        Ok(_) => {}
    }
    let lockfile = &bundle.lockfile;
    if lockfile.python.is_none() {
        lacking.push("the version of Python".to_owned());
    }
    if lockfile.comfyui.is_none() {
        lacking.push("the commit of ComfyUI".to_owned());
    }
    for node in lockfile.custom_nodes.iter().filter(|node| !node.is_disabled() && !node.comes_with_comfyui())
    {
        let name = match node {
            CustomNode::File { name, .. } => name.to_string(),
            // Where the registry has it.
            CustomNode::Registry { .. } | CustomNode::Git { .. } | CustomNode::Carried { .. } => continue,
        };
        lacking.push(format!(
            "custom node `{name}`: a single file, which the bundle does not carry; a workspace is built without it, and `comfy-farm pack` takes it along"
        ));
    }
    for model in lockfile.models.iter().filter(|model| !model.disabled) {
        let path = &model.path;
        match (&model.blob, &model.sha256) {
            (None, None) => lacking.push(format!(
                "model `{path}`: it has no hash, so a node must have it in a model folder of its own"
            )),
            (Some(blob), _) if bundle.travelling.contains(blob) => {}
            _ if model.sources.is_empty() => {
                lacking.push(format!("model `{path}`: it has no source; a peer that holds it is needed"));
            }
            _ => {}
        }
    }
    lacking
}
