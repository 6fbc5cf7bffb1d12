//! What is asked of a process beside its blobs: its owner answers, in words that this crate does not know.
//!
//! Not here: what those are.

use async_trait::async_trait;
use serde_json::Value;

use super::FailureKind;

/// Answers what belongs to the role of a process.
#[async_trait]
pub trait RoleHandler: Send + Sync + 'static {
    /// Does what is asked. Dropped where whoever asked has gone.
    async fn answer(&self, request: Value) -> Result<Value, RoleError>;
}

/// Why it was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct RoleError {
    /// Whose matter it is.
    pub kind: FailureKind,
    /// Why, in words.
    pub words: String,
}

impl RoleError {
    /// Nobody answers for a role.
    pub(super) fn none() -> Self {
        let words =
            "the process on this data folder knows nothing of that: name that of a node with `--data`";
        Self { kind: FailureKind::Input, words: words.to_owned() }
    }
}
