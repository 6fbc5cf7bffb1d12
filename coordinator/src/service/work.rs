//! What the loop has done for it in tasks, so that it never waits: blobs read, fetched and stored.
//!
//! Each task reports once, over the loop's own channel.

use std::sync::Arc;
use std::time::Duration;

use mesh::fetch::Exchange;
use mesh::identity::Identity;
use mesh::store::BlobStore;
use protocol::message::{MAX_PARAMETERS, Outcome, Provider, RunEnded};
use protocol::{BlobRef, JobId};
use time::OffsetDateTime;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::{debug, instrument};

use super::deploy;
use crate::handle::{CommandError, Deployment, Submission};
use crate::state::record::NewJob;
use crate::state::{Event, GrantOrder};
use crate::view::DeployedWorkflow;

/// How long the fetch of the smallest output may take.
const COLLECT_TIME: Duration = Duration::from_secs(60);
/// The least bytes a second at which a large one must come.
const LEAST_RATE: u64 = 64 << 10;

/// The way back for an answer.
pub(super) type Answer<T> = oneshot::Sender<Result<T, CommandError>>;

/// What a task reports.
pub(super) enum Report {
    /// Something for the state machine.
    Event(Event),
    /// A grant that can be sent, unless its run is no longer wanted.
    Grant(Box<GrantOrder>),
    /// A deploy whose blobs are stored.
    Deploy(Box<DeployedWorkflow>, Answer<Arc<DeployedWorkflow>>),
    /// A submission whose parameters are stored.
    Submit(Box<NewJob>, Answer<JobId>),
}

/// Reads a job's parameters into its grant.
pub(super) async fn grant(mut order: Box<GrantOrder>, blobs: BlobStore) -> Report {
    match blobs.read_all(order.parameters.hash, MAX_PARAMETERS as u64).await {
        Ok(parameters) => {
            order.grant.parameters = parameters;
            Report::Grant(order)
        }
        Err(error) => {
            let lease = order.grant.lease.id;
            Report::Event(Event::GrantFailed { lease, reason: error.to_string() })
        }
    }
}

/// Fetches the outputs of a run into the coordinator's store, each verified as it arrives.
#[instrument(name = "collect", skip_all, fields(job = %ended.lease.job.fmt_short(), run = %ended.lease.run.fmt_short()))]
pub(super) async fn collect(provider: Provider, ended: Box<RunEnded>, exchange: Exchange) -> Report {
    let lease = ended.lease.id;
    let node = provider.peer;
    let outputs = match &ended.outcome {
        Outcome::Succeeded(outputs) => outputs.as_slice(),
        Outcome::Failed(_) => &[],
    };
    for output in outputs {
        let fetch = exchange.fetch(output.blob, std::slice::from_ref(&provider), None);
        let reason = match timeout(longest(output.blob), fetch).await {
            Ok(Ok(_)) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "its node sends it too slowly".to_owned(),
        };
        debug!(reason, "output could not be fetched");
        return Report::Event(Event::CollectFailed { lease, reason });
    }
    Report::Event(Event::OutputsStored { node, ended })
}

/// How long the fetch of an output may take: few can be under way, and a node that sends just enough not
/// to be silent must not keep the others out.
pub(super) fn longest(blob: BlobRef) -> Duration {
    COLLECT_TIME + Duration::from_secs(blob.size / LEAST_RATE)
}

/// Stores what a deploy adds to the bundle's blobs.
pub(super) async fn deploy(
    deployment: Deployment,
    blobs: BlobStore,
    publisher: Arc<Identity>,
    now: OffsetDateTime,
    answer: Answer<Arc<DeployedWorkflow>>,
) -> Option<Report> {
    match deploy::prepare(deployment, &blobs, &publisher, now).await {
        Ok(workflow) => Some(Report::Deploy(Box::new(workflow), answer)),
        Err(error) => {
            // Whoever asked may be gone.
            let _ = answer.send(Err(CommandError::Store(error.to_string())));
            None
        }
    }
}

/// Stores a job's parameters.
pub(super) async fn submit(
    submission: Submission,
    blobs: BlobStore,
    now: OffsetDateTime,
    answer: Answer<JobId>,
) -> Option<Report> {
    let Submission { workflow, parameters, priority, time_to_live } = submission;
    let json = parameters.to_canonical_json();
    let stored = match json.len() {
        ..=MAX_PARAMETERS => {
            blobs.import_bytes(&json).await.map_err(|error| CommandError::Store(error.to_string()))
        }
        bytes => Err(CommandError::ParametersTooLarge(bytes)),
    };
    match stored {
        Ok(stored) => {
            let job = NewJob {
                id: JobId(uuid::Uuid::now_v7()),
                workflow,
                priority: priority.min(100),
                parameters: stored,
                inputs: parameters.blobs().map(|blob| blob.hash).collect(),
                submitted: now,
                expires: time_to_live.map(|time| now + time),
            };
            Some(Report::Submit(Box::new(job), answer))
        }
        Err(error) => {
            // Whoever asked may be gone.
            let _ = answer.send(Err(error));
            None
        }
    }
}
