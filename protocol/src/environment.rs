//! The lock of one environment: every file that is installed, for one Python, platform and accelerator.
//!
//! A lockfile pins what its author had; this is what that came to on a platform, complete and hashed, so
//! that another machine installs the very same files and asks no package index. Not here: how it is found
//! and built, which is the node's.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::blob::BlobHash;
use crate::lockfile::{FileName, GitSource, LockfileHash, Sha256, Token, WebUrl};
use crate::workspace::{Accelerator, EnvironmentHash};

/// The most bytes of a lock that are read.
pub const MAX_ENVIRONMENT_LOCK: usize = 4 << 20;

/// Everything that an environment is installed from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvironmentLock {
    /// The format's version: 1.
    pub format: u32,
    /// The pins that it was completed from.
    pub environment: EnvironmentHash,
    /// The full version of Python, such as `3.11.7`.
    pub python: Token,
    /// Operating system and architecture, such as `linux-x86_64`.
    pub platform: String,
    /// What torch computes on.
    pub accelerator: Accelerator,
    /// The version and build of torch that were chosen, such as `2.6.0+cu124`; absent without torch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torch: Option<Token>,
    /// Whether a build of the torch family other than the recorded one was chosen.
    pub equivalent: bool,
    /// What is installed as it was published, by name.
    pub wheels: Vec<LockedWheel>,
    /// What has no wheel for this platform and is built from its source, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub built: Vec<BuiltWheel>,
}

/// A package and the wheel that it is installed from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedWheel {
    /// Its name, as indexes compare it.
    pub name: Token,
    /// Its version.
    pub version: Token,
    /// Its wheel.
    pub file: LockedFile,
}

/// A package that is built from its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuiltWheel {
    /// Its name, as indexes compare it.
    pub name: Token,
    /// Its version.
    pub version: Token,
    /// What it is built from.
    pub source: BuildSource,
    /// The wheel that the first node built; others install it, as no two builds are equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wheel: Option<LockedFile>,
}

/// The source of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BuildSource {
    /// An archive.
    File(LockedFile),
    /// A commit of a repository.
    Git(GitSource),
}

impl BuildSource {
    /// What it is, wherever it comes from.
    fn identity(&self) -> String {
        match self {
            Self::File(file) => file.sha256.to_string(),
            Self::Git(source) => {
                let folder = source.subdirectory.as_ref().map(|folder| format!("#{folder}"));
                format!("git:{}{}", source.commit, folder.unwrap_or_default())
            }
        }
    }
}

/// A file by its hashes, and where it is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedFile {
    /// Its name, which for a wheel says what it is for.
    pub file_name: FileName,
    /// Its SHA-256, by which package indexes name it.
    pub sha256: Sha256,
    /// How many bytes it has.
    pub size: u64,
    /// Its BLAKE3 hash, by which peers serve it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<BlobHash>,
    /// Where it is on the internet, the preferred first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<WebUrl>,
}

/// What an installed environment is called by: equal keys are the same files on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EnvironmentKey(pub BlobHash);

impl fmt::Display for EnvironmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why bytes are no lock of an environment.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentLockError {
    /// They are more than [`MAX_ENVIRONMENT_LOCK`].
    #[error("lock of an environment of {size} bytes: at most {MAX_ENVIRONMENT_LOCK} are read")]
    TooLarge {
        /// How many they are.
        size: usize,
    },
    /// They are no JSON, or something in it is not what it should be.
    #[error("lock of an environment is not valid")]
    Json(#[source] serde_json::Error),
    /// It was written by a later release.
    #[error("lock of an environment of format {format}: this release reads format 1")]
    Format {
        /// Its format.
        format: u32,
    },
}

impl EnvironmentLock {
    /// Reads what [`to_canonical_json`](Self::to_canonical_json) writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvironmentLockError> {
        if bytes.len() > MAX_ENVIRONMENT_LOCK {
            return Err(EnvironmentLockError::TooLarge { size: bytes.len() });
        }
        let lock: Self = serde_json::from_slice(bytes).map_err(EnvironmentLockError::Json)?;
        match lock.format {
            1 => Ok(lock),
            format => Err(EnvironmentLockError::Format { format }),
        }
    }

    /// The bytes that are stored: equal for equal locks.
    pub fn to_canonical_json(&self) -> Vec<u8> {
        serde_json_canonicalizer::to_vec(self).expect("a lock has only text keys")
    }

    /// What it is called by once it is installed. Where the files are found is no part of it, so lockfiles
    /// that came to the same files share one environment. One in which install scripts of a lockfile ran
    /// is that lockfile's own.
    pub fn key(&self, private_to: Option<LockfileHash>) -> EnvironmentKey {
        #[derive(Serialize)]
        struct Installed<'a> {
            python: &'a Token,
            platform: &'a str,
            files: Vec<(&'a str, String)>,
            #[serde(skip_serializing_if = "Option::is_none")]
            private_to: Option<LockfileHash>,
        }
        let wheels = self.wheels.iter().map(|wheel| (wheel.name.as_str(), wheel.file.sha256.to_string()));
        let built = self.built.iter().map(|built| (built.name.as_str(), built.source.identity()));
        let mut files: Vec<_> = wheels.chain(built).collect();
        files.sort_unstable();
        let installed = Installed { python: &self.python, platform: &self.platform, files, private_to };
        let json = serde_json_canonicalizer::to_vec(&installed).expect("it has only text keys");
        EnvironmentKey(BlobHash::of(&json))
    }

    /// Every file that an installation needs, in one order: wheels, then what was built, or the archive of its source
    /// where that was not yet.
    pub fn files(&self) -> impl Iterator<Item = &LockedFile> {
        let built = self.built.iter().filter_map(|built| match (&built.wheel, &built.source) {
            (Some(file), _) | (None, BuildSource::File(file)) => Some(file),
            (None, BuildSource::Git(_)) => None,
        });
        self.wheels.iter().map(|wheel| &wheel.file).chain(built)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> LockedFile {
        LockedFile {
            file_name: name.parse().unwrap(),
            sha256: Sha256([7; 32]),
            size: 3,
            blob: None,
            urls: vec!["https://files.example.org/a.whl".parse().unwrap()],
        }
    }

    fn lock() -> EnvironmentLock {
        EnvironmentLock {
            format: 1,
            environment: EnvironmentHash(BlobHash([1; 32])),
            python: "3.11.7".parse().unwrap(),
            platform: "linux-x86_64".to_owned(),
            accelerator: Accelerator::Cpu,
            torch: None,
            equivalent: false,
            wheels: vec![LockedWheel {
                name: "a".parse().unwrap(),
                version: "1".parse().unwrap(),
                file: file("a-1-py3-none-any.whl"),
            }],
            built: Vec::new(),
        }
    }

    #[test]
    fn canonical_json_is_this_and_is_read_again() {
        let ones = "01".repeat(32);
        let sevens = "07".repeat(32);
        let expected = format!(
            concat!(
                r#"{{"accelerator":"cpu","environment":"{}","equivalent":false,"format":1,"#,
                r#""platform":"linux-x86_64","python":"3.11.7","wheels":[{{"file":{{"#,
                r#""file_name":"a-1-py3-none-any.whl","sha256":"{}","size":3,"#,
                r#""urls":["https://files.example.org/a.whl"]}},"name":"a","version":"1"}}]}}"#
            ),
            ones, sevens
        );
        assert_eq!(String::from_utf8(lock().to_canonical_json()).unwrap(), expected);
        assert_eq!(EnvironmentLock::parse(expected.as_bytes()).unwrap(), lock());
        let later = expected.replace("\"format\":1", "\"format\":2");
        assert!(matches!(
            EnvironmentLock::parse(later.as_bytes()),
            Err(EnvironmentLockError::Format { format: 2 })
        ));
    }

    #[test]
    fn key_follows_what_is_installed_and_not_where_it_comes_from() {
        let key = lock().key(None);
        let mut elsewhere = lock();
        elsewhere.environment = EnvironmentHash(BlobHash([2; 32]));
        elsewhere.wheels[0].file.urls.clear();
        elsewhere.wheels[0].file.blob = Some(BlobHash([3; 32]));
        assert_eq!(elsewhere.key(None), key);
        let mut other = lock();
        other.wheels[0].file.sha256 = Sha256([8; 32]);
        assert_ne!(other.key(None), key);
        assert_ne!(lock().key(Some(LockfileHash(BlobHash([1; 32])))), key);
    }

    #[test]
    fn what_was_built_is_installed_in_place_of_its_source() {
        let mut lock = lock();
        lock.built.push(BuiltWheel {
            name: "b".parse().unwrap(),
            version: "1".parse().unwrap(),
            source: BuildSource::File(file("b-1.tar.gz")),
            wheel: None,
        });
        let names = |lock: &EnvironmentLock| -> Vec<String> {
            lock.files().map(|file| file.file_name.to_string()).collect()
        };
        assert_eq!(names(&lock), ["a-1-py3-none-any.whl", "b-1.tar.gz"]);
        lock.built[0].wheel = Some(file("b-1-py3-none-any.whl"));
        assert_eq!(names(&lock), ["a-1-py3-none-any.whl", "b-1-py3-none-any.whl"]);
    }

    #[test]
    fn what_is_built_of_a_commit_is_called_by_it_wherever_the_repository_is() {
        let of = |url: &str, folder: &str| {
            let address = format!("{url}@{}{folder}", "1".repeat(40)).parse().unwrap();
            let mut lock = lock();
            lock.built.push(BuiltWheel {
                name: "b".parse().unwrap(),
                version: "1".parse().unwrap(),
                source: BuildSource::Git(GitSource::of(&address).unwrap()),
                wheel: None,
            });
            lock
        };
        let lock = of("https://git.example.org/b", "");
        assert_eq!(EnvironmentLock::parse(&lock.to_canonical_json()).unwrap(), lock);
        assert_eq!(lock.files().count(), 1, "a repository is no file");
        assert_eq!(lock.key(None), of("https://mirror.example.org/b", "").key(None));
        assert_ne!(lock.key(None), of("https://git.example.org/b", "#subdirectory=x").key(None));
    }
}
