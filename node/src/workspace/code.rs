//! Code trees: ComfyUI with its custom nodes, each at its commit or as it travelled, under the hash of all of them.
//!
//! A tree is made beside its place and moved there when it is whole; lockfiles of the same code share it. The archives
//! of what travelled lie beside it, for it to be compared with. Blocks. Not here: how a repository is fetched (`git`),
//! and what Python the tree needs (`python`).

mod pointers;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use protocol::{BlobHash, BlobRef, CodeHash, CodeSpec, CustomNode, FileName, GitPin};

use super::carried::{self, CarriedError};
use super::git::{Fetching, GitError, GitStore, make_folder};

pub(super) use pointers::left_out;

/// The folder of ComfyUI in which custom nodes are.
const CUSTOM_NODES: &str = "custom_nodes";
/// The folder of a tree in which ComfyUI is.
const COMFYUI: &str = "ComfyUI";
/// The folder beside ComfyUI's with the archives of what travelled.
const ARCHIVES: &str = "carried";

/// All code trees of this node.
#[derive(Debug, Clone)]
pub struct CodeTrees {
    root: PathBuf,
    git: GitStore,
}

/// A code tree that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeTree {
    /// What it is called by.
    pub hash: CodeHash,
    /// The folder with `main.py`.
    pub comfyui: PathBuf,
    /// The custom nodes, in the order of the spec: folders, or single files.
    pub custom_nodes: Vec<PathBuf>,
}

/// Why there is no code tree.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// The lockfile does not say which ComfyUI.
    #[error("the lockfile pins no commit of ComfyUI")]
    NoComfyUi,
    /// A repository is not at its commit.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The files of a custom node are not as they should have travelled.
    #[error(transparent)]
    Carried(#[from] CarriedError),
    /// The archive of a custom node's files is not known.
    #[error("the files of custom node `{0}` are not known")]
    NotCarried(String),
    /// Two custom nodes want one folder, or one wants a folder that is none.
    #[error("custom node `{node}` cannot be put into `custom_nodes/{folder}`: {fault}")]
    Folder {
        /// The custom node: its address, or its name.
        node: String,
        /// The folder.
        folder: String,
        /// Why.
        fault: &'static str,
    },
}

impl CodeTree {
    /// What it is without, although its commits are whole; in words. Blocks.
    pub fn left_out(&self) -> Vec<String> {
        self.comfyui.parent().map(left_out).unwrap_or_default()
    }

    /// The lists of Python packages that its parts ask for, ComfyUI's first.
    pub fn requirements(&self) -> Vec<PathBuf> {
        let folders = [&self.comfyui].into_iter().chain(&self.custom_nodes);
        folders.map(|folder| folder.join("requirements.txt")).filter(|path| path.is_file()).collect()
    }
}

impl CodeTrees {
    /// The trees in this folder, made from these stores.
    pub fn new(root: impl Into<PathBuf>, git: GitStore) -> Self {
        Self { root: root.into(), git }
    }

    /// Whether the tree of a spec is here.
    pub fn has(&self, spec: &CodeSpec) -> bool {
        self.root.join(spec.hash().to_string()).join(COMFYUI).is_dir()
    }

    /// The archives that a tree needs of what travels with the bundle.
    pub fn archives(spec: &CodeSpec) -> Vec<BlobRef> {
        let files = |node: &CustomNode| match node {
            CustomNode::Carried { files, .. } => Some(*files),
            _ => None,
        };
        spec.custom_nodes.iter().filter_map(files).collect()
    }

    /// The tree of a spec; fetched and laid out unless it is here. `archives` are the files of those that it needs. One that
    /// is here says nothing of where its commits came from: where the owner names hosts, that is seen to all the same.
    pub fn build(
        &self,
        spec: &CodeSpec,
        archives: &BTreeMap<BlobHash, PathBuf>,
        fetching: &Fetching<'_>,
    ) -> Result<CodeTree, CodeError> {
        let (comfyui, nodes) = parts(spec)?;
        let hash = spec.hash();
        let folder = self.root.join(hash.to_string());
        let tree = to_tree(hash, &folder, &nodes);
        let is_here = tree.comfyui.is_dir();
        if is_here && fetching.policy.hosts.is_empty() {
            return Ok(tree);
        }
        for pin in [&comfyui].into_iter().chain(nodes.iter().filter_map(Part::pin)) {
            self.git.fetch(pin, fetching)?;
        }
        if is_here {
            return Ok(tree);
        }
        make_folder(&folder, |draft| {
            let (kept, beside) = (draft.join(ARCHIVES), draft);
            let draft = to_tree(hash, draft, &nodes);
            let made = self.git.lay_out(&comfyui, &draft.comfyui, fetching)?;
            let mut pointers = vec![(COMFYUI.to_owned(), made.pointers)];
            for (part, place) in nodes.iter().zip(&draft.custom_nodes) {
                // A submodule of ComfyUI, or a folder of the same name, is not to be overlaid.
                if place.exists() {
                    return Err(part.refused("ComfyUI itself has it"));
                }
                match &part.origin {
                    Origin::Git(pin) => {
                        let made = self.git.lay_out(pin, place, fetching)?;
                        pointers.push((part.name.clone(), made.pointers));
                    }
                    Origin::Carried(name, files) => {
                        let archive = archives.get(&files.hash);
                        let archive = archive.ok_or_else(|| CodeError::NotCarried(name.to_string()))?;
                        let kept = carried::keep(name, *files, archive, &kept)?;
                        carried::lay_out(name, &kept, &draft.comfyui.join(CUSTOM_NODES))?;
                    }
                }
            }
            pointers::keep(beside, pointers)
                .map_err(|source| GitError::Io { path: beside.to_owned(), source })?;
            Ok::<_, CodeError>(())
        })?;
        Ok(tree)
    }

    /// The files of a tree that are not as its commits and archives have them, below the folder of ComfyUI.
    pub fn differences(&self, spec: &CodeSpec) -> Result<Vec<String>, CodeError> {
        self.differences_in(spec, &self.root.join(spec.hash().to_string()).join(COMFYUI))
    }

    /// The same of a copy of the tree, in which more may be.
    pub fn differences_in(&self, spec: &CodeSpec, copy: &Path) -> Result<Vec<String>, CodeError> {
        let (comfyui, nodes) = parts(spec)?;
        let hash = spec.hash();
        let folder = self.root.join(hash.to_string());
        let tree = to_tree(hash, copy.parent().unwrap_or(copy), &nodes);
        let mut differing = self.git.differences(&comfyui, &tree.comfyui)?;
        for (part, place) in nodes.iter().zip(&tree.custom_nodes) {
            let files = match &part.origin {
                Origin::Git(pin) => {
                    let files = self.git.differences(pin, place)?;
                    files.into_iter().map(|file| format!("{}/{file}", part.name)).collect()
                }
                Origin::Carried(name, files) => {
                    let custom_nodes = tree.comfyui.join(CUSTOM_NODES);
                    carried::differences(name, *files, &folder.join(ARCHIVES), &custom_nodes)?
                }
            };
            differing.extend(files.into_iter().map(|file| format!("{CUSTOM_NODES}/{file}")));
        }
        Ok(differing)
    }
}

/// One custom node of a tree.
struct Part {
    /// What it is called in `custom_nodes`.
    name: String,
    origin: Origin,
}

/// Where the files of a custom node come from.
enum Origin {
    Git(GitPin),
    Carried(FileName, BlobRef),
}

impl Part {
    fn pin(&self) -> Option<&GitPin> {
        match &self.origin {
            Origin::Git(pin) => Some(pin),
            Origin::Carried(..) => None,
        }
    }

    fn refused(&self, fault: &'static str) -> CodeError {
        let node = self.pin().map_or_else(|| self.name.clone(), |pin| pin.url.to_string());
        CodeError::Folder { node, folder: self.name.clone(), fault }
    }
}

fn to_tree(hash: CodeHash, folder: &Path, nodes: &[Part]) -> CodeTree {
    let comfyui = folder.join(COMFYUI);
    let place = |part: &Part| comfyui.join(CUSTOM_NODES).join(&part.name);
    CodeTree { hash, custom_nodes: nodes.iter().map(place).collect(), comfyui }
}

/// ComfyUI and the custom nodes, each with its name.
fn parts(spec: &CodeSpec) -> Result<(GitPin, Vec<Part>), CodeError> {
    let comfyui = spec.comfyui.clone().ok_or(CodeError::NoComfyUi)?;
    let (mut nodes, mut taken) = (Vec::new(), BTreeSet::new());
    for node in &spec.custom_nodes {
        let origin = match node {
            CustomNode::Git { url, commit, mirrors, .. } => {
                Origin::Git(GitPin { url: url.clone(), commit: commit.clone(), mirrors: mirrors.clone() })
            }
            CustomNode::Carried { name, files, .. } => Origin::Carried(name.clone(), *files),
            CustomNode::Registry { id, version } => {
                return Err(CodeError::NotCarried(format!("{id} {version}")));
            }
            CustomNode::File { name, .. } => return Err(CodeError::NotCarried(name.to_string())),
        };
        let part = Part { name: node.name().to_owned(), origin };
        if part.name.is_empty() || part.name.starts_with('.') || part.name.contains(['?', '#', '\\']) {
            return Err(part.refused("that is no name for it"));
        }
        if !taken.insert(part.name.to_lowercase()) {
            return Err(part.refused("another custom node has it"));
        }
        nodes.push(part);
    }
    Ok((comfyui, nodes))
}
