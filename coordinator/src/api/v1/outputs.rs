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
        (status = 200, description = "The file", body = Binary, content_type = "*/*"),
        (status = 206, description = "A range of it", body = Binary, content_type = "*/*"),
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
        (status = 200, description = "The file", body = Binary, content_type = "*/*"),
        (status = 206, description = "A range of it", body = Binary, content_type = "*/*"),
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

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Method, StatusCode, header};
    use protocol::OutputFile;

    use crate::api::testing::{TestFarm, bytes_of, request};

    #[tokio::test]
    async fn output_is_served_whole_by_range_and_not_again() {
        let farm = TestFarm::start().await;
        let job = farm.submit().await;
        let path = format!("/v1/jobs/{job}/outputs/image");
        assert_eq!(farm.get(&path).await.0, StatusCode::CONFLICT);

        let blob = farm.store.import_bytes(b"0123456789").await.unwrap();
        let file = OutputFile {
            output: "image".to_owned(),
            index: 0,
            file_name: "cat \"1\".png".to_owned(),
            media_type: "image/png".to_owned(),
            blob,
        };
        farm.tables().succeed(job, vec![file]);
        let (_, shown) = farm.get(&format!("/v1/jobs/{job}")).await;
        assert_eq!(shown["outputs"][0]["url"], format!("{path}/0"));
        assert_eq!(shown["outputs"][0]["blake3"], blob.hash.to_string());

        let whole = farm.send(request(Method::GET, &path).body(Body::empty()).unwrap()).await;
        assert_eq!(whole.headers()[header::CONTENT_TYPE], "image/png");
        assert_eq!(whole.headers()[header::CONTENT_LENGTH], "10");
        assert_eq!(whole.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert!(whole.headers()[header::CONTENT_DISPOSITION].to_str().unwrap().contains("\"cat _1_.png\""));
        let tag = whole.headers()[header::ETAG].clone();
        assert_eq!(bytes_of(whole).await, b"0123456789");

        let ranged = request(Method::GET, &format!("{path}/0")).header(header::RANGE, "bytes=2-4");
        let ranged = farm.send(ranged.body(Body::empty()).unwrap()).await;
        assert_eq!(ranged.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(ranged.headers()[header::CONTENT_RANGE], "bytes 2-4/10");
        assert_eq!(bytes_of(ranged).await, b"234");
        let beyond = request(Method::GET, &path).header(header::RANGE, "bytes=10-");
        let beyond = farm.send(beyond.body(Body::empty()).unwrap()).await;
        assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(beyond.headers()[header::CONTENT_RANGE], "bytes */10");
        let known = request(Method::GET, &path).header(header::IF_NONE_MATCH, tag);
        let known = farm.send(known.body(Body::empty()).unwrap()).await;
        assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
        assert!(bytes_of(known).await.is_empty());

        for missing in [
            format!("{path}/1"),
            format!("/v1/jobs/{job}/outputs/other"),
            "/v1/jobs/x/outputs/image".to_owned(),
        ] {
            assert_eq!(farm.get(&missing).await.0, StatusCode::NOT_FOUND, "{missing}");
        }
    }
}
