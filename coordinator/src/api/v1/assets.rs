//! Assets: bytes that a caller sends ahead of a job, named by their hash.
//!
//! Not here: the outputs of jobs, which have names of their own.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use protocol::{BlobHash, ParseBlobHashError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::Api;
use crate::api::blob_body::{self, Presentation};
use crate::api::error::ApiError;
use crate::api::extract::{NoQuery, Path};
use crate::api::openapi::Binary;
use crate::api::upload::store_body;

/// Bytes in the coordinator's store. In a job's input, name them as `{"$asset": HASH}`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Asset {
    /// The BLAKE3 hash of the bytes, in hex.
    hash: String,
    /// How many bytes they are.
    size: u64,
    /// Where to get them.
    url: String,
}

/// Send bytes ahead of a job
///
/// The body is taken as it is, whatever its media type. The same bytes are kept once.
#[utoipa::path(
    post,
    path = "/v1/assets",
    tag = "assets",
    request_body(content = Binary, content_type = "application/octet-stream"),
    responses((status = 201, body = Asset)),
)]
pub(super) async fn create_asset(
    State(api): State<Api>,
    _: NoQuery,
    request: Request,
) -> Result<Response, ApiError> {
    let blob = store_body(request, api.upload_limit, api.coordinator.blobs()).await?;
    let url = format!("/v1/assets/{}", blob.hash);
    let location = HeaderValue::try_from(&url).expect("hex is a header");
    let asset = Asset { hash: blob.hash.to_string(), size: blob.size, url };
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(asset)).into_response())
}

/// Bytes in the coordinator's store; takes range requests
#[utoipa::path(
    get,
    path = "/v1/assets/{hash}",
    tag = "assets",
    params(("hash" = String, Path, description = "The BLAKE3 hash, in hex")),
    responses(
        (status = 200, description = "The bytes", body = Binary, content_type = "application/octet-stream"),
        (status = 206, description = "A range of them", body = Binary, content_type = "application/octet-stream"),
    ),
)]
pub(super) async fn get_asset(
    State(api): State<Api>,
    Path(hash): Path<String>,
    _: NoQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let hash: BlobHash =
        hash.parse().map_err(|error: ParseBlobHashError| ApiError::NotFound(error.to_string()))?;
    let presentation = Presentation { media_type: "application/octet-stream", file_name: None };
    blob_body::respond(api.coordinator.blobs(), hash, presentation, &headers).await
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Method;
    use futures::stream;

    use super::*;
    use crate::api::testing::{TestFarm, UPLOAD_LIMIT, bytes_of, json_of, request};

    #[tokio::test]
    async fn asset_is_kept_under_its_hash_and_given_back() {
        let farm = TestFarm::start().await;
        let post = request(Method::POST, "/v1/assets").body(Body::from("some bytes")).unwrap();
        let asset = json_of(farm.send(post).await).await;
        assert_eq!(asset["hash"], BlobHash::of(b"some bytes").to_string());
        let path = asset["url"].as_str().unwrap();
        let got = farm.send(request(Method::GET, path).body(Body::empty()).unwrap()).await;
        assert_eq!(bytes_of(got).await, b"some bytes");
        let head = farm.send(request(Method::HEAD, path).body(Body::empty()).unwrap()).await;
        assert_eq!(
            (head.status(), &head.headers()[header::CONTENT_LENGTH]),
            (StatusCode::OK, &HeaderValue::from(10))
        );
        assert!(bytes_of(head).await.is_empty());
        assert_eq!(farm.get(&format!("/v1/assets/{}", "00".repeat(32))).await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn asset_past_the_limit_is_refused_announced_or_not_and_leaves_nothing() {
        let farm = TestFarm::start().await;
        let long = vec![0; UPLOAD_LIMIT as usize + 1];
        let chunks: Vec<Result<Vec<u8>, std::io::Error>> =
            long.chunks(1000).map(|chunk| Ok(chunk.to_vec())).collect();
        let unannounced =
            request(Method::POST, "/v1/assets").body(Body::from_stream(stream::iter(chunks))).unwrap();
        let announced = request(Method::POST, "/v1/assets").header(header::CONTENT_LENGTH, long.len());
        for request in [unannounced, announced.body(Body::from(long)).unwrap()] {
            assert_eq!(farm.send(request).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
        }
        assert!(farm.store.complete().is_empty());
    }
}
