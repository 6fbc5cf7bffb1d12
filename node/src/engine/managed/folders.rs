//! What one process has for itself: a copy of its code tree with the workspace's files in place, and a home.
//!
//! Made anew for each process, so a run that writes beside itself changes nothing for the next one, and the tree that
//! it came from never. Blocks. Not here: who may read what.

use std::io;
use std::path::{Path, PathBuf};

use crate::os::file::{copy_tree, folder_bytes, link};
use crate::workspace::Workspace;

/// What joins a process without a network to its socket.
const RELAY: &str = include_str!("relay.py");

/// The folders of one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Folders {
    /// All of them are in here.
    pub(super) root: PathBuf,
}

impl Folders {
    /// The code, with its `input`, `output`, `temp`, `user` and `models`.
    pub(super) fn code(&self) -> PathBuf {
        self.root.join("ComfyUI")
    }

    /// What the process has for its home.
    pub(super) fn home(&self) -> PathBuf {
        self.root.join("home")
    }

    /// A page in place of ComfyUI's own, which nobody looks at.
    pub(super) fn front(&self) -> PathBuf {
        self.root.join("front")
    }

    /// Temporary files of programs.
    pub(super) fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// What joins a process without a network to its socket.
    pub(super) fn relay(&self) -> PathBuf {
        self.root.join("relay.py")
    }

    /// Where a process without a network is talked to.
    pub(super) fn socket(&self) -> PathBuf {
        self.root.join("comfyui.sock")
    }

    /// What the process says; where it cannot write.
    pub(super) fn log(&self) -> PathBuf {
        self.root.with_extension("log")
    }

    /// Makes them for a process of this workspace, in place of those of an earlier one.
    pub(super) fn make(&self, workspace: &Workspace) -> io::Result<()> {
        self.clear()?;
        for folder in [self.home(), self.front(), self.temporary()] {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(self.front().join("index.html"), "<!doctype html><title>ComfyUI</title>\n")?;
        std::fs::write(self.relay(), RELAY)?;
        copy_tree(&workspace.comfyui, &self.code())?;
        for (file, place) in files(workspace)? {
            link(&file, &self.code().join(place))?;
        }
        Ok(())
    }

    /// Removes all but the log.
    pub(super) fn clear(&self) -> io::Result<()> {
        for folder in [self.code(), self.home(), self.front(), self.temporary()] {
            match std::fs::remove_dir_all(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        // The socket of an earlier process.
        match std::fs::remove_file(self.socket()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// How many bytes the runs of the process left.
    pub(super) fn bytes_of_runs(&self) -> io::Result<u64> {
        let folders = ["input", "output", "temp"].map(|name| self.code().join(name));
        let there = folders.iter().filter(|folder| folder.is_dir());
        there.map(|folder| folder_bytes(folder)).sum()
    }
}

/// Each file of a workspace, and its place below the folder of ComfyUI.
pub(super) fn files(workspace: &Workspace) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let mut files = Vec::new();
    if workspace.files.is_dir() {
        collect(&workspace.files, Path::new(""), &mut files)?;
    }
    Ok(files)
}

fn collect(folder: &Path, place: &Path, files: &mut Vec<(PathBuf, PathBuf)>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (path, place) = (entry.path(), place.join(entry.file_name()));
        match entry.file_type()?.is_dir() {
            true => collect(&path, &place, files)?,
            // The file itself, because the folder of links is not there for the process.
            false => files.push((std::fs::canonicalize(&path)?, place)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::engine::managed::tests::workspace;

    #[test]
    fn process_has_a_tree_of_its_own_with_the_files_in_place() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        for (path, text) in [
            ("tree/main.py", "run"),
            ("tree/custom_nodes/a/x.py", "x"),
            ("files/models/vae/a.safetensors", "vae"),
            ("files/custom_nodes/a/weights.bin", "weights"),
        ] {
            fs::create_dir_all(at(path).parent().expect("it has one")).expect("made");
            fs::write(at(path), text).expect("written");
        }
        let workspace = workspace(&at("tree"), &at("files"), "python");
        let folders = Folders { root: at("slot-0") };
        folders.make(&workspace).expect("made");
        let read = |path: &str| fs::read_to_string(folders.code().join(path)).expect(path);
        assert_eq!((read("main.py"), read("models/vae/a.safetensors")), ("run".into(), "vae".into()));
        assert_eq!(read("custom_nodes/a/weights.bin"), "weights");
        fs::write(folders.code().join("main.py"), "changed").expect("it may write beside itself");
        assert_eq!(fs::read_to_string(at("tree/main.py")).expect("there"), "run");
        fs::create_dir_all(folders.code().join("output/a")).expect("made");
        fs::write(folders.code().join("output/a/b.png"), "12345").expect("written");
        assert_eq!(folders.bytes_of_runs().expect("counted"), 5);
        folders.make(&workspace).expect("made anew");
        assert_eq!((read("main.py").as_str(), folders.bytes_of_runs().expect("counted")), ("run", 0));
    }
}
