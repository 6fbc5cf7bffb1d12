//! Where models lie, and what of it a name means: a file, a folder of files, or an embedding.
//!
//! Not here: what of a workflow is a name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use mesh::folders::paths::{ModelFolder, listed_folders, private_paths};
use protocol::ModelPath;

use crate::engine::comfyui::models::names_a_model;
use crate::workspace::git::LocalRepository;
use crate::workspace::lock::LockError;

/// ComfyUI's list of folders elsewhere.
const EXTRA_PATHS: &str = "extra_model_paths.yaml";
/// How deep a model may lie in a folder that no list names.
const MAX_DEPTH: usize = 8;
/// The kinds of which ComfyUI lists each file: a folder in these only sorts them, where it does not say that it is a
/// model as a whole.
const OF_FILES: [&str; 20] = [
    "audio_encoders",
    "checkpoints",
    "clip",
    "clip_vision",
    "controlnet",
    "diffusion_models",
    "embeddings",
    "gligen",
    "hypernetworks",
    "latent_upscale_models",
    "loras",
    "model_patches",
    "photomaker",
    "style_models",
    "t2i_adapter",
    "text_encoders",
    "unet",
    "upscale_models",
    "vae",
    "vae_approx",
];
/// The files by which transformers and diffusers know a folder as a model.
const OF_A_WHOLE: [&str; 2] = ["config.json", "model_index.json"];
/// What may be left out of an embedding's name, in the order in which ComfyUI tries it.
const OF_EMBEDDINGS: [&str; 4] = ["", ".safetensors", ".pt", ".bin"];

/// A model, and the file that it is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::workspace::lock) struct ModelFile {
    /// Where it goes in a ComfyUI folder.
    pub(in crate::workspace::lock) path: ModelPath,
    /// Where it lies here.
    pub(in crate::workspace::lock) file: PathBuf,
    /// Whether its owner gives it to nobody.
    pub(in crate::workspace::lock) is_private: bool,
}

/// Where models lie.
pub(in crate::workspace::lock) struct ModelFolders {
    /// The folder of each kind, in the order in which they are searched.
    kinds: Vec<ModelFolder>,
    /// All folders in those that are like `models`, at any depth, each by its path in a ComfyUI folder and here.
    inner: Vec<(String, PathBuf)>,
    /// What their owner gives to nobody.
    private: Vec<PathBuf>,
    /// ComfyUI's folder and its repository: what its commit has in `models` comes with that.
    comfyui: PathBuf,
    repository: Option<LocalRepository>,
}

impl ModelFolders {
    /// Those of a ComfyUI and these.
    pub(in crate::workspace::lock) fn of(comfyui: &Path, others: &[PathBuf]) -> Result<Self, LockError> {
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
        // Where it cannot be opened, that is told with its commit.
        let repository = LocalRepository::open(comfyui).ok().flatten();
        let inner = roots.iter().flat_map(|root| {
            let path =
                move |folder: PathBuf| (below_models(folder.strip_prefix(root).unwrap_or(&folder)), folder);
            folders_in(root).into_iter().map(path)
        });
        Ok(Self { inner: inner.collect(), kinds, private, comfyui: comfyui.to_owned(), repository })
    }

    /// Every file that may be meant by a model's name.
    pub(super) fn find(&self, name: &str) -> Vec<ModelFile> {
        let Some(name) = below(name) else { return Vec::new() };
        let places = self.places(&name, |_, file| file.is_file());
        places.into_iter().filter_map(|(path, file)| self.model_file(&path, file)).collect()
    }

    /// Every file of the folders that may be meant by a model's name, as models of transformers and diffusers are; also
    /// by the last part of `OWNER/NAME`, as it is called on a hub.
    pub(super) fn find_folder(&self, name: &str) -> Vec<ModelFile> {
        let Some(name) = below(name) else { return Vec::new() };
        let last = name.split_once('/').map(|(_, last)| last).filter(|last| !last.contains('/'));
        for name in [Some(name.as_str()), last].into_iter().flatten() {
            let places = self.places(name, is_model);
            if !places.is_empty() {
                let files = places.into_iter().flat_map(|(path, folder)| files_in(&path, &folder));
                return files.filter_map(|(path, file)| self.model_file(&path, file)).collect();
            }
        }
        Vec::new()
    }

    /// Every file that may be meant by an embedding's name, whose ending may be left out.
    pub(super) fn find_embedding(&self, name: &str) -> Vec<ModelFile> {
        let Some(name) = below(name) else { return Vec::new() };
        let mut found = Vec::new();
        for kind in self.kinds.iter().filter(|folder| folder.kind == "embeddings") {
            for folder in folders_in(&kind.path) {
                let place = Path::new("embeddings").join(folder.strip_prefix(&kind.path).unwrap_or(&folder));
                let path = below_models(&place.join(&name));
                found.extend(OF_EMBEDDINGS.iter().find_map(|ending| {
                    self.model_file(&format!("{path}{ending}"), folder.join(format!("{name}{ending}")))
                }));
            }
        }
        found
    }

    /// Every file of a kind whose name begins like this.
    pub(super) fn find_beginning(&self, kind: &str, name: &str) -> Vec<ModelFile> {
        let mut found = Vec::new();
        for folder in self.kinds.iter().filter(|folder| folder.kind == kind) {
            let entries = fs::read_dir(&folder.path).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            let names = names.filter(|entry| entry.starts_with(name));
            found.extend(names.filter_map(|name| {
                self.model_file(&format!("models/{kind}/{name}"), folder.path.join(&name))
            }));
        }
        found
    }

    /// Where this is in the folders of all kinds, each by its path in a ComfyUI folder and here; where it is in none of
    /// them, in the folders below, as some custom nodes have folders in folders.
    fn places(&self, name: &str, is_it: impl Fn(&str, &Path) -> bool) -> Vec<(String, PathBuf)> {
        let in_kind =
            |folder: &ModelFolder| (format!("models/{}/{name}", folder.kind), folder.path.join(name));
        let is_one = |(path, file): &(String, PathBuf)| is_it(path, file);
        let found: Vec<_> = self.kinds.iter().map(in_kind).filter(is_one).collect();
        if !found.is_empty() {
            return found;
        }
        let deeper = self.inner.iter().map(|(path, folder)| (format!("{path}/{name}"), folder.join(name)));
        deeper.filter(is_one).collect()
    }

    fn model_file(&self, path: &str, file: PathBuf) -> Option<ModelFile> {
        let path = path.parse().ok().filter(|_| file.is_file())?;
        let own = file.strip_prefix(&self.comfyui).ok().and_then(Path::to_str);
        let comes_along = |repository: &LocalRepository| own.is_some_and(|own| repository.has(own));
        if self.repository.as_ref().is_some_and(comes_along) {
            return None;
        }
        let is_private = self.private.iter().any(|private| file.starts_with(private));
        Some(ModelFile { path, file, is_private })
    }
}

/// Whether a folder at this path is a model, and not one that sorts them.
fn is_model(path: &str, folder: &Path) -> bool {
    let Some((kind, _)) = path.strip_prefix("models/").and_then(|below| below.split_once('/')) else {
        return false;
    };
    let is_told = || OF_A_WHOLE.iter().any(|name| folder.join(name).is_file());
    folder.is_dir()
        && (!OF_FILES.contains(&kind) || is_told())
        && files_in(path, folder).iter().any(|(path, _)| names_a_model(path))
}

/// The files of a folder and of those in it, each by its path and where it lies. Licences run nothing, and no node takes
/// a file without an ending for harmless.
fn files_in(path: &str, folder: &Path) -> Vec<(String, PathBuf)> {
    let is_wanted = |name: &str| !name.starts_with('.') && !["LICENSE", "NOTICE"].contains(&name);
    let mut files = Vec::new();
    for inner in folders_in(folder) {
        let below = inner.strip_prefix(folder).unwrap_or(&inner);
        for entry in fs::read_dir(&inner).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if is_wanted(&name) && entry.path().is_file() {
                files.push((format!("{path}/{}", below.join(name).display()), entry.path()));
            }
        }
    }
    files.sort();
    files
}

/// A folder, and those in it that are neither hidden nor Python's own, in order and each once, also where links lead to
/// it.
fn folders_in(root: &Path) -> Vec<PathBuf> {
    let (mut folders, mut open, mut seen) =
        (Vec::new(), vec![(root.to_owned(), 0)], BTreeSet::<PathBuf>::new());
    while let Some((folder, depth)) = open.pop() {
        let Ok(own) = folder.canonicalize() else { continue };
        if !seen.insert(own) {
            continue;
        }
        if depth < MAX_DEPTH {
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            let is_wanted = |path: &PathBuf| {
                name_of(path).is_some_and(|name| !name.starts_with('.') && name != "__pycache__")
            };
            let inner = entries.map(|entry| entry.path()).filter(|path| is_wanted(path) && path.is_dir());
            open.extend(inner.map(|path| (path, depth + 1)));
        }
        folders.push(folder);
    }
    folders.sort();
    folders
}

/// The path of a folder in `models`.
fn below_models(below: &Path) -> String {
    Path::new("models").join(below).display().to_string().trim_end_matches('/').to_owned()
}

/// A path that leads down, with `/` between its parts; `None` for others.
pub(super) fn below(name: &str) -> Option<String> {
    let name = name.replace('\\', "/");
    let is_down = Path::new(&name).components().all(|part| matches!(part, Component::Normal(_)));
    (is_down && !name.is_empty() && !name.ends_with('/')).then_some(name)
}

fn name_of(path: &Path) -> Option<String> {
    path.file_name()?.to_str().map(str::to_owned)
}
