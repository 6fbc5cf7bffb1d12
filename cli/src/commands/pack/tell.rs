//! What `pack` says of the bundle that it made: its parts, and what another machine will lack.
//!
//! Not here: what is recorded, and why.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mesh::store::ByteSize;
use node::workspace::lock::Locked;
use node::workspace::lock::lookup::Answer;
use node::workspace::lock::lookup::indexes::Unresolved;
use protocol::{Bundle, LockedModel, ModelPath};
use serde_json::json;

use super::PackArguments;
use super::origins::as_json;
use crate::commands::bundle::{also_at, api, name_and_version};
use crate::show;

/// What asking others brought.
pub(super) struct Found {
    /// What was said of the models.
    pub(super) answers: Vec<Answer>,
    /// The packages whose files nobody knows; `None` where nobody was asked.
    pub(super) unresolved: Option<Vec<Unresolved>>,
    /// What the workflow fetched that is too large to travel, and that nobody is known to have.
    pub(super) kept: Vec<ModelPath>,
    /// Where that is kept.
    pub(super) folder: PathBuf,
}

impl Found {
    /// What of the packages is not proven, each reason once.
    fn unproven(&self) -> Vec<String> {
        let Some(unresolved) = &self.unresolved else {
            return vec!["packages have no hashes, because nobody was asked (`--offline`)".to_owned()];
        };
        let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for Unresolved { package, version, reason } in unresolved {
            reasons.entry(reason).or_default().push(format!("`{package}` {version}"));
        }
        reasons.iter().map(|(reason, names)| format!("no hash of {}: {reason}", names.join(", "))).collect()
    }
}

/// Tells what was packed, on standard output.
pub(super) fn tell(
    arguments: &PackArguments,
    path: &Path,
    bundle: &Bundle,
    locked: &Locked,
    found: &Found,
) -> anyhow::Result<()> {
    let size = std::fs::metadata(path)?.len();
    let lockfile = &locked.lockfile;
    let travels = |model: &LockedModel| model.blob.is_some_and(|blob| bundle.travelling.contains(&blob));
    let lacks_source = |model: &&LockedModel| model.sources.is_empty() && !travels(model);
    let unsourced: Vec<&LockedModel> = lockfile.models.iter().filter(lacks_source).collect();
    if arguments.json {
        show::json(&json!({
            "file": path,
            "size": size,
            "bundle": bundle.hash(),
            "lockfile_hash": lockfile.hash(),
            "lockfile": lockfile,
            "inputs": bundle.manifest.inputs,
            "interface": bundle.manifest.interface,
            "notes": locked.notes,
            "lacking": locked.lacking,
            "asked": found.answers.iter().map(as_json).collect::<Vec<_>>(),
            "unresolved": found.unresolved.iter().flatten().map(|Unresolved { package, version, reason }| {
                json!({ "package": package, "version": version, "reason": reason })
            }).collect::<Vec<_>>(),
            "kept": found.kept.iter().map(|path| found.folder.join(path.as_str())).collect::<Vec<_>>(),
            "without_source": unsourced.iter().map(|model| &model.path).collect::<Vec<_>>(),
        }));
        return Ok(());
    }
    println!("packed {}, {}", path.display(), ByteSize(size));
    println!("API       {}", api(bundle));
    if let Some(pin) = &lockfile.comfyui {
        println!("ComfyUI   {} of {}{}", pin.commit, pin.url, also_at(&pin.mirrors));
    }
    for node in &lockfile.custom_nodes {
        let (name, version) = name_and_version(node);
        println!("node      {name}  {version}");
    }
    if let Some(python) = &lockfile.python {
        let proven = lockfile.packages.iter().filter(|package| !package.hashes.is_empty()).count();
        println!("Python    {python} with {} packages, {proven} with hashes", lockfile.packages.len());
    }
    for model in &lockfile.models {
        let from = match model.sources.first() {
            _ if travels(model) => "  travels with the bundle".to_owned(),
            Some(source) => format!("  from {}", source.url),
            None => String::new(),
        };
        println!("model     {}  {}{from}", model.path, ByteSize(model.size));
    }
    for (name, blob) in &bundle.manifest.inputs {
        println!("input     {name}  {}", ByteSize(blob.size));
    }
    for (kind, need) in lockfile.system.iter() {
        println!("system    {kind} {need}");
    }
    locked.notes.iter().for_each(|note| println!("note      {note}"));
    found.unproven().iter().for_each(|words| println!("unproven  {words}"));
    locked.lacking.iter().for_each(|lacking| println!("lacking   {lacking}"));
    let (kept, unsourced): (Vec<_>, Vec<_>) =
        unsourced.into_iter().partition(|model| found.kept.contains(&model.path));
    if !kept.is_empty() {
        let (file, folder) = (path.display(), found.folder.display());
        println!(
            "\ntoo large to travel and known to be nowhere else, so kept in `{folder}`; `comfy-farm deploy {file} --models \
             {folder}` serves it from there until others have it, and `--source SHA256=URL` here makes nodes fetch it:"
        );
    }
    kept.iter().for_each(|model| println!("  {}", unsourced_line(model)));
    if !unsourced.is_empty() {
        println!(
            "\ndeploys only if a peer holds it (`--source SHA256=URL` or `--hf-repo OWNER/NAME` names where else it is):"
        );
    }
    unsourced.iter().for_each(|model| println!("  {}", unsourced_line(model)));
    Ok(())
}

/// A model and the hash by which a source of it is named.
fn unsourced_line(LockedModel { path, sha256, .. }: &LockedModel) -> String {
    format!("{path}  {}", sha256.map_or_else(String::new, |sha256| sha256.to_string()))
}
