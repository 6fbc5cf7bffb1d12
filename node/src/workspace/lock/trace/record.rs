//! What a traced run left, recorded in the lockfile: which files travel with the bundle, and which are fetched anew.
//!
//! Not here: which files appeared (`found`).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mesh::folders::names::names_of;
use mesh::store::ByteSize;
use protocol::{BlobHash, BlobRef, LockedModel, Lockfile, ModelPath};
use tempfile::TempDir;

use super::TraceError;
use super::found::Appeared;
use crate::workspace::lock::{LockRequest, Locked, named, sources_of};

/// The largest file that travels although it can be fetched, in bytes: asking for it elsewhere would cost more.
const SMALL: u64 = 1 << 20;
/// The most bytes that travel with a bundle in files like these.
pub(super) const MAX_TRAVELLING: u64 = 256 << 20;

/// What a run left, as long as it is needed.
#[derive(Debug)]
pub struct Traced {
    /// The files that are to travel with the bundle.
    pub travelling: BTreeMap<BlobHash, PathBuf>,
    /// The others, by their paths in the lockfile.
    pub staying: BTreeMap<ModelPath, PathBuf>,
    _folder: TempDir,
}

impl Traced {
    /// Keeps those in a folder, at their paths, that neither travel nor are to be had anywhere as far as the lockfile knows:
    /// else their only copies might go with the run. Says which these are.
    pub fn keep(&self, lockfile: &Lockfile, folder: &Path) -> io::Result<Vec<ModelPath>> {
        let nowhere = lockfile.models.iter().filter(|model| model.sources.is_empty());
        let mut kept = Vec::new();
        for path in nowhere.map(|model| &model.path) {
            let Some(file) = self.staying.get(path) else { continue };
            let place = folder.join(path.as_str());
            fs::create_dir_all(place.parent().unwrap_or(folder))?;
            match fs::remove_file(&place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // What a cache of a hub has is a link to it.
            let file = fs::canonicalize(file)?;
            fs::hard_link(&file, &place).or_else(|_| fs::copy(&file, &place).map(drop))?;
            kept.push(path.clone());
        }
        Ok(kept)
    }
}

/// Adds what appeared to the lockfile, and says which of it travels, and which does not: what is small travels, and what
/// nobody is known to have as far as there is `room`.
pub(super) fn record(
    request: &LockRequest<'_>,
    locked: &mut Locked,
    appeared: Vec<Appeared>,
    room: u64,
    folder: TempDir,
) -> Result<Traced, TraceError> {
    let paths: Vec<PathBuf> = appeared.iter().map(|file| file.file.clone()).collect();
    let names = names_of(&paths, request.known, &|_| {})?;
    let (mut travelling, mut staying, mut left) = (BTreeMap::new(), BTreeMap::new(), room);
    let mut named: Vec<_> = appeared.into_iter().zip(names).collect();
    // The small ones first, so that a large one does not take their room.
    named.sort_by(|(a, one), (b, other)| (one.blob.size, &a.path).cmp(&(other.blob.size, &b.path)));
    for (Appeared { path, file, sources }, names) in named {
        let sources = sources_of(request, &names, sources);
        let BlobRef { hash, size } = names.blob;
        let is_packed = travelling.contains_key(&hash);
        let travels = is_packed || (size <= SMALL || sources.is_empty()) && size <= left;
        if !travels {
            staying.insert(path.clone(), file);
        } else if travelling.insert(hash, file).is_none() {
            left -= size;
        }
        let how = if travels { ", and travels with the bundle" } else { "" };
        locked.notes.push(format!("the workflow fetches `{path}` as it runs: {}{how}", ByteSize(size)));
        locked.lacking.retain(|words| !named::is_lacking_model(words, &path));
        locked.lockfile.models.retain(|model| model.path != path);
        locked.lockfile.models.push(LockedModel {
            path,
            size,
            sha256: Some(names.sha256),
            blob: Some(hash),
            sources,
            disabled: false,
            share: true,
        });
    }
    locked.lockfile.models.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Traced { travelling, staying, _folder: folder })
}

#[cfg(test)]
mod tests {
    use mesh::folders::names::KnownNames;
    use protocol::{HttpsUrl, Workflow};

    use super::*;
    use crate::workspace::lock::hub;

    #[test]
    fn small_files_and_those_without_an_address_travel_and_others_are_fetched() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let url: HttpsUrl = "https://example.org/a".parse().expect("a URL");
        let appeared = |name: &str, size: usize, is_published: bool| {
            let file = folder.path().join(name);
            fs::write(&file, name.repeat(size / name.len())).expect("own folder");
            let path = format!("models/faces/{name}").parse().expect("a path");
            Appeared { path, file, sources: is_published.then(|| url.clone()).into_iter().collect() }
        };
        let large = 2 << 20;
        let appeared = vec![
            appeared("small-known", 100, true),
            appeared("small", 100, false),
            appeared("large-known", large, true),
            appeared("large", large, false),
        ];
        let workflow = Workflow::default();
        let (hub, known) = (hub::HUGGING_FACE.parse().expect("a URL"), KnownNames::default());
        let request = LockRequest::bare(folder.path(), &workflow, &hub, &known);
        let names = ["large", "faces/large", r"faces\small", "other", "other/large", "arge"];
        let lacking = names.map(|name| format!("model `{name}`, which op `1` (X) names"));
        let mut locked = Locked { lacking: lacking.to_vec(), ..Locked::default() };
        let run = tempfile::tempdir().expect("a temporary folder");
        let traced = record(&request, &mut locked, appeared, MAX_TRAVELLING, run).expect("hashed");
        assert_eq!(
            traced.staying.keys().map(ModelPath::as_str).collect::<Vec<_>>(),
            ["models/faces/large-known"]
        );
        let told = locked.lockfile.models.iter().map(|model| {
            let travels = model.blob.is_some_and(|blob| traced.travelling.contains_key(&blob));
            (model.path.as_str(), travels, model.sources.len())
        });
        let expected = [
            ("models/faces/large", true, 0),
            ("models/faces/large-known", false, 1),
            ("models/faces/small", true, 0),
            ("models/faces/small-known", true, 1),
        ];
        assert_eq!(told.collect::<Vec<_>>(), expected);
        assert_eq!(locked.lacking, lacking[3..], "what was fetched is not lacking");
    }

    #[test]
    fn file_that_neither_travels_nor_has_an_address_is_kept_at_its_path() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cached = folder.path().join("cached");
        fs::write(&cached, vec![b'x'; 2 << 20]).expect("own folder");
        std::os::unix::fs::symlink(&cached, folder.path().join("large")).expect("own folder");
        fs::write(folder.path().join("known"), vec![b'y'; 2 << 20]).expect("own folder");
        let url: HttpsUrl = "https://example.org/a".parse().expect("a URL");
        let appeared = [("large", vec![]), ("known", vec![url])].map(|(name, sources)| Appeared {
            path: format!("home/torch/{name}.pth").parse().expect("a path"),
            file: folder.path().join(name),
            sources,
        });
        let workflow = Workflow::default();
        let (hub, known) = (hub::HUGGING_FACE.parse().expect("a URL"), KnownNames::default());
        let request = LockRequest::bare(folder.path(), &workflow, &hub, &known);
        let (mut locked, kept) = (Locked::default(), folder.path().join("kept"));
        let run = tempfile::tempdir().expect("a temporary folder");
        let traced = record(&request, &mut locked, appeared.into(), 1 << 20, run).expect("hashed");
        assert!(traced.travelling.is_empty());
        // Packed again, it is there already.
        for _ in 0..2 {
            let told = traced.keep(&locked.lockfile, &kept).expect("own folder");
            assert_eq!(told.iter().map(ModelPath::as_str).collect::<Vec<_>>(), ["home/torch/large.pth"]);
        }
        drop(traced);
        assert_eq!(fs::read(kept.join("home/torch/large.pth")).expect("kept").len(), 2 << 20);
        assert!(!kept.join("home/torch/known.pth").exists());
    }
}
