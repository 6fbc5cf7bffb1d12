//! The files of a commit as they are in it, and whether a folder still has them.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use git2::{ObjectType, Oid, Repository};
use protocol::GitPin;

use super::tree::{Entry, Kind, entries};
use super::{GitError, GitStore, Part, make_folder, oid};

/// How a file begins that git-lfs keeps elsewhere.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

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
    /// Lays a commit out in a folder that does not exist yet: byte for byte, read-only, without `.git`.
    pub fn checkout(&self, pin: &GitPin, into: &Path) -> Result<Checkout, GitError> {
        make_folder(into, |folder| {
            let mut laid_out = Vec::new();
            for part in self.whole(pin)? {
                let repository = self.repository(&part.url)?;
                let entries = entries(&repository, &part)?;
                laid_out.push((part, repository, entries));
            }
            let links = links(laid_out.iter().map(|(part, _, entries)| (part, entries.as_slice())))?;
            let mut made = Checkout::default();
            for (part, repository, entries) in &laid_out {
                for entry in entries {
                    lay_out(repository, part, entry, folder, &links, &mut made)?;
                }
            }
            Ok(made)
        })
    }

    /// The files of a commit that are not in a folder as they are in the commit.
    pub fn differences(&self, pin: &GitPin, folder: &Path) -> Result<Vec<String>, GitError> {
        let mut differing = Vec::new();
        for part in self.whole(pin)? {
            let repository = self.repository(&part.url)?;
            let files =
                entries(&repository, &part)?.into_iter().filter(|entry| entry.kind != Kind::Submodule);
            differing.extend(files.filter(|entry| !is_as(entry, &place(folder, &part, entry))).map(
                |entry| {
                    if part.path.is_empty() { entry.path } else { format!("{}/{}", part.path, entry.path) }
                },
            ));
        }
        Ok(differing)
    }

    /// All repositories of a commit, parents first.
    pub(super) fn whole(&self, pin: &GitPin) -> Result<Vec<Part>, GitError> {
        match self.parts(pin)? {
            (parts, None) => Ok(parts),
            (_, Some(missing)) => Err(GitError::NotHere {
                url: missing.url.to_string(),
                commit: if missing.path.is_empty() { oid(&pin.commit) } else { missing.commit }.to_string(),
            }),
        }
    }
}

fn place(folder: &Path, part: &Part, entry: &Entry) -> PathBuf {
    folder.join(&part.path).join(&entry.path)
}

fn lay_out(
    repository: &Repository,
    part: &Part,
    entry: &Entry,
    folder: &Path,
    links: &BTreeSet<PathBuf>,
    made: &mut Checkout,
) -> Result<(), GitError> {
    let path = place(folder, part, entry);
    let fail = |source| GitError::io(&path, source);
    if entry.kind == Kind::Submodule {
        return fs::create_dir_all(&path).map_err(fail);
    }
    let read = |source| GitError::git("read", &part.url, source);
    let blob = repository.find_blob(entry.id).map_err(read)?;
    fs::create_dir_all(path.parent().unwrap_or(folder)).map_err(fail)?;
    match entry.kind {
        Kind::Link => {
            let target = Path::new(std::ffi::OsStr::from_bytes(blob.content()));
            let inside = Path::new(&part.path).join(&entry.path);
            if !stays_inside(&inside, target, links) {
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
            if blob.content().starts_with(LFS_POINTER) {
                made.pointers.push(entry.path.clone());
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
fn links<'a>(parts: impl Iterator<Item = (&'a Part, &'a [Entry])>) -> Result<BTreeSet<PathBuf>, GitError> {
    let (mut links, mut leaves, mut all) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for (part, entries) in parts {
        for entry in entries {
            let path = Path::new(&part.path).join(&entry.path);
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
        path.ancestors().skip(usize::from(entry.kind != Kind::Submodule)).any(|above| leaves.contains(above))
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
