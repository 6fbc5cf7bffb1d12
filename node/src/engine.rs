//! What executes a workflow on this machine: the contract that every engine keeps.
//!
//! Not here: leases, blobs and interfaces. An engine gets a filled workflow and files on disk, and
//! leaves files on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use protocol::{
    FailedOp, LockfileHash, Phase, PreviewFrame, Progress, RunError, RunErrorKind, RunId, SlotId, Workflow,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::workspace::Workspace;

pub mod builtin;
pub mod comfyui;
pub mod managed;

/// Something that executes workflows.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// What it can do at this moment.
    async fn describe(&self) -> Result<Description, EngineError>;

    /// Whether work on this slot in this workspace takes nothing from the work that comes after it, as a process that
    /// has to make way, nor from an owner who uses the engine too.
    async fn is_free_for(&self, _slot: SlotId, _workspace: Option<&Arc<Workspace>>) -> bool {
        true
    }

    /// In which of these workspaces each slot can work with the process that it has; slots without one are not there.
    async fn warm(&self, _workspaces: &[Arc<Workspace>]) -> BTreeMap<SlotId, BTreeSet<LockfileHash>> {
        BTreeMap::new()
    }

    /// Executes one filled workflow and returns the files of the wanted outputs, in order.
    ///
    /// Once `cancel` is cancelled it ends as soon as it can, with [`RunErrorKind::Canceled`]. When it
    /// returns, nothing of this run goes on. Dropping the future is no way to cancel.
    async fn execute(
        &self,
        execution: Execution,
        progress: &ProgressSink,
        cancel: &CancellationToken,
    ) -> Result<Vec<ProducedFile>, RunError>;
}

/// What an engine can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Which engine it is.
    pub engine: protocol::Engine,
    /// The classes of op that it has.
    pub classes: BTreeSet<String>,
    /// The model files that it lists, as `folder/name`.
    pub models: BTreeSet<String>,
}

/// Why an engine cannot say what it can do.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The attached ComfyUI did not answer as one does.
    #[error(transparent)]
    ComfyUi(#[from] comfyui::client::RequestError),
}

/// One workflow to execute.
#[derive(Clone, Debug)]
pub struct Execution {
    /// The run that it is for; no two executions share one.
    pub run: RunId,
    /// The slot that it has. A slot executes one at a time.
    pub slot: SlotId,
    /// The locked workspace that it needs, prepared; none where the engine's own classes and models do.
    pub workspace: Option<Arc<Workspace>>,
    /// The workflow, with all values in place.
    pub workflow: Workflow,
    /// The files that ops of the workflow name.
    pub files: Vec<InputFile>,
    /// The ids of the ops whose files are wanted.
    pub outputs: Vec<String>,
    /// Those among them that tell a path, and what is wanted is the file there.
    pub named_files: Vec<String>,
    /// An empty folder of this run's own, which exists.
    pub scratch: PathBuf,
}

/// A file that an op of the workflow names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputFile {
    /// The value that names it in the workflow.
    pub name_in_graph: String,
    /// Where its bytes are.
    pub path: PathBuf,
}

/// A file that an output op made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducedFile {
    /// The id of the op.
    pub op: String,
    /// A name for people, without folders.
    pub file_name: String,
    /// Its media type, such as `image/png`.
    pub media_type: String,
    /// Where it is, inside the scratch folder.
    pub path: PathBuf,
}

/// Where an engine tells how far it is. Cheap to tell often: whoever listens sees the latest only.
#[derive(Clone, Debug)]
pub struct ProgressSink {
    progress: watch::Sender<Option<Progress>>,
    frames: watch::Sender<Option<PreviewFrame>>,
}

impl ProgressSink {
    /// A sink and the end to listen on.
    pub fn new() -> (Self, watch::Receiver<Option<Progress>>) {
        let (progress, watched) = watch::channel(None);
        (Self { progress, frames: watch::channel(None).0 }, watched)
    }

    /// Where previews come out.
    pub fn frames(&self) -> watch::Receiver<Option<PreviewFrame>> {
        self.frames.subscribe()
    }

    /// Shows the picture in the making.
    pub fn show(&self, frame: PreviewFrame) {
        self.frames.send_replace(Some(frame));
    }

    /// Tells how much of the execution is done, from 0.0 to 1.0, and the class of the op at work.
    pub fn executing(&self, fraction: f32, class: Option<&str>) {
        self.tell(Progress { phase: Phase::Executing, fraction, detail: class.map(str::to_owned) });
    }

    /// Tells how far any phase is.
    pub fn tell(&self, progress: Progress) {
        self.progress.send_replace(Some(progress));
    }
}

/// An error that one op of the workflow is to blame for.
fn op_error(kind: RunErrorKind, id: &str, class: &str, what: impl std::fmt::Display) -> RunError {
    let op = FailedOp { id: id.to_owned(), class: class.to_owned(), traceback: None };
    RunError::of_op(kind, format!("op `{id}` ({class}): {what}"), op)
}

/// The error of a run that was cancelled as asked.
fn canceled() -> RunError {
    RunError::new(RunErrorKind::Canceled, "the run was cancelled")
}

/// The last part of a path as an engine wrote it, made fit to be a file name on any system.
pub(crate) fn safe_file_name(path: &str) -> String {
    const LONGEST: usize = 100;
    let last = path.rsplit(['/', '\\']).next().unwrap_or_default();
    let harmless = |c: char| if c.is_control() || r#"<>:"|?*"#.contains(c) { '_' } else { c };
    let name: String = last.chars().map(harmless).collect();
    let name = name.trim().trim_start_matches('.');
    // Of a long name the end is kept, because it tells the number and the kind of file.
    let surplus = name.chars().count().saturating_sub(LONGEST);
    name.chars().skip(surplus).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_name_loses_folders_and_what_systems_refuse() {
        let check = |path: &str, name: &str| assert_eq!(safe_file_name(path), name, "{path}");
        check("run-1/cat_00001_.png", "cat_00001_.png");
        check(r"..\..\evil.exe", "evil.exe");
        check("../..", "");
        check("a:b*c\n.png", "a_b_c_.png");
        check(&format!("{}.png", "x".repeat(300)), &format!("{}.png", "x".repeat(96)));
    }

    #[test]
    fn listener_sees_the_latest_progress_only() {
        let (sink, rx) = ProgressSink::new();
        sink.executing(0.25, Some("LoadImage"));
        sink.executing(0.5, Some("SaveImage"));
        let seen = rx.borrow().clone().unwrap();
        assert_eq!((seen.fraction, seen.detail.as_deref()), (0.5, Some("SaveImage")));
    }
}
