//! Files and links that appear as a whole or not at all.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Writes a file in place of the one that was there; only its owner can read it.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder_of(path))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error).map(|_| ())
}

/// Makes a symbolic link in place of whatever was there, unless it leads there already. Its folder is made if
/// need be.
pub(crate) fn link(target: &Path, path: &Path) -> io::Result<()> {
    if std::fs::read_link(path).is_ok_and(|linked| linked == target) {
        return Ok(());
    }
    let folder = folder_of(path);
    std::fs::create_dir_all(folder)?;
    let temporary = tempfile::Builder::new().prefix(".").tempdir_in(folder)?;
    let link = temporary.path().join("link");
    std::os::unix::fs::symlink(target, &link)?;
    std::fs::rename(&link, path)
}

/// Copies a folder with all that is in it, links as links, to a place where nothing is yet. Its owner can write the
/// copies.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (path, place, kind) = (entry.path(), to.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() {
            copy_tree(&path, &place)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(&path)?, &place)?;
        } else {
            std::fs::copy(&path, &place)?;
            let file = std::fs::File::open(&place)?;
            let mut permissions = file.metadata()?.permissions();
            permissions.set_mode(permissions.mode() | 0o200);
            file.set_permissions(permissions)?;
            // What was compiled from the one is good for the other.
            file.set_modified(entry.metadata()?.modified()?)?;
        }
    }
    Ok(())
}

/// How many bytes the files of a folder have.
pub(crate) fn folder_bytes(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => folder_bytes(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_and_link_take_the_place_of_what_was_there() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (file, other, link_path) =
            (folder.path().join("a"), folder.path().join("b"), folder.path().join("c/d"));
        replace(&file, b"one").expect("written");
        replace(&file, b"two").expect("written");
        replace(&other, b"other").expect("written");
        assert_eq!(std::fs::read(&file).expect("read"), b"two");
        link(&file, &link_path).expect("linked");
        link(&other, &link_path).expect("linked anew");
        link(&other, &link_path).expect("as it was");
        assert_eq!(std::fs::read(&link_path).expect("read"), b"other");
        let left = std::fs::read_dir(folder.path().join("c")).expect("a folder").count();
        assert_eq!(left, 1, "nothing half-made stays");
    }
}
