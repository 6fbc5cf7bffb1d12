//! The run of a traced workflow: its graph filled with its own inputs, in a ComfyUI of its own that ends with it.
//!
//! Not here: the tree that it runs in, and what it left there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh::folders::names::{KnownNames, names_of};
use protocol::{
    BlobHash, BlobRef, Filled, FilledOutput, Filling, Interface, RunErrorKind, RunId, SlotId, Workflow,
    error_chain, fill, link_of,
};
use tokio_util::sync::CancellationToken;

use super::TraceError;
use super::tree::Tree;
use crate::engine::managed::{Managed, ManagedConfig};
use crate::engine::{Engine, Execution, InputFile, ProgressSink};
use crate::gpu::{self, cpu};
use crate::workspace::Workspace;
use crate::workspace::lock::{LockRequest, Locked, packages};

/// The run's id; it is the only one in its ComfyUI.
const RUN: &str = "00000000-0000-0000-0000-000000000001";
/// How long ComfyUI may take to start, and an op to show progress: both may fetch large files. Whoever packs sees what it
/// says, and can end it.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// Runs the workflow in a ComfyUI that ends with it.
pub(super) async fn run(
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
