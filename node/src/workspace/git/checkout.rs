//! The files of a commit as they are in it, and whether a folder still has them.

use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

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
            let mut made = Checkout::default();
            for part in self.whole(pin)? {
                let repository = self.repository(&part.url)?;
                for entry in entries(&repository, &part)? {
                    lay_out(&repository, &part, &entry, folder, &mut made)?;
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
            if !stays_inside(&inside, target) {
                let (url, entry) = (part.url.to_string(), entry.path.clone());
                return Err(GitError::Entry { url, entry, fault: "is a link that leads outside" });
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

/// Whether a link at this path, relative to the folder, leads to somewhere in the folder.
fn stays_inside(link: &Path, target: &Path) -> bool {
    use std::path::Component;
    let mut depth = link.components().count().saturating_sub(1);
    for component in target.components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            _ => return false,
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
            assert_eq!(stays_inside(Path::new(link), Path::new(target)), inside, "{link} -> {target}");
        };
        check("a/b", "../c", true);
        check("a/b", "../../c", false);
        check("a", "b/../c", true);
        check("a", "/etc/passwd", false);
        check("a/b/c", "../../../d", false);
    }
}
