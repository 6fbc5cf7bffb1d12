//! A job as JSON: its state, its run, its outputs, and why it waits or failed.
//!
//! Not here: what it was given; parameters stay in the store.

use percent_encoding::utf8_percent_encode;
use protocol::{Fetched, JobState, OutputFile, PeerId, RunError, RunErrorKind, URL_PART};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::view::{FailedRun, JobView, RunView, WaitReason};

/// Jobs, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Jobs {
    pub(crate) jobs: Vec<Job>,
    /// What to pass as `before` for the next page; null on the last.
    #[schema(required)]
    pub(crate) next: Option<Uuid>,
}

/// What somebody submitted: a workflow and its input.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Job {
    /// Its id, a UUIDv7.
    id: Uuid,
    /// What it runs, as `name@3`.
    workflow: String,
    /// Its state.
    state: State,
    /// 0 to 100, within the share of whoever submitted it.
    priority: u8,
    /// When it was submitted.
    #[serde(with = "time::serde::rfc3339")]
    submitted: OffsetDateTime,
    /// When it expires if it waits for a node then; null for never.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required)]
    expires: Option<OffsetDateTime>,
    /// When its latest run was leased.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required)]
    started: Option<OffsetDateTime>,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required)]
    ended: Option<OffsetDateTime>,
    /// How many jobs stand before it in the queue; null unless queued.
    #[schema(required)]
    queue_position: Option<u64>,
    /// Why it waits, node by node; empty unless queued.
    waits: Vec<Wait>,
    /// The latest run: the one at work or, once the job has ended, the one that ended it or was at work
    /// as it ended. Null while the job waits, and where it ended without one.
    #[schema(required)]
    run: Option<Run>,
    /// Runs that ended without success, oldest first.
    failures: Vec<Failure>,
    /// The files that it made, in the order of the workflow's outputs.
    outputs: Vec<Output>,
    /// Why it failed.
    #[schema(required)]
    error: Option<JobError>,
    /// What its last run fetched, and from whom.
    fetched: Vec<FetchedBlob>,
    /// The peer id of this coordinator, to tell its bytes from a node's in `fetched`.
    coordinator: String,
    /// Where to ask for more.
    urls: JobUrls,
}

/// The state of a job. The last four are final.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = JobState)]
pub(crate) enum State {
    /// Waits for a slot.
    Queued,
    /// A node works on it.
    Running,
    /// Its outputs are verified in the coordinator's store.
    Succeeded,
    /// It failed, and no retry is left or none could help.
    Failed,
    /// Somebody cancelled it.
    Canceled,
    /// It waited longer than its time to live.
    Expired,
}

/// Why a queued job is not on a node.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Wait {
    /// The node; null for a reason about the farm as a whole.
    #[schema(required)]
    node: Option<String>,
    /// In words.
    reason: String,
}

/// One attempt at a job: at work, or as it was when its job ended.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Run {
    /// The run's id.
    id: Uuid,
    /// The node that does it.
    node: String,
    /// The slot on that node.
    slot: u16,
    /// What it is doing.
    phase: Phase,
    /// How far that is, where the node has told.
    #[schema(required)]
    progress: Option<Progress>,
}

/// What a run is doing.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// The node has not begun.
    Leased,
    /// It fetches the blobs that it lacks.
    Fetching,
    /// It hands the inputs to the engine.
    Preparing,
    /// The engine executes the workflow.
    Executing,
    /// The outputs move into the coordinator's store.
    Collecting,
}

/// How far a phase is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Progress {
    /// From 0.0 to 1.0.
    fraction: f32,
    /// The class of the op that executes, or what is fetched.
    #[schema(required)]
    detail: Option<String>,
}

/// A run that ended without success.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Failure {
    /// The run.
    run: Uuid,
    /// The node that did it.
    node: String,
    /// What went wrong, as one of a fixed set of words such as `op_failed`.
    kind: &'static str,
    /// In words.
    detail: String,
}

/// A file that a job made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Output {
    /// The output's name in the workflow.
    output: String,
    /// Its place among the files of that output, from 0.
    index: u32,
    /// A file name for people.
    file_name: String,
    /// Its media type.
    media_type: String,
    /// Its size in bytes.
    size: u64,
    /// The BLAKE3 hash of its bytes, in hex.
    blake3: String,
    /// Where to get it.
    url: String,
}

/// Why a job failed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobError {
    /// What went wrong, as one of a fixed set of words such as `op_failed`.
    kind: &'static str,
    /// In words.
    detail: String,
    /// The op of the graph at which it failed.
    #[schema(required)]
    op: Option<ErrorOp>,
    /// The address of the file that was wanted and is not in the bundle, where `kind` is `undeclared_file` and it was to be
    /// seen. `comfy-farm pack --trace` makes a bundle that has it.
    #[schema(required)]
    url: Option<String>,
    /// The id of the node of the graph that wanted it, where one did.
    #[schema(required)]
    node: Option<String>,
}

/// The op of a workflow at which a run failed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorOp {
    /// Its id in the graph.
    id: String,
    /// Its class.
    class: String,
    /// The exception's type and traceback, where the engine gave them.
    #[schema(required)]
    traceback: Option<String>,
}

/// How much of a blob a run took from which peer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FetchedBlob {
    /// The BLAKE3 hash of the blob, in hex.
    blob: String,
    /// The blob's size in bytes.
    size: u64,
    /// The peer that sent it.
    from: String,
    /// How many of its bytes came from there.
    bytes: u64,
}

/// Where to ask for more about a job.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobUrls {
    /// The job.
    #[serde(rename = "self")]
    this: String,
    /// Its events, as they happen.
    events: String,
    /// POST here cancels it.
    cancel: String,
}

impl Job {
    /// The job as the coordinator sees it.
    pub(crate) fn new(view: JobView, coordinator: PeerId) -> Self {
        let this = job_path(view.id.0);
        Self {
            id: view.id.0,
            workflow: view.workflow.to_string(),
            state: view.state.into(),
            priority: view.priority,
            submitted: view.submitted,
            expires: view.expires,
            started: view.started,
            ended: view.ended,
            queue_position: view.queue_position,
            waits: view.waits.into_iter().map(Wait::from).collect(),
            run: view.run.map(Run::from),
            failures: view.failures.into_iter().map(Failure::from).collect(),
            outputs: view.outputs.into_iter().map(|file| Output::new(file, &this)).collect(),
            error: view.error.map(JobError::from),
            fetched: view.fetched.into_iter().map(FetchedBlob::from).collect(),
            coordinator: coordinator.to_string(),
            urls: JobUrls { events: format!("{this}/events"), cancel: format!("{this}/cancel"), this },
        }
    }
}

/// Where a job is found.
pub(crate) fn job_path(job: Uuid) -> String {
    format!("/v1/jobs/{job}")
}

impl Output {
    fn new(file: OutputFile, job_path: &str) -> Self {
        Self {
            url: format!(
                "{job_path}/outputs/{}/{}",
                utf8_percent_encode(&file.output, &URL_PART),
                file.index
            ),
            output: file.output,
            index: file.index,
            file_name: file.file_name,
            media_type: file.media_type,
            size: file.blob.size,
            blake3: file.blob.hash.to_string(),
        }
    }
}

impl From<JobState> for State {
    fn from(state: JobState) -> Self {
        match state {
            JobState::Queued => Self::Queued,
            JobState::Running => Self::Running,
            JobState::Succeeded => Self::Succeeded,
            JobState::Failed => Self::Failed,
            JobState::Canceled => Self::Canceled,
            JobState::Expired => Self::Expired,
        }
    }
}

impl From<State> for JobState {
    fn from(state: State) -> Self {
        match state {
            State::Queued => Self::Queued,
            State::Running => Self::Running,
            State::Succeeded => Self::Succeeded,
            State::Failed => Self::Failed,
            State::Canceled => Self::Canceled,
            State::Expired => Self::Expired,
        }
    }
}

impl From<WaitReason> for Wait {
    fn from(wait: WaitReason) -> Self {
        Self { node: wait.node.map(|node| node.to_string()), reason: wait.reason }
    }
}

impl From<RunView> for Run {
    fn from(run: RunView) -> Self {
        Self {
            id: run.id.0,
            node: run.node.to_string(),
            slot: run.slot.0,
            phase: run.phase.into(),
            progress: run
                .progress
                .map(|progress| Progress { fraction: progress.fraction, detail: progress.detail }),
        }
    }
}

impl From<protocol::Phase> for Phase {
    fn from(phase: protocol::Phase) -> Self {
        match phase {
            protocol::Phase::Leased => Self::Leased,
            protocol::Phase::Fetching => Self::Fetching,
            protocol::Phase::Preparing => Self::Preparing,
            protocol::Phase::Executing => Self::Executing,
            protocol::Phase::Collecting => Self::Collecting,
        }
    }
}

impl From<FailedRun> for Failure {
    fn from(failed: FailedRun) -> Self {
        Self {
            run: failed.id.0,
            node: failed.node.to_string(),
            kind: failed.error.kind.as_str(),
            detail: failed.error.detail,
        }
    }
}

impl From<RunError> for JobError {
    fn from(error: RunError) -> Self {
        let is_undeclared = error.kind == RunErrorKind::UndeclaredFile;
        Self {
            kind: error.kind.as_str(),
            detail: error.detail,
            url: error.url.filter(|_| is_undeclared).map(String::from),
            node: error.op.as_ref().filter(|_| is_undeclared).map(|op| op.id.clone()),
            op: error.op.map(|op| ErrorOp { id: op.id, class: op.class, traceback: op.traceback }),
        }
    }
}

impl From<Fetched> for FetchedBlob {
    fn from(fetched: Fetched) -> Self {
        Self {
            blob: fetched.blob.hash.to_string(),
            size: fetched.blob.size,
            from: fetched.from.to_string(),
            bytes: fetched.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::FailedOp;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn undeclared_file_is_told_with_its_address_and_the_node_of_the_graph_and_no_other_error_is() {
        let told = |kind| -> Value {
            let op = FailedOp { id: "7".to_owned(), class: "Remote".to_owned(), traceback: None };
            let url = Some("https://models.example.org/a.pth".into());
            let error = RunError { url, ..RunError::of_op(kind, "it wants a file", op) };
            let told = serde_json::to_value(JobError::from(error)).expect("only text keys");
            json!([told["url"], told["node"], told["op"]["id"]])
        };
        let undeclared = json!(["https://models.example.org/a.pth", "7", "7"]);
        assert_eq!(told(RunErrorKind::UndeclaredFile), undeclared);
        assert_eq!(told(RunErrorKind::OpFailed), json!([null, null, "7"]));
    }
}
