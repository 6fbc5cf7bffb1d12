//! `comfy-farm bundle show`.

use mesh::store::ByteSize;
use protocol::{Bundle, LockedModel};
use serde_json::json;

use super::{BundleArguments, also_at, api, name_and_version, pinned, read};
use crate::show;

pub(super) fn show(arguments: &BundleArguments) -> anyhow::Result<()> {
    let bundle = read(&arguments.file)?;
    if arguments.json {
        show::json(&json!({
            "bundle": bundle.hash(),
            "lockfile_hash": bundle.lockfile.hash(),
            "manifest": bundle.manifest,
            "lockfile": bundle.lockfile,
            "repairs": bundle.repairs,
        }));
        return Ok(());
    }
    print!("{}", words(&bundle));
    Ok(())
}

fn words(bundle: &Bundle) -> String {
    let mut lines = vec![format!("bundle    {}", bundle.hash())];
    let lockfile = &bundle.lockfile;
    lines.push(format!("lockfile  {}", lockfile.hash()));
    if let Some(python) = &lockfile.python {
        lines.push(format!("Python    {python}"));
    }
    if let Some(pin) = &lockfile.comfyui {
        lines.push(format!("ComfyUI   {} of {}{}", pin.commit, pin.url, also_at(&pin.mirrors)));
    }
    lines.push(format!("API       {}", api(bundle)));
    let list = |lines: &mut Vec<String>, title: &str, entries: Vec<String>| {
        if !entries.is_empty() {
            lines.push(format!("\n{title} ({})", entries.len()));
            lines.extend(entries.into_iter().map(|entry| format!("  {entry}")));
        }
    };
    let nodes = lockfile.custom_nodes.iter().map(name_and_version);
    list(&mut lines, "custom nodes", nodes.map(|(name, version)| format!("{name}  {version}")).collect());
    let packages =
        lockfile.packages.iter().map(|package| format!("{}  {}", package.name, pinned(package))).collect();
    list(&mut lines, "packages", packages);
    list(&mut lines, "models", lockfile.models.iter().map(|model| one_model(model, bundle)).collect());
    let system = lockfile.system.iter().map(|(kind, need)| format!("{kind} {need}"));
    list(&mut lines, "needs of the system", system.collect());
    let inputs = bundle.manifest.inputs.iter().map(|(name, blob)| format!("{name}  {}", ByteSize(blob.size)));
    list(&mut lines, "inputs", inputs.collect());
    list(&mut lines, "repaired", bundle.repairs.iter().map(ToString::to_string).collect());
    lines.push(String::new());
    lines.join("\n")
}

fn one_model(model: &LockedModel, bundle: &Bundle) -> String {
    let name = match (&model.blob, &model.sha256) {
        (Some(blob), _) => blob.to_string(),
        (None, Some(sha256)) => format!("sha256:{sha256}"),
        (None, None) => "no hash".to_owned(),
    };
    let off = if model.disabled { ", switched off" } else { "" };
    let mut line = format!("{}  {}{off}\n    {name}", model.path, ByteSize(model.size));
    if model.blob.is_some_and(|blob| bundle.travelling.contains(&blob)) {
        line.push_str("\n    travels with the bundle");
    }
    model.sources.iter().for_each(|source| line.push_str(&format!("\n    {}", source.url)));
    line
}
