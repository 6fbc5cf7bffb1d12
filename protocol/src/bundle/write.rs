//! A bundle as a zip: the lockfile for this farm, and the same in comfy-pack's words beside it.
//!
//! comfy-pack reads `snapshot.json` and passes over `lockfile.json`; here it is the other way round, because a
//! snapshot has no place for the index of a package or the BLAKE3 hash of a model. Not here: what is recorded.

use std::io::{self, Read, Seek, Write};

use serde_json::{Map, Value, json};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::carried::carried_entry;
use super::files::file_entry;
use super::{BundleLimits, INPUT, INTERFACE, LOCKFILE, SNAPSHOT, WORKFLOW};
use crate::blob::BlobHash;
use crate::lockfile::{
    CustomNode, FileName, LockedModel, Lockfile, PackagePin, Pin, RegistryPin, Source, relative_path,
};
use crate::schema::Exposure;

/// The permissions of an entry, as comfy-pack writes them.
const MODE: u32 = 0o600;

/// Why a bundle could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteBundleError {
    /// An entry has a name under which nobody would read it.
    #[error("`{entry}` cannot be carried in a bundle: its name {fault}")]
    EntryName {
        /// The entry.
        entry: String,
        /// What is wrong with the name.
        fault: &'static str,
    },
    /// An entry, or all of them together, are more than a reader takes.
    #[error("`{entry}` cannot be carried in a bundle: it has more than the {limit} bytes that are left")]
    TooLarge {
        /// The entry.
        entry: String,
        /// How much a reader takes.
        limit: u64,
    },
    /// An entry could not be read, or the zip not be written.
    #[error("`{entry}` could not be put into the bundle")]
    Io {
        /// The entry.
        entry: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Writes a bundle; `interface` is what its author makes the workflow's API, `inputs` are files by their path in ComfyUI's input folder, `carried` the archives of the custom
/// nodes that the lockfile says travel with it, by their names, and `files` what else of the lockfile does.
pub fn write_bundle<R: Read>(
    writer: impl Write + Seek,
    workflow: &[u8],
    lockfile: &Lockfile,
    interface: &Exposure,
    inputs: impl IntoIterator<Item = (String, io::Result<R>)>,
    carried: impl IntoIterator<Item = (FileName, io::Result<R>)>,
    files: impl IntoIterator<Item = (BlobHash, io::Result<R>)>,
) -> Result<(), WriteBundleError> {
    let mut bundle = BundleWriter::new(writer, BundleLimits::default());
    let snapshot = serde_json::to_vec_pretty(&snapshot(lockfile)).expect("a snapshot has only text keys");
    bundle.add(SNAPSHOT, MODE, Ok(snapshot.as_slice()))?;
    bundle.add(WORKFLOW, MODE, Ok(workflow))?;
    bundle.add(LOCKFILE, MODE, Ok(lockfile.to_canonical_json().as_slice()))?;
    if !interface.is_empty() {
        let interface = serde_json::to_vec(interface).expect("an interface has only text keys");
        bundle.add(INTERFACE, MODE, Ok(interface.as_slice()))?;
    }
    for (name, contents) in inputs {
        bundle.add(&format!("{INPUT}{name}"), MODE, contents)?;
    }
    for (name, archive) in carried {
        bundle.add(&carried_entry(&name), MODE, archive)?;
    }
    for (hash, contents) in files {
        bundle.add(&file_entry(hash), MODE, contents)?;
    }
    bundle.finish()
}

/// A zip that is written as its readers take it.
pub(super) struct BundleWriter<W: Write + Seek> {
    zip: ZipWriter<W>,
    /// What the reader still takes.
    left: BundleLimits,
}

impl<W: Write + Seek> BundleWriter<W> {
    /// An empty one that never holds more than this.
    pub(super) fn new(writer: W, limits: BundleLimits) -> Self {
        Self { zip: ZipWriter::new(writer), left: limits }
    }

    /// Adds an entry with these Unix permissions.
    pub(super) fn add(
        &mut self,
        name: &str,
        mode: u32,
        contents: io::Result<impl Read>,
    ) -> Result<(), WriteBundleError> {
        let fail = |source: io::Error| WriteBundleError::Io { entry: name.to_owned(), source };
        relative_path(name).map_err(|fault| WriteBundleError::EntryName { entry: name.to_owned(), fault })?;
        // As comfy-pack writes them: stored, without a time, so that equal parts are equal files.
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .unix_permissions(mode);
        self.zip.start_file(name, options).map_err(|error| fail(error.into()))?;
        let limit = self.left.entry_size.min(self.left.total_size);
        let size = io::copy(&mut contents.map_err(fail)?.take(limit + 1), &mut self.zip).map_err(fail)?;
        if size > limit {
            return Err(WriteBundleError::TooLarge { entry: name.to_owned(), limit });
        }
        self.left.total_size -= size;
        Ok(())
    }

    /// Ends the zip.
    pub(super) fn finish(self) -> Result<(), WriteBundleError> {
        let finished = self.zip.finish();
        finished
            .map(drop)
            .map_err(|error| WriteBundleError::Io { entry: "end".to_owned(), source: error.into() })
    }
}

/// A lockfile as comfy-pack's `snapshot.json` of its newer format.
pub(super) fn snapshot(lockfile: &Lockfile) -> Value {
    let (mut repositories, mut registry, mut files) = (Map::new(), Map::new(), Vec::new());
    for node in &lockfile.custom_nodes {
        match node {
            // It knows one address of a repository, and calls its folder as `git clone` does.
            CustomNode::Git { url, commit, disabled, .. } => {
                repositories.insert(url.to_string(), json!({ "hash": commit, "disabled": disabled }));
            }
            CustomNode::Registry { id, version } => {
                registry.insert(id.to_string(), json!(version));
            }
            CustomNode::File { name, disabled } => {
                files.push(json!({ "filename": name, "disabled": disabled }))
            }
            CustomNode::Carried { registry: Some(RegistryPin { id, version }), .. } => {
                registry.insert(id.to_string(), json!(version));
            }
            // comfy-pack has no word for a folder that nobody publishes.
            CustomNode::Carried { name, registry: None, .. } if name.as_str().ends_with(".py") => {
                files.push(json!({ "filename": name, "disabled": false }))
            }
            CustomNode::Carried { .. } => {}
        }
    }
    // comfy-pack knows Python to its minor version.
    let python = lockfile.python.as_ref().map(|python| {
        let parts: Vec<&str> = python.as_str().split('.').take(2).collect();
        parts.join(".")
    });
    // It knows no home of ComfyUI's, and fetches what custom nodes want as they run.
    let models = lockfile.models.iter().filter(|model| model.path.as_str().starts_with("models/"));
    json!({
        "comfyui": lockfile.comfyui.as_ref().map(|pin| &pin.commit),
        "git_custom_nodes": repositories,
        "cnr_custom_nodes": registry,
        "file_custom_nodes": files,
        "pips": lockfile.packages.iter().map(package).collect::<Map<String, Value>>(),
        "python": python,
        "models": models.map(model).collect::<Vec<Value>>(),
    })
}

fn package(PackagePin { name, pin, .. }: &PackagePin) -> (String, Value) {
    match pin {
        Pin::Version(version) => (format!("{name}=={version}"), json!("")),
        Pin::Url(url) => (name.to_string(), json!(url)),
        Pin::Git(url) => (name.to_string(), json!(format!("git+{url}"))),
    }
}

fn model(model: &LockedModel) -> Value {
    json!({
        "filename": model.path,
        "size": model.size,
        // Nobody reads them; a lockfile does not depend on when a file was looked at.
        "atime": 0.0,
        "ctime": 0.0,
        "disabled": model.disabled,
        "sha256": model.sha256,
        "source": model.sources.first().map_or_else(|| json!({}), source),
    })
}

fn source(Source { url }: &Source) -> Value {
    let text = url.as_str();
    let mut source = json!({ "download_url": text, "url": text });
    match url.host().as_str() {
        "huggingface.co" => {
            source["source"] = json!("huggingface");
            let path = text.split_once("huggingface.co/").map_or("", |(_, path)| path);
            if let Some((repo, (commit, path))) =
                path.split_once("/resolve/").and_then(|(repo, rest)| Some((repo, rest.split_once('/')?)))
            {
                let path = path.split('?').next().unwrap_or_default();
                source["url"] = json!(format!("https://huggingface.co/{repo}/blob/{commit}/{path}"));
                source["repo"] = json!(repo);
                source["commit"] = json!(commit);
                source["path"] = json!(path);
            }
        }
        "civitai.com" => source["source"] = json!("civitai"),
        _ => {}
    }
    source
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Cursor;

    use super::*;
    use crate::blob::BlobRef;
    use crate::bundle::{Bundle, read_bundle, snapshot::to_lockfile};
    use crate::facts;

    fn read(zip: &[u8]) -> Bundle {
        let bundle = read_bundle(Cursor::new(zip), &BundleLimits::default(), &mut |_, reader| {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes)?;
            Ok(BlobRef::of(&bytes))
        });
        bundle.unwrap()
    }

    fn entry(zip: &[u8], name: &str) -> Vec<u8> {
        let mut archive = zip::ZipArchive::new(Cursor::new(zip)).unwrap();
        let mut bytes = Vec::new();
        archive.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Every path of keys in a JSON value; `*` for keys that are names of things, and for places in lists.
    fn shape(value: &Value, path: &str, shapes: &mut BTreeSet<String>) {
        let named = ["git_custom_nodes", "cnr_custom_nodes", "pips"].iter().any(|key| path.ends_with(key));
        shapes.insert(format!("{path} {}", crate::workflow::kind_of(value)));
        match value {
            Value::Object(fields) => fields.iter().for_each(|(key, value)| {
                shape(value, &format!("{path}.{}", if named { "*" } else { key.as_str() }), shapes);
            }),
            Value::Array(values) => {
                values.iter().for_each(|value| shape(value, &format!("{path}.*"), shapes))
            }
            _ => {}
        }
    }

    #[test]
    fn written_bundle_is_read_back_and_has_the_shape_of_comfy_packs_own() {
        let recorded = facts::bytes("comfy-pack/cpack/tiny.cpack.zip");
        let mut lockfile = read(&recorded).lockfile;
        // What a snapshot has no place for.
        lockfile.python = Some("3.11.7".parse().unwrap());
        lockfile.models[0].blob = Some(BlobHash::of(b"tiny"));
        let without_mirrors = lockfile.custom_nodes.clone();
        for node in &mut lockfile.custom_nodes {
            if let CustomNode::Git { mirrors, folder, .. } = node {
                mirrors.push("https://mirror.example/nodes".parse().unwrap());
                *folder = Some("own-name".parse().unwrap());
            }
        }
        assert_ne!(lockfile.custom_nodes, without_mirrors);
        lockfile.packages[0].index = Some("https://download.pytorch.org/whl/cu124".parse().unwrap());
        let workflow = entry(&recorded, WORKFLOW);
        let interface = Exposure { inputs: Vec::new(), outputs: vec!["9".to_owned()] };
        let mut zip = Vec::new();
        let inputs = ["example.png", "sub/grade.cube"].map(|name| (name.to_owned(), Ok(name.as_bytes())));
        write_bundle(Cursor::new(&mut zip), &workflow, &lockfile, &interface, inputs, [], []).unwrap();

        let bundle = read(&zip);
        assert_eq!(bundle.manifest.interface, interface);
        assert_eq!((&bundle.lockfile, bundle.repairs.as_slice()), (&lockfile, [].as_slice()));
        assert_eq!(bundle.manifest.inputs["sub/grade.cube"], BlobRef::of(b"sub/grade.cube"));
        assert_eq!(bundle.manifest.workflow, BlobRef::of(&workflow));

        let (ours, theirs) = (entry(&zip, SNAPSHOT), entry(&recorded, SNAPSHOT));
        let shapes = |bytes: &[u8]| {
            let mut shapes = BTreeSet::new();
            shape(&serde_json::from_slice(bytes).unwrap(), "", &mut shapes);
            shapes
        };
        assert_eq!(shapes(&ours), shapes(&theirs));
        let (by_snapshot, _) = to_lockfile(&ours, None).unwrap();
        assert_eq!(by_snapshot.python.unwrap().as_str(), "3.11");
        assert_eq!(
            by_snapshot.custom_nodes, without_mirrors,
            "comfy-pack knows the first address and no folder"
        );
        assert_eq!(by_snapshot.models[0].sources, lockfile.models[0].sources);
        let headers = |zip: &[u8]| -> Vec<_> {
            let mut archive = zip::ZipArchive::new(Cursor::new(zip)).unwrap();
            let mut header = |index| {
                let file = archive.by_index(index).unwrap();
                (file.compression(), file.last_modified(), file.unix_mode().map(|mode| mode & 0o777))
            };
            vec![header(0), header(1)]
        };
        assert_eq!(headers(&zip), headers(&recorded));
    }

    #[test]
    fn what_no_reader_takes_is_not_written() {
        let check = |name: &str, contents: io::Result<&[u8]>, expected: &str| {
            let inputs = [(name.to_owned(), contents)];
            let (lockfile, interface) = (Lockfile::default(), Exposure::default());
            let zip = Cursor::new(Vec::new());
            let error = write_bundle(zip, b"{}", &lockfile, &interface, inputs, [], []);
            assert!(error.unwrap_err().to_string().contains(expected), "{name}");
        };
        check("../x", Ok(b""), "`input/../x` cannot be carried in a bundle: its name has `..`");
        check("x", Err(io::Error::other("gone")), "`input/x` could not be put into the bundle");
        let left = BundleLimits { total_size: 10, ..BundleLimits::default() };
        let mut bundle = BundleWriter::new(Cursor::new(Vec::new()), left);
        bundle.add("input/x", MODE, Ok(io::repeat(0).take(6))).unwrap();
        let error = bundle.add("input/y", MODE, Ok(io::repeat(0))).unwrap_err().to_string();
        assert_eq!(
            error,
            "`input/y` cannot be carried in a bundle: it has more than the 4 bytes that are left"
        );
    }
}
