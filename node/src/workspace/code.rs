//! Code trees: ComfyUI with its custom nodes, each at its commit, under the hash of all of them.
//!
//! A tree is made beside its place and moved there when it is whole; lockfiles of the same commits share it.
//! Blocks. Not here: how a repository is fetched (`git`), and what Python the tree needs (`python`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use protocol::{CodeHash, CodeSpec, CustomNode, GitPin};

use super::git::{Fetching, GitError, GitStore, make_folder};
use super::plan::folder_of;

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
    /// The folders of the custom nodes, in the order of the spec.
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
    /// A custom node is no repository, and nobody carries it.
    #[error(
        "custom node `{0}` is no git repository, and the bundle does not carry it: record it by a repository and a commit"
    )]
    NotCarried(String),
    /// Two custom nodes want one folder, or one wants a folder that is none.
    #[error("custom node `{url}` cannot be put into `custom_nodes/{folder}`: {fault}")]
    Folder {
        /// The custom node.
        url: String,
        /// The folder.
        folder: String,
        /// Why.
        fault: &'static str,
    },
}

impl CodeTree {
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
        self.root.join(spec.hash().to_string()).join("ComfyUI").is_dir()
    }

    /// The commits that a tree is made of.
    pub fn pins(spec: &CodeSpec) -> Vec<GitPin> {
        spec.comfyui.iter().cloned().chain(spec.custom_nodes.iter().filter_map(CustomNode::git)).collect()
    }

    /// The tree of a spec; fetched and laid out unless it is here.
    pub fn build(&self, spec: &CodeSpec, fetching: &Fetching<'_>) -> Result<CodeTree, CodeError> {
        let (comfyui, nodes) = parts(spec)?;
        let hash = spec.hash();
        let folder = self.root.join(hash.to_string());
        let tree = to_tree(hash, &folder, &nodes);
        if tree.comfyui.is_dir() {
            return Ok(tree);
        }
        for pin in [&comfyui].into_iter().chain(nodes.iter().map(|(pin, _)| pin)) {
            self.git.fetch(pin, fetching)?;
        }
        make_folder(&folder, |draft| {
            let draft = to_tree(hash, draft, &nodes);
            self.git.checkout(&comfyui, &draft.comfyui)?;
            for ((pin, name), place) in nodes.iter().zip(&draft.custom_nodes) {
                // A submodule of ComfyUI, or a folder of the same name, is not to be overlaid.
                if place.exists() {
                    let (url, entry) = (pin.url.to_string(), format!("custom_nodes/{name}"));
                    return Err(GitError::Entry { url, entry, fault: "is in ComfyUI itself already" });
                }
                self.git.checkout(pin, place)?;
            }
            Ok(())
        })?;
        Ok(tree)
    }

    /// The files of a tree that are not as its commits have them, below the folder of ComfyUI.
    pub fn differences(&self, spec: &CodeSpec) -> Result<Vec<String>, CodeError> {
        let (comfyui, nodes) = parts(spec)?;
        let hash = spec.hash();
        let tree = to_tree(hash, &self.root.join(hash.to_string()), &nodes);
        let mut differing = self.git.differences(&comfyui, &tree.comfyui)?;
        for ((pin, name), place) in nodes.iter().zip(&tree.custom_nodes) {
            let files = self.git.differences(pin, place)?;
            differing.extend(files.into_iter().map(|file| format!("custom_nodes/{name}/{file}")));
        }
        Ok(differing)
    }
}

fn to_tree(hash: CodeHash, folder: &Path, nodes: &[(GitPin, String)]) -> CodeTree {
    let comfyui = folder.join("ComfyUI");
    let place = |(_, name): &(GitPin, String)| comfyui.join("custom_nodes").join(name);
    CodeTree { hash, custom_nodes: nodes.iter().map(place).collect(), comfyui }
}

/// ComfyUI and the custom nodes, each with its folder.
fn parts(spec: &CodeSpec) -> Result<(GitPin, Vec<(GitPin, String)>), CodeError> {
    let comfyui = spec.comfyui.clone().ok_or(CodeError::NoComfyUi)?;
    let (mut nodes, mut taken) = (Vec::new(), BTreeSet::new());
    for node in &spec.custom_nodes {
        let pin = match node {
            CustomNode::Git { url, commit, .. } => GitPin { url: url.clone(), commit: commit.clone() },
            CustomNode::Registry { id, version } => {
                return Err(CodeError::NotCarried(format!("{id} {version}")));
            }
            CustomNode::File { name, .. } => return Err(CodeError::NotCarried(name.to_string())),
        };
        let folder = folder_of(pin.url.as_str()).to_owned();
        let refused =
            |fault| Err(CodeError::Folder { url: pin.url.to_string(), folder: folder.clone(), fault });
        if folder.is_empty() || folder.starts_with('.') || folder.contains(['?', '#', '\\']) {
            return refused("that is no name for it");
        }
        if !taken.insert(folder.to_lowercase()) {
            return refused("another custom node has it");
        }
        nodes.push((pin, folder));
    }
    Ok((comfyui, nodes))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::policy::Policy;
    use crate::workspace::git::tests::Upstream;

    fn node(pin: &GitPin) -> CustomNode {
        CustomNode::Git { url: pin.url.clone(), commit: pin.commit.clone(), disabled: false }
    }

    #[test]
    fn tree_has_comfyui_and_each_node_and_is_made_once() {
        let (comfyui, nodes, folder) =
            (Upstream::new(), Upstream::new(), tempfile::tempdir().expect("a temporary folder"));
        let main =
            comfyui.commit(&[("main.py", 0o100644, "run\n"), ("requirements.txt", 0o100644, "torch\n")]);
        let nice = nodes.commit(&[("__init__.py", 0o100644, "nodes\n")]);
        let name = folder_of(nice.url.as_str()).to_owned();
        let git = GitStore::open(folder.path().join("git")).expect("opens");
        let trees = CodeTrees::new(folder.path().join("code"), git);
        let policy = Policy { private_origins: true, ..Policy::default() };
        let cancel = CancellationToken::new();
        let fetching = Fetching { policy: &policy, progress: &|_| {}, cancel: &cancel };
        let spec = CodeSpec { comfyui: Some(main), custom_nodes: vec![node(&nice)] };
        let tree = trees.build(&spec, &fetching).expect("built");
        assert_eq!(fs::read_to_string(tree.comfyui.join("main.py")).expect("there"), "run\n");
        let init = tree.comfyui.join("custom_nodes").join(name).join("__init__.py");
        assert_eq!(fs::read_to_string(&init).expect("there"), "nodes\n");
        assert_eq!(tree.requirements(), [tree.comfyui.join("requirements.txt")]);
        // With its upstreams gone it is found.
        drop((comfyui, nodes));
        assert_eq!(trees.build(&spec, &fetching).expect("found"), tree);
        assert_eq!(trees.differences(&spec).expect("compared"), Vec::<String>::new());
        fs::remove_file(&init).expect("removed");
        assert_eq!(trees.differences(&spec).expect("compared").len(), 1);
        let left: Vec<_> = fs::read_dir(folder.path().join("code")).expect("there").flatten().collect();
        assert_eq!(left.len(), 1, "nothing half-made stays: {left:?}");
    }

    #[test]
    fn what_no_tree_can_be_made_of_is_told_before_anything_is_fetched() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let git = GitStore::open(folder.path().join("git")).expect("opens");
        let trees = CodeTrees::new(folder.path().join("code"), git);
        let pin = |url: &str| GitPin {
            url: url.parse().expect("an address"),
            commit: "1".repeat(40).parse().expect("a commit"),
        };
        let check = |comfyui: Option<GitPin>, custom_nodes: Vec<CustomNode>, expected: &str| {
            let (policy, cancel) = (Policy::default(), CancellationToken::new());
            let fetching = Fetching { policy: &policy, progress: &|_| {}, cancel: &cancel };
            let error = trees.build(&CodeSpec { comfyui, custom_nodes }, &fetching).expect_err(expected);
            assert!(error.to_string().contains(expected), "{error}");
        };
        let main = || Some(pin("https://example.org/ComfyUI"));
        check(None, vec![], "pins no commit of ComfyUI");
        let file = CustomNode::File { name: "single.py".parse().expect("a name"), disabled: false };
        check(main(), vec![file], "`single.py` is no git repository");
        let (one, two) = (pin("https://example.org/a/Nodes.git"), pin("https://example.org/b/nodes"));
        check(main(), vec![node(&one), node(&two)], "another custom node has it");
        check(main(), vec![node(&pin("https://example.org/.."))], "no name for it");
    }
}
