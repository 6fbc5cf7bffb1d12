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
/// How much of something that is no id is said back, in characters.
const MAX_SHOWN: usize = 64;

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
    text.parse().map_err(|_: ParseIdError| {
        let shown: String = text.chars().take(MAX_SHOWN).collect();
        ApiError::NotFound(format!("there is no job `{shown}`"))
    })
}

/// The job that is meant.
pub(super) async fn find(api: &Api, id: JobId) -> Result<JobView, ApiError> {
    api.coordinator.job(id).await?.ok_or_else(|| unknown(id))
}

fn unknown(id: JobId) -> ApiError {
    ApiError::NotFound(format!("there is no job `{id}`"))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::{Value, json};

    use crate::api::testing::{COORDINATOR, TestFarm};

    #[tokio::test]
    async fn pages_of_jobs_join_without_gap_or_repeat() {
        let farm = TestFarm::start().await;
        let mut ids = Vec::new();
        for _ in 0..5 {
            ids.insert(0, farm.submit().await.to_string());
        }
        let mut seen = Vec::new();
        let mut path = "/v1/jobs?limit=2".to_owned();
        loop {
            let (_, page) = farm.get(&path).await;
            seen.extend(
                page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()),
            );
            let Some(next) = page["next"].as_str() else { break };
            path = format!("/v1/jobs?limit=2&before={next}");
        }
        assert_eq!(seen, ids);
        let (_, none) = farm.get("/v1/jobs?state=running").await;
        assert_eq!(none, json!({ "jobs": [], "next": null }));
    }

    #[tokio::test]
    async fn wrong_filters_and_unknown_jobs_are_refused() {
        let farm = TestFarm::start().await;
        for query in ["state=done", "limit=0", "limit=501", "limit=x", "workflow=A!", "before=x", "order=up"]
        {
            let (status, problem) = farm.get(&format!("/v1/jobs?{query}")).await;
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{query}: {problem}");
        }
        assert_eq!(farm.get("/v1/jobs/x").await.1["detail"], "there is no job `x`");
        for path in ["/v1/jobs/x", "/v1/jobs/00000000-0000-7000-8000-000000000000"] {
            assert_eq!(farm.get(path).await.0, StatusCode::NOT_FOUND, "{path}");
        }
        let (status, problem) = farm.get(&format!("/v1/jobs/{}?wait=6m", farm.submit().await)).await;
        assert_eq!(
            (status, &problem["errors"][0]["rule"]),
            (StatusCode::UNPROCESSABLE_ENTITY, &json!("maximum"))
        );
    }

    #[tokio::test]
    async fn job_is_shown_with_where_to_ask_and_is_cancelled() {
        let farm = TestFarm::start().await;
        let id = farm.submit().await;
        let (_, job) = farm.get(&format!("/v1/jobs/{id}")).await;
        assert_eq!(job["coordinator"], COORDINATOR.to_string());
        assert_eq!(
            (&job["workflow"], &job["run"], &job["error"]),
            (&json!("paint@1"), &Value::Null, &Value::Null)
        );
        let (status, canceled) = farm.post(job["urls"]["cancel"].as_str().unwrap(), json!({})).await;
        assert_eq!((status, &canceled["state"]), (StatusCode::OK, &json!("canceled")));
    }
}
