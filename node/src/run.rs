//! One run from top to bottom: fetch, prepare, execute, collect.
//!
//! Not here: which runs there are and what is told to the coordinator; that is the agent's.

pub(crate) mod outputs;
pub(crate) mod self_test;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh::fetch::{Exchange, FetchError, Progress as FetchProgress};
use mesh::store::{BlobStore, StoreError};
use protocol::message::{BlobProviders, Grant, Outcome, Provider, RunEnded};
use protocol::{
    BlobRef, Fetched, Filled, FilledOutput, Filling, Interface, Lease, Making, Parameters, Phase, Progress,
    RunError, RunErrorKind, RunId, Workflow, error_chain, fill,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, instrument, warn};

use crate::ends::{Ends, NewOutput};
use crate::engine::{Engine, Execution, InputFile, ProgressSink};
use crate::workspace::shelf::{Shelf, Whole};
use outputs::name_outputs;

/// The largest graph or interface that a node takes, in bytes.
const MAX_DOCUMENT: u64 = 16 << 20;

/// What every run of a node works with.
pub struct Tools {
    /// Executes workflows.
    pub engine: Arc<dyn Engine>,
    /// Fetches blobs.
    pub exchange: Exchange,
    /// Holds them.
    pub blobs: BlobStore,
    /// Keeps the ends of runs until they are recorded.
    pub ends: Ends,
    /// Each run has a folder of its own in here.
    pub scratch: PathBuf,
    /// The locked workspaces, on a node that builds them.
    pub shelf: Option<Shelf>,
}

impl Tools {
    fn scratch_of(&self, run: RunId) -> PathBuf {
        self.scratch.join(run.to_string())
    }
}

/// What a run tells while it is at work.
#[derive(Clone)]
pub struct Telling {
    /// Each phase that it enters.
    pub phases: mpsc::Sender<(protocol::LeaseId, Phase)>,
    /// How far it is; the latest wins.
    pub progress: ProgressSink,
}

/// Does the run of a grant, and keeps its end. `None` where even that failed: nothing will be
/// presented, and the lease runs out.
#[instrument(name = "run", skip_all, fields(
    job = %grant.lease.job.fmt_short(), run = %grant.lease.run.fmt_short(), lease = %grant.lease.id.fmt_short()
))]
pub async fn run_task(
    grant: Box<Grant>,
    tools: Arc<Tools>,
    telling: Telling,
    cancel: CancellationToken,
) -> Option<RunEnded> {
    let mut record = Record::default();
    let folder = tools.scratch_of(grant.lease.run);
    info!(workflow = %grant.workflow, "run begins");
    let result = run_impl(&grant, &tools, &telling, &cancel, &folder, &mut record).await;
    let kept = keep_end(grant.lease, &tools, record, result).await;
    remove_scratch(&folder).await;
    kept
}

/// Keeps the end of a run that broke off by a bug, as `run_task` would have.
pub async fn keep_broken_end(lease: Lease, tools: &Tools) -> Option<RunEnded> {
    let error = RunError::new(RunErrorKind::NodeFault, "the run broke off by a bug: see the log of the node");
    let kept = keep_end(lease, tools, Record::default(), Err(error)).await;
    remove_scratch(&tools.scratch_of(lease.run)).await;
    kept
}

async fn remove_scratch(folder: &Path) {
    match tokio::fs::remove_dir_all(folder).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            warn!(folder = %folder.display(), %error, "scratch folder stays behind");
        }
        _ => {}
    }
}

/// What is told of a run, however it ends.
#[derive(Default)]
struct Record {
    fetched: Vec<Fetched>,
    executed: Duration,
}

async fn run_impl(
    grant: &Grant,
    tools: &Tools,
    telling: &Telling,
    cancel: &CancellationToken,
    folder: &Path,
    record: &mut Record,
) -> Result<Vec<NewOutput>, RunError> {
    tell(telling, grant, Phase::Fetching).await;
    let needs = Needs { grant, tools, cancel, progress: &telling.progress };
    // Held to the end of the run, so that none of its models is evicted.
    let whole = whole(grant, tools)?;
    let graph = needs.document(grant.graph, record).await?;
    let interface = needs.document(grant.interface, record).await?;
    let graph = Workflow::parse(&graph).map_err(invalid)?;
    let interface: Interface = serde_json::from_slice(&interface).map_err(invalid)?;
    let parameters = Parameters::parse(&grant.parameters).map_err(invalid)?;
    let output_prefix = format!("comfy-farm/{}", grant.lease.run);
    let Filled { workflow, files, outputs } =
        fill(&graph, &interface, &parameters, &Filling { output_prefix, inputs: grant.inputs.clone() })
            .map_err(invalid)?;
    // No input is evicted to make room for another one, or before the engine has it.
    let _held: Vec<_> = files.iter().map(|(_, blob)| tools.blobs.hold(blob.hash)).collect();
    for (_, blob) in &files {
        needs.fetch(*blob, record).await?;
    }

    tell(telling, grant, Phase::Preparing).await;
    let mut inputs = Vec::with_capacity(files.len());
    for (name_in_graph, blob) in files {
        let path = tools.blobs.path_of(blob.hash).ok_or_else(|| lost(blob))?;
        inputs.push(InputFile { name_in_graph, path });
    }
    tokio::fs::create_dir_all(folder).await.map_err(disk)?;

    tell(telling, grant, Phase::Executing).await;
    let wanted = outputs.iter().flat_map(FilledOutput::ops).map(str::to_owned).collect();
    let named = outputs.iter().filter(|output| output.making == Making::NamedFile);
    let execution = Execution {
        run: grant.lease.run,
        slot: grant.slot,
        workspace: whole.as_ref().map(|whole| Arc::clone(&whole.workspace)),
        workflow,
        files: inputs,
        outputs: wanted,
        named_files: named.map(|output| output.op.clone()).collect(),
        scratch: folder.to_owned(),
    };
    let begun = Instant::now();
    let produced = tools.engine.execute(execution, &telling.progress, cancel).await;
    record.executed = begun.elapsed();
    let produced = produced?;
    if let (Some(shelf), Some(whole)) = (&tools.shelf, &whole) {
        shelf.prove(whole.workspace.lockfile);
    }

    tell(telling, grant, Phase::Collecting).await;
    let scratch = folder.to_owned();
    let naming = tokio::task::spawn_blocking(move || name_outputs(&outputs, &produced, &scratch));
    naming.await.unwrap_or_else(|error| Err(RunError::new(RunErrorKind::NodeFault, error_chain(&error))))
}

/// The workspace of a grant, on a node that builds them.
fn whole(grant: &Grant, tools: &Tools) -> Result<Option<Arc<Whole>>, RunError> {
    let Some(shelf) = &tools.shelf else { return Ok(None) };
    let Some(whole) = shelf.usable(grant.lockfile) else {
        let detail = format!("the workspace of lockfile {} is not ready here", grant.lockfile);
        return Err(RunError::new(RunErrorKind::EngineUnavailable, detail));
    };
    shelf.note_use(grant.lockfile);
    Ok(Some(whole))
}

/// Fetching for one run.
struct Needs<'a> {
    grant: &'a Grant,
    tools: &'a Tools,
    cancel: &'a CancellationToken,
    progress: &'a ProgressSink,
}

impl Needs<'_> {
    async fn document(&self, blob: BlobRef, record: &mut Record) -> Result<Vec<u8>, RunError> {
        if blob.size > MAX_DOCUMENT {
            let detail = format!("a document of {} bytes, where {MAX_DOCUMENT} are taken", blob.size);
            return Err(RunError::new(RunErrorKind::InvalidInput, detail));
        }
        self.fetch(blob, record).await?;
        self.tools.blobs.read_all(blob.hash, MAX_DOCUMENT).await.map_err(store)
    }

    async fn fetch(&self, blob: BlobRef, record: &mut Record) -> Result<(), RunError> {
        let (received, mut watched) = watch::channel(FetchProgress::default());
        let fetching = self.tools.exchange.fetch(blob, self.providers(blob), Some(&received));
        tokio::pin!(fetching);
        loop {
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Err(canceled()),
                fetched = &mut fetching => {
                    record.fetched.extend(fetched.map_err(fetch_failed)?);
                    return Ok(());
                }
                Ok(()) = watched.changed() => self.tell_received(blob, watched.borrow_and_update().bytes),
            }
        }
    }

    fn providers(&self, blob: BlobRef) -> &[Provider] {
        let known = |entry: &&BlobProviders| entry.hash == blob.hash;
        self.grant.providers.iter().find(known).map_or(&[], |entry| &entry.providers)
    }

    fn tell_received(&self, blob: BlobRef, bytes: u64) {
        let fraction = bytes as f32 / blob.size.max(1) as f32;
        let detail = Some(blob.hash.fmt_short());
        self.progress.tell(Progress { phase: Phase::Fetching, fraction, detail });
    }
}

async fn tell(telling: &Telling, grant: &Grant, phase: Phase) {
    // The agent outlives its runs; if it is gone, nobody is left to tell.
    let _ = telling.phases.send((grant.lease.id, phase)).await;
}

async fn keep_end(
    lease: Lease,
    tools: &Tools,
    record: Record,
    result: Result<Vec<NewOutput>, RunError>,
) -> Option<RunEnded> {
    let Record { fetched, executed } = record;
    let ended = |outcome| RunEnded { lease, outcome, fetched: fetched.clone(), executed };
    let failure = match result {
        Ok(outputs) => match tools.ends.keep_success(ended(Outcome::Succeeded(vec![])), outputs).await {
            Ok(kept) => {
                info!(seconds = executed.as_secs_f64(), "run succeeded");
                return Some(kept);
            }
            Err(error) => RunError::new(RunErrorKind::NodeFault, error_chain(&error)),
        },
        Err(error) => error,
    };
    warn!(kind = failure.kind.as_str(), detail = failure.detail, "run failed");
    let failed = ended(Outcome::Failed(failure));
    match tools.ends.keep_failure(failed.clone()).await {
        Ok(()) => Some(failed),
        Err(error) => {
            tracing::error!(error = error_chain(&error), "end of a run cannot be kept");
            None
        }
    }
}

fn invalid(error: impl std::error::Error) -> RunError {
    RunError::new(RunErrorKind::InvalidInput, error_chain(&error))
}

fn disk(error: std::io::Error) -> RunError {
    RunError::new(RunErrorKind::NodeFault, format!("the run's scratch folder cannot be made: {error}"))
}

fn store(error: StoreError) -> RunError {
    RunError::new(RunErrorKind::NodeFault, error_chain(&error))
}

fn lost(blob: BlobRef) -> RunError {
    RunError::new(RunErrorKind::NodeFault, format!("blob {} was removed from this node meanwhile", blob.hash))
}

fn fetch_failed(error: FetchError) -> RunError {
    let kind = match error {
        FetchError::Store { .. } => RunErrorKind::NodeFault,
        _ => RunErrorKind::MissingBlob,
    };
    RunError::new(kind, error_chain(&error))
}

fn canceled() -> RunError {
    RunError::new(RunErrorKind::Canceled, "cancelled while fetching")
}

#[cfg(test)]
mod tests;
