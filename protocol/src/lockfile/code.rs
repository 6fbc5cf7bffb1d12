//! The code that a lockfile pins: repositories at their commits, and what is in `custom_nodes`.
//!
//! Not here: how it becomes a tree of files, and the hash of that (`workspace`).

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::text::{FileName, GitCommit, GitUrl, Token};
use crate::blob::BlobRef;

/// The most further addresses that a repository is recorded with.
pub const MAX_MIRRORS: usize = 8;
/// Single files in `custom_nodes` that come with ComfyUI itself.
const SHIPPED_FILES: [&str; 2] = ["websocket_image_save.py", "example_node.py.example"];

/// A repository at one commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitPin {
    /// The repository.
    pub url: GitUrl,
    /// The commit.
    pub commit: GitCommit,
    /// Where else it is to be had: forks and mirrors, the preferred first.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "few_mirrors")]
    pub mirrors: Vec<GitUrl>,
}

impl GitPin {
    /// A commit of a repository that is known by one address.
    pub fn new(url: GitUrl, commit: GitCommit) -> Self {
        Self { url, commit, mirrors: Vec::new() }
    }

    /// All addresses at which it is to be had, in the order in which they are asked.
    pub fn urls(&self) -> impl Iterator<Item = &GitUrl> {
        [&self.url].into_iter().chain(&self.mirrors)
    }
}

/// Reads as many mirrors as anybody has.
fn few_mirrors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<GitUrl>, D::Error> {
    let mirrors = Vec::deserialize(deserializer)?;
    match mirrors.len() {
        0..=MAX_MIRRORS => Ok(mirrors),
        count => Err(D::Error::custom(format!(
            "{count} mirrors of one repository: at most {MAX_MIRRORS} are read"
        ))),
    }
}

/// One package of ops in `custom_nodes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case", deny_unknown_fields)]
pub enum CustomNode {
    /// A repository at one commit.
    Git {
        /// The repository.
        url: GitUrl,
        /// The commit.
        commit: GitCommit,
        /// Where else it is to be had: forks and mirrors, the preferred first.
        #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "few_mirrors")]
        mirrors: Vec<GitUrl>,
        /// What it is called in `custom_nodes`, where that is not what `git clone` calls it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        folder: Option<FileName>,
        /// Whether its author had switched it off.
        disabled: bool,
    },
    /// A version of the Comfy registry.
    Registry {
        /// Its id there.
        id: Token,
        /// The version.
        version: Token,
    },
    /// A single file. Its contents are not in the bundle.
    File {
        /// Its name.
        name: Token,
        /// Whether its author had switched it off.
        disabled: bool,
    },
    /// Files that travel with the bundle.
    Carried {
        /// What it is called in `custom_nodes`: a folder, or a single file.
        name: FileName,
        /// The archive of its files.
        files: BlobRef,
        /// The version of the Comfy registry that it was installed from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        registry: Option<RegistryPin>,
    },
}

/// A version of the Comfy registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryPin {
    /// Its id there.
    pub id: Token,
    /// The version.
    pub version: Token,
}

impl fmt::Display for RegistryPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, self.version)
    }
}

impl CustomNode {
    /// What it is called in `custom_nodes`: a folder, or a single file.
    pub fn name(&self) -> &str {
        match self {
            Self::Git { folder: Some(folder), .. } => folder.as_str(),
            Self::Git { url, .. } => url.folder(),
            // As ComfyUI-Manager calls it.
            Self::Registry { id, .. } => id.as_str(),
            Self::File { name, .. } => name.as_str(),
            Self::Carried { name, .. } => name.as_str(),
        }
    }

    /// Its commit, if it is one of a repository and is switched on.
    pub fn git(&self) -> Option<GitPin> {
        match self {
            Self::Git { url, commit, mirrors, disabled: false, .. } => {
                Some(GitPin { url: url.clone(), commit: commit.clone(), mirrors: mirrors.clone() })
            }
            _ => None,
        }
    }

    /// Its version of the Comfy registry, if it is to be had from there.
    pub fn registry(&self) -> Option<RegistryPin> {
        match self {
            Self::Registry { id, version } => Some(RegistryPin { id: id.clone(), version: version.clone() }),
            _ => None,
        }
    }

    /// Whether it is a single file that is in ComfyUI's own commit, so that it is there with that.
    pub fn comes_with_comfyui(&self) -> bool {
        matches!(self, Self::File { name, .. } if SHIPPED_FILES.contains(&name.as_str()))
    }

    /// Whether its author had switched it off.
    pub fn is_disabled(&self) -> bool {
        match self {
            Self::Git { disabled, .. } | Self::File { disabled, .. } => *disabled,
            Self::Registry { .. } | Self::Carried { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lockfile::Lockfile;

    fn lockfile() -> Lockfile {
        let url = "https://github.com/comfyanonymous/ComfyUI.git".parse().unwrap();
        let comfyui = GitPin::new(url, "ca457f7ba1ff33bd0d724cd7324131509efcf3ec".parse().unwrap());
        Lockfile { comfyui: Some(comfyui), ..Lockfile::default() }
    }

    #[test]
    fn mirrors_are_read_again_in_their_order_and_no_more_of_them_than_anybody_has() {
        let mirrors = |count: usize| -> Vec<GitUrl> {
            (0..count).map(|number| format!("https://example.org/{number}").parse().unwrap()).collect()
        };
        let read = |count: usize| {
            let mut lockfile = lockfile();
            let comfyui = lockfile.comfyui.as_mut().unwrap();
            comfyui.mirrors = mirrors(count);
            let GitPin { url, commit, mirrors } = comfyui.clone();
            lockfile.custom_nodes =
                vec![CustomNode::Git { url, commit, mirrors, folder: None, disabled: false }];
            Lockfile::parse(&lockfile.to_canonical_json())
        };
        let pin = read(MAX_MIRRORS).unwrap().custom_nodes[0].git().unwrap();
        assert_eq!(pin.urls().skip(1).cloned().collect::<Vec<_>>(), mirrors(MAX_MIRRORS));
        let error = read(MAX_MIRRORS + 1).unwrap_err();
        assert!(crate::error_chain(&error).contains("9 mirrors of one repository: at most 8 are read"));
    }

    #[test]
    fn folder_of_a_repository_is_read_again_and_named_only_where_it_is_not_that_of_git_clone() {
        let node = |folder: Option<&str>| CustomNode::Git {
            url: "https://example.org/a/nodes.git".parse().unwrap(),
            commit: "1".repeat(40).parse().unwrap(),
            mirrors: Vec::new(),
            folder: folder.map(|folder| folder.parse().unwrap()),
            disabled: false,
        };
        let mut lockfile = lockfile();
        lockfile.custom_nodes = vec![node(Some("own-nodes")), node(None)];
        let text = String::from_utf8(lockfile.to_canonical_json()).unwrap();
        assert_eq!(Lockfile::parse(text.as_bytes()).unwrap(), lockfile);
        let names: Vec<&str> = lockfile.custom_nodes.iter().map(CustomNode::name).collect();
        assert_eq!((names, text.matches("\"folder\"").count()), (vec!["own-nodes", "nodes"], 1), "{text}");
        for wrong in ["../own", "a/b", ".git", "-own", ""] {
            let text = text.replace("own-nodes", wrong);
            assert!(Lockfile::parse(text.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn carried_node_is_read_again_and_says_nothing_that_is_not_known() {
        let mut lockfile = lockfile();
        let carried = |registry| CustomNode::Carried {
            name: "own-nodes".parse().unwrap(),
            files: BlobRef::of(b"an archive"),
            registry,
        };
        let registry = RegistryPin { id: "comfyui-own".parse().unwrap(), version: "1.0.8".parse().unwrap() };
        lockfile.custom_nodes = vec![carried(None), carried(Some(registry))];
        let text = String::from_utf8(lockfile.to_canonical_json()).unwrap();
        assert_eq!(Lockfile::parse(text.as_bytes()).unwrap(), lockfile);
        assert!(text.contains(r#""from":"carried","name":"own-nodes"},{"#), "{text}");
        for (from, to) in
            [("own-nodes", "../own"), ("\"version\"", "\"revision\""), ("\"files\"", "\"file\"")]
        {
            assert!(Lockfile::parse(text.replace(from, to).as_bytes()).is_err(), "{from} -> {to}");
        }
    }
}
