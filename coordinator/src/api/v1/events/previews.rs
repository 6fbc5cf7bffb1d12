//! The pictures in the making of one job, for a stream that asked for them.
//!
//! A node sends them only while somebody says that he watches, so this says it again and again. Not here: how they are
//! sent out.

use std::sync::Arc;
use std::time::Duration;

use protocol::JobId;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::api::Api;
use crate::api::error::ApiError;
use crate::handle::CoordinatorHandle;
use crate::view::PreviewView;

/// How often the node is told that somebody watches.
const AGAIN: Duration = Duration::from_secs(3);

/// One caller's view of a job's previews.
pub(super) struct Previews {
    coordinator: CoordinatorHandle,
    job: JobId,
    frames: Receiver<Arc<PreviewView>>,
    again: Interval,
}

impl Previews {
    pub(super) async fn begin(api: &Api, job: JobId) -> Result<Self, ApiError> {
        let coordinator = api.coordinator.clone();
        let frames = coordinator.previews(job).await?;
        let mut again = interval(AGAIN);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        again.reset();
        Ok(Self { coordinator, job, frames, again })
    }

    /// A run of the job begins, on a node that knows of no watcher yet.
    pub(super) fn ask_at_once(&mut self) {
        self.again.reset_immediately();
    }
}

/// The next preview; never, where none were asked for. May be dropped and called again.
pub(super) async fn next(previews: &mut Option<Previews>) -> Arc<PreviewView> {
    let Some(Previews { coordinator, job, frames, again }) = previews else {
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            received = frames.recv() => match received {
                Ok(preview) if preview.job == *job => return preview,
                // Who was too slow sees a later one.
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return std::future::pending().await,
            },
            _ = again.tick() => {
                // A coordinator that stops ends the stream by itself.
                let _ = coordinator.previews(*job).await;
            }
        }
    }
}
