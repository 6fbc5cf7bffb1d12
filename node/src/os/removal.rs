//! Removing a folder in which a stranger's program wrote, however deep its folders are and whatever their modes.
//!
//! Nobody may be writing there any more. Not here: what is removed.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, chmodat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use rustix::path::Arg;

/// Removes a folder, if it is there, or what is there in its place. It is out of its place first, so that a kill
/// leaves no half of it; what a kill leaves has a name that begins with a point.
pub(crate) fn remove(place: &Path) -> io::Result<()> {
    let name = place.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let beside = place.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if place.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    let aside = tempfile::Builder::new().prefix(".").tempdir_in(beside)?;
    let mut heap = Heap { folder: open(CWD, aside.path())?, left: Vec::new(), taken: 0 };
    heap.take(&open(CWD, beside)?, name)?;
    while let Some(name) = heap.left.pop() {
        let folder = openat(&heap.folder, &name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                heap.take(&folder, entry.file_name())?;
            }
        }
        unlinkat(&heap.folder, &name, AtFlags::REMOVEDIR)?;
    }
    aside.close()
}

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

/// Folders to be removed, side by side, so that no path grows and no more than two are open.
struct Heap {
    folder: OwnedFd,
    /// The names of those that may have something in them.
    left: Vec<CString>,
    taken: u64,
}

impl Heap {
    /// Takes a folder out of another one; what is none is removed.
    fn take(&mut self, from: &OwnedFd, name: impl Arg + Copy) -> io::Result<()> {
        let stat = match statat(from, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            stat => stat?,
        };
        if !FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Ok(unlinkat(from, name, AtFlags::empty())?);
        }
        if !Mode::from_raw_mode(stat.st_mode).contains(Mode::RWXU) {
            chmodat(from, name, Mode::RWXU, AtFlags::empty())?;
        }
        self.taken += 1;
        let taken = CString::new(self.taken.to_string())?;
        renameat(from, name, &self.folder, &taken)?;
        self.left.push(taken);
        Ok(())
    }
}

fn open(folder: impl std::os::fd::AsFd, path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(folder, path, FOLDER, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::mkdirat;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        entries.map(|entry| entry.expect("read").file_name().into_string().expect("text")).collect()
    }

    #[test]
    fn folder_is_removed_with_what_is_in_it_and_with_nothing_that_links_lead_to() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("gone/a/b")).expect("made");
        fs::create_dir_all(at("kept/folder")).expect("made");
        fs::set_permissions(at("kept/folder"), fs::Permissions::from_mode(0o555)).expect("set");
        for name in ["gone/a/b/file", "gone/1", "kept/file"] {
            fs::write(at(name), "text").expect("written");
        }
        symlink(at("kept"), at("gone/a/link")).expect("linked");
        symlink(at("kept/folder"), at("gone/1-link")).expect("linked");
        remove(&at("gone")).expect("removed");
        remove(&at("gone")).expect("it is not there any more");
        symlink(at("kept"), at("link")).expect("linked");
        remove(&at("link")).expect("the link is removed");
        assert_eq!(names(folder.path()), ["kept"]);
        assert_eq!(names(&at("kept")).len(), 2);
        assert_eq!(at("kept/folder").metadata().expect("there").permissions().mode() & 0o777, 0o555);
    }

    #[test]
    fn folders_deeper_than_any_path_are_removed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut inner = open(CWD, folder.path()).expect("opened");
        for _ in 0..5000 {
            mkdirat(&inner, "deep", Mode::RWXU).expect("made");
            inner = open(&inner, Path::new("deep")).expect("opened");
        }
        drop(inner);
        remove(&folder.path().join("deep")).expect("removed");
        assert!(names(folder.path()).is_empty());
    }

    /// Root is stopped by no mode, so it is somebody else in this thread.
    #[cfg(target_os = "linux")]
    #[test]
    fn folders_that_their_owner_may_not_read_or_write_are_removed() {
        use nix::unistd::{Uid, geteuid, setfsuid};
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("set");
        if geteuid().is_root() {
            setfsuid(Uid::from_raw(65534));
        }
        let at = |name: &str| folder.path().join(name);
        for (mode, name) in [(0o555, "read-only"), (0o000, "closed")] {
            let set = |name: &str| fs::set_permissions(at(name), fs::Permissions::from_mode(mode));
            fs::create_dir_all(at(name).join("a/b")).expect("made");
            fs::write(at(name).join("a/file"), "text").expect("written");
            set(&format!("{name}/a")).expect("set");
            set(name).expect("set");
            assert!(fs::remove_dir_all(at(name)).is_err(), "{name}: it takes more than that");
            remove(&at(name)).expect(name);
        }
        assert!(names(folder.path()).is_empty());
        setfsuid(geteuid());
    }
}
