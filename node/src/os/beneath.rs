//! Links below a folder in which a stranger's program may write, even while we do: what it laid there leads us nowhere
//! else.
//!
//! Each folder is opened from the one above it and never through a link, so it does not matter what is swapped
//! meanwhile. Not here: who may write where.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, mkdirat, openat, readlinkat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

/// How a folder is opened that may be swapped for a link.
const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// How deep folders are counted; each level holds a file open.
const DEEPEST: usize = 200;

/// Makes a symbolic link at a place below `root`, with the folders on the way, instead of a file that was there.
/// `false` where something on the way is no folder; a link to one is none.
pub(crate) fn link(target: &Path, root: &Path, place: &Path) -> io::Result<bool> {
    let Some((folder, name)) = way_to(root, place)? else { return Ok(false) };
    remove(&folder, name)?;
    symlinkat(target, &folder, name)?;
    Ok(true)
}

/// Removes a symbolic link at a place below `root`; one that is gone already is fine. `false` where something else is
/// there, or something on the way is no folder.
pub(crate) fn unlink(root: &Path, place: &Path) -> io::Result<bool> {
    let Some((folder, name)) = way_to(root, place)? else { return Ok(false) };
    match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(true),
        stat if !FileType::from_raw_mode(stat?.st_mode).is_symlink() => return Ok(false),
        _ => {}
    }
    remove(&folder, name)?;
    Ok(true)
}

/// Whether a symbolic link to this target is at a place below `root`.
pub(crate) fn is_link(target: &Path, root: &Path, place: &Path) -> io::Result<bool> {
    let Some((folder, name)) = way_to(root, place)? else { return Ok(false) };
    match readlinkat(&folder, name, Vec::new()) {
        Ok(there) => Ok(there.to_bytes() == target.as_os_str().as_bytes()),
        // There is nothing, or no link.
        Err(Errno::NOENT | Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// How many bytes the files of a folder and of those in it have. What goes meanwhile counts for nothing.
pub(crate) fn bytes(folder: &Path) -> io::Result<u64> {
    bytes_in(&openat(CWD, folder, FOLDER, Mode::empty())?, DEEPEST, &mut Err)
}

/// As [`bytes`], but what cannot be read counts for nothing; with the last reason for that.
pub(crate) fn readable_bytes(folder: &Path) -> (u64, Option<io::Error>) {
    let mut unread = None;
    let opened = openat(CWD, folder, FOLDER, Mode::empty()).map_err(io::Error::from);
    let mut skip = |error| {
        unread = Some(error);
        Ok(())
    };
    match opened.and_then(|folder| bytes_in(&folder, DEEPEST, &mut skip)) {
        Ok(bytes) => (bytes, unread),
        Err(error) => (0, Some(error)),
    }
}

/// `fault` is asked of each folder in it that cannot be read whether that ends it.
fn bytes_in(
    folder: &OwnedFd,
    depth: usize,
    fault: &mut dyn FnMut(io::Error) -> io::Result<()>,
) -> io::Result<u64> {
    let depth =
        depth.checked_sub(1).ok_or_else(|| io::Error::other("folders are in one another without end"))?;
    let mut bytes = 0_u64;
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            stat => stat?,
        };
        let size = if FileType::from_raw_mode(stat.st_mode).is_dir() {
            match openat(folder, name, FOLDER, Mode::empty()) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => 0,
                folder => {
                    let counted =
                        folder.map_err(io::Error::from).and_then(|folder| bytes_in(&folder, depth, fault));
                    counted.or_else(|error| fault(error).map(|()| 0))?
                }
            }
        } else {
            u64::try_from(stat.st_size).unwrap_or(0)
        };
        bytes = bytes.saturating_add(size);
    }
    Ok(bytes)
}

/// The folder of a place below `root`, made with those above it if need be, and its name in there. `None` where
/// something on the way is no folder.
fn way_to<'a>(root: &Path, place: &'a Path) -> io::Result<Option<(OwnedFd, &'a OsStr)>> {
    let Some(names) = names(place) else { return Ok(None) };
    let Some((name, folders)) = names.split_last() else { return Ok(None) };
    let mut folder = openat(CWD, root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for name in folders {
        match folder_in(&folder, name)? {
            Some(next) => folder = next,
            None => return Ok(None),
        }
    }
    Ok(Some((folder, name)))
}

fn remove(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The parts of a path that goes nowhere but down.
fn names(place: &Path) -> Option<Vec<&OsStr>> {
    let name = |part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    };
    place.components().map(name).collect()
}

/// Opens a folder in another one, and makes it if need be. `None` where that name is something else's.
fn folder_in(folder: &OwnedFd, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    let open = || openat(folder, name, FOLDER, Mode::empty());
    let mut opened = open();
    if matches!(opened, Err(Errno::NOENT)) {
        match mkdirat(folder, name, Mode::RWXU | Mode::RWXG | Mode::RWXO) {
            Ok(()) | Err(Errno::EXIST) => opened = open(),
            Err(error) => return Err(error.into()),
        }
    }
    match opened {
        Ok(folder) => Ok(Some(folder)),
        // Systems differ in how they name a link here.
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn link_takes_the_place_of_a_file_in_folders_that_are_made_on_the_way() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let place = Path::new("a/b/c");
        for target in ["/one", "/two"] {
            assert!(link(Path::new(target), folder.path(), place).expect("made"));
            assert_eq!(fs::read_link(folder.path().join(place)).expect("a link"), Path::new(target));
        }
        fs::write(folder.path().join("a/file"), "a pointer").expect("written");
        assert!(link(Path::new("/three"), folder.path(), Path::new("a/file")).expect("made"));
        assert_eq!(fs::read_link(folder.path().join("a/file")).expect("a link"), Path::new("/three"));
        let left = fs::read_dir(folder.path().join("a")).expect("a folder").count();
        assert_eq!(left, 2, "nothing half-made stays");
    }

    #[test]
    fn only_links_go_and_those_that_are_gone_are_no_fault() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let check = |place: &str, expected: bool| {
            assert_eq!(unlink(folder.path(), Path::new(place)).expect(place), expected, "{place}");
        };
        assert!(link(Path::new("/one"), folder.path(), Path::new("a/link")).expect("made"));
        fs::write(folder.path().join("a/file"), "a run's own").expect("written");
        symlink(folder.path().join("a"), folder.path().join("b")).expect("linked");
        check("b/link", false);
        check("a/link", true);
        assert!(folder.path().join("a/link").symlink_metadata().is_err());
        check("a/link", true);
        for other in ["a/file", "a", "../a/link", "a/file/link"] {
            check(other, false);
        }
        assert_eq!(fs::read_to_string(folder.path().join("a/file")).expect("there"), "a run's own");
    }

    #[test]
    fn link_is_known_by_its_own_target_and_by_no_other_way() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path();
        assert!(link(Path::new("/one"), root, Path::new("a/link")).expect("made"));
        fs::write(root.join("a/file"), "a run's own").expect("written");
        symlink(root.join("a"), root.join("b")).expect("linked");
        for (place, target, expected) in [
            ("a/link", "/one", true),
            ("a/link", "/two", false),
            ("a/file", "/one", false),
            ("a/gone", "/one", false),
            ("b/link", "/one", false),
        ] {
            let there = is_link(Path::new(target), root, Path::new(place)).expect(place);
            assert_eq!(there, expected, "{place}: {target}");
        }
    }

    #[test]
    fn nothing_on_the_way_leads_elsewhere() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["root/own", "owners/folder"] {
            fs::create_dir_all(at(name)).expect("made");
        }
        fs::write(at("root/own/file"), "no folder").expect("written");
        symlink(at("owners"), at("root/absolute")).expect("linked");
        symlink("../../owners/folder", at("root/own/relative")).expect("linked");
        symlink("nowhere", at("root/dangling")).expect("linked");
        for place in [
            "absolute/x",
            "absolute/new/x",
            "absolute/folder/x",
            "own/relative/x",
            "dangling/x",
            "own/file/x",
            "../owners/x",
            "own/../../owners/x",
            "/x",
            "",
        ] {
            assert!(!link(Path::new("/target"), &at("root"), Path::new(place)).expect(place), "{place}");
        }
        assert_eq!(fs::read_dir(at("owners")).expect("a folder").count(), 1, "as it was");
        assert_eq!(fs::read_dir(at("owners/folder")).expect("a folder").count(), 0, "as it was");
        // A link in the place itself is not followed, but gives way.
        symlink(at("owners/made"), at("root/last")).expect("linked");
        assert!(link(Path::new("/target"), &at("root"), Path::new("last")).expect("made"));
        assert_eq!(fs::read_link(at("root/last")).expect("a link"), Path::new("/target"));
    }

    #[test]
    fn bytes_are_those_of_files_below_and_of_nothing_that_links_lead_to() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["root/a/b", "owners"] {
            fs::create_dir_all(at(name)).expect("made");
        }
        for (name, text) in [("root/one", "1"), ("root/a/b/two", "22"), ("owners/secret", "a long text")] {
            fs::write(at(name), text).expect("written");
        }
        assert_eq!(bytes(&at("root")).expect("counted"), 3);
        symlink(at("owners"), at("root/a/l")).expect("linked");
        let of_link = at("owners").as_os_str().len() as u64;
        assert_eq!(bytes(&at("root")).expect("counted"), 3 + of_link);
        symlink(at("owners"), at("link")).expect("linked");
        assert!(bytes(&at("link")).is_err());
        fs::create_dir_all(at("root").join("d/".repeat(DEEPEST))).expect("made");
        assert!(bytes(&at("root")).is_err(), "it has an end");
        let (counted, unread) = readable_bytes(&at("root"));
        assert!(counted == 3 + of_link && unread.is_some(), "{counted}: {unread:?}");
        assert!(readable_bytes(&at("link")).1.is_some());
    }
}
