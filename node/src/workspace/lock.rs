//! The way back: from somebody's working ComfyUI folder to the lockfile of one workflow.
//!
//! ```text
//! repositories   ComfyUI and each custom node -> upstream and commit; what differs is refused by name
//! carried        a custom node that travels with the bundle -> the archive of its files
//! packages       the Python that runs it -> its version and what is installed in it
//! system         what is installed there, and custom nodes -> the libraries and programs of the system that they need
//! named          the workflow -> the model and input files that it names
//! sources        a model file -> where else it can be fetched from, by what lies beside it
//! hub            a model file -> where on Hugging Face it is from, by the caches on this machine
//! trace          the workflow, run once -> the files that it fetches as it runs
//! lookup         the models that are left -> where those who publish models have them; packages -> their files' hashes
//! ```
//!
//! Only reads; all faults are found before the first model is hashed, and told together. Blocks, and asks nobody; only
//! `trace` and `lookup` do, and apart from the rest. Not here: the bundle that is made of it.

mod error;
mod repositories;
mod carried;
mod packages;
mod system;
mod named;
mod sources;
pub mod hub;
pub mod lookup;
pub mod trace;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mesh::folders::IndexProgress;
use mesh::folders::names::{FileNames, KnownNames, names_of};
use protocol::{HttpsUrl, LockedModel, Lockfile, Sha256, Source, Token, WebUrl, Workflow};

pub use carried::{CarriedNode, CarryError};
pub use error::{Fault, LockError, What};
pub use sources::without_token;

use named::{ModelFile, ModelFolders, NamedFiles};
use packages::Installed;

/// What is to be recorded.
#[derive(Clone, Copy, Debug)]
pub struct LockRequest<'a> {
    /// The folder of ComfyUI, with its `main.py`.
    pub comfyui: &'a Path,
    /// The workflow: only what it names of models and inputs is recorded.
    pub workflow: &'a Workflow,
    /// The Python that runs ComfyUI. Defaults to that of `venv` or `.venv` in its folder, else `python3`.
    pub python: Option<&'a Path>,
    /// Further folders like ComfyUI's `models`.
    pub models: &'a [PathBuf],
    /// Where models can be fetched from, by their SHA-256.
    pub sources: &'a [(Sha256, HttpsUrl)],
    /// The hub of Hugging Face, by whose addresses what lies in its caches is recorded.
    pub hub: &'a WebUrl,
    /// Caches of the hub on this machine.
    pub hub_caches: &'a [PathBuf],
    /// What is known of files already, so that they are not read again.
    pub known: &'a KnownNames,
    /// The custom nodes whose files are to travel with the bundle, by their names in `custom_nodes`.
    pub carry: &'a [String],
    /// The programs of the system that custom nodes call, as far as whoever packs knows them.
    pub programs: &'a [String],
    /// Whether the files of a custom node travel as well where they are not as its commit has them.
    pub carry_dirty: bool,
}

#[cfg(test)]
impl<'a> LockRequest<'a> {
    /// For this workflow in this folder, and nothing besides.
    fn bare(comfyui: &'a Path, workflow: &'a Workflow, hub: &'a WebUrl, known: &'a KnownNames) -> Self {
        Self {
            comfyui,
            workflow,
            python: None,
            models: &[],
            sources: &[],
            hub,
            hub_caches: &[],
            known,
            carry: &[],
            programs: &[],
            carry_dirty: false,
        }
    }
}

/// A folder as it was recorded.
#[derive(Debug, Default)]
pub struct Locked {
    /// Every version and model.
    pub lockfile: Lockfile,
    /// Where each model that the workflow names lies, in the order of the lockfile.
    pub model_files: Vec<PathBuf>,
    /// The input files that the workflow names, by their path in ComfyUI's input folder.
    pub inputs: BTreeMap<String, PathBuf>,
    /// The custom nodes that travel with the bundle.
    pub carried: Vec<CarriedNode>,
    /// The hashes of the files of this machine that packages were installed from.
    pub package_files: BTreeMap<Token, Sha256>,
    /// What was recorded otherwise than it lies there, in words.
    pub notes: Vec<String>,
    /// What a rebuild elsewhere will lack, in words.
    pub lacking: Vec<String>,
}

/// What was found out on the way.
#[derive(Debug, Default)]
struct Findings {
    notes: Vec<String>,
    lacking: Vec<String>,
    faults: Vec<Fault>,
    carried: Vec<CarriedNode>,
}

/// Records a folder. `tell` hears how far the hashing of the models is.
pub fn lock(request: &LockRequest<'_>, tell: &(dyn Fn(IndexProgress) + Sync)) -> Result<Locked, LockError> {
    let &LockRequest { comfyui, workflow, .. } = request;
    if !comfyui.join("main.py").is_file() || !comfyui.join("nodes.py").is_file() {
        return Err(LockError::NotComfyUi(comfyui.to_owned()));
    }
    let mut findings = Findings::default();
    let pin = repositories::comfyui(comfyui, &mut findings);
    let custom_nodes = repositories::custom_nodes(request, &mut findings)?;
    let Installed { python, packages, folders: sites, files: package_files } =
        packages::installed(comfyui, request.python, &mut findings)?;
    let system = system::needs(comfyui, sites, request.programs)?;
    let folders = ModelFolders::of(comfyui, request.models)?;
    let NamedFiles { models: files, inputs } =
        named::files(workflow, &folders, &comfyui.join("input"), &mut findings);
    if !findings.faults.is_empty() {
        return Err(LockError::Faults { folder: comfyui.to_owned(), faults: findings.faults });
    }
    let paths: Vec<PathBuf> = files.values().map(|file| file.file.clone()).collect();
    let names = names_of(&paths, request.known, tell)?;
    let model = |(file, names): (ModelFile, FileNames)| model(file, names, request, &mut findings.notes);
    let models = files.into_values().zip(names).map(model).collect();
    let lockfile = Lockfile {
        python: Some(python),
        comfyui: pin,
        custom_nodes,
        packages,
        models,
        system,
        ..Lockfile::default()
    };
    let Findings { notes, lacking, carried, .. } = findings;
    Ok(Locked { lockfile, model_files: paths, inputs, carried, package_files, notes, lacking })
}

fn model(
    ModelFile { path, file, is_private }: ModelFile,
    names: FileNames,
    request: &LockRequest<'_>,
    notes: &mut Vec<String>,
) -> LockedModel {
    let mut known = sources::beside(&file, names.sha256, notes);
    let cached = hub::cached(&file, names.sha256, names.blob.size, request.hub_caches);
    known.extend(
        cached.and_then(|cached| cached.repository.address(request.hub, &cached.commit, &cached.path)),
    );
    if is_private {
        notes.push(format!("model `{path}` is private where it lies: no peer will be given it"));
    }
    LockedModel {
        path,
        size: names.blob.size,
        sha256: Some(names.sha256),
        blob: Some(names.blob.hash),
        sources: sources_of(request, &names, known),
        disabled: false,
        share: !is_private,
    }
}

/// Where a file can be fetched from: what was given for it, and then what is known; each once.
fn sources_of(request: &LockRequest<'_>, names: &FileNames, known: Vec<HttpsUrl>) -> Vec<Source> {
    let given = request.sources.iter().filter(|(sha256, _)| *sha256 == names.sha256);
    let mut seen = BTreeSet::new();
    let urls = given.map(|(_, url)| url.clone()).chain(known).filter(|url| seen.insert(url.clone()));
    urls.map(|url| Source { url }).collect()
}

/// Refuses a source that was given for a file that the lockfile does not have: a typing error must be noticed.
pub fn check_sources(lockfile: &Lockfile, given: &[(Sha256, HttpsUrl)]) -> Result<(), LockError> {
    let is_used = |sha256: &Sha256| lockfile.models.iter().any(|model| model.sha256 == Some(*sha256));
    match given.iter().find(|(sha256, _)| !is_used(sha256)) {
        Some(&(sha256, _)) => Err(LockError::UnusedSource { sha256 }),
        None => Ok(()),
    }
}

/// The first few of a list in words, and how many more there are.
fn some_of(mut names: Vec<String>, most: usize) -> String {
    let more = names.len().saturating_sub(most);
    names.truncate(most);
    if more > 0 {
        names.push(format!("{more} more"));
    }
    names.join(", ")
}
