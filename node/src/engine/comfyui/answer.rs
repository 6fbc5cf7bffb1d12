//! The shapes of what ComfyUI answers, as far as the farm reads them. What is missing has a default:
//! versions differ.
//!
//! Not here: asking (`client.rs`).

use serde::Deserialize;
use serde_json::{Map, Value};

/// What ComfyUI says to a prompt.
#[derive(Debug)]
pub(super) enum Submitted {
    /// It will execute the outputs without errors among these.
    Accepted(Rejection),
    /// It will not execute it.
    Rejected(Rejection),
}

/// What is wrong with a prompt.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Rejection {
    /// The error of the whole.
    #[serde(default)]
    pub(super) error: RejectedFor,
    /// Those of single ops, by id.
    #[serde(default)]
    pub(super) node_errors: Map<String, Value>,
}

/// One reason to refuse a prompt.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RejectedFor {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) message: String,
    pub(super) details: String,
    pub(super) extra_info: Value,
}

/// Where a prompt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// It waits, and another one runs.
    Pending,
    /// It waits, and nothing runs. That is so for a moment between two prompts, and for good where the thread that takes
    /// them up is dead.
    Unserved,
    Running,
    /// It ended, or was never there.
    Absent,
}

/// What ComfyUI keeps of a prompt that ended.
#[derive(Debug, Default, Deserialize)]
pub(super) struct HistoryEntry {
    /// What each output op reported.
    #[serde(default)]
    pub(super) outputs: Map<String, Value>,
    #[serde(default)]
    pub(super) status: HistoryStatus,
}

/// How it ended.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct HistoryStatus {
    /// `success` or `error`.
    pub(super) status_str: String,
    /// The events of its WebSocket session that matter.
    pub(super) messages: Vec<(String, Value)>,
}

/// A file in one of ComfyUI's folders, as it names it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct ServedFile {
    pub(super) filename: String,
    #[serde(default)]
    pub(super) subfolder: String,
    #[serde(rename = "type", default = "ServedFile::output")]
    pub(super) folder: String,
}

impl ServedFile {
    fn output() -> String {
        "output".to_owned()
    }
}
