//! The files of a commit as they are in it, and whether a folder still has them.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use git2::{ObjectType, Oid};
use protocol::GitPin;
use tokio_util::sync::CancellationToken;

use super::tree::{Entry, Kind};
use super::{GitError, GitStore, Held, Part, make_folder};

/// What every pointer of git-lfs is shorter than, in bytes.
pub(super) const LONGEST_POINTER: usize = 1024;

/// Whether these are the bytes of a file that git-lfs keeps elsewhere: they only say where.
pub(in crate::workspace) fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.len() < LONGEST_POINTER && bytes.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// What was laid out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checkout {
    /// How many files.
    pub files: usize,
    /// How many bytes they have.
    pub bytes: u64,
    /// The files that are only pointers to where git-lfs keeps them.
    pub pointers: Vec<String>,
}

impl GitStore {
    /// Lays a commit that is here out in a folder that does not exist yet.
    pub(super) fn checkout(
        &self,
        pin: &GitPin,
        into: &Path,
        cancel: &CancellationToken,
    ) -> Result<Checkout, GitError> {
        make_folder(into, |folder| {
            let parts = self.whole(pin, &BTreeSet::new())?;
            let mut bytes = 0_u64;
            for Held { part, repository, entries } in &parts {
                bytes = bytes.saturating_add(self.weigh(repository, part, entries)?);
            }
            if bytes > self.bounds.bytes {
                return Err(GitError::too_large(&pin.url));
            }
            let links = links(&parts)?;
            let mut made = Checkout::default();
            for held in &parts {
                for entry in &held.entries {
                    if cancel.is_cancelled() {
                        return Err(GitError::Canceled);
                    }
                    lay_out(held, entry, folder, &links, &mut made)?;
                }
            }
            Ok(made)
        })
    }

    /// The files of a commit that are not in a folder as they are in the commit.
    pub fn differences(&self, pin: &GitPin, folder: &Path) -> Result<Vec<String>, GitError> {
        let mut differing = Vec::new();
        for Held { part, entries, .. } in self.whole(pin, &BTreeSet::new())? {
            for entry in entries.iter().filter(|entry| entry.kind != Kind::Submodule) {
                let path = place(&part, entry);
                if !is_as(entry, &folder.join(&path)) {
                    differing.push(path.display().to_string());
                }
            }
        }
        Ok(differing)
    }
}

/// Where an entry lies below the folder of the whole commit.
fn place(part: &Part, entry: &Entry) -> PathBuf {
    Path::new(&part.path).join(&entry.path)
}

fn lay_out(
    Held { part, repository, .. }: &Held,
    entry: &Entry,
    folder: &Path,
    links: &BTreeSet<PathBuf>,
    made: &mut Checkout,
) -> Result<(), GitError> {
    let below = place(part, entry);
    let path = folder.join(&below);
    let fail = |source| GitError::io(&path, source);
    if entry.kind == Kind::Submodule {
        return fs::create_dir_all(&path).map_err(fail);
    }
    let damaged = |source| GitError::damaged(&part.url, source);
    let blob = repository.find_blob(entry.id).map_err(damaged)?;
    fs::create_dir_all(path.parent().unwrap_or(folder)).map_err(fail)?;
    match entry.kind {
        Kind::Link => {
            let target = Path::new(std::ffi::OsStr::from_bytes(blob.content()));
            if !stays_inside(&below, target, links) {
                let (url, entry) = (part.url.to_string(), entry.path.clone());
                return Err(GitError::Entry {
                    url,
                    entry,
                    fault: "is a link that leads outside, or through another link",
                });
            }
            symlink(target, &path).map_err(fail)?;
        }
        Kind::File { executable } => {
            fs::write(&path, blob.content()).map_err(fail)?;
            let mode = if executable { 0o555 } else { 0o444 };
            fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(fail)?;
            if is_lfs_pointer(blob.content()) {
                made.pointers.push(below.display().to_string());
            }
        }
        Kind::Submodule => {}
    }
    made.files += 1;
    made.bytes += blob.content().len() as u64;
    Ok(())
}

/// All links, by their path below the folder. No name may be there twice, or be a file and a folder: the
/// one would then be written through the other.
fn links(parts: &[Held]) -> Result<BTreeSet<PathBuf>, GitError> {
    let (mut links, mut leaves, mut all) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for Held { part, entries, .. } in parts {
        for entry in entries {
            let path = place(part, entry);
            let is_new = entry.kind == Kind::Submodule || leaves.insert(path.clone());
            if !is_new {
                return Err(twice(part, entry));
            }
            if entry.kind == Kind::Link {
                links.insert(path.clone());
            }
            all.push((part, entry, path));
        }
    }
    let is_in_a_leaf = |entry: &Entry, path: &Path| {
        let is_leaf = |path: &Path| leaves.contains(path);
        let folders = path.parent().into_iter().flat_map(Path::ancestors);
        entry.kind == Kind::Submodule && is_leaf(path) || folders.into_iter().any(is_leaf)
    };
    match all.iter().find(|(_, entry, path)| is_in_a_leaf(entry, path)) {
        Some((part, entry, _)) => Err(twice(part, entry)),
        None => Ok(links),
    }
}

fn twice(part: &Part, entry: &Entry) -> GitError {
    let (url, entry) = (part.url.to_string(), entry.path.clone());
    GitError::Entry { url, entry, fault: "is there twice, or both a file and a folder" }
}

/// Whether a link at this path leads to somewhere in the folder, and on its way through no other link, whose
/// own target would have to be followed to know.
fn stays_inside(link: &Path, target: &Path, links: &BTreeSet<PathBuf>) -> bool {
    let mut at = link.parent().map(Path::to_owned).unwrap_or_default();
    let mut components = target.components().peekable();
    while let Some(component) = components.next() {
        match component {
            Component::Normal(name) => at.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !at.pop() {
                    return false;
                }
            }
            Component::RootDir | Component::Prefix(_) => return false,
        }
        if components.peek().is_some() && links.contains(&at) {
            return false;
        }
    }
    true
}

fn is_as(entry: &Entry, path: &Path) -> bool {
    let bytes = match entry.kind {
        Kind::Link => fs::read_link(path).map(|target| target.as_os_str().as_bytes().to_vec()),
        _ => match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_file() => fs::read(path),
            _ => return false,
        },
    };
    bytes.is_ok_and(|bytes| Oid::hash_object(ObjectType::Blob, &bytes).is_ok_and(|id| id == entry.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_may_lead_anywhere_inside_and_nowhere_outside() {
        let check = |link: &str, target: &str, inside: bool| {
            let links = [PathBuf::from("a/b/x")].into();
            assert_eq!(
                stays_inside(Path::new(link), Path::new(target), &links),
                inside,
                "{link} -> {target}"
            );
        };
        check("a/b", "../c", true);
        check("a/b", "../../c", false);
        check("a", "b/../c", true);
        check("a", "/etc/passwd", false);
        check("a/b/c", "../../../d", false);
        check("a/b/y", "x/../foo", false);
        check("a/b/y", "x", true);
    }
}
