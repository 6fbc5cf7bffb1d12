//! The workspaces that one process can serve, each with its own files: those of the same environment and code, whose files
//! differ in nothing but models that their workflows name, unless one place would have two.
//!
//! ComfyUI looks such a model up in its folder whenever one is asked for, so it can come and go between runs. Anything
//! else, such as the weights beside a custom node or in its home, is read when it pleases that node, and kept: what only
//! one of two workspaces has of these would help the other one's runs here, and on no other machine. Blocks where it reads
//! folders. Not here: how the files get in front of a process that is up.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::LockfileHash;

use super::folders::MODELS;
use crate::workspace::Workspace;

/// The most workspaces of one process: all of them stay on disk as long as it is warm.
const MOST: usize = 16;

/// Each file, by its place below the folder of ComfyUI.
pub(super) type Files = BTreeMap<PathBuf, PathBuf>;

/// What one process can serve.
#[derive(Clone, Debug)]
pub(super) struct Served {
    /// There is always one, and the last is the one that came last.
    members: Vec<Member>,
}

/// One of them.
#[derive(Clone, Debug)]
struct Member {
    /// Kept, because whoever has a workspace is at work in it.
    workspace: Arc<Workspace>,
    files: Files,
}

impl Served {
    /// One workspace alone.
    pub(super) fn alone(workspace: &Arc<Workspace>) -> io::Result<Self> {
        Ok(Self { members: vec![Member::of(workspace)?] })
    }

    /// These and this one, which is the last then; `None` where one process cannot serve them together.
    pub(super) fn with(&self, workspace: &Arc<Workspace>) -> io::Result<Option<Self>> {
        let member = match self.member(workspace) {
            Some(member) => member.clone(),
            None => Member::of(workspace)?,
        };
        let mut members = self.members.clone();
        // An older description of the same one gives way.
        members.retain(|other| other.workspace.lockfile != workspace.lockfile);
        let can_serve = self.any().shares_a_process_with(workspace)
            && members.len() < MOST
            && members.iter().all(|other| other.goes_with(&member));
        if !can_serve {
            return Ok(None);
        }
        members.push(member);
        Ok(Some(Self { members }))
    }

    /// Whether it serves this one, as it is described.
    pub(super) fn has(&self, workspace: &Workspace) -> bool {
        self.member(workspace).is_some()
    }

    fn member(&self, workspace: &Workspace) -> Option<&Member> {
        self.members.iter().find(|member| *member.workspace == *workspace)
    }

    fn last(&self) -> &Member {
        self.members.last().expect("there is always one")
    }

    /// The lockfiles of these.
    pub(super) fn lockfiles(&self) -> impl Iterator<Item = LockfileHash> {
        self.members.iter().map(|member| member.workspace.lockfile)
    }

    /// Any of them: their Python and their code are the same.
    pub(super) fn any(&self) -> &Workspace {
        &self.last().workspace
    }

    /// The files of the last one alone.
    pub(super) fn files(&self) -> &Files {
        &self.last().files
    }

    /// Where the files of all of them are.
    pub(super) fn sources(&self) -> impl Iterator<Item = &Path> {
        self.members.iter().flat_map(|member| member.files.values().map(PathBuf::as_path))
    }
}

impl Member {
    fn of(workspace: &Arc<Workspace>) -> io::Result<Self> {
        let mut files = Files::new();
        if workspace.files.is_dir() {
            collect(&workspace.files, Path::new(""), &mut files)?;
        }
        Ok(Self { workspace: Arc::clone(workspace), files })
    }

    /// Whether one process can have the files of both, one after the other.
    fn goes_with(&self, other: &Self) -> bool {
        // A blob lies at one path, so another path is another hash.
        let is_same = |(place, file)| other.files.get(place).is_none_or(|there| there == file);
        self.files.iter().all(is_same) && self.lasting().eq(other.lasting())
    }

    /// The files that a process has from its start to its end.
    fn lasting(&self) -> impl Iterator<Item = (&PathBuf, &PathBuf)> {
        self.files.iter().filter(|(place, _)| !self.comes_and_goes(place))
    }

    /// Whether it is a model that the workflows name, in whose place the code has nothing of its own.
    fn comes_and_goes(&self, place: &Path) -> bool {
        let name = place.strip_prefix(MODELS).ok().and_then(Path::to_str);
        name.is_some_and(|name| self.workspace.model_names.contains(name))
            && self.workspace.comfyui.join(place).symlink_metadata().is_err()
    }
}

fn collect(folder: &Path, place: &Path, files: &mut Files) -> io::Result<()> {
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

    use protocol::{BlobHash, CodeHash, EnvironmentKey, LockfileHash};

    use super::*;
    use crate::engine::managed::tests::workspace;

    #[test]
    fn workspaces_share_a_process_unless_more_than_models_differs_or_one_place_has_two_files() {
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
            workspace.model_names = ["vae/a".to_owned(), "vae/b".to_owned()].into();
            Arc::new(workspace)
        };
        let places = |served: &Served| {
            served.files().keys().map(|place| place.display().to_string()).collect::<Vec<_>>()
        };
        let first = of(1, &[("models/vae/a", "blob-a")]);
        let served = Served::alone(&first).expect("read");
        assert!(served.has(&first));
        let second = of(2, &[("models/vae/b", "blob-b")]);
        let both = served.with(&second).expect("read").expect("nothing contradicts");
        assert!(both.has(&first) && both.has(&second) && !served.has(&second));
        assert_eq!((places(&both), both.sources().count()), (vec!["models/vae/b".to_owned()], 2));
        let back = both.with(&first).expect("read").expect("it is one of them");
        assert_eq!((places(&back), back.lockfiles().count()), (vec!["models/vae/a".to_owned()], 2));
        let third = of(3, &[("models/vae/b", "blob-c")]);
        for served in [&both, &back] {
            assert!(served.with(&third).expect("read").is_none(), "one place has two files");
        }
        assert!(served.with(&third).expect("read").is_some());
        let other = Arc::new(Workspace { code: CodeHash(BlobHash([9; 32])), ..Workspace::clone(&second) });
        assert!(served.with(&other).expect("read").is_none(), "its code differs");
        let more = Arc::new(Workspace { classes: ["New".to_owned()].into(), ..Workspace::clone(&first) });
        let anew = both.with(&more).expect("read").expect("the same files");
        assert!((anew.lockfiles().count(), anew.has(&more), anew.has(&first)) == (2, true, false));
        let elsewhere =
            Workspace { environment: EnvironmentKey(BlobHash([9; 32])), ..Workspace::clone(&first) };
        assert!(served.with(&Arc::new(elsewhere)).expect("read").is_none(), "it was built anew");

        // What no workflow names a custom node may find and keep; and what the code has would not come back.
        fs::create_dir_all(at("tree/models/vae")).expect("made");
        fs::write(at("tree/models/vae/b"), "the code's own").expect("written");
        let unnamed = ["models/faces/a", "custom_nodes/a/b", "home/torch/a", "models/vae/b"];
        for (number, place) in (4..).zip(unnamed) {
            let fourth = of(number, &[("models/vae/a", "blob-a"), (place, "blob-d")]);
            assert!(served.with(&fourth).expect("read").is_none(), "{place}");
            let alone = Served::alone(&fourth).expect("read");
            assert!(alone.with(&first).expect("read").is_none(), "{place}");
            let same = Workspace { lockfile: first.lockfile, ..Workspace::clone(&fourth) };
            assert!(alone.with(&Arc::new(same)).expect("read").is_some(), "{place}");
        }
    }
}
