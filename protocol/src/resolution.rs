//! What a lockfile came to when it was first rebuilt: the resolved lockfile, from which every other node builds.
//!
//! A lockfile names commits, versions and SHA-256 hashes, as the world does. The first node that rebuilds it finds
//! what peers can serve for each: a pack of every commit, the files of every version of the Comfy registry, the complete
//! lock of an environment for its platform, the BLAKE3 hash of every file. The coordinator joins what nodes report, signs it, and tells the others of it, who then
//! need no way to any origin. Not here: how the parts are made and used, which is the node's.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::SigningKey;
use serde::{Deserialize, Serialize};

use crate::blob::{BlobHash, BlobRef};
use crate::bundle::MAX_CARRIED;
use crate::environment::{BuildSource, BuiltWheel, EnvironmentLock, LockedFile, LockedWheel};
use crate::lockfile::{
    CustomNode, GitPin, GitSource, Lockfile, LockfileHash, Pin, PublisherKey, PublisherSignature,
    RegistryPin, Sha256, SignatureError, Token,
};
use crate::origin::Alias;
use crate::workspace::{CodeSpec, EnvironmentSpec, hashes_of, normalized};

/// The largest resolution that is read, in bytes.
pub const MAX_RESOLUTION: usize = 16 << 20;
/// The largest pack of a commit, or of one of its repositories, that is taken, in bytes.
pub const MAX_PACK: u64 = 8 << 30;
/// The most environments that one names: a platform with an accelerator each.
const MAX_ENVIRONMENTS: usize = 32;
/// Stands before the signed hash, so that no signature for something else passes.
const SIGNATURE_CONTEXT: &[u8] = b"comfy-farm resolution\n";

/// What the parts of one lockfile came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolution {
    /// The format's version: 1.
    pub format: u32,
    /// Of which lockfile.
    pub lockfile: LockfileHash,
    /// A pack for each commit, submodules included.
    pub git: Vec<GitPack>,
    /// The files of each custom node of the Comfy registry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub registry: Vec<RegistryNode>,
    /// A complete lock for each platform and accelerator.
    pub environments: Vec<EnvironmentLock>,
    /// Both names of each model.
    pub models: Vec<Alias>,
    /// Who vouches for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<PublisherSignature>,
}

/// A commit as one blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitPack {
    /// Which commit. Git's own hashes prove that the pack holds it.
    pub pin: GitPin,
    /// The pack.
    pub pack: BlobRef,
}

/// What a version of the Comfy registry came to. The registry names no hash, so the first word stands for the farm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryNode {
    /// Which version.
    pub pin: RegistryPin,
    /// The archive of its files, as of a custom node that travels with a bundle. `None` where the registry does not
    /// give it: then every workspace of the lockfile is without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<BlobRef>,
}

/// Why bytes are no resolution.
#[derive(Debug, thiserror::Error)]
pub enum ResolutionError {
    /// They are more than [`MAX_RESOLUTION`].
    #[error("resolved lockfile of {size} bytes: at most {MAX_RESOLUTION} are read")]
    TooLarge {
        /// How many they are.
        size: usize,
    },
    /// They are no JSON, or something in it is not what it should be.
    #[error("resolved lockfile is not valid")]
    Json(#[source] serde_json::Error),
    /// It was written by a later release.
    #[error("resolved lockfile of format {format}: this release reads format 1")]
    Format {
        /// Its format.
        format: u32,
    },
}

impl Resolution {
    /// One of a lockfile of which nothing is resolved yet.
    pub fn new(lockfile: LockfileHash) -> Self {
        Self {
            format: 1,
            lockfile,
            git: Vec::new(),
            registry: Vec::new(),
            environments: Vec::new(),
            models: Vec::new(),
            signature: None,
        }
    }

    /// Reads what [`to_canonical_json`](Self::to_canonical_json) writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ResolutionError> {
        if bytes.len() > MAX_RESOLUTION {
            return Err(ResolutionError::TooLarge { size: bytes.len() });
        }
        let resolution: Self = serde_json::from_slice(bytes).map_err(ResolutionError::Json)?;
        match resolution.format {
            1 => Ok(resolution),
            format => Err(ResolutionError::Format { format }),
        }
    }

    /// The bytes that are stored: equal for equal resolutions.
    pub fn to_canonical_json(&self) -> Vec<u8> {
        serde_json_canonicalizer::to_vec(self).expect("a resolution has only text keys")
    }

    /// Signs it, in place of any signature that it had.
    pub fn sign(&mut self, publisher: &SigningKey) {
        self.signature = Some(PublisherSignature::new(publisher, SIGNATURE_CONTEXT, self.hash()));
    }

    /// Checks its signature and says whose it is.
    pub fn verify(&self) -> Result<PublisherKey, SignatureError> {
        let signature = self.signature.as_ref().ok_or(SignatureError::Unsigned)?;
        signature.verify(SIGNATURE_CONTEXT, self.hash())
    }

    fn hash(&self) -> BlobHash {
        BlobHash::of(&Self { signature: None, ..self.clone() }.to_canonical_json())
    }

    /// The pack of a commit, from whichever of its repositories it was made.
    pub fn pack(&self, pin: &GitPin) -> Option<BlobRef> {
        self.git.iter().find(|pack| pack.pin.commit == pin.commit).map(|pack| pack.pack)
    }

    /// The blob that a file is said to be.
    pub fn model(&self, sha256: Sha256) -> Option<BlobRef> {
        self.models.iter().find(|alias| alias.sha256 == sha256).map(|alias| alias.blob)
    }

    /// What a version of the Comfy registry came to.
    pub fn registry_node(&self, pin: &RegistryPin) -> Option<&RegistryNode> {
        self.registry.iter().find(|node| node.pin == *pin)
    }

    /// The lock of an environment.
    pub fn environment(&self, spec: &EnvironmentSpec) -> Option<&EnvironmentLock> {
        let hash = spec.hash();
        self.environments.iter().find(|lock| lock.environment == hash)
    }

    /// Takes over the parts of another one that belong to the lockfile, are not named yet and are no larger than anybody
    /// takes; says whether there were any. What is named stays as it is, whoever reports it otherwise.
    pub fn join(&mut self, other: &Self, lockfile: &Lockfile) -> bool {
        let before = self.counts();
        let pins = CodeSpec::of(lockfile, &[]).pins();
        for pack in &other.git {
            let pin = pins.iter().find(|pin| pin.commit == pack.pin.commit);
            let pin = pin.filter(|pin| pack.pack.size <= MAX_PACK && self.pack(pin).is_none());
            // Its address is the lockfile's, whatever whoever reports it says.
            self.git.extend(pin.map(|pin| GitPack {
                pin: GitPin::new(pin.url.clone(), pin.commit.clone()),
                pack: pack.pack,
            }));
        }
        let versions: Vec<_> = lockfile.custom_nodes.iter().filter_map(CustomNode::registry).collect();
        for node in &other.registry {
            let is_small = node.files.is_none_or(|files| files.size <= MAX_CARRIED);
            if is_small && versions.contains(&node.pin) && self.registry_node(&node.pin).is_none() {
                self.registry.push(node.clone());
            }
        }
        for lock in &other.environments {
            let spec = EnvironmentSpec::of(lockfile, &lock.platform, lock.accelerator);
            let is_new = self.environment(&spec).is_none() && self.environments.len() < MAX_ENVIRONMENTS;
            if is_new && lock.environment == spec.hash() && keeps_pins(lock, lockfile) {
                self.environments.push(lock.clone());
            }
        }
        let models: BTreeSet<_> =
            lockfile.models.iter().filter_map(|model| Some((model.sha256?, model.size))).collect();
        for alias in &other.models {
            let is_named = self.models.iter().any(|known| known.sha256 == alias.sha256);
            if !is_named && models.contains(&(alias.sha256, alias.blob.size)) {
                self.models.push(*alias);
            }
        }
        before != self.counts()
    }

    fn counts(&self) -> [usize; 4] {
        [self.git.len(), self.registry.len(), self.environments.len(), self.models.len()]
    }
}

/// Whether a lock has each package at the version, and with one of the hashes, that the lockfile says. Of a package that
/// was built this is its source: what a build makes of it is the word of who built it.
fn keeps_pins(lock: &EnvironmentLock, lockfile: &Lockfile) -> bool {
    let release = |version: &str| version.split('+').next().unwrap_or_default().to_owned();
    let Some(locked) = locked(lock) else { return false };
    lockfile.packages.iter().all(|package| {
        let (version, file) = match locked.get(&normalized(package.name.as_str())) {
            Some(Locked::File(version, file)) => (version, file),
            Some(Locked::Git(source)) => {
                return matches!(&package.pin, Pin::Git(url) if GitSource::of(url).as_ref() == Some(source));
            }
            // A platform may have no use for it.
            None => return true,
        };
        let is_version = match &package.pin {
            Pin::Version(pinned) => release(pinned.as_str()) == release(version.as_str()),
            Pin::Url(_) => true,
            // It is built from its commit, and nothing else.
            Pin::Git(_) => false,
        };
        let hashes = hashes_of(package, version.as_str());
        is_version && (hashes.is_empty() || hashes.contains(&file.sha256))
    })
}

/// What one package of a lock is installed from, or built from.
enum Locked<'a> {
    File(&'a Token, &'a LockedFile),
    Git(&'a GitSource),
}

/// The packages of a lock by name. `None` where one stands there twice, or has a wheel of another package: then something
/// would be installed that nothing was compared with.
fn locked(lock: &EnvironmentLock) -> Option<BTreeMap<String, Locked<'_>>> {
    let wheels = lock
        .wheels
        .iter()
        .map(|LockedWheel { name, version, file }| (name, Some(file), Locked::File(version, file)));
    let built = lock.built.iter().map(|BuiltWheel { name, version, source, wheel }| match source {
        BuildSource::File(file) => (name, wheel.as_ref(), Locked::File(version, file)),
        BuildSource::Git(source) => (name, wheel.as_ref(), Locked::Git(source)),
    });
    let mut locked = BTreeMap::new();
    for (name, wheel, package) in wheels.chain(built) {
        let name = normalized(name.as_str());
        let of = wheel.and_then(|wheel| wheel.file_name.as_str().split('-').next()).map(normalized);
        if of.is_some_and(|of| of != name) || locked.insert(name, package).is_some() {
            return None;
        }
    }
    Some(locked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lockfile::PackagePin;
    use crate::workspace::Accelerator;

    fn pin(name: &str) -> GitPin {
        let commit = BlobHash::of(name.as_bytes()).to_string()[..40].parse().expect("a commit");
        GitPin::new(format!("https://git.example.org/{name}").parse().expect("an address"), commit)
    }

    fn lockfile() -> Lockfile {
        let version = Pin::Version("2.6.0".parse().expect("a version"));
        let RegistryPin { id, version: of_node } = registry("some-nodes");
        let node = CustomNode::Registry { id, version: of_node };
        Lockfile {
            comfyui: Some(pin("ComfyUI")),
            custom_nodes: vec![node],
            packages: vec![PackagePin::new("torch".parse().expect("a name"), version)],
            ..Lockfile::default()
        }
    }

    fn registry(id: &str) -> RegistryPin {
        RegistryPin { id: id.parse().expect("a name"), version: "1.0.8".parse().expect("a version") }
    }

    fn lock(lockfile: &Lockfile, version: &str) -> EnvironmentLock {
        let spec = EnvironmentSpec::of(lockfile, "linux-x86_64", Accelerator::Cpu);
        let file = LockedFile {
            file_name: "torch-2.6.0-py3-none-any.whl".parse().expect("a name"),
            sha256: Sha256([7; 32]),
            size: 3,
            blob: Some(BlobHash([8; 32])),
            urls: vec![],
        };
        let (name, version) = ("torch".parse().expect("a name"), version.parse().expect("a version"));
        EnvironmentLock {
            format: 1,
            environment: spec.hash(),
            python: "3.11.7".parse().expect("a version"),
            platform: spec.platform,
            accelerator: spec.accelerator,
            torch: None,
            equivalent: false,
            wheels: vec![LockedWheel { name, version, file }],
            built: vec![],
        }
    }

    fn reported(lockfile: &Lockfile, pack: u8, version: &str) -> Resolution {
        let pack = BlobRef { hash: BlobHash([pack; 32]), size: 9 };
        Resolution {
            git: vec![GitPack { pin: pin("ComfyUI"), pack }, GitPack { pin: pin("other"), pack }],
            registry: ["some-nodes", "other"]
                .map(|id| RegistryNode { pin: registry(id), files: Some(pack) })
                .to_vec(),
            environments: vec![lock(lockfile, version)],
            models: vec![Alias { sha256: Sha256([1; 32]), blob: pack }],
            ..Resolution::new(lockfile.hash())
        }
    }

    #[test]
    fn parts_of_the_lockfile_are_joined_and_the_first_word_stands() {
        let lockfile = lockfile();
        let mut resolution = Resolution::new(lockfile.hash());
        assert!(resolution.join(&reported(&lockfile, 1, "2.6.0+cpu"), &lockfile));
        assert_eq!(resolution.pack(&pin("ComfyUI")).expect("it is named").hash, BlobHash([1; 32]));
        assert_eq!(resolution.pack(&pin("other")), None, "the lockfile knows no such commit");
        let files = resolution.registry_node(&registry("some-nodes")).expect("it is named").files;
        assert_eq!(files.expect("the registry has it").hash, BlobHash([1; 32]));
        assert_eq!(resolution.registry_node(&registry("other")), None, "nor such a version");
        assert_eq!((resolution.environments.len(), resolution.models.len()), (1, 0));
        let joined = resolution.clone();
        assert!(!resolution.join(&reported(&lockfile, 2, "2.6.0"), &lockfile));
        assert_eq!(resolution, joined);
    }

    #[test]
    fn pack_or_archive_that_is_larger_than_anybody_takes_is_not_the_first_word() {
        let lockfile = lockfile();
        let joined = |pack: u64, files: u64| {
            let mut other = reported(&lockfile, 1, "2.6.0");
            other.git[0].pack.size = pack;
            other.registry[0].files.as_mut().expect("the registry has it").size = files;
            let mut resolution = Resolution::new(lockfile.hash());
            resolution.join(&other, &lockfile);
            (resolution.git.len(), resolution.registry.len())
        };
        assert_eq!(joined(MAX_PACK, MAX_CARRIED), (1, 1));
        assert_eq!(joined(MAX_PACK + 1, u64::MAX), (0, 0));
    }

    #[test]
    fn lock_of_another_version_hash_or_lockfile_is_left_out() {
        let mut lockfile = lockfile();
        let left_out = |lockfile: &Lockfile, reported: &Resolution| {
            let mut resolution = Resolution::new(lockfile.hash());
            resolution.join(reported, lockfile);
            resolution.environments.is_empty()
        };
        assert!(left_out(&lockfile, &reported(&lockfile, 1, "2.7.0")));
        assert!(!left_out(&lockfile, &reported(&lockfile, 1, "2.6.0")));
        let of_another = reported(&Lockfile::default(), 1, "2.6.0");
        assert!(left_out(&lockfile, &of_another));
        lockfile.packages[0].hashes = vec![Sha256([9; 32])];
        assert!(left_out(&lockfile, &reported(&lockfile, 1, "2.6.0")));
        assert!(left_out(&lockfile, &reported(&lockfile, 1, "2.6.0+mine")));
        assert!(!left_out(&lockfile, &reported(&lockfile, 1, "2.6.0+cpu")));
    }

    #[test]
    fn package_of_a_repository_is_built_from_the_commit_that_is_pinned_and_from_nothing_else() {
        let address = |digit: &str| format!("https://git.example.org/torch@{}", digit.repeat(40)).parse();
        let mut lockfile = lockfile();
        lockfile.packages[0].pin = Pin::Git(address("1").expect("an address"));
        let joins = |source: Option<&str>| {
            let mut reported = reported(&lockfile, 1, "2.6.0");
            if let Some(digit) = source {
                let LockedWheel { name, version, .. } = reported.environments[0].wheels.remove(0);
                let source = GitSource::of(&address(digit).expect("an address")).expect("a commit");
                let source = BuildSource::Git(source);
                reported.environments[0].built.push(BuiltWheel { name, version, source, wheel: None });
            }
            let mut resolution = Resolution::new(lockfile.hash());
            resolution.join(&reported, &lockfile);
            !resolution.environments.is_empty()
        };
        assert!(joins(Some("1")));
        assert!(!joins(Some("2")) && !joins(None));
    }

    #[test]
    fn lock_with_a_package_twice_or_a_wheel_of_another_one_is_left_out() {
        let mut lockfile = lockfile();
        lockfile.packages[0].hashes = vec![Sha256([7; 32])];
        let joins = |change: &dyn Fn(&mut EnvironmentLock)| {
            let mut reported = reported(&lockfile, 1, "2.6.0");
            change(&mut reported.environments[0]);
            let mut resolution = Resolution::new(lockfile.hash());
            resolution.join(&reported, &lockfile);
            !resolution.environments.is_empty()
        };
        let text = |text: &str| text.parse().expect("a name");
        let named = |name: &str| LockedFile {
            file_name: name.parse().expect("a name"),
            sha256: Sha256([9; 32]),
            size: 3,
            blob: None,
            urls: vec![],
        };
        let wheel = |name: &str, file: &str| {
            let (name, version) = (text(name), "2.6.0".parse().expect("a version"));
            LockedWheel { name, version, file: named(file) }
        };
        let built = |lock: &EnvironmentLock, name: &str, file: &str| {
            let LockedWheel { version, file: source, .. } = lock.wheels[0].clone();
            let source = BuildSource::File(source);
            BuiltWheel { name: text(name), version, source, wheel: Some(named(file)) }
        };
        assert!(joins(&|lock| lock.wheels.push(wheel("Other.Thing", "other_thing-1-py3-none-any.whl"))));
        assert!(joins(&|lock| {
            lock.built.push(built(lock, "torch", "torch-2.6.0-cp311-cp311-linux_x86_64.whl"));
            lock.wheels.clear();
        }));
        for name in ["torch", "Torch"] {
            assert!(!joins(&|lock| lock.wheels.push(wheel(name, "torch-2.6.0-py3-none-any.whl"))));
            assert!(!joins(&|lock| lock.built.push(built(lock, name, "torch-2.6.0-py3-none-any.whl"))));
        }
        assert!(!joins(&|lock| lock.wheels.push(wheel("other", "torch-2.6.0-py3-none-any.whl"))));
        assert!(!joins(&|lock| lock.built.push(built(lock, "other", "torch-2.6.0-py3-none-any.whl"))));
    }

    #[test]
    fn signature_is_for_all_that_it_names_and_for_nothing_else() {
        let (lockfile, key) = (lockfile(), SigningKey::from_bytes(&[7; 32]));
        let mut resolution = reported(&lockfile, 1, "2.6.0");
        assert_eq!(resolution.verify(), Err(SignatureError::Unsigned));
        resolution.sign(&key);
        let read = Resolution::parse(&resolution.to_canonical_json()).expect("it is read again");
        assert_eq!(read.verify(), Ok(PublisherKey(key.verifying_key().to_bytes())));
        let mut altered = read.clone();
        altered.git.pop();
        assert_eq!(altered.verify(), Err(SignatureError::Wrong));
        let mut of_lockfile = lockfile.clone();
        of_lockfile.sign(&key);
        let exchanged = Resolution { signature: of_lockfile.signature, ..read };
        assert_eq!(exchanged.verify(), Err(SignatureError::Wrong));
    }
}
