//! Custom nodes of the Comfy registry: the files of one version, as the archive in which custom nodes travel.
//!
//! The registry says where a version's zip is, and gives no hash of it. Code is asked for at the hosts that the owner
//! allows alone. Not here: what the farm takes a version for once a node has it, which is the resolved lockfile's.

use std::io::Seek;
use std::path::Path;
use std::time::Duration;

use mesh::origin::{OriginConfig, OriginError, OriginReader, OriginSetupError, SaveError};
use protocol::{
    CarryZipError, HttpsUrl, MAX_CARRIED, RegistryPin, Token, WebUrl, WriteBundleError, carry_zip,
    error_chain, registry_folder,
};
use serde::Deserialize;
use tempfile::NamedTempFile;

use crate::policy::Policy;

/// Where the registry is for everybody.
pub const COMFY_REGISTRY: &str = "https://api.comfy.org";
/// The largest answer of the registry that is read, in bytes: it names every op of a version.
const MAX_ANSWER: usize = 4 << 20;
/// How long the files of a version may take to come.
const WITHIN: Duration = Duration::from_secs(30 * 60);
/// What the registry calls versions that it took back.
const TAKEN_BACK: [&str; 2] = ["NodeVersionStatusBanned", "NodeVersionStatusDeleted"];

/// The registry, as a node's owner lets it be asked.
#[derive(Clone)]
pub struct Registry {
    base: String,
    host: String,
    reader: OriginReader,
}

/// What the registry has of a version.
pub(super) enum Given {
    /// The archive of its files.
    Archive(NamedTempFile),
    /// Nothing that can be used, now or later; in words.
    Nothing(String),
}

/// Why it is not known what the registry has.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegistryError {
    /// It would come from a host that the owner does not allow.
    #[error(
        "custom node `{node}` of the Comfy registry comes from `{host}`, and this node takes no code from there (`--allow-code-host`)"
    )]
    Host {
        /// The custom node.
        node: String,
        /// The host.
        host: String,
    },
    /// It did not come.
    #[error("custom node `{node}` did not come from the Comfy registry")]
    Origin {
        /// The custom node.
        node: String,
        /// Why.
        #[source]
        source: OriginError,
    },
    /// The registry answers with something else.
    #[error("`{url}` does not answer as the Comfy registry does")]
    Answer {
        /// What was asked.
        url: String,
        /// What is wrong with the answer.
        #[source]
        source: serde_json::Error,
    },
    /// A file here cannot be written.
    #[error("the files of custom node `{node}` cannot be kept")]
    Keep {
        /// The custom node.
        node: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl RegistryError {
    /// Whether the owner's policy is the reason.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Host { .. })
    }
}

/// What of the registry's answer matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    version: String,
    #[serde(default)]
    download_url: String,
    #[serde(default)]
    status: String,
}

/// Where a registry is asked for a version.
pub(super) fn version_url(base: &str, id: &Token, version: &Token) -> String {
    // A `+` would be read as a space.
    format!("{base}/nodes/{id}/install?version={}", version.as_str().replace('+', "%2B"))
}

impl Registry {
    /// The one at this address. One that is not public was named by the owner, and may lead to private ones.
    pub fn new(base: &WebUrl, policy: &Policy) -> Result<Self, OriginSetupError> {
        let is_public = base.as_str().parse::<HttpsUrl>().is_ok();
        let reader = OriginReader::new(OriginConfig {
            allow_http: base.as_str().starts_with("http://"),
            allow_private: !is_public,
            hosts: policy.hosts.clone(),
            ..OriginConfig::default()
        })?;
        Ok(Self { base: base.as_str().trim_end_matches('/').to_owned(), host: base.host(), reader })
    }

    /// Where it is.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Asks for a version; its archive is made in this folder.
    pub(super) async fn get(&self, pin: &RegistryPin, folder: &Path) -> Result<Given, RegistryError> {
        let node = pin.to_string();
        let keep = |source: Box<dyn std::error::Error + Send + Sync>| RegistryError::Keep {
            node: node.clone(),
            source,
        };
        let url = version_url(&self.base, &pin.id, &pin.version);
        let answer = match self.reader.document(&url, MAX_ANSWER).await {
            Ok(answer) => answer,
            Err(error) => return nothing_or(error, &node, "the Comfy registry has no such version"),
        };
        let answer: Version = serde_json::from_slice(&answer.bytes)
            .map_err(|source| RegistryError::Answer { url: url.clone(), source })?;
        if answer.version != pin.version.as_str() {
            let other = answer.version;
            return Ok(Given::Nothing(format!("the Comfy registry gives version `{other}` in its place")));
        }
        if TAKEN_BACK.contains(&answer.status.as_str()) {
            return Ok(Given::Nothing(format!("the Comfy registry took it back (`{}`)", answer.status)));
        }
        if answer.download_url.is_empty() {
            return Ok(Given::Nothing("the Comfy registry has no files of it".to_owned()));
        }
        let mut zip = NamedTempFile::new_in(folder).map_err(|error| keep(error.into()))?;
        let limit = usize::try_from(MAX_CARRIED).unwrap_or(usize::MAX);
        match self.reader.save(&answer.download_url, limit, WITHIN, zip.as_file_mut()).await {
            Ok(()) => {}
            // The version is there: its files are too, later.
            Err(SaveError::Origin(source @ OriginError::NotFound { .. })) => {
                return Err(RegistryError::Origin { node, source });
            }
            Err(SaveError::Origin(error)) => {
                return nothing_or(error, &node, "the Comfy registry's files of it are not taken");
            }
            Err(error) => return Err(keep(error.into())),
        }
        zip.as_file_mut().rewind().map_err(|error| keep(error.into()))?;
        let mut archive = NamedTempFile::new_in(folder).map_err(|error| keep(error.into()))?;
        let name = registry_folder(pin);
        let carried = tokio::task::spawn_blocking(move || {
            carry_zip(zip.as_file_mut(), &name, archive.as_file_mut()).map(|()| archive)
        });
        match carried.await.map_err(|error| keep(error.into()))? {
            Ok(archive) => Ok(Given::Archive(archive)),
            Err(CarryZipError::Write(error @ WriteBundleError::Io { .. })) => Err(keep(error.into())),
            // What is published as a version stays as it is.
            Err(error) => {
                let fault = error_chain(&error);
                Ok(Given::Nothing(format!("the Comfy registry's files of it are not taken: {fault}")))
            }
        }
    }
}

/// What an error of the registry's hosts means: that there is no such file now or later, or that it is not known.
fn nothing_or(error: OriginError, node: &str, words: &str) -> Result<Given, RegistryError> {
    let node = node.to_owned();
    match error {
        OriginError::NotFound { .. } | OriginError::Large { .. } => {
            Ok(Given::Nothing(format!("{words}: {}", error_chain(&error))))
        }
        OriginError::Host(host) => Err(RegistryError::Host { node, host }),
        source => Err(RegistryError::Origin { node, source }),
    }
}
