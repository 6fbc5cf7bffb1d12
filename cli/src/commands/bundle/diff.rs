//! `comfy-farm bundle diff`: how two bundles differ, part by part.

use std::collections::BTreeMap;

use mesh::store::ByteSize;
use protocol::Bundle;
use serde::Serialize;
use serde_json::json;

use super::{DiffArguments, also_at, name_and_version, pinned, read};
use crate::show;

/// A part that is not the same in both.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Change {
    /// What kind of part it is.
    part: &'static str,
    /// Which one.
    name: String,
    /// What the older bundle has; absent where it has none.
    old: Option<String>,
    /// What the newer bundle has; absent where it has none.
    new: Option<String>,
}

pub(super) fn diff(arguments: &DiffArguments) -> anyhow::Result<()> {
    let (old, new) = (read(&arguments.old)?, read(&arguments.new)?);
    let changes = changes(&old, &new);
    if arguments.json {
        show::json(&json!({ "old": old.hash(), "new": new.hash(), "changes": changes }));
        return Ok(());
    }
    if changes.is_empty() {
        println!("no difference");
    }
    for Change { part, name, old, new } in &changes {
        match (old, new) {
            (None, Some(new)) => println!("+ {part} {name}: {new}"),
            (Some(old), None) => println!("- {part} {name}: {old}"),
            (Some(old), Some(new)) => println!("~ {part} {name}: {old} -> {new}"),
            (None, None) => {}
        }
    }
    Ok(())
}

fn changes(old: &Bundle, new: &Bundle) -> Vec<Change> {
    let (old, new) = (parts(old), parts(new));
    let names: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let changed = names.into_iter().filter(|name| old.get(name) != new.get(name));
    changed
        .map(|key| Change {
            part: key.0,
            name: key.1.clone(),
            old: old.get(key).cloned(),
            new: new.get(key).cloned(),
        })
        .collect()
}

/// Every part of a bundle, and what it is.
fn parts(bundle: &Bundle) -> BTreeMap<(&'static str, String), String> {
    let mut parts = BTreeMap::new();
    let lockfile = &bundle.lockfile;
    if let Some(python) = &lockfile.python {
        parts.insert(("Python", String::new()), python.to_string());
    }
    if let Some(pin) = &lockfile.comfyui {
        parts.insert(("ComfyUI", pin.url.to_string()), format!("{}{}", pin.commit, also_at(&pin.mirrors)));
    }
    for node in &lockfile.custom_nodes {
        let (name, version) = name_and_version(node);
        parts.insert(("custom node", name), version);
    }
    for package in &lockfile.packages {
        parts.insert(("package", package.name.to_string()), pinned(package).to_owned());
    }
    for model in &lockfile.models {
        let name = match (&model.sha256, &model.blob) {
            (Some(sha256), _) => format!("sha256:{sha256}"),
            (None, Some(blob)) => blob.to_string(),
            (None, None) => "no hash".to_owned(),
        };
        let off = if model.disabled { ", switched off" } else { "" };
        parts.insert(("model", model.path.to_string()), format!("{}, {name}{off}", ByteSize(model.size)));
    }
    for (kind, need) in lockfile.system.iter() {
        let package = need.package.as_ref().map_or_else(String::new, ToString::to_string);
        parts.insert((kind, need.name.to_string()), package);
    }
    for (name, blob) in &bundle.manifest.inputs {
        parts.insert(("input", name.clone()), blob.hash.to_string());
    }
    for input in &bundle.manifest.interface.inputs {
        parts.insert(("API input", input.name.clone()), format!("{}.{}", input.op, input.field));
    }
    for op in &bundle.manifest.interface.outputs {
        parts.insert(("API output", op.clone()), String::new());
    }
    for (id, op) in bundle.workflow.iter() {
        let inputs = serde_json::to_string(&op.inputs).unwrap_or_default();
        parts.insert(("op", format!("{id} ({})", op.class_type)), inputs);
    }
    parts
}
