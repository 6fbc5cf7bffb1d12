//! Which file of the author's folders is which model of the lockfile.
//!
//! Not here: their hashes; whoever serves the files computes those.

use std::path::{Path, PathBuf};

use protocol::{Bundle, LockedModel};
use serde_json::Value;

use crate::commands::text;

/// A model of the lockfile, as the farm's API tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Model {
    /// Its path below `models`, such as `checkpoints/x.safetensors`.
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) sha256: Option<String>,
    pub(super) blob: Option<String>,
    /// Whether it can come from a URL.
    pub(super) has_url: bool,
    /// Whether peers may have it.
    pub(super) share: bool,
    /// Whether the graph names it. Else an op has it at a place of its own.
    pub(super) is_named: bool,
}

impl Model {
    /// The models that a deployed workflow names.
    pub(super) fn all(deployed: &Value) -> Vec<Self> {
        deployed["models"].as_array().into_iter().flatten().map(Self::new).collect()
    }

    /// The models of a bundle that its graph does not name, and that are to be had nowhere: what a traced run fetched, say.
    pub(super) fn nowhere(bundle: &Bundle, named: &[Self], private: &[String]) -> Vec<Self> {
        let travels = |model: &LockedModel| model.blob.is_some_and(|blob| bundle.travelling.contains(&blob));
        // Where nobody can rebuild it, nobody needs them.
        let nowhere = bundle.lockfile.models.iter().filter(|_| bundle.lockfile.comfyui.is_some());
        let nowhere = nowhere.filter(|model| !model.disabled && model.sources.is_empty() && !travels(model));
        let model = |model: &LockedModel| Self {
            name: model.path.as_str().strip_prefix("models/").unwrap_or(model.path.as_str()).to_owned(),
            size: model.size,
            sha256: model.sha256.map(|sha256| sha256.to_string()),
            blob: model.blob.map(|blob| blob.to_string()),
            has_url: false,
            share: model.share && !private.iter().any(|name| model.is_called(name)),
            is_named: false,
        };
        let is_new = |model: &Self| !named.iter().any(|named| named.name == model.name);
        nowhere.map(model).filter(is_new).collect()
    }

    fn new(model: &Value) -> Self {
        let path = text(model, "path");
        let name = path.strip_prefix("models/").unwrap_or(path).to_owned();
        let hash = |key: &str| model[key].as_str().map(str::to_owned);
        Self {
            size: model["size"].as_u64().unwrap_or_default(),
            sha256: hash("sha256"),
            blob: hash("blob"),
            has_url: model["sources"].as_array().is_some_and(|sources| !sources.is_empty()),
            share: model["share"] != false,
            is_named: true,
            name,
        }
    }

    /// The name by which the farm is asked for it.
    pub(super) fn blob_name(&self) -> Option<String> {
        let by_sha256 = || self.sha256.as_ref().map(|sha256| format!("sha256:{sha256}"));
        self.blob.clone().or_else(by_sha256)
    }

    /// The file in these folders that can be it: at its place below ComfyUI's folder or `models`, and of
    /// its size.
    pub(super) fn find(&self, folders: &[PathBuf]) -> Option<PathBuf> {
        let name = Path::new(&self.name);
        let places = folders.iter().flat_map(|folder| [folder.join(name), folder.join("models").join(name)]);
        let is_it = |place: &PathBuf| {
            std::fs::metadata(place).is_ok_and(|metadata| metadata.is_file() && metadata.len() == self.size)
        };
        let place = places.into_iter().find(is_it)?;
        std::fs::canonicalize(place).ok()
    }
}

#[cfg(test)]
mod tests {
    use protocol::{BlobHash, BlobRef, Lockfile};
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_run_fetched_is_served_as_well_where_nobody_else_has_it() {
        let model = |path: &str, sources: Value| {
            let blob = BlobHash::of(path.as_bytes());
            json!({ "path": path, "size": 3, "blob": blob, "sources": sources, "disabled": false })
        };
        let comfyui = json!({ "url": "https://example.org/ComfyUI", "commit": "1".repeat(40) });
        let lockfile = json!({ "format": 1, "comfyui": comfyui, "models": [
            model("models/loras/named.safetensors", json!([])),
            model("models/faces/known.pth", json!([{ "url": "https://example.org/a" }])),
            model("home/torch/travels.pth", json!([])),
            model("home/torch/large.pth", json!([])),
            model("models/faces/own.pth", json!([])),
        ] });
        let mut bundle =
            Bundle::from_workflow(br#"{"1": {"class_type": "Load", "inputs": {}}}"#, &mut |_, _| {
                Ok(BlobRef::of(b""))
            })
            .expect("a workflow");
        bundle.lockfile = Lockfile::parse(lockfile.to_string().as_bytes()).expect("a lockfile");
        bundle.travelling.insert(BlobHash::of(b"home/torch/travels.pth"));
        let named = Model::all(&json!({ "models": [{ "path": "models/loras/named.safetensors" }] }));
        let nowhere = Model::nowhere(&bundle, &named, &["faces/own.pth".to_owned()]);
        let told: Vec<_> = nowhere.iter().map(|model| (model.name.as_str(), model.share)).collect();
        assert_eq!(told, [("home/torch/large.pth", true), ("faces/own.pth", false)]);
    }

    #[test]
    fn models_are_found_below_either_folder_by_their_size() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |path: &str| folder.path().join(path);
        std::fs::create_dir_all(at("comfy/models/loras")).expect("own folder");
        std::fs::write(at("comfy/models/loras/a.safetensors"), b"abc").expect("own folder");
        let deployed = json!({ "models": [
            { "path": "models/loras/a.safetensors", "size": 3, "sha256": "12", "blob": null, "sources": [], "share": true },
            { "path": "models/loras/b.safetensors", "size": 3, "sha256": null, "blob": "34", "sources": [{}], "share": false },
        ] });
        let models = Model::all(&deployed);
        for folder in [at("comfy"), at("comfy/models")] {
            assert!(models[0].find(&[at("none"), folder]).is_some());
        }
        assert_eq!(models[0].find(&[at("comfy/models/loras")]), None);
        let larger = Model { size: 4, ..models[0].clone() };
        assert_eq!(larger.find(&[at("comfy")]), None);
        assert_eq!(
            (models[0].blob_name(), models[1].blob_name()),
            (Some("sha256:12".into()), Some("34".into()))
        );
        assert_eq!((models[0].share, models[1].share, models[1].has_url), (true, false, true));
    }
}
