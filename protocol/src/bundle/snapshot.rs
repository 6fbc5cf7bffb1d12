//! comfy-pack's `snapshot.json`, of both formats, as a lockfile.
//!
//! What only lacks something is taken with a stated repair; what points outside, or to where a token
//! would leak, is refused or left out. Not here: Python packages; `packages` reads those.

use std::str::FromStr;

use serde_json::{Map, Value};

use super::{Repair, packages};
use crate::lockfile::{
    CustomNode, GitPin, GitUrl, HttpsUrl, LockedModel, Lockfile, ModelPath, ParseTextError, Sha256, Source,
    Token,
};
use crate::workflow::kind_of;

/// The one repository that comfy-pack knows for ComfyUI.
const COMFYUI: &str = "https://github.com/comfyanonymous/ComfyUI.git";
/// Whole numbers above this do not survive canonical JSON.
const MAX_SIZE: u64 = 1 << 53;

/// Why a snapshot is no lockfile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// It is no JSON.
    #[error("snapshot.json is not valid JSON: {reason}")]
    Json {
        /// Where and why.
        reason: String,
    },
    /// Something in it is of the wrong kind.
    #[error("{place} is {got}, not {expected}")]
    Kind {
        /// Where.
        place: String,
        /// What it is.
        got: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// A text in it is not what it stands for, and could do harm.
    #[error("{place}: {fault}")]
    Text {
        /// Where.
        place: String,
        /// What it is, and what it should be.
        fault: ParseTextError,
    },
}

/// Reads a text of a checked type.
pub(super) fn checked<T: FromStr<Err = ParseTextError>>(place: &str, text: &str) -> Result<T, SnapshotError> {
    text.parse().map_err(|fault| SnapshotError::Text { place: place.to_owned(), fault })
}

/// Turns a snapshot into a lockfile; `requirements` belongs to the older format.
pub(super) fn to_lockfile(
    snapshot: &[u8],
    requirements: Option<&[u8]>,
) -> Result<(Lockfile, Vec<Repair>), SnapshotError> {
    let snapshot: Value = serde_json::from_slice(snapshot)
        .map_err(|error| SnapshotError::Json { reason: error.to_string() })?;
    let snapshot = Place::root(&snapshot).object()?;
    let mut repairs = Repairs(Vec::new());
    let mut lockfile = Lockfile {
        python: snapshot.text("python").map(|text| checked("snapshot.json, `python`", text)).transpose()?,
        comfyui: comfyui(&snapshot, &mut repairs)?,
        ..Lockfile::default()
    };
    // Only the newer format has `pips`.
    if let Some(pips) = snapshot.get("pips") {
        lockfile.packages = packages::from_pips(pips.object()?.fields, &mut repairs.0)?;
        git_nodes(&snapshot, &mut lockfile.custom_nodes, &mut repairs)?;
        registry_nodes(&snapshot, &mut lockfile.custom_nodes)?;
        single_files(&snapshot, &mut lockfile.custom_nodes, &mut repairs)?;
    } else {
        match requirements {
            Some(text) => {
                let text = String::from_utf8_lossy(text);
                lockfile.packages = packages::from_requirements(&text, &mut repairs.0)?;
            }
            None => repairs.add("requirements.txt", "is missing: no Python package is pinned"),
        }
        older_nodes(&snapshot, &mut lockfile.custom_nodes, &mut repairs)?;
    }
    say_if_manager_is_missing(&lockfile, &mut repairs);
    for model in snapshot.list("models")? {
        lockfile.models.push(model_of(&model.object()?, &mut repairs)?);
    }
    Ok((lockfile, repairs.0))
}

struct Repairs(Vec<Repair>);

impl Repairs {
    fn add(&mut self, place: &str, text: impl Into<String>) {
        self.0.push(Repair { place: place.to_owned(), text: text.into() });
    }
}

/// A value together with where it stands.
struct Place<'a> {
    path: String,
    value: &'a Value,
}

/// An object together with where it stands.
struct Object<'a> {
    path: String,
    fields: &'a Map<String, Value>,
}

impl<'a> Place<'a> {
    fn root(value: &'a Value) -> Self {
        Self { path: "snapshot.json".to_owned(), value }
    }

    fn object(self) -> Result<Object<'a>, SnapshotError> {
        match self.value {
            Value::Object(fields) => Ok(Object { path: self.path, fields }),
            other => {
                Err(SnapshotError::Kind { place: self.path, got: kind_of(other), expected: "an object" })
            }
        }
    }
}

impl<'a> Object<'a> {
    /// A field that is there and not null.
    fn get(&self, key: &str) -> Option<Place<'a>> {
        let value = self.fields.get(key).filter(|value| !value.is_null())?;
        let shown: String = key.chars().filter(|character| !character.is_control()).take(120).collect();
        Some(Place { path: format!("{}, `{shown}`", self.path), value })
    }

    /// A text that is there and not empty.
    fn text(&self, key: &str) -> Option<&'a str> {
        self.fields.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    fn is_set(&self, key: &str) -> bool {
        self.fields.get(key) == Some(&Value::Bool(true))
    }

    /// The entries of a list; none where it is missing.
    fn list(&self, key: &str) -> Result<Vec<Place<'a>>, SnapshotError> {
        let Some(Place { path, value }) = self.get(key) else { return Ok(Vec::new()) };
        let Value::Array(values) = value else {
            return Err(SnapshotError::Kind { place: path, got: kind_of(value), expected: "a list" });
        };
        let place = |(index, value)| Place { path: format!("{path} {}", index + 1), value };
        Ok(values.iter().enumerate().map(place).collect())
    }

    /// The fields of an object, each with where it stands; none where it is missing.
    fn entries(&self, key: &str) -> Result<Vec<(&'a str, Place<'a>)>, SnapshotError> {
        let Some(place) = self.get(key) else { return Ok(Vec::new()) };
        let object = place.object()?;
        let entry = |(key, value): (&'a String, &'a Value)| {
            let shown: String = key.chars().filter(|character| !character.is_control()).take(120).collect();
            (key.as_str(), Place { path: format!("{} `{shown}`", object.path), value })
        };
        Ok(object.fields.iter().map(entry).collect())
    }
}

fn comfyui(snapshot: &Object<'_>, repairs: &mut Repairs) -> Result<Option<GitPin>, SnapshotError> {
    let place = "snapshot.json, `comfyui`";
    let Some(commit) = snapshot.text("comfyui") else {
        repairs.add(
            place,
            "no commit of ComfyUI is recorded: no node rebuilds it, and it runs only on an attached ComfyUI \
             (`deploy --accept-attached`); packed by `comfy-farm pack` it has one",
        );
        return Ok(None);
    };
    let url = COMFYUI.parse().expect("the constant is an https URL");
    Ok(Some(GitPin::new(url, checked(place, commit)?)))
}

fn git_nodes(
    snapshot: &Object<'_>,
    nodes: &mut Vec<CustomNode>,
    repairs: &mut Repairs,
) -> Result<(), SnapshotError> {
    for (url, place) in snapshot.entries("git_custom_nodes")? {
        let node = place.object()?;
        nodes.extend(git_node(&node, url, node.text("hash"), repairs)?);
    }
    Ok(())
}

fn older_nodes(
    snapshot: &Object<'_>,
    nodes: &mut Vec<CustomNode>,
    repairs: &mut Repairs,
) -> Result<(), SnapshotError> {
    for place in snapshot.list("custom_nodes")? {
        let node = place.object()?;
        let url = node.text("url").unwrap_or_default();
        nodes.extend(git_node(&node, url, node.text("commit_hash"), repairs)?);
    }
    Ok(())
}

fn git_node(
    node: &Object<'_>,
    url: &str,
    commit: Option<&str>,
    repairs: &mut Repairs,
) -> Result<Option<CustomNode>, SnapshotError> {
    let disabled = node.is_set("disabled");
    // A key that was null in Python is the text `null` in JSON.
    if matches!(url, "" | "null" | "None") {
        repairs.add(&node.path, "has no repository: it is left out, and its ops are missing");
        return Ok(None);
    }
    let url = if url.starts_with("ssh://") || url.starts_with("git@") {
        let url: GitUrl = checked(&node.path, url)?;
        repairs.add(&node.path, "needs an ssh key: its repository is taken over https");
        url
    } else {
        checked::<HttpsUrl>(&node.path, url)?.into()
    };
    let Some(commit) = commit else {
        repairs.add(&node.path, "has no commit: it is left out, and its ops are missing");
        return Ok(None);
    };
    let commit = checked(&node.path, commit)?;
    Ok(Some(CustomNode::Git { url, commit, mirrors: Vec::new(), folder: None, disabled }))
}

fn registry_nodes(snapshot: &Object<'_>, nodes: &mut Vec<CustomNode>) -> Result<(), SnapshotError> {
    for (id, place) in snapshot.entries("cnr_custom_nodes")? {
        let version = place.value.as_str().unwrap_or_default();
        nodes.push(CustomNode::Registry {
            id: checked(&place.path, id)?,
            version: checked(&place.path, version)?,
        });
    }
    Ok(())
}

fn single_files(
    snapshot: &Object<'_>,
    nodes: &mut Vec<CustomNode>,
    repairs: &mut Repairs,
) -> Result<(), SnapshotError> {
    for place in snapshot.list("file_custom_nodes")? {
        let node = place.object()?;
        let name: Token = checked(&node.path, node.text("filename").unwrap_or_default())?;
        let file = CustomNode::File { name: name.clone(), disabled: node.is_set("disabled") };
        if !file.is_disabled() && !file.comes_with_comfyui() {
            let text = format!(
                "`{name}` is not in the bundle: a workspace is built without it, and is refused if the workflow \
                 needs its ops; `comfy-farm pack` takes it along"
            );
            repairs.add(&node.path, text);
        }
        nodes.push(file);
    }
    Ok(())
}

/// comfy-pack cannot rebuild without ComfyUI-Manager from git; this can.
fn say_if_manager_is_missing(lockfile: &Lockfile, repairs: &mut Repairs) {
    let has_manager = lockfile
        .custom_nodes
        .iter()
        .any(|node| matches!(node, CustomNode::Git { url, .. } if url.as_str().contains("ComfyUI-Manager")));
    if !has_manager {
        let text = "ComfyUI-Manager is not recorded with a commit: the workspace is built without it";
        repairs.add("snapshot.json", text);
    }
}

fn model_of(model: &Object<'_>, repairs: &mut Repairs) -> Result<LockedModel, SnapshotError> {
    // Packed on Windows, paths have its separator.
    let file_name = model.text("filename").unwrap_or_default().replace('\\', "/");
    let path: ModelPath = checked(&model.path, &file_name)?;
    let place = format!("snapshot.json, model `{path}`");
    let size = model.fields.get("size").and_then(Value::as_u64).filter(|size| *size <= MAX_SIZE);
    let size = size.ok_or_else(|| SnapshotError::Kind {
        place: format!("{place}, `size`"),
        got: model.fields.get("size").map_or("missing", kind_of),
        expected: "a number of bytes",
    })?;
    let sha256: Option<Sha256> = model.text("sha256").map(|text| checked(&place, text)).transpose()?;
    let disabled = model.is_set("disabled");
    let source = match model.get("source") {
        Some(source) => source_of(&source.object()?, &place, repairs)?,
        None => None,
    };
    if !disabled {
        match (sha256, &source) {
            (None, _) => repairs.add(
                &place,
                "has no sha256: it cannot be fetched, because nothing would prove it; it is only used \
                 where a node has a file of its name and size in its own model folders",
            ),
            (Some(_), None) => {
                repairs.add(&place, "has no source: it is taken from peers and folders that have its sha256");
            }
            (Some(_), Some(_)) => {}
        }
    }
    let sources = source.into_iter().collect();
    Ok(LockedModel { path, size, sha256, blob: None, sources, disabled, share: true })
}

fn source_of(
    source: &Object<'_>,
    place: &str,
    repairs: &mut Repairs,
) -> Result<Option<Source>, SnapshotError> {
    let Some(text) = source.text("download_url") else { return Ok(None) };
    let url: HttpsUrl = if text.contains(':') {
        checked(&source.path, text)?
    } else {
        // Some versions of comfy-pack recorded the path in the repository where the address belongs.
        let part = |key: &str| source.text(key);
        let (Some(repo), Some(commit), Some(path)) = (part("repo"), part("commit"), part("path")) else {
            repairs.add(place, format!("its source `{text}` is no address: left out"));
            return Ok(None);
        };
        repairs
            .add(place, format!("its source `{text}` is no address: made from repository, commit and path"));
        checked(&source.path, &format!("https://huggingface.co/{repo}/resolve/{commit}/{path}"))?
    };
    match wrong_host(&url, source.text("source")) {
        Some(service) => {
            let text = format!(
                "its source `{url}` looks like {service} and lies on `{}`: left out, so that no token of \
                 {service} goes there",
                url.host()
            );
            repairs.add(place, text);
            Ok(None)
        }
        None => Ok(Some(Source { url })),
    }
}

/// The service that an address claims to be of, where it is on another host.
fn wrong_host(url: &HttpsUrl, claimed: Option<&str>) -> Option<&'static str> {
    let services: [(&str, &str, &[&str]); 2] = [
        ("Hugging Face", "huggingface", &["huggingface.co", "hf.co"]),
        ("Civitai", "civitai", &["civitai.com"]),
    ];
    let (host, text) = (url.host(), url.as_str().to_ascii_lowercase());
    services.into_iter().find_map(|(service, word, hosts)| {
        let claims = claimed == Some(word) || text.contains(word);
        let is_there = hosts
            .iter()
            .any(|known| host.strip_suffix(known).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')));
        (claims && !is_there).then_some(service)
    })
}
