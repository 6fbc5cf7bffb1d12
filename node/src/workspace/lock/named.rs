//! The files that a workflow names: its models, wherever ComfyUI finds them, and what lies in the input folder.
//!
//! A workflow does not say which folder an input is of, so a model's name is looked for in those of every kind.
//! Not here: what the files hold.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use mesh::folders::paths::{ModelFolder, listed_folders, private_paths};
use protocol::{ModelPath, Workflow};

use super::{Findings, LockError};
use crate::engine::comfyui::models::names_a_model;

/// ComfyUI's list of folders elsewhere.
const EXTRA_PATHS: &str = "extra_model_paths.yaml";
/// How deep a model may lie in a folder that no list names.
const MAX_DEPTH: usize = 8;
/// How ComfyUI marks which of its folders a file is of.
const MARK_OF_INPUTS: &str = " [input]";

/// A model, and the file that it is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ModelFile {
    /// Where it goes in a ComfyUI folder.
    pub(super) path: ModelPath,
    /// Where it lies here.
    pub(super) file: PathBuf,
    /// Whether its owner gives it to nobody.
    pub(super) is_private: bool,
}

/// Where models lie.
#[derive(Debug)]
pub(super) struct ModelFolders {
    /// Folders like `models`, in which each kind has a folder.
    roots: Vec<PathBuf>,
    /// The folder of each kind, in the order in which they are searched.
    kinds: Vec<ModelFolder>,
    /// What their owner gives to nobody.
    private: Vec<PathBuf>,
}

impl ModelFolders {
    /// Those of a ComfyUI and these.
    pub(super) fn of(comfyui: &Path, others: &[PathBuf]) -> Result<Self, LockError> {
        let roots: Vec<PathBuf> =
            [comfyui.join("models")].into_iter().chain(others.iter().cloned()).collect();
        let mut kinds = Vec::new();
        for root in &roots {
            let entries = fs::read_dir(root).map_err(|source| LockError::io(root, source))?;
            let folders = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
            let mut folders: Vec<ModelFolder> =
                folders.filter_map(|path| Some(ModelFolder { kind: name_of(&path)?, path })).collect();
            folders.sort_by(|a, b| a.kind.cmp(&b.kind));
            kinds.extend(folders);
        }
        let extra = comfyui.join(EXTRA_PATHS);
        if extra.is_file() {
            let listed = listed_folders(&extra).map_err(|source| LockError::io(&extra, source))?;
            kinds.extend(listed.into_iter().filter(|folder| folder.path.is_dir()));
        }
        let mut private = Vec::new();
        for folder in roots.iter().chain(kinds.iter().map(|folder| &folder.path)) {
            private.extend(private_paths(folder).map_err(|source| LockError::io(folder, source))?);
        }
        Ok(Self { roots, kinds, private })
    }

    /// Every file that may be meant by a model's name.
    fn find(&self, name: &str) -> Vec<ModelFile> {
        let Some(name) = below(name) else { return Vec::new() };
        let places = self
            .kinds
            .iter()
            .map(|folder| (format!("models/{}/{name}", folder.kind), folder.path.join(&name)));
        let found: Vec<ModelFile> = places.filter_map(|(path, file)| self.model_file(&path, file)).collect();
        if found.is_empty() { self.find_deeper(&name) } else { found }
    }

    /// Files whose path ends like this: some custom nodes have folders in folders.
    fn find_deeper(&self, name: &str) -> Vec<ModelFile> {
        let mut found = Vec::new();
        for root in &self.roots {
            let mut open = vec![(root.clone(), 0)];
            while let Some((folder, depth)) = open.pop() {
                let below = folder.strip_prefix(root).unwrap_or(&folder).join(name);
                found.extend(self.model_file(&format!("models/{}", below.display()), folder.join(name)));
                let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
                // No links, which may lead back.
                let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                if depth < MAX_DEPTH {
                    open.extend(folders.map(|entry| (entry.path(), depth + 1)));
                }
            }
        }
        found
    }

    fn model_file(&self, path: &str, file: PathBuf) -> Option<ModelFile> {
        let path = path.parse().ok().filter(|_| file.is_file())?;
        let is_private = self.private.iter().any(|private| file.starts_with(private));
        Some(ModelFile { path, file, is_private })
    }
}

/// The models that a workflow names, each once.
pub(super) fn models(workflow: &Workflow, folders: &ModelFolders, findings: &mut Findings) -> Vec<ModelFile> {
    let mut models = BTreeMap::new();
    for Text { op, class, input, text } in texts(workflow).filter(|text| names_a_model(text.text)) {
        let found = folders.find(text);
        if found.is_empty() {
            findings.lacking.push(format!(
                "{} which op `{op}` ({class}) names for `{input}`: it is in no folder of models; if its custom node \
                 fetches it, `--trace` takes it along",
                lacking_model(text)
            ));
        }
        for model in found {
            models.entry(model.path.clone()).or_insert(model);
        }
    }
    models.into_values().collect()
}

/// How it begins to be told that a model of this name is not there.
fn lacking_model(name: &str) -> String {
    format!("model `{name}`,")
}

/// Whether these words tell that a model is not there which is the one at this path.
pub(super) fn is_lacking_model(words: &str, path: &ModelPath) -> bool {
    let name = words.strip_prefix("model `").and_then(|rest| Some(rest.split_once("`,")?.0));
    let folder = name.and_then(below).and_then(|name| path.as_str().strip_suffix(&name));
    folder.is_some_and(|folder| folder.ends_with('/'))
}

/// The input files that a workflow names, by their path in the input folder.
pub(super) fn inputs(
    workflow: &Workflow,
    folder: &Path,
    findings: &mut Findings,
) -> BTreeMap<String, PathBuf> {
    let mut inputs = BTreeMap::new();
    for Text { op, class, input, text } in texts(workflow).filter(|text| !names_a_model(text.text)) {
        let name = text.strip_suffix(MARK_OF_INPUTS).unwrap_or(text);
        let file = below(name).map(|name| (folder.join(&name), name));
        match file.filter(|(file, _)| file.is_file()) {
            Some((file, name)) => {
                inputs.insert(name, file);
            }
            None if is_loaded(class, input, name) => findings.lacking.push(format!(
                "input `{text}`, which op `{op}` ({class}) reads: it is not in `{}`",
                folder.display()
            )),
            None => {}
        }
    }
    inputs
}

/// A text that an op is given.
struct Text<'a> {
    op: &'a str,
    class: &'a str,
    input: &'a str,
    text: &'a str,
}

fn texts(workflow: &Workflow) -> impl Iterator<Item = Text<'_>> {
    let inputs = workflow.iter().flat_map(|(id, op)| op.inputs.iter().map(move |input| (id, op, input)));
    inputs.filter_map(|(op, of, (input, value))| {
        Some(Text { op, class: &of.class_type, input, text: value.as_str()? })
    })
}

/// Whether an op of ComfyUI itself reads an input file by this name.
fn is_loaded(class: &str, input: &str, name: &str) -> bool {
    let loads = ["LoadImage", "LoadImageMask", "LoadAudio", "LoadVideo"].contains(&class);
    loads && ["image", "audio", "file"].contains(&input) && !name.ends_with(']')
}

/// A path that leads down, with `/` between its parts; `None` for others.
fn below(name: &str) -> Option<String> {
    let name = name.replace('\\', "/");
    let is_down = Path::new(&name).components().all(|part| matches!(part, Component::Normal(_)));
    (is_down && !name.is_empty() && !name.ends_with('/')).then_some(name)
}

fn name_of(path: &Path) -> Option<String> {
    path.file_name()?.to_str().map(str::to_owned)
}
