//! What one process has for itself: a copy of its code tree with the workspace's files in place, and a home.
//!
//! Made anew for each process: what a run writes beside itself is there for the next runs of its process, and for no
//! other process; the tree that it came from never changes. What a process left in its folders, or lays there meanwhile,
//! leads to no others, and keeps nobody from removing them: it may have walls that we have not. Blocks. Not here: who may
//! read what.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use protocol::BlobHash;

use super::served::Files;
use crate::os::beneath;
use crate::os::file::copy_tree;
use crate::os::removal::remove;

/// The code, in the folders of a slot.
const CODE: &str = "ComfyUI";
/// The folder of ComfyUI in which it looks for new files again and again.
pub(super) const MODELS: &str = "models";

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
        self.root.join(CODE)
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

    /// Where a process without a network is talked to; where it cannot write.
    pub(super) fn socket(&self) -> PathBuf {
        self.root.with_extension("sock")
    }

    /// What the process says; where it cannot write.
    pub(super) fn log(&self) -> PathBuf {
        self.root.with_extension("log")
    }

    /// What a process within walls can read of files that came after its start, and cannot write.
    pub(super) fn further(&self) -> PathBuf {
        self.root.with_extension("further")
    }

    /// Makes them for a process of this code with these files, in place of those of an earlier one.
    pub(super) fn make(&self, code: &Path, files: &Files) -> io::Result<()> {
        self.clear()?;
        for folder in [self.home(), self.front(), self.temporary(), self.further()] {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(self.front().join("index.html"), "<!doctype html><title>ComfyUI</title>\n")?;
        std::fs::write(self.relay(), RELAY)?;
        copy_tree(code, &self.code())?;
        for (place, file) in files {
            if !beneath::link(file, &self.root, &below_root(place))? {
                let place = place.display();
                return Err(io::Error::other(format!(
                    "the code has no folder for `{place}`, but a link or a file on the way to it"
                )));
            }
        }
        Ok(())
    }

    /// Has a process that is up see these files in place of those, of which none has another's place. `within` its walls,
    /// if it has some, are the files that it can read by themselves. `false` where that does not come about, and some of
    /// both may be there.
    pub(super) fn exchange(
        &self,
        those: &Files,
        these: &Files,
        within: Option<&BTreeSet<PathBuf>>,
    ) -> io::Result<bool> {
        for place in those.keys().filter(|place| !these.contains_key(*place)) {
            if !beneath::unlink(&self.root, &below_root(place))? {
                return Ok(false);
            }
        }
        for (place, file) in these {
            let is_there = match those.contains_key(place) {
                // A run may have removed it, or put another file in its place.
                true => self.has(place, file)?,
                false => self.add(place, file, within.is_some_and(|within| !within.contains(file)))?,
            };
            if !is_there {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether this file is in front of the process, as it was put there.
    fn has(&self, place: &Path, file: &Path) -> io::Result<bool> {
        let is_link = |target: &Path| beneath::is_link(target, &self.root, &below_root(place));
        Ok(is_link(file)? || is_link(&self.visible(file))?)
    }

    /// Puts another file in front of a process that is up. It can be a model that nothing else lies in the place of:
    /// what else there is was looked at as the process started. `false` where the process would not see it, or has a link
    /// on the way to it.
    fn add(&self, place: &Path, file: &Path, is_beyond_walls: bool) -> io::Result<bool> {
        if !place.starts_with(MODELS) || self.code().join(place).symlink_metadata().is_ok() {
            return Ok(false);
        }
        if !is_beyond_walls {
            return beneath::link(file, &self.root, &below_root(place));
        }
        // Its walls were made around the files of its start, and around a folder for those that come.
        let visible = self.visible(file);
        match std::fs::hard_link(file, &visible) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // On another disk, or another user's.
            Err(_) => return Ok(false),
            Ok(()) => {}
        }
        beneath::link(&visible, &self.root, &below_root(place))
    }

    /// Where a process within walls reads a file that came after its start.
    fn visible(&self, file: &Path) -> PathBuf {
        self.further().join(BlobHash::of(file.as_os_str().as_encoded_bytes()).to_string())
    }

    /// Removes all but the log. Nobody may be at work in them.
    pub(super) fn clear(&self) -> io::Result<()> {
        [self.root.clone(), self.further()].iter().try_for_each(|folder| remove(folder))
    }

    /// How many bytes are in them, in all that a process can write, wherever a run put them.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        beneath::bytes(&self.root)
    }
}

/// Where a file of a workspace goes: what a lockfile has below `home/` into the home, and all else into the code.
fn below_root(place: &Path) -> PathBuf {
    match place.starts_with("home") {
        true => place.to_owned(),
        false => Path::new(CODE).join(place),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::Arc;

    use super::*;
    use crate::engine::managed::served::Served;
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
            ("files/home/torch/hub/checkpoints/a.pth", "fetched"),
        ] {
            fs::create_dir_all(at(path).parent().expect("it has one")).expect("made");
            fs::write(at(path), text).expect("written");
        }
        let workspace = Arc::new(workspace(&at("tree"), &at("files"), "python"));
        let served = Served::alone(&workspace).expect("read");
        let (folders, tree) = (Folders { root: at("slot-0") }, at("tree"));
        folders.make(&tree, served.files()).expect("made");
        let read = |path: &str| fs::read_to_string(folders.code().join(path)).expect(path);
        assert_eq!((read("main.py"), read("models/vae/a.safetensors")), ("run".into(), "vae".into()));
        assert_eq!(read("custom_nodes/a/weights.bin"), "weights");
        let of_home = folders.home().join("torch/hub/checkpoints/a.pth");
        assert_eq!(fs::read_to_string(of_home).expect("there"), "fetched");
        let model = at("blob");
        fs::write(&model, "further").expect("written");
        for (place, has_walls, is_seen) in [
            ("models/vae/b.safetensors", true, true),
            ("models/new/c.safetensors", false, true),
            ("models/vae/a.safetensors", true, false),
            ("custom_nodes/a/d.bin", false, false),
        ] {
            let seen = folders.add(Path::new(place), &model, has_walls).expect("looked at");
            assert_eq!((seen, seen && read(place) == "further"), (is_seen, is_seen), "{place}");
        }
        assert!(
            fs::read_link(folders.code().join("models/vae/b.safetensors"))
                .expect("a link")
                .starts_with(folders.further())
        );
        // Others take their place, and those of the start come back.
        let files = |names: &[&str]| -> Files {
            names.iter().map(|name| (format!("models/vae/{name}").into(), at("blob"))).collect()
        };
        let names = || {
            let listed = fs::read_dir(folders.code().join("models/vae")).expect("a folder");
            let name = |entry: io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
            listed.map(name).collect::<BTreeSet<_>>()
        };
        let (first, second) = (files(&["a.safetensors", "b.safetensors"]), files(&["c.safetensors"]));
        let within = BTreeSet::new();
        for (those, these) in [(&first, &second), (&second, &first)] {
            assert!(folders.exchange(those, these, Some(&within)).expect("exchanged"));
            assert_eq!(
                names(),
                these.keys().map(|place| place.file_name().expect("it has one").to_owned()).collect()
            );
            assert!(these.keys().all(|place| read(place.to_str().expect("UTF-8")) == "further"));
        }
        let beside = files(&["b.safetensors", "c.safetensors"]);
        assert!(folders.exchange(&first, &beside, Some(&within)).expect("exchanged"), "one stays");
        assert!(folders.exchange(&beside, &first, Some(&within)).expect("exchanged"));
        fs::remove_file(folders.code().join("models/vae/a.safetensors")).expect("removed");
        assert!(!folders.exchange(&first, &first, Some(&within)).expect("looked at"), "it is gone");
        fs::write(folders.code().join("models/vae/a.safetensors"), "a run's own").expect("written");
        assert!(!folders.exchange(&first, &first, Some(&within)).expect("looked at"), "it is another");
        assert!(!folders.exchange(&first, &second, None).expect("looked at"), "that cannot go");
        fs::write(folders.code().join("main.py"), "changed").expect("it may write beside itself");
        assert_eq!(fs::read_to_string(at("tree/main.py")).expect("there"), "run");
        fs::create_dir_all(folders.code().join("output/a")).expect("made");
        fs::write(folders.code().join("output/a/b.png"), "12345").expect("written");
        fs::write(folders.home().join("cache"), "123").expect("written");
        let with_all = folders.bytes().expect("counted");
        folders.make(&tree, served.files()).expect("made anew");
        assert_eq!(read("main.py"), "run");
        assert!(with_all >= folders.bytes().expect("counted") + 5 + 3, "what runs left anywhere counts");
    }

    #[test]
    fn links_that_a_process_left_lead_nothing_of_ours_elsewhere() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        for (path, text) in [("tree/models/put_here", ""), ("owners/kept", "12345"), ("blob", "a model")] {
            fs::create_dir_all(at(path).parent().expect("it has one")).expect("made");
            fs::write(at(path), text).expect("written");
        }
        let workspace = Arc::new(workspace(&at("tree"), &at("files"), "python"));
        let served = Served::alone(&workspace).expect("read");
        let folders = Folders { root: at("slot-0") };
        folders.make(&at("tree"), served.files()).expect("made");
        let plant = |place: &Path| {
            let _ = fs::remove_file(place);
            let _ = fs::remove_dir_all(place);
            symlink(at("owners"), place).expect("linked");
        };
        for planted in ["models/x", "models", ""] {
            plant(folders.code().join(planted).components().as_path());
            for (place, has_walls) in
                [("models/x/a", true), ("models/x/b", false), ("models/x/new/c", true), ("models/d", true)]
            {
                let seen = folders.add(Path::new(place), &at("blob"), has_walls).expect("looked at");
                assert_eq!(seen, planted == "models/x" && place == "models/d", "{planted}: {place}");
            }
        }
        fs::write(at("owners/relay.py"), "the owner's").expect("written");
        fs::remove_file(folders.relay()).expect("removed");
        symlink(at("owners/relay.py"), folders.relay()).expect("linked");
        plant(&folders.home());
        folders.make(&at("tree"), served.files()).expect("made anew");
        let before = folders.bytes().expect("counted");
        fs::write(at("owners/kept"), [0; 1 << 20]).expect("written");
        plant(&folders.code().join("output"));
        assert!(
            folders.bytes().expect("counted") < before + (1 << 20),
            "what a link leads to does not count"
        );
        assert_eq!(fs::read_to_string(folders.relay()).expect("there"), RELAY);
        assert_eq!(fs::read_to_string(at("owners/relay.py")).expect("there"), "the owner's");
        assert_eq!(fs::read_dir(at("owners")).expect("a folder").count(), 2, "nothing came to it");
    }

    /// Root is stopped by no mode, so it is somebody else in this thread.
    #[cfg(target_os = "linux")]
    #[test]
    fn folders_that_a_process_closed_are_made_anew() {
        use nix::unistd::{Uid, geteuid, setfsuid};
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("set");
        if geteuid().is_root() {
            setfsuid(Uid::from_raw(65534));
        }
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("tree")).expect("made");
        let folders = Folders { root: at("slot-0") };
        folders.make(&at("tree"), &Files::new()).expect("made");
        for (mode, name) in
            [(0o555, folders.home().join("read-only")), (0o000, folders.further().join("closed"))]
        {
            fs::create_dir_all(name.join("a")).expect("made");
            fs::set_permissions(&name, fs::Permissions::from_mode(mode)).expect("set");
        }
        folders.make(&at("tree"), &Files::new()).expect("made anew");
        for empty in [folders.home(), folders.further()] {
            assert_eq!(fs::read_dir(&empty).expect("a folder").count(), 0, "{}", empty.display());
        }
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 3, "nothing is left beside");
        setfsuid(geteuid());
    }

    #[test]
    fn code_with_a_link_in_the_place_of_a_folder_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["tree/custom_nodes/a", "files/custom_nodes/a/models", "owners"] {
            fs::create_dir_all(at(name)).expect("made");
        }
        fs::write(at("files/custom_nodes/a/models/weights"), "weights").expect("written");
        symlink(at("owners"), at("tree/custom_nodes/a/models")).expect("linked");
        let workspace = Arc::new(workspace(&at("tree"), &at("files"), "python"));
        let served = Served::alone(&workspace).expect("read");
        let made = Folders { root: at("slot-0") }.make(&at("tree"), served.files());
        let refused = made.expect_err("it leads elsewhere").to_string();
        assert!(refused.contains("`custom_nodes/a/models/weights`"), "{refused}");
        assert_eq!(fs::read_dir(at("owners")).expect("a folder").count(), 0);
    }
}
