//! The checked values of a job, by the name of the input, and their JSON.
//!
//! The JSON is canonical (RFC 8785), where every number is a double. A value that would not survive
//! that, such as a seed above 2^53, is written as its own text: `{"$json": "18446744073709551615"}`.
//! A file is `{"$blob": HASH, "size": BYTES, "file_name": "cat.png"}`. Not here: which inputs a workflow
//! has and what they take; that is `schema`.

use std::collections::{BTreeMap, btree_map};

use serde_json::{Map, Value, json};

use crate::blob::BlobRef;
use crate::message::MAX_PARAMETERS;

/// The longest name of a given file, in bytes; longer ones are cut.
pub const MAX_FILE_NAME: usize = 128;
/// Above this, not every whole number is a double.
const MAX_EXACT: u64 = 1 << 53;

/// The values of a job, by the name of the input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters(BTreeMap<String, Argument>);

/// What is given for one input.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    /// A value.
    Value(Value),
    /// A file's bytes.
    File {
        /// The bytes.
        blob: BlobRef,
        /// What the file was called, without folders.
        file_name: String,
    },
}

/// Why bytes are not the parameters of a job.
#[derive(Debug, thiserror::Error)]
pub enum ParametersError {
    /// They are more than a grant carries.
    #[error("parameters of {size} bytes: at most {MAX_PARAMETERS} are taken; give long values as files")]
    TooLarge {
        /// How many they are.
        size: usize,
    },
    /// They are no JSON object.
    #[error("parameters are not a JSON object")]
    Json(#[source] serde_json::Error),
    /// A value is an object that means something, and is not written as that.
    #[error("parameter `{name}` has a `{marker}` that is not {expected}")]
    Marker {
        /// The input.
        name: String,
        /// `$blob` or `$json`.
        marker: &'static str,
        /// How it is written.
        expected: &'static str,
    },
}

impl Parameters {
    /// Reads what [`to_canonical_json`](Self::to_canonical_json) writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParametersError> {
        if bytes.len() > MAX_PARAMETERS {
            return Err(ParametersError::TooLarge { size: bytes.len() });
        }
        Self::from_json(serde_json::from_slice(bytes).map_err(ParametersError::Json)?)
    }

    /// Reads values in which files are references, as an API takes them.
    pub fn from_json(values: Map<String, Value>) -> Result<Self, ParametersError> {
        let arguments = values.into_iter().map(|(name, value)| {
            let argument = Argument::from_json(&name, value)?;
            Ok((name, argument))
        });
        arguments.collect()
    }

    /// The values as JSON, in which files are references.
    pub fn to_json(&self) -> Map<String, Value> {
        self.0.iter().map(|(name, argument)| (name.clone(), argument.to_json())).collect()
    }

    /// The bytes that are stored, hashed and granted: equal for equal parameters.
    pub fn to_canonical_json(&self) -> Vec<u8> {
        serde_json_canonicalizer::to_vec(&self.to_json()).expect("JSON values have only text keys")
    }

    /// What is given for this input.
    pub fn get(&self, name: &str) -> Option<&Argument> {
        self.0.get(name)
    }

    /// Gives something for an input, in place of what was given before.
    pub fn insert(&mut self, name: String, argument: Argument) -> Option<Argument> {
        self.0.insert(name, argument)
    }

    /// All that is given, by name.
    pub fn iter(&self) -> btree_map::Iter<'_, String, Argument> {
        self.0.iter()
    }

    /// The blobs of all files that are given.
    pub fn blobs(&self) -> impl Iterator<Item = BlobRef> {
        self.0.values().filter_map(|argument| match argument {
            Argument::Value(_) => None,
            Argument::File { blob, .. } => Some(*blob),
        })
    }
}

impl FromIterator<(String, Argument)> for Parameters {
    fn from_iter<T: IntoIterator<Item = (String, Argument)>>(arguments: T) -> Self {
        Self(arguments.into_iter().collect())
    }
}

impl Argument {
    /// A file under a name that is safe to show and to store; folders in it are dropped.
    pub fn file(blob: BlobRef, file_name: &str) -> Self {
        Self::File { blob, file_name: safe_file_name(file_name) }
    }

    /// Reads a value, or a reference to a file: `{"$blob": HASH, "size": BYTES, "file_name": NAME}`.
    fn from_json(name: &str, value: Value) -> Result<Self, ParametersError> {
        let Value::Object(object) = &value else { return Ok(Self::Value(value)) };
        let wrong = |marker, expected| ParametersError::Marker { name: name.to_owned(), marker, expected };
        if let Some(hash) = object.get("$blob") {
            let hash = hash.as_str().and_then(|hash| hash.parse().ok());
            let hash = hash.ok_or_else(|| wrong("$blob", "a BLAKE3 hash of 64 hex digits"))?;
            let size = object.get("size").and_then(Value::as_u64);
            let size = size.ok_or_else(|| wrong("$blob", "beside a `size` in bytes"))?;
            let file_name = object.get("file_name").and_then(Value::as_str).unwrap_or_default();
            return Ok(Self::file(BlobRef { hash, size }, file_name));
        }
        if let Some(text) = object.get("$json") {
            let value = text.as_str().and_then(|text| serde_json::from_str(text).ok());
            return value.map(Self::Value).ok_or_else(|| wrong("$json", "the text of a JSON value"));
        }
        Ok(Self::Value(value))
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Value(value) if is_exact(value) && !is_marked(value) => value.clone(),
            Self::Value(value) => json!({ "$json": value.to_string() }),
            Self::File { blob, file_name } => {
                json!({ "$blob": blob.hash, "size": blob.size, "file_name": file_name })
            }
        }
    }
}

/// Whether every number in a value is still the same once it was a double.
fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) if number.is_f64() => true,
        Value::Number(number) => {
            number.as_u64().or(number.as_i64().map(i64::unsigned_abs)).is_some_and(|size| size <= MAX_EXACT)
        }
        Value::Array(values) => values.iter().all(is_exact),
        Value::Object(fields) => fields.values().all(is_exact),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

/// Whether a caller's own object looks like a marker.
fn is_marked(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.contains_key("$blob") || object.contains_key("$json"))
}

/// The last part of a path, without what a file system or a terminal could take amiss.
fn safe_file_name(text: &str) -> String {
    let last = text.rsplit(['/', '\\']).next().unwrap_or_default();
    let harmless = |character: &char| !character.is_control() && !"<>:\"|?*".contains(*character);
    let mut name: String = last.chars().filter(harmless).collect();
    // A long name loses its beginning, because the end says what kind of file it is.
    while name.len() > MAX_FILE_NAME {
        name.remove(0);
    }
    let name = name.trim().trim_start_matches('.');
    if name.is_empty() { "file".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(name: &str, argument: Argument) -> Parameters {
        [(name.to_owned(), argument)].into_iter().collect()
    }

    #[test]
    fn values_that_a_double_cannot_hold_survive_canonical_json() {
        for value in [
            json!(u64::MAX),
            json!(i64::MIN),
            json!([1, { "seed": (1_u64 << 53) + 1 }]),
            json!({ "$json": "1" }),
            json!({ "$blob": "x" }),
            json!({ "a": null, "b": [true, 1.5, "é"] }),
        ] {
            let given = parameters("x", Argument::Value(value.clone()));
            assert_eq!(Parameters::parse(&given.to_canonical_json()).unwrap(), given, "{value}");
        }
    }

    #[test]
    fn canonical_bytes_are_these() {
        let blob = BlobRef::of(b"cat");
        let given: Parameters = [
            ("steps".to_owned(), Argument::Value(json!(20.0))),
            ("seed".to_owned(), Argument::Value(json!(u64::MAX))),
            ("image".to_owned(), Argument::file(blob, "../cat.png")),
        ]
        .into_iter()
        .collect();
        let expected = format!(
            r#"{{"image":{{"$blob":"{}","file_name":"cat.png","size":3}},"seed":{{"$json":"18446744073709551615"}},"steps":20}}"#,
            blob.hash
        );
        assert_eq!(String::from_utf8(given.to_canonical_json()).unwrap(), expected);
        assert_eq!(given.blobs().collect::<Vec<_>>(), [blob]);
    }

    #[test]
    fn file_names_lose_folders_and_what_is_harmful() {
        let long = format!("{}.png", "é".repeat(200));
        let cases = [
            ("cat.png", "cat.png"),
            ("../../etc/passwd", "passwd"),
            ("C:\\pictures\\cat.png", "cat.png"),
            ("a\0b\n.png", "ab.png"),
            (".bashrc", "bashrc"),
            ("..", "file"),
            ("", "file"),
        ];
        for (given, expected) in cases {
            assert_eq!(safe_file_name(given), expected, "{given:?}");
        }
        let cut = safe_file_name(&long);
        assert!(cut.len() <= MAX_FILE_NAME && cut.ends_with(".png"), "{cut}");
    }

    #[test]
    fn broken_references_and_too_many_bytes_are_refused() {
        let check = |text: &str, message: &str| {
            let error = Parameters::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        };
        check("[]", "not a JSON object");
        check(r#"{"image": {"$blob": "abc", "size": 1}}"#, "`image` has a `$blob` that is not a BLAKE3 hash");
        let hash = BlobRef::of(b"").hash;
        check(&format!(r#"{{"image": {{"$blob": "{hash}"}}}}"#), "beside a `size`");
        check(r#"{"x": {"$json": "{"}}"#, "`$json` that is not the text of a JSON value");
        check(&" ".repeat(MAX_PARAMETERS + 1), "at most");
    }
}
