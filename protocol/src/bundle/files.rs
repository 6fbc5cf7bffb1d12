//! Files of a lockfile that travel with the bundle, beside its models that are fetched: each an entry that is called by
//! its hash.
//!
//! Not here: which files travel; whoever packs decides.

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use super::archive::Archive;
use super::{BundleError, FILES};
use crate::blob::{BlobHash, BlobRef};
use crate::lockfile::{LockedModel, Lockfile};

/// The entry of a bundle in which a file travels.
pub(super) fn file_entry(hash: BlobHash) -> String {
    format!("{FILES}{hash}")
}

impl<R: Read + Seek> Archive<'_, R> {
    /// The files of a lockfile that are in the bundle, each seen to be the one that the lockfile names.
    pub(super) fn checked_files(&mut self, lockfile: &Lockfile) -> Result<Vec<BlobHash>, BundleError> {
        let mut named: BTreeMap<BlobHash, &LockedModel> = BTreeMap::new();
        for model in &lockfile.models {
            named.extend(model.blob.filter(|blob| self.has(&file_entry(*blob))).map(|blob| (blob, model)));
        }
        for (hash, model) in &named {
            let entry = file_entry(*hash);
            let size = self.measure(&entry)?;
            let found = BlobRef::of_reader(self.entry(&entry)?.take(size));
            let found = found.map_err(|source| BundleError::Entry { entry, source })?;
            if found != (BlobRef { hash: *hash, size: model.size }) {
                return Err(BundleError::File { path: model.path.clone() });
            }
        }
        Ok(named.into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use crate::bundle::{Bundle, BundleLimits, read_bundle, write_bundle};
    use crate::schema::Exposure;

    use super::*;

    fn model(path: &str, of: &[u8]) -> LockedModel {
        let model = serde_json::json!({
            "path": path, "size": of.len(), "blob": BlobHash::of(of).to_string(), "disabled": false,
        });
        serde_json::from_value(model).unwrap()
    }

    fn read(lockfile: &Lockfile, files: &[(&[u8], &[u8])]) -> Result<(Bundle, Vec<String>), BundleError> {
        let (mut zip, mut stored) = (Vec::new(), Vec::new());
        let graph = br#"{"1": {"class_type": "EmptyImage", "inputs": {}}}"#;
        let files = files.iter().map(|(of, bytes)| (BlobHash::of(of), Ok(*bytes)));
        write_bundle(Cursor::new(&mut zip), graph, lockfile, &Exposure::default(), [], [], files).unwrap();
        let bundle = read_bundle(Cursor::new(&zip), &BundleLimits::default(), &mut |entry, reader| {
            stored.push(entry.to_owned());
            BlobRef::of_reader(reader)
        });
        bundle.map(|bundle| (bundle, stored))
    }

    #[test]
    fn bundle_brings_the_files_that_its_lockfile_names_and_no_others() {
        let models = vec![
            model("home/huggingface/hub/models--a--b/refs/main", b"ca45"),
            model("models/vae/a.safetensors", b"a model"),
        ];
        let lockfile = Lockfile { models, ..Lockfile::default() };
        let (bundle, stored) = read(&lockfile, &[(b"ca45", b"ca45"), (b"other", b"other")]).unwrap();
        let hash = BlobHash::of(b"ca45");
        assert_eq!(bundle.travelling, [hash].into());
        assert_eq!(
            stored,
            ["workflow_api.json".to_owned(), "lockfile.json".to_owned(), format!("files/{hash}")]
        );
        let error = read(&lockfile, &[(b"ca45", b"ca46")]).unwrap_err().to_string();
        assert!(error.contains("`home/huggingface/hub/models--a--b/refs/main`"), "{error}");
        // Of one that comfy-pack reads, it fetches only what lies where it has models.
        let told = super::super::write::snapshot(&lockfile);
        assert_eq!(told["models"].as_array().map(Vec::len), Some(1), "{told}");
    }
}
