//! What the node's owner allows: whose bundles run here, and what they may bring.
//!
//! Judged on the lockfile alone, before anything that it names is fetched. Not here: how a process of a
//! bundle is kept in its place.

mod hosts;
mod publishers;

use std::collections::BTreeSet;
use std::fmt;

use protocol::{CustomNode, LockedModel, Lockfile, PublisherKey, SignatureError};

pub use hosts::CodeSource;
pub use publishers::{TrustedPublishers, TrustedPublishersError};

use crate::workspace::python::Indexes;

/// The endings of files that hold no code: weights, settings, words, letters and pictures.
const HARMLESS: [&str; 15] = [
    "safetensors",
    "sft",
    "gguf",
    "onnx",
    "json",
    "yaml",
    "yml",
    "txt",
    "csv",
    "md",
    "gitattributes",
    "ttf",
    "otf",
    "png",
    "jpg",
];

/// What the owner allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Whether what is deployed in the farm with a key of scope `deploy` runs. Defaults to true.
    pub trust_farm: bool,
    /// The only hosts that code is fetched from, besides the package indexes; any public one where it is empty.
    /// Defaults to empty.
    pub hosts: BTreeSet<String>,
    /// Whether models may be pickles, which run code as they are loaded. Defaults to false.
    pub pickle: bool,
    /// Whether `install.py` of custom nodes runs, and packages are built from their sources, which runs their code too.
    /// Defaults to false.
    pub install_scripts: bool,
    /// Whether hosts at private addresses, plain http and local paths are read, for an office's own servers.
    /// Defaults to false.
    pub private_origins: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            trust_farm: true,
            hosts: BTreeSet::new(),
            pickle: false,
            install_scripts: false,
            private_origins: false,
        }
    }
}

/// Why a lockfile is not rebuilt here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyRefusal {
    /// Nobody vouches for it.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// Somebody does who is not trusted.
    #[error(
        "it is signed by publisher {0}, whom this node does not trust: its owner can run `comfy-farm publisher trust {0}`"
    )]
    Publisher(PublisherKey),
    /// Code would come from elsewhere than is allowed.
    #[error(
        "{} comes from `{}`, and this node takes code from {} only: its owner can start it with `--allow-code-host {}`",
        code.what, code.host, list(allowed), code.host
    )]
    Host {
        /// What, and from where.
        code: CodeSource,
        /// From where it may.
        allowed: Vec<String>,
    },
    /// Code would come with the bundle, which is no host.
    #[error(
        "custom node `{node}` travels with the bundle, and this node takes code from {} only (`--allow-code-host`)",
        list(allowed)
    )]
    Carried {
        /// The custom node.
        node: String,
        /// From where code may come.
        allowed: Vec<String>,
    },
    /// A model could run code.
    #[error(
        "model `{0}` may be a pickle, which runs code as it is loaded: use a safetensors file, or the owner starts the node with `--allow-pickle`"
    )]
    Pickle(String),
}

fn list(hosts: &[String]) -> String {
    let quoted: Vec<String> = hosts.iter().map(|host| format!("`{host}`")).collect();
    quoted.join(", ")
}

impl Policy {
    /// Judges a lockfile; `farm` is the key with which the farm signs, `trusted` what the owner added, `indexes` those
    /// that packages come from on this node.
    pub fn judge(
        &self,
        lockfile: &Lockfile,
        farm: PublisherKey,
        trusted: &TrustedPublishers,
        indexes: &Indexes,
    ) -> Result<(), PolicyRefusal> {
        self.check(lockfile.verify()?, farm, trusted)?;
        self.judge_hosts(lockfile, indexes)?;
        let carried = |node: &CustomNode| match node {
            CustomNode::Carried { name, .. } => Some(name.to_string()),
            _ => None,
        };
        let carried = lockfile.custom_nodes.iter().find_map(carried);
        if let Some(node) = carried.filter(|_| !self.hosts.is_empty()) {
            let allowed = self.hosts.iter().cloned().collect();
            return Err(PolicyRefusal::Carried { node, allowed });
        }
        let mut models = lockfile.models.iter().filter(|model| !model.disabled);
        match models.find(|model| !self.pickle && may_be_pickle(model)) {
            Some(model) => Err(PolicyRefusal::Pickle(model.path.to_string())),
            None => Ok(()),
        }
    }

    /// Refuses a publisher whom the owner does not trust.
    pub fn check(
        &self,
        publisher: PublisherKey,
        farm: PublisherKey,
        trusted: &TrustedPublishers,
    ) -> Result<(), PolicyRefusal> {
        match (self.trust_farm && publisher == farm) || trusted.contains(&publisher) {
            true => Ok(()),
            false => Err(PolicyRefusal::Publisher(publisher)),
        }
    }
}

/// Whether a file could run code as it is loaded.
fn may_be_pickle(model: &LockedModel) -> bool {
    let path = model.path.as_str();
    let ending = path.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    let is_harmless = ending.is_some_and(|ending| HARMLESS.contains(&ending.as_str()));
    // In which the hub's cache keeps the commit of a branch; nobody loads that.
    let is_word_of_hub =
        path.starts_with("home/huggingface/hub/models--") && path.contains("/refs/") && model.size <= 64;
    !is_harmless && !is_word_of_hub && model.size > 0
}

impl fmt::Display for Policy {
    /// For the terms that the owner agrees to.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |allowed: bool, yes: &'static str, no: &'static str| if allowed { yes } else { no };
        f.write_str(yes(
            self.trust_farm,
            "what is deployed in this farm",
            "only publishers that you trusted",
        ))?;
        match self.hosts.is_empty() {
            true => f.write_str("; code from any public host")?,
            false => write!(
                f,
                "; code from {} only, and packages from their indexes",
                list(&self.hosts.iter().cloned().collect::<Vec<_>>())
            )?,
        }
        f.write_str(yes(self.pickle, "; models of any kind", "; no pickled models"))?;
        f.write_str(yes(
            self.install_scripts,
            "; install scripts run, and packages are built from their sources",
            "; no install scripts, and no packages built from their sources",
        ))?;
        f.write_str(yes(self.private_origins, "; also from private addresses", ""))
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use protocol::BlobRef;

    use super::*;

    fn signed(by: u8, model: &str) -> Lockfile {
        let mut lockfile = Lockfile::parse(
            br#"{"format":1,"comfyui":{"url":"https://github.com/x/ComfyUI","commit":"ca457f7ba1ff33bd0d724cd7324131509efcf3ec"}}"#,
        )
        .expect("a lockfile");
        let model = serde_json::json!({"path": model, "size": 1, "disabled": false});
        lockfile.models.push(serde_json::from_value::<LockedModel>(model).expect("a model"));
        lockfile.sign(&SigningKey::from_bytes(&[by; 32]));
        lockfile
    }

    fn key(of: u8) -> PublisherKey {
        PublisherKey(SigningKey::from_bytes(&[of; 32]).verifying_key().to_bytes())
    }

    #[test]
    fn only_trusted_publishers_harmless_models_and_allowed_hosts_pass() {
        const MODEL: &str = "models/vae/a.safetensors";
        let farm = key(1);
        let judge = |policy: &Policy, lockfile: &Lockfile, trusted: &[PublisherKey]| {
            policy.judge(lockfile, farm, &trusted.iter().copied().collect(), &Indexes::default())
        };
        let policy = Policy::default();
        assert_eq!(judge(&policy, &signed(1, MODEL), &[]), Ok(()));
        assert_eq!(judge(&policy, &signed(2, MODEL), &[]), Err(PolicyRefusal::Publisher(key(2))));
        assert_eq!(judge(&policy, &signed(2, MODEL), &[key(2)]), Ok(()));
        let own = Policy { trust_farm: false, ..Policy::default() };
        assert_eq!(judge(&own, &signed(1, MODEL), &[]), Err(PolicyRefusal::Publisher(farm)));
        let mut unsigned = signed(1, MODEL);
        unsigned.signature = None;
        assert_eq!(judge(&policy, &unsigned, &[]), Err(PolicyRefusal::Signature(SignatureError::Unsigned)));
        let mut altered = signed(1, MODEL);
        altered.python = Some("3.9".parse().expect("a version"));
        assert_eq!(judge(&policy, &altered, &[]), Err(PolicyRefusal::Signature(SignatureError::Wrong)));
        for harmless in ["home/huggingface/hub/models--a--b/refs/main", "custom_nodes/a/b.onnx"] {
            assert_eq!(judge(&policy, &signed(1, harmless), &[]), Ok(()));
        }
        for pickle in ["models/vae/a.ckpt", "models/vae/a.pt", "models/vae/a", "home/.cache/refs/main"] {
            let refused = judge(&policy, &signed(1, pickle), &[]);
            assert_eq!(refused, Err(PolicyRefusal::Pickle(pickle.to_owned())));
            let brave = Policy { pickle: true, ..Policy::default() };
            assert_eq!(judge(&brave, &signed(1, pickle), &[]), Ok(()));
        }
        let narrow = Policy { hosts: ["git.example.org".to_owned()].into(), ..Policy::default() };
        let refused = judge(&narrow, &signed(1, MODEL), &[]).expect_err("another host");
        assert!(refused.to_string().contains("ComfyUI comes from `github.com`"), "{refused}");

        let builds = Policy { install_scripts: true, ..Policy::default() }.to_string();
        assert!(builds.contains("; install scripts run, and packages are built"), "{builds}");
        assert!(policy.to_string().contains("no packages built from their sources"), "{policy}");

        let mut carrying = signed(1, MODEL);
        carrying.custom_nodes.push(CustomNode::Carried {
            name: "own".parse().expect("a name"),
            files: BlobRef::of(b"an archive"),
            registry: None,
        });
        carrying.sign(&SigningKey::from_bytes(&[1; 32]));
        assert_eq!(judge(&policy, &carrying, &[]), Ok(()));
        let forge = Policy { hosts: ["github.com".to_owned()].into(), ..Policy::default() };
        let refused = judge(&forge, &carrying, &[]).expect_err("it comes from no host");
        assert!(refused.to_string().contains("custom node `own` travels with the bundle"), "{refused}");
    }
}
