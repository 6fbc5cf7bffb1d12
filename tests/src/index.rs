//! A package index on loopback, as an office has one: the folder that `tests/real/index.py` made, over HTTP.
//!
//! Not here: what is in it.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use tokio::task::JoinSet;
use tower_http::services::ServeDir;

/// The index; gone when it is dropped.
pub struct PackageIndex {
    /// Where it is.
    pub url: String,
    requests: Arc<AtomicU64>,
    _serving: JoinSet<()>,
}

impl PackageIndex {
    /// Serves this folder to whoever comes to the listener.
    pub fn serve(folder: &Path, listener: TcpListener) -> anyhow::Result<Self> {
        let requests = Arc::<AtomicU64>::default();
        let app = Router::new().fallback_service(ServeDir::new(folder));
        let app = app.layer(from_fn_with_state(Arc::clone(&requests), count));
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let url = format!("http://127.0.0.1:{}", listener.local_addr()?.port());
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            // It ends with the test.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { url, requests, _serving: serving })
    }

    /// How often it was asked.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

async fn count(State(requests): State<Arc<AtomicU64>>, request: Request, next: Next) -> Response {
    requests.fetch_add(1, Ordering::Relaxed);
    next.run(request).await
}
