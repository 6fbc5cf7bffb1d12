//! The files that a workflow names: its models, wherever ComfyUI finds them, and what lies in the input folder.
//!
//! A workflow does not say which folder an input is of, so a model's name is looked for in those of every kind.
//! Not here: what the files hold.

mod embeddings;
mod folders;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mesh::store::ByteSize;
use protocol::{ModelPath, Workflow, link_of};
use serde_json::Value;

use self::folders::below;
use super::Findings;
use crate::engine::comfyui::models::names_a_model;

pub(super) use folders::{ModelFile, ModelFolders};

/// How ComfyUI marks which of its folders a file is of.
const MARK_OF_INPUTS: &str = " [input]";
/// The longest text that is taken for a name: that of a path in the folders of models.
const LONGEST_NAME: usize = 512;
/// What `VAELoader` has by the name of two files.
const VAES_OF_TWO_FILES: [&str; 4] = ["taesd", "taesdxl", "taesd3", "taef1"];

/// What a workflow names.
#[derive(Debug, Default)]
pub(super) struct NamedFiles {
    /// Its models, each once.
    pub(super) models: BTreeMap<ModelPath, ModelFile>,
    /// Its input files, by their path in the input folder.
    pub(super) inputs: BTreeMap<String, PathBuf>,
}

/// The files that a workflow names. What looks like one and is none is told.
pub(super) fn files(
    workflow: &Workflow,
    folders: &ModelFolders,
    inputs: &Path,
    findings: &mut Findings,
) -> NamedFiles {
    let mut named = NamedFiles::default();
    for text in texts(workflow) {
        named.add_embeddings(&text, folders, findings);
        if text.input == "vae_name" && VAES_OF_TWO_FILES.contains(&text.text) {
            named.add_vae(&text, folders, findings);
        } else if text.text.len() <= LONGEST_NAME {
            named.add(&text, folders, inputs, findings);
        }
    }
    named
}

impl NamedFiles {
    /// What a text names as a whole.
    fn add(&mut self, named: &Text<'_>, folders: &ModelFolders, inputs: &Path, findings: &mut Findings) {
        let &Text { input, text, .. } = named;
        let is_model = names_a_model(text);
        if is_model && self.take(folders.find(text)) {
            return;
        }
        let name = text.strip_suffix(MARK_OF_INPUTS).unwrap_or(text);
        if let Some((file, name)) = below(name).map(|name| (inputs.join(&name), name))
            && file.is_file()
        {
            self.inputs.insert(name, file);
            return;
        }
        if is_model {
            findings.lacking.push(lacking_model(
                text,
                named,
                "in no folder of models; if its custom node fetches it, `--trace` takes it along",
            ));
            return;
        }
        let is_taken = may_be_a_path(text) && self.take(folders.find(text));
        if !is_taken && !self.add_folder(named, folders, findings) && is_loaded(named.class, input, name) {
            findings.lacking.push(format!(
                "input `{text}`, which {} reads: it is not in `{}`",
                named.op(),
                inputs.display()
            ));
        }
    }

    /// The files of a folder that is a model as a whole.
    fn add_folder(&mut self, named: &Text<'_>, folders: &ModelFolders, findings: &mut Findings) -> bool {
        let files = folders.find_folder(named.text);
        if !files.is_empty() {
            let size = files.iter().flat_map(|model| model.file.metadata()).map(|file| file.len()).sum();
            findings.notes.push(format!(
                "{} names the folder `{}`: all its {} files are models of the workflow, {} together",
                named.op(),
                named.text,
                files.len(),
                ByteSize(size)
            ));
        }
        self.take(files)
    }

    /// The embeddings that a prompt names in the middle of its words.
    fn add_embeddings(&mut self, named: &Text<'_>, folders: &ModelFolders, findings: &mut Findings) {
        for name in embeddings::names(named.text) {
            let bare = name.trim_matches(',');
            if !self.take(folders.find_embedding(&name)) && !self.take(folders.find_embedding(bare)) {
                findings.lacking.push(format!(
                    "embedding `{bare}`, which {} names for `{}`: it is in no folder of embeddings, and ComfyUI passes \
                     over it",
                    named.op(),
                    named.input
                ));
            }
        }
    }

    /// The two files of a VAE that has none of its own name.
    fn add_vae(&mut self, named: &Text<'_>, folders: &ModelFolders, findings: &mut Findings) {
        for half in ["encoder", "decoder"] {
            let name = format!("{}_{half}", named.text);
            if !self.take(folders.find_beginning("vae_approx", &format!("{name}."))) {
                findings.lacking.push(lacking_model(&name, named, "not in `models/vae_approx`"));
            }
        }
    }

    /// Adds these; whether there are any.
    fn take(&mut self, models: Vec<ModelFile>) -> bool {
        let is_any = !models.is_empty();
        self.models.extend(models.into_iter().map(|model| (model.path.clone(), model)));
        is_any
    }
}

fn lacking_model(name: &str, named: &Text<'_>, where_not: &str) -> String {
    let op = named.op();
    format!("model `{name}`, which {op} names for `{}`: it is {where_not}", named.input)
}

/// Whether these words tell that a model is not there which is the one at this path.
pub(super) fn is_lacking_model(words: &str, path: &ModelPath) -> bool {
    let name = words.strip_prefix("model `").and_then(|rest| Some(rest.split_once("`,")?.0));
    let folder = name.and_then(below).and_then(|name| path.as_str().strip_suffix(&name));
    folder.is_some_and(|folder| folder.ends_with('/'))
}

/// A text that an op is given.
struct Text<'a> {
    op: &'a str,
    class: &'a str,
    input: &'a str,
    text: &'a str,
}

impl Text<'_> {
    fn op(&self) -> String {
        format!("op `{}` ({})", self.op, self.class)
    }
}

/// All texts of a workflow, also those in lists and maps, as some custom nodes have their models in.
fn texts(workflow: &Workflow) -> Vec<Text<'_>> {
    let mut texts = Vec::new();
    for (op, of) in workflow.iter() {
        for (input, value) in &of.inputs {
            let mut open = vec![value];
            while let Some(value) = open.pop() {
                match value {
                    Value::String(text) => texts.push(Text { op, class: &of.class_type, input, text }),
                    Value::Array(values) if link_of(value).is_none() => open.extend(values),
                    Value::Object(values) => open.extend(values.values()),
                    _ => {}
                }
            }
        }
    }
    texts
}

/// Whether a text that does not look like a model by its ending could be the path of a file: it has folders or an ending.
fn may_be_a_path(text: &str) -> bool {
    let ending = Path::new(text).extension().and_then(|ending| ending.to_str());
    let has_ending = ending.is_some_and(|ending| ending.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    has_ending || text.contains(['/', '\\'])
}

/// Whether an op of ComfyUI itself reads an input file by this name.
fn is_loaded(class: &str, input: &str, name: &str) -> bool {
    let loads = ["LoadImage", "LoadImageMask", "LoadAudio", "LoadVideo"].contains(&class);
    loads && ["image", "audio", "file"].contains(&input) && !name.ends_with(']')
}
