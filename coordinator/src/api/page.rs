//! What is served without a key: the mesh page, the documentation page, and the health checks.
//!
//! Not here: the page's sources (`web`), and everything under `/v1`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Json, Router};
use utoipa_swagger_ui::{Config, Url};

use crate::api::Api;
use crate::api::error::ApiError;

/// Where the farm's OpenAPI document is.
pub(crate) const OPENAPI_PATH: &str = "/v1/openapi.json";

/// The routes without a key. `openapi` is the farm's document.
pub(crate) fn routes(openapi: Arc<serde_json::Value>) -> Router<Api> {
    let document = move || {
        let openapi = openapi.clone();
        async move { Json((*openapi).clone()) }
    };
    let docs = Arc::new(Config::new([Url::new("comfy-farm", OPENAPI_PATH)]).persist_authorization(false));
    let docs_index = docs.clone();
    Router::new()
        .route("/", get(|| async { page_file("index.html") }))
        .route(
            "/assets/{*path}",
            get(|Path(path): Path<String>| async move { page_file(&format!("assets/{path}")) }),
        )
        .route("/favicon.svg", get(|| async { page_file("favicon.svg") }))
        .route(OPENAPI_PATH, get(document))
        .route("/docs", get(|| async { Redirect::permanent("/docs/") }))
        .route("/docs/", get(|| async move { docs_file("", docs_index) }))
        .route("/docs/{*path}", get(|Path(path): Path<String>| async move { docs_file(&path, docs) }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
}

/// Whether the coordinator answers.
async fn ready(State(api): State<Api>) -> Result<&'static str, ApiError> {
    api.coordinator.farm().await?;
    Ok("ready\n")
}

fn page_file(path: &str) -> Response {
    let Some(asset) = web::asset(path) else {
        return ApiError::NotFound(format!("the page has no file `{path}`")).into_response();
    };
    let caching = if asset.immutable { "public, max-age=31536000, immutable" } else { "no-cache" };
    let media_type = HeaderValue::try_from(asset.media_type);
    let media_type = media_type.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let headers =
        [(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, HeaderValue::from_static(caching))];
    (headers, asset.bytes.into_owned()).into_response()
}

fn docs_file(path: &str, config: Arc<Config<'static>>) -> Response {
    match utoipa_swagger_ui::serve(path, config) {
        Ok(Some(file)) => {
            let mut response = (StatusCode::OK, file.bytes.into_owned()).into_response();
            let media_type = HeaderValue::try_from(file.content_type);
            let unknown = HeaderValue::from_static("application/octet-stream");
            response.headers_mut().insert(header::CONTENT_TYPE, media_type.unwrap_or(unknown));
            response
        }
        Ok(None) => ApiError::NotFound(format!("the documentation has no file `{path}`")).into_response(),
        Err(error) => {
            tracing::error!(error = %error, "documentation page could not be made");
            ApiError::Panic.into_response()
        }
    }
}
