//! What the event streams carry, as JSON. Not here: the streams themselves (`events`).

use data_encoding::BASE64;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::v1::model::farm::Farm;
use crate::api::v1::model::job::{Job, Run, State};
use crate::api::v1::model::node::Node;
use crate::view::{FarmEvent, FarmEventKind, PreviewView};

/// The data of one server-sent event.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Event {
    /// When it happened.
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    /// What happened.
    #[serde(flatten)]
    kind: EventKind,
}

/// What happened. `event` is also the name of the server-sent event.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum EventKind {
    /// A version of a workflow was deployed. Durable.
    Deployed {
        /// As `name@3`.
        workflow: String,
    },
    /// A job was submitted. Durable.
    Submitted {
        /// The job.
        job: Uuid,
        /// What it runs, as `name@3`.
        workflow: String,
    },
    /// A job went to a node.
    Started {
        /// The job.
        job: Uuid,
        /// The run.
        run: Run,
    },
    /// A run entered a phase or moved on. Without an id; only the latest counts.
    Progress {
        /// The job.
        job: Uuid,
        /// The run.
        run: Run,
    },
    /// A picture in the making, in a stream that asked for previews. Without an id; only the latest counts.
    Preview {
        /// The job.
        job: Uuid,
        /// The run.
        run: Uuid,
        /// `image/jpeg` or `image/png`.
        media_type: String,
        /// The picture, in base64.
        data: String,
    },
    /// A run was lost or failed, and the job waits again.
    Requeued {
        /// The job.
        job: Uuid,
        /// Why, in words.
        reason: String,
    },
    /// A job ended. Durable.
    Ended {
        /// The job.
        job: Uuid,
        /// How.
        state: State,
    },
    /// A node came, went, or changed what it takes.
    Node {
        /// The node's peer id.
        peer: String,
    },
    /// How everything is now: what happened before it is not told, or no longer known.
    Snapshot {
        /// The farm.
        farm: Farm,
        /// Its nodes; empty in the stream of one job.
        nodes: Vec<Node>,
        /// The newest jobs, or the one job of its stream.
        jobs: Vec<Job>,
    },
}

impl Event {
    /// How everything is at this moment.
    pub(crate) fn snapshot(farm: Farm, nodes: Vec<Node>, jobs: Vec<Job>) -> Self {
        Self { at: OffsetDateTime::now_utc(), kind: EventKind::Snapshot { farm, nodes, jobs } }
    }

    /// That a job has ended, for a caller who comes after its end.
    pub(crate) fn ended(job: Uuid, state: State, at: OffsetDateTime) -> Self {
        Self { at, kind: EventKind::Ended { job, state } }
    }

    /// The name of the server-sent event.
    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            EventKind::Deployed { .. } => "deployed",
            EventKind::Submitted { .. } => "submitted",
            EventKind::Started { .. } => "started",
            EventKind::Progress { .. } => "progress",
            EventKind::Preview { .. } => "preview",
            EventKind::Requeued { .. } => "requeued",
            EventKind::Ended { .. } => "ended",
            EventKind::Node { .. } => "node",
            EventKind::Snapshot { .. } => "snapshot",
        }
    }
}

impl From<&PreviewView> for Event {
    fn from(preview: &PreviewView) -> Self {
        let (media_type, data) =
            (preview.frame.media_type().to_owned(), BASE64.encode(preview.frame.bytes()));
        let kind = EventKind::Preview { job: preview.job.0, run: preview.run.0, media_type, data };
        Self { at: preview.at, kind }
    }
}

impl From<FarmEvent> for Event {
    fn from(event: FarmEvent) -> Self {
        let kind = match event.kind {
            FarmEventKind::Deployed(workflow) => EventKind::Deployed { workflow: workflow.to_string() },
            FarmEventKind::Submitted { job, workflow } => {
                EventKind::Submitted { job: job.0, workflow: workflow.to_string() }
            }
            FarmEventKind::Started { job, run } => EventKind::Started { job: job.0, run: run.into() },
            FarmEventKind::Progress { job, run } => EventKind::Progress { job: job.0, run: run.into() },
            FarmEventKind::Requeued { job, reason } => EventKind::Requeued { job: job.0, reason },
            FarmEventKind::Ended { job, state } => EventKind::Ended { job: job.0, state: state.into() },
            FarmEventKind::NodeChanged(peer) => EventKind::Node { peer: peer.to_string() },
        };
        Self { at: event.at, kind }
    }
}
