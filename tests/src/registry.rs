//! The Comfy registry on loopback: answers about versions and their zips as the real one does, and counts how often it was
//! asked.
//!
//! Not here: what is in the versions.

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// The registry; gone when it is dropped.
pub struct Registry {
    /// Where it is.
    pub url: String,
    versions: Arc<Versions>,
    _serving: JoinSet<()>,
}

struct Versions {
    url: String,
    /// The zip of each, by id and version.
    zips: BTreeMap<(String, String), Vec<u8>>,
    requests: AtomicU64,
}

impl Registry {
    /// Serves one version of one node, of these contents by path.
    pub async fn serve(id: &str, version: &str, contents: &[(&str, &str)]) -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (path, text) in contents {
            zip.start_file(*path, SimpleFileOptions::default())?;
            zip.write_all(text.as_bytes())?;
        }
        let zips = BTreeMap::from([((id.to_owned(), version.to_owned()), zip.finish()?.into_inner())]);
        let versions = Arc::new(Versions { url: url.clone(), zips, requests: AtomicU64::new(0) });
        let app = Router::new()
            .route("/nodes/{id}/install", get(install))
            .route("/files/{id}/{version}/node.zip", get(files))
            .with_state(Arc::clone(&versions));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            // It ends with the test.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { url, versions, _serving: serving })
    }

    /// How often it was asked, for a version or its files.
    pub fn requests(&self) -> u64 {
        self.versions.requests.load(Ordering::Relaxed)
    }
}

async fn install(
    State(versions): State<Arc<Versions>>,
    Path(id): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<Json<Value>, (StatusCode, Json<Value>)> {
    versions.requests.fetch_add(1, Ordering::Relaxed);
    let version = query.get("version").cloned().unwrap_or_default();
    if !versions.zips.contains_key(&(id.clone(), version.clone())) {
        return Err((StatusCode::NOT_FOUND, Json(json!({ "message": "Node not found" }))));
    }
    Ok(Json(json!({
        "id": "a1e4d0ff-57c5-4c2b-9a43-a0d08b54e46e",
        "node_id": id,
        "version": version,
        "status": "NodeVersionStatusActive",
        "changelog": "",
        "dependencies": [],
        "deprecated": false,
        "downloadUrl": format!("{}/files/{id}/{version}/node.zip", versions.url),
    })))
}

async fn files(
    State(versions): State<Arc<Versions>>,
    Path(version): Path<(String, String)>,
) -> Result<Vec<u8>, StatusCode> {
    versions.requests.fetch_add(1, Ordering::Relaxed);
    versions.zips.get(&version).cloned().ok_or(StatusCode::NOT_FOUND)
}
