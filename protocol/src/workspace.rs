//! The three hashes of a workspace, and what each is made of: equal hashes are the same thing on disk.
//!
//! **Environment**: Python, its packages, for what platform and accelerator. **Code**: ComfyUI and its custom
//! nodes. The third is the [`LockfileHash`](crate::LockfileHash), which has the models as well. A ComfyUI
//! process belongs to an environment and a code tree. Not here: how either is built.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::blob::BlobHash;
use crate::lockfile::{CustomNode, FileName, GitPin, Lockfile, PackagePin, Pin, RegistryPin, Sha256, Token};
use crate::resolution::RegistryNode;

/// What torch computes on, and so which of its builds is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Accelerator {
    /// An NVIDIA card whose driver knows CUDA up to this version.
    Cuda {
        /// Such as 12.
        major: u16,
        /// Such as 4.
        minor: u16,
    },
    /// An AMD card.
    Rocm,
    /// Apple's.
    Mps,
    /// The processor alone.
    Cpu,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cuda { major, minor } => write!(f, "cuda{major}.{minor}"),
            Self::Rocm => f.write_str("rocm"),
            Self::Mps => f.write_str("mps"),
            Self::Cpu => f.write_str("cpu"),
        }
    }
}

/// A text that names no accelerator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no accelerator: give `cuda12.4` (what the driver knows), `rocm`, `mps` or `cpu`")]
pub struct ParseAcceleratorError(String);

impl FromStr for Accelerator {
    type Err = ParseAcceleratorError;

    fn from_str(text: &str) -> Result<Self, ParseAcceleratorError> {
        let wrong = || ParseAcceleratorError(text.chars().take(40).collect());
        match text {
            "rocm" => return Ok(Self::Rocm),
            "mps" => return Ok(Self::Mps),
            "cpu" => return Ok(Self::Cpu),
            _ => {}
        }
        let version = text.strip_prefix("cuda").and_then(|version| version.split_once('.'));
        let (major, minor) = version.ok_or_else(wrong)?;
        Ok(Self::Cuda {
            major: major.parse().map_err(|_| wrong())?,
            minor: minor.parse().map_err(|_| wrong())?,
        })
    }
}

impl From<Accelerator> for String {
    fn from(accelerator: Accelerator) -> Self {
        accelerator.to_string()
    }
}

impl TryFrom<String> for Accelerator {
    type Error = ParseAcceleratorError;

    fn try_from(text: String) -> Result<Self, ParseAcceleratorError> {
        text.parse()
    }
}

/// What an environment is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentSpec {
    /// The version of Python.
    pub python: Option<Token>,
    /// The pinned packages, by name.
    pub packages: Vec<PackagePin>,
    /// Operating system and architecture, such as `linux-x86_64`.
    pub platform: String,
    /// What torch is built for.
    pub accelerator: Accelerator,
}

/// What a code tree is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeSpec {
    /// ComfyUI.
    pub comfyui: Option<GitPin>,
    /// The custom nodes that are switched on, but for what is in ComfyUI's own commit and what nobody can give. Those of
    /// the Comfy registry are named by their files.
    pub custom_nodes: Vec<CustomNode>,
}

/// The hash of an [`EnvironmentSpec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EnvironmentHash(pub BlobHash);

/// The hash of a [`CodeSpec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CodeHash(pub BlobHash);

impl fmt::Display for EnvironmentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for CodeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl EnvironmentSpec {
    /// That of a lockfile on such a machine.
    pub fn of(lockfile: &Lockfile, platform: &str, accelerator: Accelerator) -> Self {
        let mut packages = lockfile.packages.clone();
        packages.sort_by_key(|package| normalized(package.name.as_str()));
        Self { python: lockfile.python.clone(), packages, platform: platform.to_owned(), accelerator }
    }

    /// What it is called by.
    pub fn hash(&self) -> EnvironmentHash {
        EnvironmentHash(hash(self))
    }
}

impl CodeSpec {
    /// That of a lockfile whose versions of the Comfy registry came to these. One that is not among them stays a mere
    /// version, and its tree cannot be made yet.
    pub fn of(lockfile: &Lockfile, registry: &[RegistryNode]) -> Self {
        let mut custom_nodes: Vec<CustomNode> =
            wanted(lockfile).filter_map(|node| resolved(node, registry)).collect();
        // In one order, whichever order their author installed them in.
        custom_nodes
            .sort_by_cached_key(|node| serde_json_canonicalizer::to_vec(&content(node)).unwrap_or_default());
        Self { comfyui: lockfile.comfyui.clone(), custom_nodes }
    }

    /// The custom nodes of a lockfile that its code is without, because nobody can give them.
    pub fn left_out(lockfile: &Lockfile, registry: &[RegistryNode]) -> Vec<CustomNode> {
        wanted(lockfile).filter(|node| resolved(node, registry).is_none()).cloned().collect()
    }

    /// The commits that it is made of.
    pub fn pins(&self) -> Vec<GitPin> {
        let nodes = self.custom_nodes.iter().filter_map(CustomNode::git);
        self.comfyui.iter().cloned().chain(nodes).collect()
    }

    /// What it is called by: the same for a commit from whichever of its repositories.
    pub fn hash(&self) -> CodeHash {
        let comfyui = self.comfyui.as_ref().map(|pin| &pin.commit);
        let custom_nodes: Vec<_> = self.custom_nodes.iter().map(content).collect();
        CodeHash(hash(&json!({ "comfyui": comfyui, "custom_nodes": custom_nodes })))
    }
}

/// What a custom node adds to a tree, wherever that comes from.
fn content(node: &CustomNode) -> Value {
    match node.git() {
        Some(pin) => json!({ "from": "git", "folder": node.name(), "commit": pin.commit }),
        None => json!(node),
    }
}

/// The custom nodes that are switched on and do not come with ComfyUI.
fn wanted(lockfile: &Lockfile) -> impl Iterator<Item = &CustomNode> {
    lockfile.custom_nodes.iter().filter(|node| !node.is_disabled() && !node.comes_with_comfyui())
}

/// A custom node as it is part of the code; `None` for one that nobody can give.
fn resolved(node: &CustomNode, registry: &[RegistryNode]) -> Option<CustomNode> {
    match node {
        // Its contents are nowhere.
        CustomNode::File { .. } => None,
        CustomNode::Registry { id, version } => {
            let pin = RegistryPin { id: id.clone(), version: version.clone() };
            let Some(known) = registry.iter().find(|known| known.pin == pin) else {
                return Some(node.clone());
            };
            let name = registry_folder(&pin);
            known.files.map(|files| CustomNode::Carried { name, files, registry: Some(pin) })
        }
        _ => Some(node.clone()),
    }
}

/// The folder in `custom_nodes` of a version of the Comfy registry: what ComfyUI-Manager calls it.
pub fn registry_folder(pin: &RegistryPin) -> FileName {
    pin.id.as_str().parse().expect("every token is the name of a file")
}

fn hash(spec: &impl Serialize) -> BlobHash {
    BlobHash::of(&serde_json_canonicalizer::to_vec(spec).expect("a spec has only text keys"))
}

/// The name of a package as indexes compare it (PEP 503).
pub fn normalized(name: &str) -> String {
    let mut normalized = String::with_capacity(name.len());
    for part in name.split(['-', '_', '.']).filter(|part| !part.is_empty()) {
        if !normalized.is_empty() {
            normalized.push('-');
        }
        normalized.push_str(&part.to_ascii_lowercase());
    }
    normalized
}

/// The packages whose build follows the accelerator, torch itself first.
pub const TORCH_FAMILY: [&str; 3] = ["torch", "torchvision", "torchaudio"];

/// Whether the build of this package follows the accelerator.
pub fn is_torch_family(name: &str) -> bool {
    TORCH_FAMILY.contains(&normalized(name).as_str())
}

/// Whether torch itself asks for exactly the version of this package (its name as indexes compare it) that its build needs:
/// a pin of it says nothing, and would be in the way of another build.
pub fn follows_torch(name: &str) -> bool {
    let is_cuda = name.starts_with("nvidia-") && name != "nvidia-ml-py";
    is_cuda
        || ["triton", "cuda-toolkit", "cuda-bindings", "cuda-pathfinder"].contains(&name)
        || name.starts_with("pytorch-triton")
}

/// Those of a package's recorded hashes that a file of this version has to have one of; none where any may be taken, as
/// where a machine gets another one of torch's own builds than was recorded.
pub fn hashes_of<'a>(package: &'a PackagePin, version: &str) -> &'a [Sha256] {
    match &package.pin {
        Pin::Version(pinned)
            if is_torch_family(package.name.as_str())
                && build(pinned.as_str()) != build(version)
                && is_torch_build(build(version)) =>
        {
            &[]
        }
        _ => &package.hashes,
    }
}

/// Whether torch itself is published in this build: `cu124`, `rocm6.2.4`, `cpu`, `xpu`, or the plain one.
pub fn is_torch_build(build: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_cuda = |build: &str| build.strip_prefix("cu").is_some_and(is_number);
    let is_rocm = |build: &str| build.strip_prefix("rocm").is_some_and(|of| of.split('.').all(is_number));
    ["", "cpu", "xpu"].contains(&build) || is_cuda(build) || is_rocm(build)
}

/// What stands behind a version's `+`.
fn build(version: &str) -> &str {
    version.split_once('+').map_or("", |(_, build)| build)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lockfile::GitCommit;

    #[test]
    fn recorded_hash_of_torch_holds_for_its_own_build_alone() {
        let check = |name: &str, recorded: &str, version: &str, holds: bool| {
            let pin = Pin::Version(recorded.parse().unwrap());
            let mut package = PackagePin::new(name.parse().unwrap(), pin);
            package.hashes = vec![Sha256([7; 32])];
            assert_eq!(!hashes_of(&package, version).is_empty(), holds, "{name} {recorded}, {version}");
        };
        check("torch", "2.6.0+cu124", "2.6.0+cu124", true);
        check("torch", "2.6.0+cu124", "2.6.0+cpu", false);
        check("torch", "2.6.0", "2.6.0", true);
        check("torch", "2.6.0", "2.6.0+cpu", false);
        for build in ["", "+xpu", "+cu128", "+rocm6.2.4"] {
            check("torch", "2.6.0+cu124", &format!("2.6.0{build}"), false);
        }
        for build in ["+other", "+cu", "+cu12x", "+cu124+cpu", "+rocm", "+rocm6.", "+CPU"] {
            check("torch", "2.6.0+cu124", &format!("2.6.0{build}"), true);
        }
        check("pillow", "11.0.0", "11.0.0+other", true);
    }

    fn package(name: &str, version: &str) -> PackagePin {
        PackagePin::new(name.parse().expect("a name"), Pin::Version(version.parse().expect("a version")))
    }

    #[test]
    fn accelerators_are_written_as_they_are_read() {
        for text in ["cuda12.4", "rocm", "mps", "cpu"] {
            assert_eq!(text.parse::<Accelerator>().expect("an accelerator").to_string(), text);
        }
        for wrong in ["", "cuda", "cuda12", "cuda12.x", "CPU"] {
            assert!(wrong.parse::<Accelerator>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn environment_depends_on_pins_and_machine_and_code_does_not() {
        let lockfile = Lockfile {
            packages: vec![package("torch", "2.6.0"), package("Pillow", "11.0.0")],
            ..Lockfile::default()
        };
        let environment = |lockfile: &Lockfile, accelerator| {
            EnvironmentSpec::of(lockfile, "linux-x86_64", accelerator).hash()
        };
        let mut turned = lockfile.clone();
        turned.packages.reverse();
        assert_eq!(environment(&lockfile, Accelerator::Cpu), environment(&turned, Accelerator::Cpu));
        assert_ne!(environment(&lockfile, Accelerator::Cpu), environment(&lockfile, Accelerator::Rocm));
        let mut newer = lockfile.clone();
        newer.packages[0] = package("torch", "2.7.0");
        assert_ne!(environment(&lockfile, Accelerator::Cpu), environment(&newer, Accelerator::Cpu));
        assert_eq!(CodeSpec::of(&lockfile, &[]).hash(), CodeSpec::of(&newer, &[]).hash());
    }

    #[test]
    fn switched_off_nodes_and_their_order_are_no_part_of_the_code() {
        let node = |url: &str, disabled| CustomNode::Git {
            url: url.parse().expect("an address"),
            commit: "1".repeat(40).parse().expect("a commit"),
            mirrors: Vec::new(),
            folder: None,
            disabled,
        };
        let code = |custom_nodes| CodeSpec::of(&Lockfile { custom_nodes, ..Lockfile::default() }, &[]).hash();
        let (a, b) = (node("https://example.org/a", false), node("https://example.org/b", false));
        let one = code(vec![a.clone(), b.clone()]);
        assert_eq!(one, code(vec![b, a.clone(), node("https://example.org/c", true)]));
        assert_ne!(one, code(vec![a]));
    }

    #[test]
    fn commit_of_another_repository_is_the_same_code_and_another_folder_is_not() {
        let code = |urls: [&str; 2], node: [&str; 2], folder: Option<&str>| {
            let commit: GitCommit = "1".repeat(40).parse().expect("a commit");
            let [url, mirror] = urls.map(|url| url.parse().expect("an address"));
            let comfyui = GitPin { mirrors: vec![mirror], ..GitPin::new(url, commit.clone()) };
            let [url, mirror] = node.map(|url| url.parse().expect("an address"));
            let folder = folder.map(|folder| folder.parse().expect("a name"));
            let node = CustomNode::Git { url, commit, mirrors: vec![mirror], folder, disabled: false };
            let lockfile =
                Lockfile { comfyui: Some(comfyui), custom_nodes: vec![node], ..Lockfile::default() };
            (CodeSpec::of(&lockfile, &[]).hash(), lockfile.hash())
        };
        let (own, fork) = ("https://example.org/a/nodes.git", "https://fork.example/b/nodes");
        let one = code([own, fork], [own, fork], None);
        let turned = code([fork, own], [fork, own], None);
        assert_eq!(one.0, turned.0);
        assert_ne!(one.1, turned.1, "whoever signs a lockfile vouches for where its commits come from");
        let others = "https://example.org/a/others";
        assert_ne!(one.0, code([own, fork], [others, fork], None).0);
        assert_ne!(one.0, code([own, fork], [own, fork], Some("others")).0);
        assert_eq!(one.0, code([own, fork], [others, fork], Some("nodes")).0);
    }

    #[test]
    fn code_is_what_versions_of_the_registry_came_to_without_those_that_nobody_gives() {
        let file = |name: &str| CustomNode::File { name: name.parse().expect("a name"), disabled: false };
        let version = |id: &str| RegistryPin {
            id: id.parse().expect("a name"),
            version: "1.0.8".parse().expect("a version"),
        };
        let node = |RegistryPin { id, version }| CustomNode::Registry { id, version };
        let custom_nodes = vec![
            file("websocket_image_save.py"),
            file("own.py"),
            node(version("some")),
            node(version("gone")),
        ];
        let lockfile = Lockfile { custom_nodes, ..Lockfile::default() };
        let files = crate::BlobRef::of(b"an archive");
        let came = |id: &str, files| RegistryNode { pin: version(id), files };
        assert_eq!(CodeSpec::of(&lockfile, &[]).custom_nodes, [node(version("gone")), node(version("some"))]);
        assert_eq!(CodeSpec::left_out(&lockfile, &[]), [file("own.py")]);
        let known = [came("gone", None), came("some", Some(files))];
        let name = "some".parse().expect("a name");
        let carried = CustomNode::Carried { name, files, registry: Some(version("some")) };
        assert_eq!(CodeSpec::of(&lockfile, &known).custom_nodes, [carried]);
        assert_eq!(CodeSpec::left_out(&lockfile, &known), [file("own.py"), node(version("gone"))]);
    }

    #[test]
    fn package_names_are_compared_as_indexes_do() {
        assert_eq!(normalized("Flask__SQL.Alchemy"), "flask-sql-alchemy");
    }
}
