//! `comfy-farm pack`: a bundle of a workflow and of the ComfyUI folder in which it works.
//!
//! Not here: what is recorded of the folder; `node::workspace::lock` knows that.

mod origins;
mod indexes;
mod tell;

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use mesh::folders::names::KnownNames;
use node::workspace::lock::trace::{TraceOptions, Traced, trace};
use node::workspace::lock::{LockRequest, Locked, check_sources, lock};
use protocol::{BlobHash, Bundle, Exposure, Workflow, write_bundle};

use self::indexes::IndexArguments;
use self::origins::{OriginArguments, hub_caches};
use self::tell::{Found, tell};
use super::asked_to_stop;
use super::bundle::{MAX_WORKFLOW, read};
use crate::args::ExposeArguments;
use crate::failure::Failure;
use crate::{environment, settings, show};

#[derive(Debug, Args)]
pub(crate) struct PackArguments {
    /// The folder of ComfyUI, with its `main.py`.
    #[arg(long, value_name = "DIR")]
    comfyui: PathBuf,
    /// The workflow in API format.
    #[arg(long, value_name = "FILE")]
    workflow: PathBuf,
    /// Where the bundle goes. Defaults to the workflow's name with `.cpack.zip`, in this folder.
    #[arg(long, short = 'o', value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    expose: ExposeArguments,
    /// The Python that runs ComfyUI. Defaults to that of `venv` or `.venv` in its folder, else `python3`.
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// A further folder like ComfyUI's `models`. Repeatable.
    #[arg(long, value_name = "DIR")]
    models_dir: Vec<PathBuf>,
    #[command(flatten)]
    origins: OriginArguments,
    #[command(flatten)]
    indexes: IndexArguments,
    /// The data folder of a node that serves these models: what it has hashed is not hashed again. Defaults to
    /// that of this user's node.
    #[arg(long, value_name = "DIR", env = environment::DATA)]
    data: Option<PathBuf>,
    /// A custom node whose files the bundle takes along, by its name in `custom_nodes`: a folder that is no
    /// repository, or a repository that others cannot clone. Repeatable.
    #[arg(long, value_name = "NAME")]
    carry: Vec<String>,
    /// A program of the system that a custom node calls, such as `ffmpeg`: a machine that lacks it says so. A traced run
    /// finds by itself those that it calls. Repeatable.
    #[arg(long, value_name = "NAME")]
    program: Vec<String>,
    /// What becomes of a custom node that is not as its commit has it: it is refused, or the bundle takes its files
    /// along. ComfyUI itself is always refused then.
    #[arg(long, value_name = "CHOICE", value_enum, default_value_t = Dirty::Refuse)]
    dirty: Dirty,
    /// Run the workflow once, in a copy of this ComfyUI that has nothing but what is packed, and take along what custom
    /// nodes fetch as it runs.
    #[arg(long)]
    trace: bool,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
}

/// What becomes of changed files in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dirty {
    /// They are refused.
    Refuse,
    /// The bundle takes them along.
    Carry,
}

pub(super) async fn pack(arguments: &PackArguments) -> anyhow::Result<()> {
    let bytes = read_workflow(&arguments.workflow)?;
    let refused = |error: &dyn std::error::Error| {
        Failure::Input(format!("`{}`: {}", arguments.workflow.display(), protocol::error_chain(error)))
    };
    let workflow = Workflow::parse(&bytes).map_err(|error| refused(&error))?;
    let exposure = arguments.expose.exposure();
    exposure.interface(&workflow, None).map_err(|error| refused(&error))?;
    let mut known = KnownNames::read(&settings::node_data(arguments.data.as_deref())?.join("blobs"))?;
    if let Some(folder) = settings::user_cache() {
        known = known.kept_in(folder.join("hashed"));
    }
    let hub_caches = hub_caches();
    let progress = show::ByteProgress::new();
    let request = LockRequest {
        comfyui: &arguments.comfyui,
        workflow: &workflow,
        python: arguments.python.as_deref(),
        models: &arguments.models_dir,
        sources: &arguments.origins.source,
        hub: &arguments.origins.hugging_face,
        hub_caches: &hub_caches,
        known: &known,
        carry: &arguments.carry,
        programs: &arguments.program,
        carry_dirty: arguments.dirty == Dirty::Carry,
    };
    let locked = lock(&request, &|now| progress.show(now));
    drop(progress);
    let mut locked = locked.map_err(|error| Failure::Input(protocol::error_chain(&error)))?;
    let path = arguments.file.clone().unwrap_or_else(|| usual_path(&arguments.workflow));
    let traced = match arguments.trace {
        true => Some(run_once(&request, &mut locked, &path).await?),
        false => None,
    };
    let none = BTreeMap::new();
    let travelling = traced.as_ref().map_or(&none, |traced| &traced.travelling);
    let refused = check_sources(&locked.lockfile, &arguments.origins.source);
    refused.map_err(|error| Failure::Input(protocol::error_chain(&error)))?;
    let travels = travelling.keys().copied().collect();
    let answers = arguments.origins.look_up(&mut locked.lockfile, &hub_caches, &travels).await?;
    let unresolved = match arguments.origins.offline {
        true => None,
        false => Some(
            arguments.indexes.look_up(&mut locked, &arguments.comfyui, arguments.python.as_deref()).await?,
        ),
    };
    // First the only copies, then what says where they belong.
    let folder = path.with_extension("files");
    let kept = traced.as_ref().map(|traced| traced.keep(&locked.lockfile, &folder)).transpose();
    let kept = kept.with_context(|| format!("`{}` cannot be written", folder.display()))?.unwrap_or_default();
    let bundle = write(&path, &bytes, &exposure, &locked, travelling)?;
    tell(arguments, &path, &bundle, &locked, &Found { answers, unresolved, kept, folder })
}

/// Runs the workflow for what it fetches. That may be much, so it lies where the bundle goes.
async fn run_once(request: &LockRequest<'_>, locked: &mut Locked, bundle: &Path) -> anyhow::Result<Traced> {
    let begun = |log: &Path| eprintln!("runs the workflow once; what ComfyUI says is in `{}`", log.display());
    let options = TraceOptions { beside: folder_of(bundle), environment: environment::for_downloads() };
    // Ended from here, it leaves nothing behind.
    let traced = tokio::select! {
        traced = trace(request, locked, options, &begun) => traced,
        () = asked_to_stop() => bail!("stopped before the workflow had run; no bundle is written"),
    };
    Ok(traced.map_err(|error| Failure::Input(protocol::error_chain(&error)))?)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn read_workflow(path: &Path) -> anyhow::Result<Vec<u8>> {
    let unreadable = |error| Failure::Input(format!("`{}` cannot be read: {error}", path.display()));
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_WORKFLOW).read_to_end(&mut bytes)).map_err(unreadable)?;
    Ok(bytes)
}

/// `flux_api.json` becomes `flux.cpack.zip`.
fn usual_path(workflow: &Path) -> PathBuf {
    let stem = workflow.file_stem().unwrap_or_default().to_string_lossy();
    let name = stem.strip_suffix("_api").filter(|name| !name.is_empty()).unwrap_or(&stem);
    PathBuf::from(format!("{name}.cpack.zip"))
}

/// Writes the bundle beside its place, reads it as a node would, and moves it there.
fn write(
    path: &Path,
    workflow: &[u8],
    exposure: &Exposure,
    locked: &Locked,
    travelling: &BTreeMap<BlobHash, PathBuf>,
) -> anyhow::Result<Bundle> {
    let folder = folder_of(path);
    // As any file that its owner makes, for the system's mask to narrow.
    let permissions = Permissions::from_mode(0o666);
    let draft =
        tempfile::Builder::new().prefix(".pack-").suffix(".zip").permissions(permissions).tempfile_in(folder);
    let draft = draft.with_context(|| format!("`{}` cannot be written to", folder.display()))?;
    let inputs = locked.inputs.iter().map(|(name, file)| (name.clone(), File::open(file)));
    let carried = locked.carried.iter().map(|node| (node.name.clone(), node.archive.try_clone()));
    let files = travelling.iter().map(|(hash, file)| (*hash, File::open(file)));
    write_bundle(draft.as_file(), workflow, &locked.lockfile, exposure, inputs, carried, files)
        .map_err(|error| Failure::Input(protocol::error_chain(&error)))?;
    let bundle = read(draft.path())?;
    ensure!(bundle.lockfile == locked.lockfile, "the bundle is not read as it was written");
    let file = draft.persist(path).with_context(|| format!("`{}` cannot be written", path.display()))?;
    file.sync_all()?;
    Ok(bundle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundle_is_named_after_its_workflow() {
        let check = |workflow: &str, path: &str| assert_eq!(usual_path(Path::new(workflow)), Path::new(path));
        check("x/flux_api.json", "flux.cpack.zip");
        check("Flux 1.dev.json", "Flux 1.dev.cpack.zip");
        check("_api.json", "_api.cpack.zip");
    }
}
