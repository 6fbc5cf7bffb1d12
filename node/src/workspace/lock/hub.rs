//! The hub of Hugging Face: how a file of it is addressed, and its caches on disk, which tell where a file is from.
//!
//! Not here: what the hub would say; that is `lookup`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use percent_encoding::{AsciiSet, utf8_percent_encode};
use protocol::{GitCommit, HttpsUrl, Sha256, URL_PART, URL_PATH, WebUrl};

/// The hub itself.
pub const HUGGING_FACE: &str = "https://huggingface.co";
/// What the folder of a repository of models in a cache begins with.
const MODELS: &str = "models--";
/// How deep a file may lie in a repository.
const MAX_DEPTH: usize = 8;

/// A repository of models on the hub, such as `Comfy-Org/flux1-dev`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HubRepository(String);

/// A text that names no repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no repository of the hub, such as `OWNER/NAME`")]
pub struct ParseRepositoryError(String);

impl FromStr for HubRepository {
    type Err = ParseRepositoryError;

    fn from_str(text: &str) -> Result<Self, ParseRepositoryError> {
        let part = |part: &str| {
            let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            part.len() <= 96 && part.bytes().all(inner) && part.bytes().any(|byte| byte != b'.')
        };
        // A few old ones have no owner.
        let is_one = text.split('/').count() <= 2 && text.split('/').all(part);
        if is_one { Ok(Self(text.to_owned())) } else { Err(ParseRepositoryError(text.to_owned())) }
    }
}

impl fmt::Display for HubRepository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl HubRepository {
    /// The one that an address of a file leads into, if it is one of this hub.
    pub(super) fn of_address(hub: &WebUrl, url: &HttpsUrl) -> Option<Self> {
        let hubs = [hub.as_str().trim_end_matches('/'), HUGGING_FACE];
        let path = hubs.iter().find_map(|hub| url.as_str().strip_prefix(hub)?.strip_prefix('/'))?;
        path.split_once("/resolve/")?.0.parse().ok()
    }

    /// The address of a file of it at a commit. Where only an office knows the way to `hub`, that of the hub which it
    /// mirrors.
    pub(super) fn address(&self, hub: &WebUrl, commit: &GitCommit, path: &str) -> Option<HttpsUrl> {
        let is_down = path.split('/').all(|part| !["", ".", ".."].contains(&part));
        let path = utf8_percent_encode(path, &URL_PATH);
        let at = |hub: &str| format!("{hub}/{self}/resolve/{commit}/{path}").parse().ok();
        at(hub.as_str().trim_end_matches('/')).or_else(|| at(HUGGING_FACE)).filter(|_| is_down)
    }
}

/// What is escaped in a part of an address that may be escaped already.
pub(super) const ESCAPED_PART: AsciiSet = URL_PART.remove(b'%');

/// A file of the hub.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cached {
    pub(super) repository: HubRepository,
    pub(super) commit: GitCommit,
    /// Where it lies in the repository.
    pub(super) path: String,
}

/// The repositories that a cache has something of.
pub fn cached_repositories(cache: &Path) -> Vec<HubRepository> {
    let mut found: Vec<HubRepository> = folders(cache).iter().filter_map(|path| repository(path)).collect();
    found.sort();
    found
}

/// Where on the hub a file is from: one of these caches has it, or the cache in which it lies itself.
pub(super) fn cached(file: &Path, sha256: Sha256, size: u64, caches: &[PathBuf]) -> Option<Cached> {
    let real = file.canonicalize().ok()?;
    of_snapshot(&real).or_else(|| {
        let own = real.ancestors().find(|folder| repository(folder).is_some());
        let caches = own.and_then(Path::parent).into_iter().chain(caches.iter().map(PathBuf::as_path));
        let mut all: Vec<PathBuf> = caches.flat_map(folders).collect();
        all.sort();
        all.iter().find_map(|folder| in_repository(folder, sha256, size))
    })
}

/// Where on the hub a file is from that lies in a cache: `models--OWNER--NAME/snapshots/COMMIT/PATH`.
pub(super) fn of_snapshot(file: &Path) -> Option<Cached> {
    let folder = file.ancestors().find(|folder| repository(folder).is_some())?;
    let inside = file.strip_prefix(folder.join("snapshots")).ok()?.to_str()?;
    let (commit, path) = inside.split_once('/')?;
    cached_at(repository(folder)?, commit, path)
}

/// The file with this hash in the folder of a repository: its bytes lie under the hash, and links in the snapshot of
/// each commit lead there.
fn in_repository(folder: &Path, sha256: Sha256, size: u64) -> Option<Cached> {
    let repository = repository(folder)?;
    let blob = folder.join("blobs").join(sha256.to_string());
    if fs::metadata(&blob).ok()?.len() != size {
        return None;
    }
    let blob = blob.canonicalize().ok()?;
    let mut snapshots = folders(&folder.join("snapshots"));
    snapshots.sort();
    snapshots.iter().find_map(|snapshot| {
        let path = path_to(&blob, snapshot, MAX_DEPTH)?;
        let path = path.strip_prefix(snapshot).ok()?.to_str()?.to_owned();
        cached_at(repository.clone(), snapshot.file_name()?.to_str()?, &path)
    })
}

fn cached_at(repository: HubRepository, commit: &str, path: &str) -> Option<Cached> {
    Some(Cached { repository, commit: commit.parse().ok()?, path: path.to_owned() })
}

/// The link below a folder that leads to a file.
fn path_to(file: &Path, folder: &Path, depth: usize) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    entries.sort();
    entries.into_iter().find_map(|path| match fs::symlink_metadata(&path).ok()?.is_dir() {
        true => (depth > 0).then(|| path_to(file, &path, depth - 1)).flatten(),
        false => (path.canonicalize().ok()? == file).then_some(path),
    })
}

/// The repository whose folder in a cache this is: `models--OWNER--NAME`.
fn repository(folder: &Path) -> Option<HubRepository> {
    let name = folder.file_name()?.to_str()?.strip_prefix(MODELS)?;
    name.replacen("--", "/", 1).parse().ok()
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use percent_encoding::percent_decode_str;

    use super::*;

    const COMMIT: &str = "ca457f7ba1ff33bd0d724cd7324131509efcf3ec";

    fn hub(url: &str) -> WebUrl {
        url.parse().expect("a URL")
    }

    /// A cache as the hub's own library leaves it, with one file; says where that is linked.
    fn cache(folder: &Path, sha256: Sha256) -> PathBuf {
        let repository = folder.join("models--Some-Org--some--model");
        let snapshot = repository.join("snapshots").join(COMMIT).join("split files");
        fs::create_dir_all(&snapshot).expect("own folder");
        fs::create_dir_all(repository.join("blobs")).expect("own folder");
        fs::write(repository.join("blobs").join(sha256.to_string()), "a model").expect("own folder");
        symlink(format!("../../../blobs/{sha256}"), snapshot.join("a.safetensors")).expect("own folder");
        snapshot.join("a.safetensors")
    }

    #[test]
    fn file_is_found_in_a_cache_by_its_hash_and_by_where_it_lies() {
        let sha256 = Sha256([0xab; 32]);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        let link = cache(&at("hub"), sha256);
        fs::write(at("copy"), "a model").expect("own folder");
        symlink(&link, at("link")).expect("own folder");
        let check = |file: &str, sha256: Sha256, size: u64, caches: &[PathBuf], expected: bool| {
            let found = cached(&at(file), sha256, size, caches);
            let found =
                found.map(|Cached { repository, commit, path }| format!("{repository} {commit} {path}"));
            let address = format!("Some-Org/some--model {COMMIT} split files/a.safetensors");
            assert_eq!(found, expected.then_some(address), "{file}");
        };
        check("copy", sha256, 7, &[at("hub")], true);
        check("copy", sha256, 7, &[at("none")], false);
        check("copy", Sha256([0xcd; 32]), 7, &[at("hub")], false);
        check("copy", sha256, 8, &[at("hub")], false);
        // It need not be said where the cache is.
        check("link", sha256, 7, &[], true);
        assert_eq!(cached_repositories(&at("hub")), ["Some-Org/some--model".parse().expect("one")]);
    }

    #[test]
    fn part_of_an_address_is_read_as_it_was_written() {
        for text in ["", "a b/c", "100%", "é@:"] {
            let encoded = utf8_percent_encode(text, &URL_PART).to_string();
            assert_eq!(percent_decode_str(&encoded).collect::<Vec<u8>>(), text.as_bytes());
        }
        assert_eq!(percent_decode_str("%4a%4B%zz%").collect::<Vec<u8>>(), b"JK%zz%");
    }

    #[test]
    fn address_is_at_the_commit_and_one_that_others_reach() {
        let check = |endpoint: &str, path: &str, expected: Option<&str>| {
            let commit = COMMIT.parse().expect("a commit");
            let repository: HubRepository = "a/b".parse().expect("a repository");
            let address = repository.address(&hub(endpoint), &commit, path);
            let expected = expected.map(|text| text.replace("COMMIT", COMMIT));
            assert_eq!(address.as_ref().map(|url| url.as_str().to_owned()), expected, "{endpoint} {path}");
            if let Some(address) = address {
                assert_eq!(HubRepository::of_address(&hub(endpoint), &address), Some(repository));
            }
        };
        check(HUGGING_FACE, "x y/#1.bin", Some("https://huggingface.co/a/b/resolve/COMMIT/x%20y/%231.bin"));
        check("https://hub.example.org/", "x", Some("https://hub.example.org/a/b/resolve/COMMIT/x"));
        check("http://127.0.0.1:1", "x", Some("https://huggingface.co/a/b/resolve/COMMIT/x"));
        check(HUGGING_FACE, "../x", None);
        let other = "https://example.org/a/b/resolve/main/x".parse().expect("a URL");
        assert_eq!(HubRepository::of_address(&hub(HUGGING_FACE), &other), None);
        for wrong in ["", "a/", "a/b/c", "../b", "a/b?c", "a b/c"] {
            assert!(wrong.parse::<HubRepository>().is_err(), "{wrong}");
        }
    }
}
