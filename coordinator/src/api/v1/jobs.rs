//! Jobs: listing them, looking at one, cancelling one. Not here: how one is made (`submit`).

#![expect(unused_qualifications, reason = "the attribute on handlers writes qualified paths")]

use axum::Json;
use axum::extract::State;
use protocol::{JobId, ParseIdError, WorkflowName};
use serde::Deserialize;
use utoipa::IntoParams;
use uuid::Uuid;

use crate::api::Api;
use crate::api::error::ApiError;
use crate::api::extract::{NoQuery, Path, Query};
use crate::api::v1::model::job::{Job, Jobs, State as JobState};
use crate::api::v1::wait::{self, WaitQuery};
use crate::handle::JobsFilter;
use crate::view::JobView;

/// How many jobs a page has, unless it is asked for otherwise.
const PAGE: u32 = 50;
/// The most jobs of a page.
const MAX_PAGE: u32 = 500;

/// Which jobs to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only those in this state.
    #[param(inline)]
    state: Option<JobState>,
    /// Only those of the workflow of this name.
    workflow: Option<String>,
    /// At most this many, 1 to 500. Defaults to 50.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// Only those submitted before this job: `next` of the page before.
    before: Option<Uuid>,
}

/// Jobs, newest first
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", params(ListQuery), responses((status = 200, body = Jobs)))]
pub(super) async fn list_jobs(
    State(api): State<Api>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Jobs>, ApiError> {
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(ApiError::field("limit", "range", format!("takes 1 to {MAX_PAGE}")));
    }
    let workflow: Result<Option<WorkflowName>, ParseIdError> =
        query.workflow.map(|name| name.parse()).transpose();
    let filter = JobsFilter {
        state: query.state.map(Into::into),
        workflow: workflow.map_err(|error| ApiError::field("workflow", "type", error.to_string()))?,
        before: query.before.map(JobId),
        limit,
    };
    let views = api.coordinator.jobs(filter).await?;
    let next = views.last().filter(|_| views.len() == limit as usize).map(|last| last.id.0);
    let jobs = views.into_iter().map(|view| Job::new(view, api.peer)).collect();
    Ok(Json(Jobs { jobs, next }))
}

/// One job, also an ended one
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}",
    tag = "jobs",
    params(("id" = Uuid, Path, description = "The job"), WaitQuery),
    responses((status = 200, body = Job)),
)]
pub(super) async fn get_job(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<WaitQuery>,
) -> Result<Json<Job>, ApiError> {
    let id = parse_id(&id)?;
    let view = match query.duration()? {
        Some(longest) => {
            let feed = api.coordinator.events(None).await?;
            wait::until_ended(&api, id, feed.live, longest).await?
        }
        None => find(&api, id).await?,
    };
    Ok(Json(Job::new(view, api.peer)))
}

/// Cancel a job; an ended one stays as it is
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/cancel",
    tag = "jobs",
    params(("id" = Uuid, Path, description = "The job")),
    responses((status = 200, body = Job)),
)]
pub(super) async fn cancel_job(
    State(api): State<Api>,
    Path(id): Path<String>,
    _: NoQuery,
) -> Result<Json<Job>, ApiError> {
    let id = parse_id(&id)?;
    let view = api.coordinator.cancel(id).await?.ok_or_else(|| unknown(id))?;
    Ok(Json(Job::new(view, api.peer)))
}

/// Reads a job's id; what cannot be one is not found.
pub(super) fn parse_id(text: &str) -> Result<JobId, ApiError> {
    text.parse().map_err(|error: ParseIdError| ApiError::NotFound(error.to_string()))
}

/// The job that is meant.
pub(super) async fn find(api: &Api, id: JobId) -> Result<JobView, ApiError> {
    api.coordinator.job(id).await?.ok_or_else(|| unknown(id))
}

fn unknown(id: JobId) -> ApiError {
    ApiError::NotFound(format!("there is no job `{id}`"))
}
