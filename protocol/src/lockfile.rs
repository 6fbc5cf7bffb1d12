//! The lockfile: every pinned version that a workflow needs, under one hash, with its publisher's
//! signature.
//!
//! Every text in it is of a type that was checked as it was read (`lockfile/text.rs`), so that a lockfile
//! can name no path outside the workspace, no other scheme than https and no option of a command. Not
//! here: comfy-pack's snapshot, which `bundle` turns into one of these, and how it is rebuilt.

mod text;
mod code;
mod source;
mod system;

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::blob::BlobHash;
use crate::origin::BlobName;

pub use code::{CustomNode, GitPin, MAX_MIRRORS, RegistryPin};
pub use source::GitSource;
pub use system::{SystemNeed, SystemNeeds};
pub(crate) use text::relative_path;
pub use text::{
    FileName, FolderPath, GitCommit, GitUrl, HttpsUrl, ModelPath, ParseTextError, PublisherKey, Sha256,
    Token, WebUrl, is_code,
};

/// The largest lockfile that is read, in bytes.
pub const MAX_LOCKFILE: usize = 16 << 20;
/// Stands before the signed hash, so that no signature for something else passes.
const SIGNATURE_CONTEXT: &[u8] = b"comfy-farm lockfile\n";

/// Every version that a workflow needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lockfile {
    /// The format's version: 1.
    pub format: u32,
    /// The version of Python, such as `3.11`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<Token>,
    /// The commit of ComfyUI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comfyui: Option<GitPin>,
    /// What is installed in `custom_nodes`.
    #[serde(default)]
    pub custom_nodes: Vec<CustomNode>,
    /// What is installed in Python.
    #[serde(default)]
    pub packages: Vec<PackagePin>,
    /// The models, also those that the workflow does not use.
    #[serde(default)]
    pub models: Vec<LockedModel>,
    /// What it needs of the system that it is on.
    #[serde(default, skip_serializing_if = "SystemNeeds::is_empty")]
    pub system: SystemNeeds,
    /// Who vouches for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<PublisherSignature>,
}

/// One installed Python package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackagePin {
    /// Its name.
    pub name: Token,
    /// What it is pinned to.
    #[serde(flatten)]
    pub pin: Pin,
    /// The package index that it came from, where that is not the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<HttpsUrl>,
    /// The SHA-256 of every file of this version that may be installed; empty for any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hashes: Vec<Sha256>,
}

impl PackagePin {
    /// A pin of any file from the usual index.
    pub fn new(name: Token, pin: Pin) -> Self {
        Self { name, pin, index: None, hashes: Vec::new() }
    }
}

/// What a Python package is pinned to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pin {
    /// A version of the package index.
    Version(Token),
    /// An archive.
    Url(HttpsUrl),
    /// A repository, with the commit behind an `@`, and `#subdirectory=` where the package is not at its top.
    Git(GitUrl),
}

/// One model file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedModel {
    /// Where it lies in the ComfyUI folder, such as `models/checkpoints/x.safetensors`.
    pub path: ModelPath,
    /// How many bytes it has.
    pub size: u64,
    /// Its SHA-256, by which the rest of the world names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// Its BLAKE3 hash, by which peers serve it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<BlobHash>,
    /// Where it can be fetched from, the preferred first.
    #[serde(default)]
    pub sources: Vec<Source>,
    /// Whether its author had left it out.
    pub disabled: bool,
    /// Whether peers may have it. Defaults to true; a lockfile names it only where it is false.
    #[serde(default = "shared", skip_serializing_if = "is_shared")]
    pub share: bool,
}

impl LockedModel {
    /// The names that its bytes have, as far as the lockfile knows them.
    pub fn names(&self) -> impl Iterator<Item = BlobName> + use<> {
        self.blob.map(BlobName::Blake3).into_iter().chain(self.sha256.map(BlobName::Sha256))
    }

    /// Whether people mean it by this name: its path, also without `models`, or its file name.
    pub fn is_called(&self, name: &str) -> bool {
        let path = self.path.as_str();
        let below = path.strip_prefix("models/").unwrap_or(path);
        name == path || name == below || path.rsplit('/').next() == Some(name)
    }
}

fn shared() -> bool {
    true
}

fn is_shared(share: &bool) -> bool {
    *share
}

/// A place from which a model can be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Its address.
    pub url: HttpsUrl,
}

/// A publisher's word for a lockfile, or for what one came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublisherSignature {
    /// Who signed.
    pub publisher: PublisherKey,
    /// The signature over its hash: 128 hex digits.
    pub signature: String,
}

/// The BLAKE3 hash of a lockfile's canonical JSON without its signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LockfileHash(pub BlobHash);

impl fmt::Display for LockfileHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why bytes are no lockfile.
#[derive(Debug, thiserror::Error)]
pub enum LockfileError {
    /// They are more than [`MAX_LOCKFILE`].
    #[error("lockfile of {size} bytes: at most {MAX_LOCKFILE} are read")]
    TooLarge {
        /// How many they are.
        size: usize,
    },
    /// They are no JSON, or something in it is not what it should be.
    #[error("lockfile is not valid")]
    Json(#[source] serde_json::Error),
    /// It was written by a later release.
    #[error("lockfile of format {format}: this release reads format 1")]
    Format {
        /// Its format.
        format: u32,
    },
}

/// Why a signature proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// It has none.
    #[error("it is not signed by any publisher")]
    Unsigned,
    /// It is not by the key that it names, or for something else.
    #[error("its signature does not match its publisher and contents")]
    Wrong,
}

impl Default for Lockfile {
    /// A lockfile that pins nothing, as of a bare workflow.
    fn default() -> Self {
        Self {
            format: 1,
            python: None,
            comfyui: None,
            custom_nodes: Vec::new(),
            packages: Vec::new(),
            models: Vec::new(),
            system: SystemNeeds::default(),
            signature: None,
        }
    }
}

impl Lockfile {
    /// Reads what [`to_canonical_json`](Self::to_canonical_json) writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, LockfileError> {
        if bytes.len() > MAX_LOCKFILE {
            return Err(LockfileError::TooLarge { size: bytes.len() });
        }
        let lockfile: Self = serde_json::from_slice(bytes).map_err(LockfileError::Json)?;
        match lockfile.format {
            1 => Ok(lockfile),
            format => Err(LockfileError::Format { format }),
        }
    }

    /// The bytes that are stored: equal for equal lockfiles.
    pub fn to_canonical_json(&self) -> Vec<u8> {
        serde_json_canonicalizer::to_vec(self).expect("a lockfile has only text keys")
    }

    /// What it is called by: the hash of all that it pins, whoever signed it.
    pub fn hash(&self) -> LockfileHash {
        let unsigned = Self { signature: None, ..self.clone() };
        LockfileHash(BlobHash::of(&unsigned.to_canonical_json()))
    }

    /// Signs it, in place of any signature that it had.
    pub fn sign(&mut self, publisher: &SigningKey) {
        self.signature = Some(PublisherSignature::new(publisher, SIGNATURE_CONTEXT, self.hash().0));
    }

    /// Checks its signature and says whose it is.
    pub fn verify(&self) -> Result<PublisherKey, SignatureError> {
        let signature = self.signature.as_ref().ok_or(SignatureError::Unsigned)?;
        signature.verify(SIGNATURE_CONTEXT, self.hash().0)
    }
}

impl PublisherSignature {
    /// A publisher's signature of a hash; the context says of what kind of thing it is.
    pub(crate) fn new(publisher: &SigningKey, context: &[u8], hash: BlobHash) -> Self {
        let signature = publisher.sign(&[context, &hash.0].concat());
        Self {
            publisher: PublisherKey(publisher.verifying_key().to_bytes()),
            signature: hex::encode(signature.to_bytes()),
        }
    }

    /// Whose it is, if it is one of this hash.
    pub(crate) fn verify(&self, context: &[u8], hash: BlobHash) -> Result<PublisherKey, SignatureError> {
        let verify = || {
            let mut bytes = [0; 64];
            hex::decode_to_slice(&self.signature, &mut bytes).ok()?;
            let key = VerifyingKey::from_bytes(&self.publisher.0).ok()?;
            key.verify_strict(&[context, &hash.0].concat(), &Signature::from_bytes(&bytes)).ok()
        };
        verify().map(|()| self.publisher).ok_or(SignatureError::Wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lockfile() -> Lockfile {
        Lockfile {
            python: Some("3.11".parse().unwrap()),
            comfyui: Some(GitPin::new(
                "https://github.com/comfyanonymous/ComfyUI.git".parse().unwrap(),
                "ca457f7ba1ff33bd0d724cd7324131509efcf3ec".parse().unwrap(),
            )),
            custom_nodes: vec![CustomNode::Registry {
                id: "comfyui-kjnodes".parse().unwrap(),
                version: "1.0.8".parse().unwrap(),
            }],
            packages: vec![PackagePin::new(
                "torch".parse().unwrap(),
                Pin::Version("2.6.0+cu124".parse().unwrap()),
            )],
            models: vec![LockedModel {
                path: "models/loras/tiny.safetensors".parse().unwrap(),
                size: 9,
                sha256: None,
                blob: Some(BlobHash::of(b"tiny lora")),
                sources: vec![Source { url: "https://huggingface.co/x/y".parse().unwrap() }],
                disabled: false,
                share: true,
            }],
            ..Lockfile::default()
        }
    }

    #[test]
    fn canonical_json_is_this_and_is_read_again() {
        let expected = concat!(
            r#"{"comfyui":{"commit":"ca457f7ba1ff33bd0d724cd7324131509efcf3ec","#,
            r#""url":"https://github.com/comfyanonymous/ComfyUI.git"},"#,
            r#""custom_nodes":[{"from":"registry","id":"comfyui-kjnodes","version":"1.0.8"}],"#,
            r#""format":1,"models":[{"blob":"#,
            r#""28e6ccd6","disabled":false,"path":"models/loras/tiny.safetensors","size":9,"#,
            r#""sources":[{"url":"https://huggingface.co/x/y"}]}],"#,
            r#""packages":[{"name":"torch","version":"2.6.0+cu124"}],"python":"3.11"}"#
        )
        .replace("28e6ccd6", &BlobHash::of(b"tiny lora").to_string());
        let bytes = lockfile().to_canonical_json();
        assert_eq!(String::from_utf8(bytes.clone()).unwrap(), expected);
        assert_eq!(Lockfile::parse(&bytes).unwrap(), lockfile());
    }

    #[test]
    fn needs_of_the_system_are_read_again_and_name_no_path_or_option() {
        let need =
            |name: &str| SystemNeed { name: name.parse().unwrap(), package: Some("libgl1".parse().unwrap()) };
        let mut lockfile = lockfile();
        lockfile.system = SystemNeeds { libraries: vec![need("libGL.so.1")], programs: vec![need("ffmpeg")] };
        let text = String::from_utf8(lockfile.to_canonical_json()).unwrap();
        assert_eq!(Lockfile::parse(text.as_bytes()).unwrap(), lockfile);
        for (from, to) in [("libGL", "../libGL"), ("ffmpeg", "-ffmpeg"), ("\"libgl1\"", "\"--reinstall\"")] {
            assert!(Lockfile::parse(text.replace(from, to).as_bytes()).is_err(), "{from} -> {to}");
        }
    }

    #[test]
    fn index_and_hashes_of_a_package_are_read_again() {
        let mut lockfile = lockfile();
        lockfile.packages[0].index = Some("https://download.example.org/whl/cu124".parse().unwrap());
        lockfile.packages[0].hashes = vec![Sha256([7; 32])];
        assert_eq!(Lockfile::parse(&lockfile.to_canonical_json()).unwrap(), lockfile);
    }

    #[test]
    fn hash_leaves_the_signature_out_and_the_signature_binds_everything_else() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let mut signed = lockfile();
        assert_eq!(signed.verify(), Err(SignatureError::Unsigned));
        signed.sign(&key);
        assert_eq!(signed.hash(), lockfile().hash());
        assert_eq!(signed.verify(), Ok(PublisherKey(key.verifying_key().to_bytes())));
        let read = Lockfile::parse(&signed.to_canonical_json()).unwrap();
        assert_eq!(read, signed);
        let mut altered = signed.clone();
        altered.models[0].disabled = true;
        assert_eq!(altered.verify(), Err(SignatureError::Wrong));
        let mut private = signed.clone();
        private.models[0].share = false;
        assert_eq!(private.verify(), Err(SignatureError::Wrong));
        assert_eq!(Lockfile::parse(&private.to_canonical_json()).unwrap(), private);
        let mut garbled = signed;
        garbled.signature.as_mut().unwrap().signature.pop();
        assert_eq!(garbled.verify(), Err(SignatureError::Wrong));
    }

    #[test]
    fn lockfile_with_a_path_outside_an_unknown_key_or_another_format_is_refused() {
        let check = |from: &str, to: &str, message: &str| {
            let text = String::from_utf8(lockfile().to_canonical_json()).unwrap();
            assert!(text.contains(from), "{from}");
            let error = Lockfile::parse(text.replace(from, to).as_bytes()).unwrap_err();
            let source = std::error::Error::source(&error).map_or_else(String::new, ToString::to_string);
            assert!(format!("{error}: {source}").contains(message), "{to}: {error}: {source}");
        };
        check(
            "models/loras",
            "models/../..",
            "`models/../../tiny.safetensors` is not a path below `models/`",
        );
        for wrong in
            ["custom_nodes/a/x.PY", "home/../x.bin", "homes/x.bin", "home/torch/hub/hubconf.py", "user/x"]
        {
            check("models/loras/tiny.safetensors", wrong, "is not a path below `models/`");
        }
        check("https://huggingface.co", "file://", "is not an https URL");
        check("ca457f7ba1", "--upload-p", "is not a commit");
        check("torch", "-r", "is not a name or version");
        check("\"python\"", "\"pyhton\"", "unknown field `pyhton`");
        check("\"format\":1", "\"format\":2", "lockfile of format 2");
    }
}
