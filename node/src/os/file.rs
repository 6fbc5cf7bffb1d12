//! Files and links that appear as a whole or not at all.

use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use tracing::warn;

/// Writes a file in place of the one that was there; only its owner can read it.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder_of(path))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error).map(|_| ())
}

/// How the folders begin in which links are made.
const LINK_DRAFT: &str = ".farm-link-";

/// Makes a symbolic link in place of whatever was there, unless it leads there already. Its folder is made if
/// need be.
pub(crate) fn link(target: &Path, path: &Path) -> io::Result<()> {
    if std::fs::read_link(path).is_ok_and(|linked| linked == target) {
        return Ok(());
    }
    let folder = folder_of(path);
    std::fs::create_dir_all(folder)?;
    let temporary = link_draft(folder)?;
    let link = temporary.path().join("link");
    std::os::unix::fs::symlink(target, &link)?;
    std::fs::rename(&link, path)
}

fn link_draft(folder: &Path) -> io::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix(LINK_DRAFT).tempdir_in(folder)
}

/// Removes what a [`link`] that was killed left anywhere below a folder, which need not be there.
pub(crate) fn clear_link_drafts(folder: &Path) -> io::Result<()> {
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            match entry.file_name().as_encoded_bytes().starts_with(LINK_DRAFT.as_bytes()) {
                true => super::removal::remove(&entry.path())?,
                false => open.push(entry.path()),
            }
        }
    }
    Ok(())
}

/// Copies a folder with its files and folders, links as links, to a place where nothing is yet. Its owner can write the
/// copies. What a program left that is none of these, such as a socket or a named pipe, is left out.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (path, place, kind) = (entry.path(), to.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() {
            copy_tree(&path, &place)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(&path)?, &place)?;
        } else if !kind.is_file() {
            // To open it would wait for whoever is at its other end.
            warn!(path = %path.display(), "left out of a copy: it is neither a file nor a folder nor a link");
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

/// Whether a program or a library says in these words that a disk is full.
pub(crate) fn tells_full_disk(words: &str) -> bool {
    ["No space left", "(os error 28)", "Disk quota exceeded"].iter().any(|said| words.contains(said))
}

/// Reads a file that a stranger's program wrote; what is none, such as a link or a named pipe, is refused, and so is one
/// of more than `most` bytes.
pub(crate) fn read_plain(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    // A pipe is opened without waiting for somebody at its other end.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = std::fs::File::from(open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no plain file"));
    }
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let text = format!("it has more than the {most} bytes that are read of such a file");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
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
        // As a kill leaves it.
        let draft = link_draft(&folder.path().join("c")).expect("made").keep();
        std::os::unix::fs::symlink(&file, draft.join("link")).expect("linked");
        clear_link_drafts(folder.path()).expect("cleared");
        assert!(!draft.exists() && file.exists() && link_path.exists());
    }

    #[test]
    fn what_is_no_file_is_neither_copied_nor_read() {
        use std::os::unix::fs::symlink;
        use std::os::unix::net::UnixListener;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("from/a")).expect("made");
        std::fs::write(at("from/a/file"), "text").expect("written");
        symlink("file", at("from/a/link")).expect("linked");
        nix::unistd::mkfifo(&at("from/a/pipe"), nix::sys::stat::Mode::S_IRWXU).expect("made");
        let _listener = UnixListener::bind(at("from/socket")).expect("bound");
        copy_tree(&at("from"), &at("to")).expect("copied");
        assert_eq!(std::fs::read_to_string(at("to/a/link")).expect("read through the link"), "text");
        for left_out in ["to/a/pipe", "to/socket"] {
            assert!(at(left_out).symlink_metadata().is_err(), "{left_out}");
        }
        assert_eq!(read_plain(&at("from/a/file"), 4).expect("read"), b"text");
        let error = read_plain(&at("from/a/file"), 3).expect_err("it is longer");
        assert!(error.to_string().contains("more than the 3 bytes"), "{error}");
        for refused in ["from/a/pipe", "from/a/link", "from/a", "from/socket"] {
            assert!(read_plain(&at(refused), 100).is_err(), "{refused}");
        }
    }
}
