//! Recorded facts for tests, where they lie beside the clone.

use std::path::PathBuf;

use serde_json::Value;

/// A recorded file.
pub(crate) fn bytes(path: &str) -> Vec<u8> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/facts").join(path);
    std::fs::read(&file).unwrap_or_else(|error| panic!("recorded fact `{}`: {error}", file.display()))
}

/// A recorded JSON file.
pub(crate) fn json(path: &str) -> Value {
    serde_json::from_slice(&bytes(path)).expect("recorded facts are valid JSON")
}
