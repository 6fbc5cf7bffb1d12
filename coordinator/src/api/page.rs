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
    // Without the last, the page would show the document to a validator elsewhere.
    let docs = Config::new([Url::new("comfy-farm", OPENAPI_PATH)]).validator_url("none");
    let docs = Arc::new(docs);
    let docs_index = docs.clone();
    Router::new()
        .route("/", get(|| async { page_file("index.html") }))
        .route(
            "/assets/{*path}",
            get(|Path(path): Path<String>| async move { page_file(&format!("assets/{path}")) }),
        )
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

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;

    use super::*;
    use crate::api::testing::{TestFarm, bytes_of};

    async fn get(farm: &TestFarm, path: &str) -> Response {
        let request = Request::builder().uri(path).header(header::HOST, "localhost:8288");
        farm.send(request.body(Body::empty()).unwrap()).await
    }

    #[tokio::test]
    async fn documentation_is_whole_without_any_other_host() {
        let farm = TestFarm::start().await;
        let index = String::from_utf8(bytes_of(get(&farm, "/docs/").await).await).unwrap();
        assert!(!index.contains("//cdn") && !index.contains("https://"), "{index}");
        let sources = index.split("src=\"./").skip(1).filter_map(|rest| rest.split('"').next());
        let mut scripts = 0;
        for source in sources {
            scripts += 1;
            assert_eq!(get(&farm, &format!("/docs/{source}")).await.status(), StatusCode::OK, "{source}");
        }
        assert!(scripts >= 3, "{index}");
        let settings = bytes_of(get(&farm, "/docs/swagger-initializer.js").await).await;
        let settings = String::from_utf8(settings).unwrap();
        assert!(
            settings.contains(OPENAPI_PATH) && settings.contains("\"validatorUrl\": \"none\""),
            "{settings}"
        );
        assert_eq!(get(&farm, "/docs/nothing.js").await.status(), StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn page_may_load_only_from_the_farm() {
        let farm = TestFarm::start().await;
        let page = get(&farm, "/").await;
        assert_eq!(page.status(), StatusCode::OK);
        assert!(page.headers()[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/html"));
        let policy = page.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'self';"), "{policy}");
        for loose in ["script-src", "style-src", "unsafe", "data:", "*"] {
            assert!(!policy.contains(loose), "{policy}");
        }
        assert_eq!(get(&farm, "/assets/nothing.js").await.status(), StatusCode::NOT_FOUND);
    }
}
