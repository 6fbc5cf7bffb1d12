//! The files that a job made, by the names of its workflow's outputs.
//!
//! Not here: how bytes are ranged and shown (`blob_body`).

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use protocol::JobState;

use crate::api::Api;
use crate::api::blob_body::{self, Presentation};
use crate::api::error::ApiError;
use crate::api::extract::{NoQuery, Path};
use crate::api::openapi::Binary;
use crate::api::v1::jobs;

/// The first file of an output; takes range requests
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/outputs/{output}",
    tag = "jobs",
    params(
        ("id" = Uuid, Path, description = "The job"),
        ("output" = String, Path, description = "The output's name"),
    ),
    responses(
        (status = 200, description = "The file", body = Binary, content_type = "application/octet-stream"),
        (status = 206, description = "A range of it", body = Binary, content_type = "application/octet-stream"),
    ),
)]
pub(super) async fn get_first_output(
    State(api): State<Api>,
    Path((id, output)): Path<(String, String)>,
    _: NoQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    respond(&api, &id, &output, 0, &headers).await
}

/// One file of an output; takes range requests
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/outputs/{output}/{index}",
    tag = "jobs",
    params(
        ("id" = Uuid, Path, description = "The job"),
        ("output" = String, Path, description = "The output's name"),
        ("index" = u32, Path, description = "Its place among the files of that output, from 0"),
    ),
    responses(
        (status = 200, description = "The file", body = Binary, content_type = "application/octet-stream"),
        (status = 206, description = "A range of it", body = Binary, content_type = "application/octet-stream"),
    ),
)]
pub(super) async fn get_output(
    State(api): State<Api>,
    Path((id, output, index)): Path<(String, String, u32)>,
    _: NoQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    respond(&api, &id, &output, index, &headers).await
}

async fn respond(
    api: &Api,
    id: &str,
    output: &str,
    index: u32,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let job = jobs::find(api, jobs::parse_id(id)?).await?;
    if job.state != JobState::Succeeded {
        let state = job.state.as_str();
        return Err(ApiError::Conflict(format!(
            "job `{}` is {state}; only a succeeded job has outputs",
            job.id
        )));
    }
    let Some(file) = job.outputs.iter().find(|file| file.output == output && file.index == index) else {
        let message = format!("job `{}` has no file {index} of an output `{output}`", job.id);
        return Err(ApiError::NotFound(message));
    };
    let presentation = Presentation { media_type: &file.media_type, file_name: Some(&file.file_name) };
    blob_body::respond(api.coordinator.blobs(), file.blob.hash, presentation, headers).await
}
