//! What a rebuild of a lockfile would fetch and install, in order, to the last URL.
//!
//! Pure: a lockfile and a machine in, steps out; no network is asked. Not here: doing any of it.

use std::collections::BTreeSet;

use protocol::{
    Accelerator, BlobHash, BlobRef, CodeHash, CodeSpec, CustomNode, EnvironmentHash, EnvironmentSpec, GitPin,
    LockedModel, Lockfile, LockfileHash, PackagePin, Pin, Sha256, SystemNeeds, hashes_of, is_torch_family,
    normalized,
};
use serde::Serialize;

use super::python::{Indexes, PACKAGE_INDEX, build_for};
use super::registry::{COMFY_REGISTRY, version_url};

/// The rebuild of one lockfile on one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What its environment is called by; other lockfiles may share it.
    pub environment: EnvironmentHash,
    /// What its code tree is called by; absent until it is known what versions of the Comfy registry come to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<CodeHash>,
    /// What it is called by as a whole.
    pub lockfile: LockfileHash,
    /// Whether only the build of torch differs from what was recorded.
    pub equivalent: bool,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// What it takes of the system, which nobody installs.
    #[serde(skip_serializing_if = "SystemNeeds::is_empty")]
    pub system: SystemNeeds,
    /// What the lockfile lacks for it, in words.
    pub lacking: Vec<String>,
}

/// One thing that is fetched or installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// A repository, at one commit.
    Git {
        /// The repository.
        url: String,
        /// The commit.
        commit: String,
        /// Which repositories are asked where that one does not give it, in this order.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        mirrors: Vec<String>,
        /// Where it goes in the workspace.
        path: String,
    },
    /// A version of the Comfy registry, whose files a peer or the registry gives.
    Registry {
        /// Its id there.
        id: String,
        /// The version.
        version: String,
        /// Where it is asked for.
        url: String,
        /// Where it goes in the workspace.
        path: String,
    },
    /// A custom node whose files travel with the bundle.
    Carried {
        /// The archive of its files, which peers serve.
        files: BlobRef,
        /// Where it goes in the workspace.
        path: String,
    },
    /// Python itself.
    Python {
        /// Its version.
        version: String,
    },
    /// One package.
    Package {
        /// Its name.
        name: String,
        /// The version, archive or repository that it is pinned to.
        pin: String,
        /// The index's page of its files; absent for an archive or repository.
        #[serde(skip_serializing_if = "Option::is_none")]
        url: Option<String>,
        /// The SHA-256 of each file that may be installed; empty for any of its version.
        #[serde(skip_serializing_if = "<[Sha256]>::is_empty")]
        hashes: Vec<Sha256>,
    },
    /// One model.
    Model {
        /// Where it goes in the workspace.
        path: String,
        /// How many bytes it has.
        size: u64,
        /// Its SHA-256.
        #[serde(skip_serializing_if = "Option::is_none")]
        sha256: Option<Sha256>,
        /// Its BLAKE3 hash.
        #[serde(skip_serializing_if = "Option::is_none")]
        blob: Option<BlobHash>,
        /// Where it is fetched from where no peer holds it, in this order.
        urls: Vec<String>,
    },
}

/// Plans the rebuild for this platform, such as `linux-x86_64`, and accelerator; what travels with the bundle needs no
/// source.
pub fn plan(
    lockfile: &Lockfile,
    travelling: &BTreeSet<BlobHash>,
    platform: &str,
    accelerator: Accelerator,
) -> Plan {
    let environment = EnvironmentSpec::of(lockfile, platform, accelerator);
    let code = CodeSpec::of(lockfile, &[]);
    let is_known = code.custom_nodes.iter().all(|node| node.registry().is_none());
    let mut plan = Plan {
        environment: environment.hash(),
        code: is_known.then(|| code.hash()),
        lockfile: lockfile.hash(),
        equivalent: false,
        steps: Vec::new(),
        system: lockfile.system.clone(),
        lacking: Vec::new(),
    };
    match &code.comfyui {
        Some(pin) => plan.steps.push(git(pin, "ComfyUI".to_owned())),
        None => plan.lacking.push("the commit of ComfyUI".to_owned()),
    }
    let left_out = CodeSpec::left_out(lockfile, &[]);
    code.custom_nodes.iter().chain(&left_out).for_each(|node| plan.add_node(node));
    match &environment.python {
        Some(python) => plan.steps.push(Step::Python { version: python.to_string() }),
        None => plan.lacking.push("the version of Python".to_owned()),
    }
    environment.packages.iter().for_each(|package| plan.add_package(package, accelerator));
    lockfile.models.iter().filter(|model| !model.disabled).for_each(|model| {
        let travels = model.blob.is_some_and(|blob| travelling.contains(&blob));
        plan.add_model(model, travels);
    });
    plan
}

impl Plan {
    fn add_node(&mut self, node: &CustomNode) {
        let path = format!("ComfyUI/custom_nodes/{}", node.name());
        match node {
            CustomNode::Git { url, commit, mirrors, .. } => {
                let pin = GitPin { url: url.clone(), commit: commit.clone(), mirrors: mirrors.clone() };
                self.steps.push(git(&pin, path));
            }
            CustomNode::Registry { id, version } => self.steps.push(Step::Registry {
                id: id.to_string(),
                version: version.to_string(),
                url: version_url(COMFY_REGISTRY, id, version),
                path,
            }),
            CustomNode::Carried { files, .. } => self.steps.push(Step::Carried { files: *files, path }),
            CustomNode::File { name, .. } => {
                self.lacking.push(format!(
                    "custom node `{name}`: a single file, which the bundle does not carry; the workspace is built without it"
                ));
            }
        }
    }

    fn add_package(&mut self, package: &PackagePin, accelerator: Accelerator) {
        let name = package.name.to_string();
        let (pin, index) = match &package.pin {
            Pin::Url(url) => (url.to_string(), None),
            Pin::Git(url) => (url.to_string(), None),
            Pin::Version(version) if is_torch_family(&name) => {
                let (release, recorded) = version.as_str().split_once('+').unwrap_or((version.as_str(), ""));
                let build = build_for(recorded, accelerator);
                self.equivalent |= build.as_deref() != Some(recorded);
                let indexes = Indexes::default();
                match build {
                    Some(build) => {
                        let local = if build.is_empty() { String::new() } else { format!("+{build}") };
                        let index = indexes.of_pin(package, &build).unwrap_or(indexes.packages);
                        (format!("{release}{local}"), Some(index))
                    }
                    // The builds that a release has are known to its index alone.
                    None => (release.to_owned(), indexes.of_builds(release)),
                }
            }
            Pin::Version(version) => {
                let index = package.index.as_ref().map_or(PACKAGE_INDEX, |index| index.as_str());
                (version.to_string(), Some(index.to_owned()))
            }
        };
        let url = index.map(|index| format!("{}/{}/", index.trim_end_matches('/'), normalized(&name)));
        let hashes = hashes_of(package, &pin).to_vec();
        self.steps.push(Step::Package { name, pin, url, hashes });
    }

    fn add_model(&mut self, model: &LockedModel, travels: bool) {
        let path = model.path.to_string();
        if model.sha256.is_none() && model.blob.is_none() {
            self.lacking.push(format!(
                "model `{path}`: it has no hash, so it is only used where a node has it in a model folder of its own"
            ));
            return;
        }
        if model.sources.is_empty() && !travels {
            self.lacking.push(format!("model `{path}`: it has no source, so a peer must hold it"));
        }
        self.steps.push(Step::Model {
            path: if path.starts_with("home/") { path } else { format!("ComfyUI/{path}") },
            size: model.size,
            sha256: model.sha256,
            blob: model.blob,
            urls: model.sources.iter().map(|source| source.url.to_string()).collect(),
        });
    }
}

fn git(pin: &GitPin, path: String) -> Step {
    let mirrors = pin.mirrors.iter().map(ToString::to_string).collect();
    Step::Git { url: pin.url.to_string(), commit: pin.commit.to_string(), mirrors, path }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_names_every_url_and_what_is_lacking() {
        let lockfile = r#"{"format":1,"python":"3.11",
            "comfyui":{"url":"https://example.org/ComfyUI.git","commit":"ca457f7ba1ff33bd0d724cd7324131509efcf3ec",
                "mirrors":["https://fork.example/ComfyUI"]},
            "custom_nodes":[{"from":"registry","id":"some-nodes","version":"1.0.8"},
                {"from":"carried","name":"own","files":{"hash":"OWN","size":3}},
                {"from":"git","url":"https://example.org/b/nodes","commit":"ca457f7ba1ff33bd0d724cd7324131509efcf3ec",
                    "folder":"other-nodes","disabled":false},
                {"from":"file","name":"single.py","disabled":false}],
            "packages":[{"name":"torch","version":"2.6.0+cu124","hashes":["SHA256"]},
                {"name":"Pillow_Heif","version":"0.21.0","hashes":["SHA256"]},
                {"name":"own","version":"1","index":"https://packages.example.org/simple/"}],
            "models":[{"path":"models/vae/a.safetensors","size":3,"disabled":false},
                {"path":"home/torch/a.json","size":3,"blob":"TRAVELS","disabled":false},
                {"path":"models/vae/b.safetensors","size":3,"disabled":true}]}"#;
        let lockfile = lockfile.replace("OWN", &BlobHash::of(b"own").to_string());
        let sha256 = Sha256([7; 32]);
        let lockfile = lockfile.replace("SHA256", &sha256.to_string());
        let lockfile = lockfile.replace("TRAVELS", &BlobHash::of(b"travels").to_string());
        let lockfile = Lockfile::parse(lockfile.as_bytes()).expect("a lockfile");
        let travelling = [BlobHash::of(b"travels")].into();
        let plan = plan(&lockfile, &travelling, "linux-x86_64", Accelerator::Cpu);
        let package = |name: &str, pin: &str, url: &str, hashes: &[Sha256]| Step::Package {
            name: name.to_owned(),
            pin: pin.to_owned(),
            url: Some(url.to_owned()),
            hashes: hashes.to_vec(),
        };
        assert_eq!(
            plan.steps,
            [
                Step::Git {
                    url: "https://example.org/ComfyUI.git".to_owned(),
                    commit: "ca457f7ba1ff33bd0d724cd7324131509efcf3ec".to_owned(),
                    mirrors: vec!["https://fork.example/ComfyUI".to_owned()],
                    path: "ComfyUI".to_owned(),
                },
                Step::Git {
                    url: "https://example.org/b/nodes".to_owned(),
                    commit: "ca457f7ba1ff33bd0d724cd7324131509efcf3ec".to_owned(),
                    mirrors: Vec::new(),
                    path: "ComfyUI/custom_nodes/other-nodes".to_owned(),
                },
                Step::Carried { files: BlobRef::of(b"own"), path: "ComfyUI/custom_nodes/own".to_owned() },
                Step::Registry {
                    id: "some-nodes".to_owned(),
                    version: "1.0.8".to_owned(),
                    url: "https://api.comfy.org/nodes/some-nodes/install?version=1.0.8".to_owned(),
                    path: "ComfyUI/custom_nodes/some-nodes".to_owned(),
                },
                Step::Python { version: "3.11".to_owned() },
                package("own", "1", "https://packages.example.org/simple/own/", &[]),
                package("Pillow_Heif", "0.21.0", "https://pypi.org/simple/pillow-heif/", &[sha256]),
                // Another build than the recorded one has other files.
                package("torch", "2.6.0+cpu", "https://download.pytorch.org/whl/cpu/torch/", &[]),
                Step::Model {
                    path: "home/torch/a.json".to_owned(),
                    size: 3,
                    sha256: None,
                    blob: Some(BlobHash::of(b"travels")),
                    urls: Vec::new(),
                },
            ]
        );
        assert!(plan.equivalent && plan.code.is_none());
        assert_eq!(plan.lacking.len(), 2, "{:?}", plan.lacking);
    }
}
