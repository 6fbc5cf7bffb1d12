//! The workspaces that one process serves: those of the same environment and code, with the files of all of them,
//! unless one place would have two.
//!
//! Blocks where it reads folders. Not here: how the files get in front of a process that is up.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::LockfileHash;

use crate::workspace::Workspace;

/// The most workspaces of one process: all of them stay on disk as long as it is warm.
const MOST: usize = 16;

/// What one process serves.
#[derive(Clone, Debug)]
pub(super) struct Served {
    /// Kept, because whoever has a workspace is at work in it. There is always one.
    workspaces: Vec<Arc<Workspace>>,
    /// Each file, by its place below the folder of ComfyUI.
    files: BTreeMap<PathBuf, PathBuf>,
}

impl Served {
    /// One workspace alone.
    pub(super) fn alone(workspace: &Arc<Workspace>) -> io::Result<Self> {
        let files = files(workspace)?;
        Ok(Self { workspaces: vec![Arc::clone(workspace)], files })
    }

    /// These and one more; `None` where one process cannot serve them together.
    pub(super) fn with(&self, workspace: &Arc<Workspace>) -> io::Result<Option<Self>> {
        if self.has(workspace) {
            return Ok(Some(self.clone()));
        }
        let mut served = self.clone();
        // An older description of the same one gives way.
        served.workspaces.retain(|other| other.lockfile != workspace.lockfile);
        if served.workspaces.len() == MOST || !self.any().shares_a_process_with(workspace) {
            return Ok(None);
        }
        served.workspaces.push(Arc::clone(workspace));
        for (place, file) in files(workspace)? {
            match served.files.entry(place) {
                // A blob lies at one path, so another path is another hash.
                Entry::Occupied(there) if *there.get() != file => return Ok(None),
                Entry::Occupied(_) => {}
                Entry::Vacant(free) => drop(free.insert(file)),
            }
        }
        Ok(Some(served))
    }

    /// Whether it serves this one, as it is described.
    pub(super) fn has(&self, workspace: &Workspace) -> bool {
        self.workspaces.iter().any(|served| **served == *workspace)
    }

    /// The lockfiles of these.
    pub(super) fn lockfiles(&self) -> impl Iterator<Item = LockfileHash> {
        self.workspaces.iter().map(|workspace| workspace.lockfile)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.workspaces.len()
    }

    /// Any of them: their Python and their code are the same.
    pub(super) fn any(&self) -> &Workspace {
        &self.workspaces[0]
    }

    /// All files, by their places.
    pub(super) fn files(&self) -> &BTreeMap<PathBuf, PathBuf> {
        &self.files
    }
}

/// Each file of a workspace, by its place below the folder of ComfyUI.
fn files(workspace: &Workspace) -> io::Result<BTreeMap<PathBuf, PathBuf>> {
    let mut files = BTreeMap::new();
    if workspace.files.is_dir() {
        collect(&workspace.files, Path::new(""), &mut files)?;
    }
    Ok(files)
}

fn collect(folder: &Path, place: &Path, files: &mut BTreeMap<PathBuf, PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (path, place) = (entry.path(), place.join(entry.file_name()));
        match entry.file_type()?.is_dir() {
            true => collect(&path, &place, files)?,
            // The file itself, because the folder of links is not there for the process.
            false => drop(files.insert(place, std::fs::canonicalize(&path)?)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use protocol::{BlobHash, CodeHash, LockfileHash};

    use super::*;
    use crate::engine::managed::tests::workspace;

    #[test]
    fn workspaces_share_a_process_unless_their_code_differs_or_one_place_has_two_files() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        let of = |number: u8, files: &[(&str, &str)]| {
            let root = at(&number.to_string());
            for (place, blob) in files {
                fs::write(at(blob), blob).expect("written");
                let place = root.join(place);
                fs::create_dir_all(place.parent().expect("it has one")).expect("made");
                std::os::unix::fs::symlink(at(blob), place).expect("linked");
            }
            let mut workspace = workspace(&at("tree"), &root, "python");
            workspace.lockfile = LockfileHash(BlobHash([number; 32]));
            Arc::new(workspace)
        };
        let first = of(1, &[("models/vae/a", "blob-a")]);
        let served = Served::alone(&first).expect("read");
        assert!(served.has(&first));
        let second = of(2, &[("models/vae/a", "blob-a"), ("models/vae/b", "blob-b")]);
        let both = served.with(&second).expect("read").expect("nothing contradicts");
        assert!(both.has(&first) && both.has(&second) && !served.has(&second));
        let places: Vec<_> = both.files().keys().map(|place| place.display().to_string()).collect();
        assert_eq!(places, ["models/vae/a", "models/vae/b"]);
        let third = of(3, &[("models/vae/b", "blob-c")]);
        assert!(both.with(&third).expect("read").is_none(), "one place has two files");
        assert!(served.with(&third).expect("read").is_some());
        let other = Arc::new(Workspace { code: CodeHash(BlobHash([9; 32])), ..Workspace::clone(&second) });
        assert!(served.with(&other).expect("read").is_none(), "its code differs");
        let more = Arc::new(Workspace { classes: ["New".to_owned()].into(), ..Workspace::clone(&first) });
        let anew = both.with(&more).expect("read").expect("the same files");
        assert!((anew.count(), anew.has(&more), anew.has(&first)) == (2, true, false));
    }
}
