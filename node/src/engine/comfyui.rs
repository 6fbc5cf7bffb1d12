//! A ComfyUI that the node's owner runs, over its HTTP API and WebSocket.
//!
//! It is a guest there: it takes part in the queue, never touches a prompt that is not its own, and
//! leaves none of its own behind. Not here: starting ComfyUI, or installing anything into it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use protocol::{RunError, RunErrorKind, SlotId, Workflow};
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::engine::{
    Description, Engine, EngineError, Execution, ProducedFile, ProgressSink, canceled, safe_file_name,
};
use crate::workspace::Workspace;
use answer::{Position, Submitted};
use client::{AddressError, Client, RequestError};
use life::{Life, Pulse};
use named::{Within, named_file};
use outputs::{Content, Output};
use session::{Session, Verdict};
use socket::Socket;
use watch::{Ended, Watch};

pub mod client;
mod answer;
mod events;
mod failure;
#[cfg(test)]
mod faults;
pub(crate) mod life;
pub(crate) mod models;
mod named;
mod outputs;
mod session;
mod socket;
mod unreported;
mod watch;

/// An attached ComfyUI.
#[derive(Debug)]
pub struct ComfyUi {
    client: Client,
    options: ComfyUiOptions,
    /// Where it is, if it is the node's own.
    folder: Option<PathBuf>,
    /// Counts what it does, if somebody can.
    pulse: Option<Arc<dyn Pulse>>,
}

/// How patient the engine is with its ComfyUI.
#[derive(Clone, Debug)]
pub struct ComfyUiOptions {
    /// How long a running prompt may show no progress before it counts as stalled. Time in the queue behind prompts of the
    /// owner does not count, nor that in which a process of the node's own is at work. Defaults to 10 minutes.
    pub stall_after: Duration,
    /// How long a ComfyUI that is gone may take to come back before the run is given up. Defaults to 10 s.
    pub unreachable_after: Duration,
    /// How long to wait for a stopped prompt to be gone; an op that does not look is not interrupted. Defaults to
    /// 60 s.
    pub stop_within: Duration,
    /// The most bytes that the outputs of one run may have together. Defaults to 8 GiB.
    pub max_output: u64,
}

impl Default for ComfyUiOptions {
    fn default() -> Self {
        Self {
            stall_after: Duration::from_secs(10 * 60),
            unreachable_after: Duration::from_secs(10),
            stop_within: Duration::from_secs(60),
            max_output: 8 << 30,
        }
    }
}

impl ComfyUi {
    /// The ComfyUI at that address, such as `http://127.0.0.1:8188`. Nothing is sent yet.
    pub fn new(address: &str, options: ComfyUiOptions) -> Result<Self, AddressError> {
        Ok(Self { client: Client::new(address)?, options, folder: None, pulse: None })
    }

    /// The ComfyUI behind that Unix socket. Nothing is sent yet.
    pub(super) fn behind(socket: &Path, options: ComfyUiOptions) -> Self {
        Self { client: Client::behind(socket), options, folder: None, pulse: None }
    }

    /// The same, with its code and its `input`, `output` and `temp` in this folder of the node's own.
    pub(super) fn in_folder(self, folder: PathBuf) -> Self {
        Self { folder: Some(folder), ..self }
    }

    /// The same, of which somebody counts what it does.
    pub(super) fn counted_by(self, pulse: Arc<dyn Pulse>) -> Self {
        Self { pulse: Some(pulse), ..self }
    }
}

#[async_trait]
impl Engine for ComfyUi {
    async fn describe(&self) -> Result<Description, EngineError> {
        let comfyui_version = self.client.version().await?;
        let classes = self.client.object_info().await?.into_iter().map(|(class, _)| class).collect();
        let models = self.client.models().await?;
        Ok(Description { engine: protocol::Engine::Attached { comfyui_version }, classes, models })
    }

    /// Never: its owner works with it.
    async fn is_free_for(&self, _slot: SlotId, _workspace: Option<&Arc<Workspace>>) -> bool {
        false
    }

    async fn execute(
        &self,
        execution: Execution,
        progress: &ProgressSink,
        cancel: &CancellationToken,
    ) -> Result<Vec<ProducedFile>, RunError> {
        let prompt = execution.run.to_string();
        let preparing = async {
            let workflow = self.prepare(&execution).await?;
            // Connected before the prompt is queued, so that no event of it is missed.
            let connected = Socket::connect(&self.client, &prompt).await;
            Ok((workflow, connected.map_err(|error| watch::unreachable(&error))?))
        };
        let (workflow, socket) = cancel.run_until_cancelled(preparing).await.ok_or_else(canceled)??;
        let ended = async {
            self.submit(&prompt, &workflow, &execution.outputs).await?;
            let session = Session::new(&prompt, &workflow, &execution.outputs);
            let (client, options) = (&self.client, &self.options);
            let life = Life::new(self.pulse.clone());
            let watch =
                Watch { client, options, prompt: &prompt, workflow: &workflow, session, life, progress };
            watch.until_end(socket, cancel).await
        };
        let ended = match ended.await {
            Ok(ended) => ended,
            Err(error) => {
                self.stop(&prompt).await;
                return Err(error);
            }
        };
        let collecting = self.collect(ended, &execution);
        cancel.run_until_cancelled(collecting).await.ok_or_else(canceled)?
    }
}

impl ComfyUi {
    /// Whether it answers.
    pub(super) async fn is_up(&self) -> bool {
        self.client.version().await.is_ok()
    }

    /// Whether it answers and nothing is in its queue.
    pub(super) async fn is_idle(&self) -> bool {
        matches!(self.client.queue_length().await, Ok(0))
    }

    /// Has it give back the device's memory before its next prompt.
    pub(super) async fn free(&self) {
        if let Err(error) = self.client.free().await {
            tracing::warn!(%error, "comfyui did not free its memory");
        }
    }

    /// Puts the files of a run where ComfyUI finds them, and checks what it would find out too late.
    async fn prepare(&self, execution: &Execution) -> Result<Workflow, RunError> {
        for model in models::named(&execution.workflow) {
            // A class that is not there is refused by name when the prompt is queued.
            if let Some(info) = self.client.class_info(model.class).await.map_err(unavailable)? {
                model.check(&info)?;
            }
        }
        let mut workflow = execution.workflow.clone();
        for file in &execution.files {
            let name = self.client.upload(&file.name_in_graph, &file.path).await.map_err(unavailable)?;
            rename(&mut workflow, &file.name_in_graph, &name);
        }
        Ok(workflow)
    }

    async fn submit(&self, prompt: &str, workflow: &Workflow, outputs: &[String]) -> Result<(), RunError> {
        let submitted = self.client.submit(prompt, workflow, outputs).await.map_err(unavailable)?;
        let is_wanted = |op: &Value| op.as_str().is_some_and(|op| outputs.iter().any(|output| output == op));
        let spoils_a_wanted_one = |node: &Value| {
            node["dependent_outputs"].as_array().is_some_and(|outputs| outputs.iter().any(is_wanted))
        };
        match submitted {
            // It executes what it can; a part of the outputs is no success.
            Submitted::Accepted(errors) if errors.node_errors.values().any(spoils_a_wanted_one) => {
                Err(failure::rejected(&errors, workflow))
            }
            Submitted::Accepted(_) => Ok(()),
            Submitted::Rejected(rejection) => Err(failure::rejected(&rejection, workflow)),
        }
    }

    /// Sees to it that nothing of a prompt goes on, as far as ComfyUI lets itself be stopped.
    async fn stop(&self, prompt: &str) {
        // Where nothing is taken up, one of the node's own will never work again. It is known by what waits in it.
        if self.folder.is_some() && matches!(self.client.position(prompt).await, Ok(Position::Unserved)) {
            return;
        }
        match timeout(self.options.stop_within, self.client.stop(prompt)).await {
            Ok(Ok(())) => {}
            // Who does not answer at all runs nothing that could still be stopped.
            Ok(Err(RequestError::Unreachable { .. })) => {}
            Ok(Err(error)) => tracing::warn!(%prompt, %error, "comfyui did not stop a run"),
            Err(_) => tracing::warn!(%prompt, "comfyui still executes a run that was stopped"),
        }
    }

    async fn collect(&self, ended: Ended, execution: &Execution) -> Result<Vec<ProducedFile>, RunError> {
        match ended.verdict {
            Verdict::Succeeded => {}
            Verdict::Failed(exception) => return Err(failure::raised(&exception)),
            Verdict::Interrupted => return Err(failure::interrupted_by_owner()),
        }
        let mut produced = Vec::new();
        let mut budget = self.options.max_output;
        let run = execution.run.to_string();
        let unreported = |op: &str| match &self.folder {
            Some(folder) => unreported::files_of(op, &execution.workflow, &run, folder),
            None => Vec::new(),
        };
        let outputs = outputs::outputs_of(&ended.outputs, &execution.outputs, unreported)?;
        for (number, mut output) in outputs.into_iter().enumerate() {
            if let Content::Text(told) = &output.content
                && execution.named_files.contains(&output.op)
            {
                let within = self.folder.as_deref().map_or(Within::Run(&run), Within::Folder);
                output.content = Content::File(named_file(&output.op, told, within)?);
            }
            let fetching = self.fetch(number, output, &execution.scratch, budget);
            let (size, file) = fetching.await.map_err(unavailable)?;
            budget = budget.saturating_sub(size);
            produced.push(file);
        }
        Ok(produced)
    }

    async fn fetch(
        &self,
        number: usize,
        Output { op, content }: Output,
        scratch: &Path,
        limit: u64,
    ) -> Result<(u64, ProducedFile), RequestError> {
        match content {
            Content::File(served) => {
                let file_name = safe_file_name(&served.filename);
                let path = scratch.join(format!("{number}-{file_name}"));
                let (size, media_type) = self.client.download(&served, &path, limit).await?;
                Ok((size, ProducedFile { op, file_name, media_type, path }))
            }
            Content::Text(text) => {
                let file_name = format!("text_{:05}.txt", number + 1);
                let path = scratch.join(format!("{number}-{file_name}"));
                let written = tokio::fs::write(&path, &text).await;
                written.map_err(|source| RequestError::File { path: path.clone(), source })?;
                let media_type = "text/plain; charset=utf-8".to_owned();
                Ok((text.len() as u64, ProducedFile { op, file_name, media_type, path }))
            }
        }
    }
}

/// Lets every input that names a file name it as ComfyUI does.
fn rename(workflow: &mut Workflow, from: &str, to: &str) {
    let ids: Vec<String> = workflow.iter().map(|(id, _)| id.to_owned()).collect();
    for id in ids {
        let op = workflow.get_mut(&id).expect("the ids are the workflow's own");
        for value in op.inputs.values_mut().filter(|value| value.as_str() == Some(from)) {
            *value = Value::from(to);
        }
    }
}

fn unavailable(error: RequestError) -> RunError {
    match error {
        RequestError::TooLarge { request, limit, .. } if request == "view" => {
            let detail = format!("the outputs are larger than the {limit} bytes that were left for them");
            RunError::new(RunErrorKind::NodeFault, detail)
        }
        error => failure::unavailable(&error),
    }
}
