//! A bundle: workflow, lockfile and inputs under one hash, how comfy-pack's zips become one, and how one is
//! written as such a zip.
//!
//! The hash is of the canonical manifest, never of a zip. Reading trusts nothing: every name, limit and
//! text is checked before the first byte goes to the caller's sink. Not here: where the bytes are kept
//! (the sink), and how a workspace is built from a lockfile.

mod archive;
mod packages;
mod snapshot;
mod write;
mod carried;
mod files;
mod sign;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read, Seek};

use serde::{Deserialize, Serialize};

use crate::blob::{BlobHash, BlobRef};
use crate::lockfile::{Lockfile, LockfileError, MAX_LOCKFILE, ModelPath};
use crate::schema::{ExposeError, Exposure, Interface};
use crate::workflow::{MAX_WORKFLOW, Workflow, WorkflowError};

use archive::Archive;
pub use carried::{
    CarriedFault, CarriedFile, CarryZipError, MAX_CARRIED, MAX_CARRIED_FILES, carry_zip, read_carried,
    write_carried,
};
pub use sign::{SignBundleError, sign_bundle};
pub use snapshot::SnapshotError;
pub use write::{WriteBundleError, write_bundle};

const SNAPSHOT: &str = "snapshot.json";
const WORKFLOW: &str = "workflow_api.json";
const EDITOR_WORKFLOW: &str = "workflow.json";
const REQUIREMENTS: &str = "requirements.txt";
const LOCKFILE: &str = "lockfile.json";
/// What its author makes the workflow's API.
const INTERFACE: &str = "interface.json";
/// The folder of the custom nodes that travel with the bundle, each as an archive of its own.
const CARRIED: &str = "custom_nodes/";
/// The folder of the files of the lockfile that travel with the bundle.
const FILES: &str = "files/";
/// The folder of the files that the workflow reads.
const INPUT: &str = "input/";
/// The largest `snapshot.json` or `requirements.txt`, in bytes.
const MAX_SNAPSHOT: u64 = 16 << 20;
/// The largest `interface.json`, in bytes.
const MAX_INTERFACE: u64 = 1 << 20;

/// The parts of a bundle; its canonical JSON is what is hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleManifest {
    /// The format's version: 1.
    pub format: u32,
    /// The workflow in API format.
    pub workflow: BlobRef,
    /// The workflow as the editor knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub editor_workflow: Option<BlobRef>,
    /// The lockfile.
    pub lockfile: BlobRef,
    /// The files that the workflow reads, by their path in ComfyUI's input folder.
    #[serde(default)]
    pub inputs: BTreeMap<String, BlobRef>,
    /// What its author makes the workflow's API, where comfy-pack's ops do not say.
    #[serde(default, skip_serializing_if = "Exposure::is_empty")]
    pub interface: Exposure,
}

/// The BLAKE3 hash of a bundle's canonical manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BundleHash(pub BlobHash);

impl fmt::Display for BundleHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl BundleManifest {
    /// What the bundle is called by.
    pub fn hash(&self) -> BundleHash {
        BundleHash(BlobHash::of(&self.to_canonical_json()))
    }

    /// The bytes that are hashed.
    pub fn to_canonical_json(&self) -> Vec<u8> {
        serde_json_canonicalizer::to_vec(self).expect("a manifest has only text keys")
    }
}

/// A bundle that was read: its manifest, and the parts that decide what to do with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Bundle {
    /// Its parts, all of which the sink has taken.
    pub manifest: BundleManifest,
    /// The workflow.
    pub workflow: Workflow,
    /// The lockfile.
    pub lockfile: Lockfile,
    /// The files of the lockfile that travel with it.
    pub travelling: BTreeSet<BlobHash>,
    /// What was not as it should be and was taken otherwise.
    pub repairs: Vec<Repair>,
}

/// Something in a bundle that was wrong, and what was done instead. People are to see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// Where it stands, such as ``snapshot.json, model `models/x` ``.
    pub place: String,
    /// What is wrong and what was done, in words.
    pub text: String,
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}

/// How much of a zip is read before it is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleLimits {
    /// The most entries. Defaults to 10,000.
    pub entries: usize,
    /// The largest entry, inflated, in bytes. Defaults to 512 MiB.
    pub entry_size: u64,
    /// All entries together, inflated, in bytes. Defaults to 2 GiB.
    pub total_size: u64,
}

impl Default for BundleLimits {
    fn default() -> Self {
        Self { entries: 10_000, entry_size: 512 << 20, total_size: 2 << 30 }
    }
}

/// Why a file is not taken as a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It is no zip.
    #[error("bundle cannot be read as a zip")]
    Zip(#[source] zip::result::ZipError),
    /// It has too many entries.
    #[error("bundle has {count} entries: at most {limit} are taken")]
    TooManyEntries {
        /// How many it has.
        count: usize,
        /// How many it may have.
        limit: usize,
    },
    /// An entry would be written elsewhere than its name should say.
    #[error("entry `{entry}` of the bundle {fault}")]
    EntryName {
        /// The entry.
        entry: String,
        /// What is wrong with the name.
        fault: &'static str,
    },
    /// Two entries have one name.
    #[error("bundle has two entries `{entry}`")]
    DuplicateEntry {
        /// The name.
        entry: String,
    },
    /// An entry is a link or device.
    #[error("entry `{entry}` of the bundle is not a plain file but a link or device")]
    NotAFile {
        /// The entry.
        entry: String,
    },
    /// An entry is encrypted.
    #[error("entry `{entry}` of the bundle is encrypted")]
    Encrypted {
        /// The entry.
        entry: String,
    },
    /// An entry inflates to more than it may.
    #[error("entry `{entry}` of the bundle inflates to more than {limit} bytes")]
    EntryTooLarge {
        /// The entry.
        entry: String,
        /// How large it may be.
        limit: u64,
    },
    /// All entries together inflate to more than they may.
    #[error("bundle inflates to more than {limit} bytes; entry `{entry}` was one too many")]
    TooLarge {
        /// The entry at which the limit was passed.
        entry: String,
        /// How large all may be.
        limit: u64,
    },
    /// An entry's bytes are damaged, or compressed in a way that is not known.
    #[error("entry `{entry}` of the bundle cannot be read")]
    Entry {
        /// The entry.
        entry: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What every bundle has is missing.
    #[error("bundle has no `{entry}`: {hint}")]
    Missing {
        /// The entry.
        entry: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// The workflow is none.
    #[error("`workflow_api.json` of the bundle is no workflow")]
    Workflow(#[source] WorkflowError),
    /// The lockfile that we once wrote is none any more.
    #[error("`lockfile.json` of the bundle cannot be used")]
    Lockfile(#[from] LockfileError),
    /// What is to be the workflow's API is not written as it should be.
    #[error("`interface.json` of the bundle cannot be used")]
    Interface(#[source] serde_json::Error),
    /// The snapshot cannot be turned into a lockfile.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A custom node that travels with the bundle is not the one of the lockfile, or none at all.
    #[error("custom node `{name}` is not carried as it should be: {fault}")]
    Carried {
        /// Its name.
        name: String,
        /// What is wrong with it.
        fault: CarriedFault,
    },
    /// A file that travels with the bundle is not the one of the lockfile.
    #[error("file `{path}`, which travels with the bundle, is not the one that the lockfile names")]
    File {
        /// Where it goes.
        path: ModelPath,
    },
    /// The caller could not keep an entry's bytes.
    #[error("entry `{entry}` of the bundle could not be stored")]
    Sink {
        /// The entry.
        entry: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Takes the bytes of a part, under the name it has in the bundle, and says what they are called.
pub type Sink<'a> = dyn FnMut(&str, &mut dyn Read) -> io::Result<BlobRef> + 'a;

/// Reads a bundle of either of comfy-pack's formats, or of ours, which is the newer of them with one entry more.
pub fn read_bundle(
    reader: impl Read + Seek,
    limits: &BundleLimits,
    sink: &mut Sink<'_>,
) -> Result<Bundle, BundleError> {
    let mut archive = Archive::open(reader, limits)?;
    let hint = "save it in ComfyUI with `Export (API)`, and pack it again";
    let workflow_bytes = archive.read(WORKFLOW, MAX_WORKFLOW as u64)?;
    let workflow_bytes = workflow_bytes.ok_or(BundleError::Missing { entry: WORKFLOW, hint })?;
    let workflow = Workflow::parse(&workflow_bytes).map_err(BundleError::Workflow)?;
    let (lockfile, repairs) = read_lockfile(&mut archive)?;
    let interface = archive.read(INTERFACE, MAX_INTERFACE)?;
    let interface = interface.map(|bytes| serde_json::from_slice(&bytes)).transpose();
    let interface: Exposure = interface.map_err(BundleError::Interface)?.unwrap_or_default();

    let inputs: Vec<String> =
        archive.names().filter(|name| name.starts_with(INPUT)).map(str::to_owned).collect();
    let editor_workflow = archive.has(EDITOR_WORKFLOW);
    let carried = carried::entries(&lockfile);
    // All is measured before anything is kept: of a bundle that is refused, nothing stays.
    for entry in inputs.iter().map(String::as_str).chain(editor_workflow.then_some(EDITOR_WORKFLOW)) {
        archive.measure(entry)?;
    }
    for (name, entry, files) in &carried {
        archive.check_carried(name, entry, *files)?;
    }
    let travelling = archive.checked_files(&lockfile)?;
    let mut manifest = store(&workflow_bytes, &lockfile, sink)?;
    manifest.interface = interface;
    if editor_workflow {
        manifest.editor_workflow = Some(archive.store(EDITOR_WORKFLOW, sink)?);
    }
    for entry in inputs {
        let blob = archive.store(&entry, sink)?;
        manifest.inputs.insert(entry[INPUT.len()..].to_owned(), blob);
    }
    for (_, entry, _) in &carried {
        archive.store(entry, sink)?;
    }
    for file in &travelling {
        archive.store(&files::file_entry(*file), sink)?;
    }
    Ok(Bundle { manifest, workflow, lockfile, travelling: travelling.into_iter().collect(), repairs })
}

/// Our own entry where there is one, because it says more; else what comfy-pack wrote.
fn read_lockfile<R: Read + Seek>(
    archive: &mut Archive<'_, R>,
) -> Result<(Lockfile, Vec<Repair>), BundleError> {
    if let Some(bytes) = archive.read(LOCKFILE, MAX_LOCKFILE as u64)? {
        return Ok((Lockfile::parse(&bytes)?, Vec::new()));
    }
    let hint = "it names no versions and models; to deploy the workflow without any, deploy its \
                `workflow_api.json` alone";
    let snapshot = archive.read(SNAPSHOT, MAX_SNAPSHOT)?;
    let snapshot = snapshot.ok_or(BundleError::Missing { entry: SNAPSHOT, hint })?;
    let requirements = archive.read(REQUIREMENTS, MAX_SNAPSHOT)?;
    Ok(snapshot::to_lockfile(&snapshot, requirements.as_deref())?)
}

impl Bundle {
    /// A bare workflow as a bundle: it pins nothing and brings no inputs.
    pub fn from_workflow(bytes: &[u8], sink: &mut Sink<'_>) -> Result<Self, BundleError> {
        let workflow = Workflow::parse(bytes).map_err(BundleError::Workflow)?;
        let lockfile = Lockfile::default();
        let manifest = store(bytes, &lockfile, sink)?;
        Ok(Self { manifest, workflow, lockfile, travelling: BTreeSet::new(), repairs: Vec::new() })
    }

    /// What the bundle is called by.
    pub fn hash(&self) -> BundleHash {
        self.manifest.hash()
    }

    /// The API that the workflow has by its author's word.
    pub fn interface(&self) -> Result<Interface, ExposeError> {
        self.manifest.interface.interface(&self.workflow, None)
    }
}

/// Stores the two parts that every bundle has.
fn store(workflow: &[u8], lockfile: &Lockfile, sink: &mut Sink<'_>) -> Result<BundleManifest, BundleError> {
    let mut keep = |entry: &str, mut bytes: &[u8]| {
        sink(entry, &mut bytes).map_err(|source| BundleError::Sink { entry: entry.to_owned(), source })
    };
    Ok(BundleManifest {
        format: 1,
        workflow: keep(WORKFLOW, workflow)?,
        editor_workflow: None,
        lockfile: keep(LOCKFILE, &lockfile.to_canonical_json())?,
        inputs: BTreeMap::new(),
        interface: Exposure::default(),
    })
}

#[cfg(test)]
mod tests;
