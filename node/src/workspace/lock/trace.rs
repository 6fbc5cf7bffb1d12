//! What a workflow fetches and calls as it runs: it is run once, and the files that appear, and the programs of the system,
//! are recorded for its lockfile.
//!
//! ```text
//! tree     a copy of ComfyUI and the custom nodes as a node would have them, in which it runs
//! found    the files that the run left there and in its home: which of them are recorded, and where they are from; and
//!          what it called
//! ```
//!
//! In a copy, and with an empty home, because what the author's own folder has from earlier runs is not fetched again
//! there. It runs with the network and without walls, as the author's own ComfyUI does. Not here: how a ComfyUI process
//! is run (`engine::managed`).

mod tree;
mod found;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh::folders::names::{KnownNames, names_of};
use mesh::store::{ByteSize, StoreError};
use percent_encoding::percent_decode_str;
use protocol::{
    BlobHash, BlobRef, Filled, FilledOutput, Filling, Interface, LockedModel, Lockfile, ModelPath, RunError,
    RunErrorKind, RunId, SlotId, Workflow, error_chain, fill, link_of,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{LockRequest, Locked, named, packages, system};
use crate::engine::managed::{Managed, ManagedConfig};
use crate::engine::{Engine, Execution, InputFile, ProgressSink};
use crate::gpu::{self, cpu};
use crate::os::file::link;
use crate::workspace::Workspace;
use crate::workspace::git::GitError;

use found::{Appeared, Findings as Found};
use tree::Tree;

/// The run's id; it is the only one in its ComfyUI.
const RUN: &str = "00000000-0000-0000-0000-000000000001";
/// The largest file that travels although it can be fetched, in bytes: asking for it elsewhere would cost more.
const SMALL: u64 = 1 << 20;
/// The most bytes that travel with a bundle in files like these.
const MAX_TRAVELLING: u64 = 256 << 20;

/// The shortest password of a proxy that is looked for in files, in bytes.
const MIN_PASSWORD: usize = 4;

/// How long ComfyUI may take to start, and an op to show progress: both may fetch large files. Whoever packs sees what it
/// says, and can end it.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// How a workflow is traced.
#[derive(Debug)]
pub struct TraceOptions<'a> {
    /// A folder with room for what is fetched; the run has a folder of its own in it, until the end.
    pub beside: &'a Path,
    /// What the process is told of its environment, such as tokens and proxies.
    pub environment: Vec<(String, OsString)>,
}

/// What a run left, as long as it is needed.
#[derive(Debug)]
pub struct Traced {
    /// The files that are to travel with the bundle.
    pub travelling: BTreeMap<BlobHash, PathBuf>,
    /// The others, by their paths in the lockfile.
    pub staying: BTreeMap<ModelPath, PathBuf>,
    _folder: TempDir,
}

impl Traced {
    /// Keeps those in a folder, at their paths, that neither travel nor are to be had anywhere as far as the lockfile knows:
    /// else their only copies might go with the run. Says which these are.
    pub fn keep(&self, lockfile: &Lockfile, folder: &Path) -> io::Result<Vec<ModelPath>> {
        let nowhere = lockfile.models.iter().filter(|model| model.sources.is_empty());
        let mut kept = Vec::new();
        for path in nowhere.map(|model| &model.path) {
            let Some(file) = self.staying.get(path) else { continue };
            let place = folder.join(path.as_str());
            fs::create_dir_all(place.parent().unwrap_or(folder))?;
            match fs::remove_file(&place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // What a cache of a hub has is a link to it.
            let file = fs::canonicalize(file)?;
            fs::hard_link(&file, &place).or_else(|_| fs::copy(&file, &place).map(drop))?;
            kept.push(path.clone());
        }
        Ok(kept)
    }
}

/// Why a workflow could not be traced.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The folder of the run cannot be made, or what is in it not be read.
    #[error("the folder of the traced run, `{}`, cannot be made or read", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A repository cannot be copied.
    #[error(transparent)]
    Git(#[from] GitError),
    /// A custom node that travels cannot be laid out.
    #[error("custom node `{name}` cannot be laid out for the traced run")]
    Carried {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: protocol::BundleError,
    },
    /// The workflow does not say what it runs on.
    #[error("the workflow cannot be run on its own inputs: {0}")]
    Inputs(String),
    /// The run failed.
    #[error("the traced run failed: {}", .0.detail)]
    Run(RunError),
    /// What appeared cannot be hashed.
    #[error("a file that the traced run fetched could not be hashed")]
    Hash(#[from] StoreError),
}

impl TraceError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// Runs a workflow once as its lockfile has it, and adds to the lockfile the files that appeared. `begun` hears where
/// the process writes down what it says.
pub async fn trace(
    request: &LockRequest<'_>,
    locked: &mut Locked,
    options: TraceOptions<'_>,
    begun: &(dyn Fn(&Path) + Sync),
) -> Result<Traced, TraceError> {
    let folder = tempfile::Builder::new().prefix(".pack-").tempdir_in(options.beside);
    let folder = folder.map_err(TraceError::io(options.beside))?;
    let root = folder.path().canonicalize().map_err(TraceError::io(folder.path()))?;
    let tree = Tree { comfyui: root.join("tree"), files: root.join("files") };
    tree.lay_out(request, locked)?;
    let slots = root.join("slots");
    let secrets = secrets(&options.environment);
    let slot = slots.join("slot-0");
    begun(&slot.with_extension("log"));
    run(request, locked, &tree, &slots, options.environment).await?;
    let found = Found::after(&slot, &tree, &secrets).map_err(TraceError::io(&slot))?;
    locked.lacking.extend(found.left_out);
    system::add_programs(&mut locked.lockfile.system, &found.called);
    record(request, locked, found.files, MAX_TRAVELLING, folder)
}

/// Runs the workflow in a ComfyUI that ends with it.
async fn run(
    request: &LockRequest<'_>,
    locked: &Locked,
    tree: &Tree,
    slots: &Path,
    environment: Vec<(String, OsString)>,
) -> Result<(), TraceError> {
    let device = gpu::find().cards.into_iter().next().unwrap_or_else(cpu);
    let mut config = ManagedConfig {
        environment,
        keeps_folders: true,
        ..ManagedConfig::new(slots.to_owned(), vec![device])
    };
    // A download tells ComfyUI of no progress.
    (config.start_within, config.comfyui.stall_after) = (PATIENCE, PATIENCE);
    let (filled, files) = filled(request.workflow, &locked.inputs)?;
    let scratch = slots.join("scratch");
    fs::create_dir_all(&scratch).map_err(TraceError::io(&scratch))?;
    let python = packages::program(request.comfyui, request.python);
    let workspace = Workspace {
        lockfile: locked.lockfile.hash(),
        // Nobody shares it.
        environment: protocol::EnvironmentKey(BlobHash([0; 32])),
        code: protocol::CodeHash(BlobHash([0; 32])),
        python: python.map_err(TraceError::io(request.comfyui))?,
        comfyui: tree.comfyui.clone(),
        files: tree.files.clone(),
        classes: filled.workflow.classes(),
        model_names: Default::default(),
        equivalent: false,
        left_out: vec![],
    };
    let execution = Execution {
        run: RUN.parse::<RunId>().expect("it is one"),
        slot: SlotId(0),
        workspace: Some(Arc::new(workspace)),
        outputs: wanted(&filled),
        workflow: filled.workflow,
        files,
        named_files: Vec::new(),
        scratch,
    };
    let (progress, _watched) = ProgressSink::new();
    let engine = Managed::new(config);
    let ran = engine.execute(execution, &progress, &CancellationToken::new()).await;
    // What still runs would write on while its files are looked at.
    engine.close().await;
    match ran {
        // What it makes is not looked at.
        Ok(_) => Ok(()),
        Err(error) if error.kind == RunErrorKind::NoOutput => Ok(()),
        Err(error) => Err(TraceError::Run(error)),
    }
}

/// What of an environment nobody else may see: tokens, and addresses of proxies with a password in them, of which the
/// password may stand somewhere by itself, as it is written in an address or as it is.
fn secrets(environment: &[(String, OsString)]) -> Vec<Vec<u8>> {
    let mut secrets = Vec::new();
    for (name, value) in environment {
        let value = value.to_string_lossy();
        let value = value.trim();
        if !value.is_empty() && (name.ends_with("TOKEN") || value.contains('@')) {
            secrets.push(value.as_bytes().to_owned());
        }
        if let Some(password) = password_of(value) {
            let both = [password.as_bytes().to_owned(), percent_decode_str(password).collect()];
            // A shorter one stands in any file by chance.
            secrets.extend(both.into_iter().filter(|password| password.len() >= MIN_PASSWORD));
        }
    }
    secrets.dedup();
    secrets
}

/// The password in an address.
fn password_of(url: &str) -> Option<&str> {
    let (user, _) = url.split_once("://").map_or(url, |(_, rest)| rest).rsplit_once('@')?;
    Some(user.split_once(':')?.1)
}

/// The graph as a node would run it, and its files.
fn filled(
    workflow: &Workflow,
    inputs: &BTreeMap<String, PathBuf>,
) -> Result<(Filled, Vec<InputFile>), TraceError> {
    let paths: Vec<PathBuf> = inputs.values().cloned().collect();
    let names = names_of(&paths, &KnownNames::default(), &|_| {})?;
    let blobs = names.iter().map(|names| names.blob);
    let inputs: BTreeMap<String, BlobRef> = inputs.keys().cloned().zip(blobs.clone()).collect();
    let unfit = |error: &dyn std::error::Error| TraceError::Inputs(error_chain(error));
    let interface = Interface::of(workflow).map_err(|error| unfit(&error))?;
    let mut is_lacking = false;
    let given = interface.test_parameters(workflow, &inputs, |_| {
        is_lacking = true;
        BlobRef::of(b"")
    });
    let given = given.filter(|_| !is_lacking).ok_or_else(|| {
        TraceError::Inputs("it takes a file that is not in ComfyUI's input folder".to_owned())
    })?;
    let parameters = interface.check(given).map_err(|faults| {
        TraceError::Inputs(faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    })?;
    let filling = Filling { output_prefix: "traced".to_owned(), inputs };
    let filled = fill(workflow, &interface, &parameters, &filling).map_err(|error| unfit(&error))?;
    let places: BTreeMap<BlobRef, PathBuf> = blobs.zip(paths).collect();
    let file = |(name, blob): &(String, BlobRef)| {
        let path = places.get(blob).cloned();
        let path = path.ok_or_else(|| TraceError::Inputs(format!("the bundle has no file for `{name}`")))?;
        Ok(InputFile { name_in_graph: name.clone(), path })
    };
    let files = filled.files.iter().map(file).collect::<Result<_, TraceError>>()?;
    Ok((filled, files))
}

/// The ops that are run for: those of its outputs, or all that nothing comes after.
fn wanted(filled: &Filled) -> Vec<String> {
    let outputs: Vec<String> = filled.outputs.iter().flat_map(FilledOutput::ops).map(str::to_owned).collect();
    if !outputs.is_empty() {
        return outputs;
    }
    let values = filled.workflow.iter().flat_map(|(_, op)| op.inputs.values());
    let linked: Vec<&str> = values.filter_map(|value| Some(link_of(value)?.op)).collect();
    let last = filled.workflow.iter().map(|(id, _)| id).filter(|id| !linked.contains(id));
    last.map(str::to_owned).collect()
}

/// Adds what appeared to the lockfile, and says which of it travels, and which does not: what is small travels, and what
/// nobody is known to have as far as there is `room`.
fn record(
    request: &LockRequest<'_>,
    locked: &mut Locked,
    appeared: Vec<Appeared>,
    room: u64,
    folder: TempDir,
) -> Result<Traced, TraceError> {
    let paths: Vec<PathBuf> = appeared.iter().map(|file| file.file.clone()).collect();
    let names = names_of(&paths, request.known, &|_| {})?;
    let (mut travelling, mut staying, mut left) = (BTreeMap::new(), BTreeMap::new(), room);
    let mut named: Vec<_> = appeared.into_iter().zip(names).collect();
    // The small ones first, so that a large one does not take their room.
    named.sort_by(|(a, one), (b, other)| (one.blob.size, &a.path).cmp(&(other.blob.size, &b.path)));
    for (Appeared { path, file, sources }, names) in named {
        let sources = super::sources_of(request, &names, sources);
        let BlobRef { hash, size } = names.blob;
        let is_packed = travelling.contains_key(&hash);
        let travels = is_packed || (size <= SMALL || sources.is_empty()) && size <= left;
        if !travels {
            staying.insert(path.clone(), file);
        } else if travelling.insert(hash, file).is_none() {
            left -= size;
        }
        let how = if travels { ", and travels with the bundle" } else { "" };
        locked.notes.push(format!("the workflow fetches `{path}` as it runs: {}{how}", ByteSize(size)));
        locked.lacking.retain(|words| !named::is_lacking_model(words, &path));
        locked.lockfile.models.retain(|model| model.path != path);
        locked.lockfile.models.push(LockedModel {
            path,
            size,
            sha256: Some(names.sha256),
            blob: Some(hash),
            sources,
            disabled: false,
            share: true,
        });
    }
    locked.lockfile.models.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Traced { travelling, staying, _folder: folder })
}

/// Links the models of a lockfile to where they lie.
fn link_models(locked: &Locked, files: &Path) -> io::Result<()> {
    fs::create_dir_all(files)?;
    for (model, file) in locked.lockfile.models.iter().zip(&locked.model_files) {
        link(&fs::canonicalize(file)?, &files.join(model.path.as_str()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use protocol::HttpsUrl;

    use super::super::hub;
    use super::*;

    #[test]
    fn small_files_and_those_without_an_address_travel_and_others_are_fetched() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url: HttpsUrl = "https://example.org/a".parse().expect("a URL");
        let appeared = |name: &str, size: usize, is_published: bool| {
            let file = folder.path().join(name);
            fs::write(&file, name.repeat(size / name.len())).expect("own folder");
            let path = format!("models/faces/{name}").parse().expect("a path");
            Appeared { path, file, sources: is_published.then(|| url.clone()).into_iter().collect() }
        };
        let large = 2 << 20;
        let appeared = vec![
            appeared("small-known", 100, true),
            appeared("small", 100, false),
            appeared("large-known", large, true),
            appeared("large", large, false),
        ];
        let workflow = Workflow::default();
        let (hub, known) = (hub::HUGGING_FACE.parse().expect("a URL"), KnownNames::default());
        let request = LockRequest::bare(folder.path(), &workflow, &hub, &known);
        let names = ["large", "faces/large", r"faces\small", "other", "other/large", "arge"];
        let lacking = names.map(|name| format!("model `{name}`, which op `1` (X) names"));
        let mut locked = Locked { lacking: lacking.to_vec(), ..Locked::default() };
        let run = tempfile::tempdir().expect("a temporary folder");
        let traced = record(&request, &mut locked, appeared, MAX_TRAVELLING, run).expect("hashed");
        assert_eq!(
            traced.staying.keys().map(ModelPath::as_str).collect::<Vec<_>>(),
            ["models/faces/large-known"]
        );
        let told = locked.lockfile.models.iter().map(|model| {
            let travels = model.blob.is_some_and(|blob| traced.travelling.contains_key(&blob));
            (model.path.as_str(), travels, model.sources.len())
        });
        let expected = [
            ("models/faces/large", true, 0),
            ("models/faces/large-known", false, 1),
            ("models/faces/small", true, 0),
            ("models/faces/small-known", true, 1),
        ];
        assert_eq!(told.collect::<Vec<_>>(), expected);
        assert_eq!(locked.lacking, lacking[3..], "what was fetched is not lacking");
    }

    #[test]
    fn file_that_neither_travels_nor_has_an_address_is_kept_at_its_path() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cached = folder.path().join("cached");
        fs::write(&cached, vec![b'x'; 2 << 20]).expect("own folder");
        std::os::unix::fs::symlink(&cached, folder.path().join("large")).expect("own folder");
        fs::write(folder.path().join("known"), vec![b'y'; 2 << 20]).expect("own folder");
        let url: HttpsUrl = "https://example.org/a".parse().expect("a URL");
        let appeared = [("large", vec![]), ("known", vec![url])].map(|(name, sources)| Appeared {
            path: format!("home/torch/{name}.pth").parse().expect("a path"),
            file: folder.path().join(name),
            sources,
        });
        let workflow = Workflow::default();
        let (hub, known) = (hub::HUGGING_FACE.parse().expect("a URL"), KnownNames::default());
        let request = LockRequest::bare(folder.path(), &workflow, &hub, &known);
        let (mut locked, kept) = (Locked::default(), folder.path().join("kept"));
        let run = tempfile::tempdir().expect("a temporary folder");
        let traced = record(&request, &mut locked, appeared.into(), 1 << 20, run).expect("hashed");
        assert!(traced.travelling.is_empty());
        // Packed again, it is there already.
        for _ in 0..2 {
            let told = traced.keep(&locked.lockfile, &kept).expect("own folder");
            assert_eq!(told.iter().map(ModelPath::as_str).collect::<Vec<_>>(), ["home/torch/large.pth"]);
        }
        drop(traced);
        assert_eq!(fs::read(kept.join("home/torch/large.pth")).expect("kept").len(), 2 << 20);
        assert!(!kept.join("home/torch/known.pth").exists());
    }

    #[test]
    fn secrets_are_tokens_and_addresses_with_a_password() {
        let of = |name: &str, value: &str| secrets(&[(name.to_owned(), value.into())]).len();
        assert_eq!((of("HF_TOKEN", "hf_x"), of("HTTPS_PROXY", "http://me:x@proxy:1")), (1, 1));
        let found = secrets(&[("HTTPS_PROXY".to_owned(), "http://me:p%40ss/w@proxy:1".into())]);
        let expected = ["http://me:p%40ss/w@proxy:1", "p%40ss/w", "p@ss/w"];
        assert_eq!(found, expected.map(|secret| secret.as_bytes().to_owned()));
        assert_eq!(of("HTTPS_PROXY", "me:pass@proxy:1"), 2, "each once, also without a scheme");
        assert_eq!(
            (of("HF_TOKEN", ""), of("HTTPS_PROXY", "http://proxy:1"), of("HF_ENDPOINT", "https://a.org")),
            (0, 0, 0)
        );
    }
}
