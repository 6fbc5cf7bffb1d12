//! What of this machine a Python needs within walls: its environment and, link by link, the installation that this is of.
//!
//! Not here: how it is put there.

use std::io;
use std::path::{Component, Path, PathBuf};

use super::{SYSTEM, Walls};

/// As many links as the system itself follows.
const LONGEST_CHAIN: usize = 40;

impl Walls {
    /// Those within which this Python runs, and nothing else is.
    pub(crate) fn of_python(python: &Path) -> io::Result<Self> {
        let mut walls = Self::default();
        let mut program = std::path::absolute(python)?;
        for _ in 0..LONGEST_CHAIN {
            match walls.let_in(&program) {
                Some(target) => program = target,
                None => break,
            }
        }
        walls.let_in(&std::fs::canonicalize(python)?);
        walls.read.sort();
        walls.read.dedup();
        Ok(walls)
    }

    /// Lets in what this path needs, and says where it leads.
    fn let_in(&mut self, program: &Path) -> Option<PathBuf> {
        // `PREFIX/bin/python`.
        let folder = program.parent()?;
        let prefix = folder.parent()?;
        let target = |link: &Path| Some(plain(&link.parent()?.join(std::fs::read_link(link).ok()?)));
        if SYSTEM.iter().any(|system| program.starts_with(system)) {
            return target(program);
        }
        // A folder of programs of any kind, such as `~/.local/bin`, has files of its user beside it.
        if is_installation(prefix) {
            self.read.push(prefix.to_owned());
            return target(program);
        }
        if let Some(target) = target(folder) {
            self.links.push((folder.to_owned(), target.clone()));
            return Some(target.join(program.file_name()?));
        }
        let target = target(program);
        match &target {
            Some(target) => self.links.push((program.to_owned(), target.clone())),
            None => self.read.push(program.to_owned()),
        }
        target
    }
}

/// Whether a folder is a Python, or an environment of one.
fn is_installation(prefix: &Path) -> bool {
    let has_library = |library: &str| {
        let entries = std::fs::read_dir(prefix.join(library)).into_iter().flatten().flatten();
        let mut pythons = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"));
        pythons.any(|python| python.path().join("os.py").is_file())
    };
    prefix.parent().is_some()
        && (prefix.join("pyvenv.cfg").is_file() || ["lib", "lib64"].into_iter().any(has_library))
}

/// A path without `..`, as no folder in it is a link.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::tests::within;
    use super::*;

    /// An installation below `real`, and an environment with a link to this path.
    fn environment(root: &Path, python: &str) -> PathBuf {
        for folder in ["real/bin", "real/lib/python3.11", "venv/bin"] {
            std::fs::create_dir_all(root.join(folder)).expect("made");
        }
        std::fs::write(root.join("real/bin/python3.11"), "").expect("written");
        std::fs::write(root.join("real/lib/python3.11/os.py"), "").expect("written");
        std::fs::write(root.join("venv/pyvenv.cfg"), "").expect("written");
        symlink(format!("../../{python}"), root.join("venv/bin/python")).expect("linked");
        root.join("venv/bin/python")
    }

    fn root(folder: &tempfile::TempDir) -> PathBuf {
        std::fs::canonicalize(folder.path()).expect("there")
    }

    #[test]
    fn environment_and_installation_are_let_in_and_folders_between_are_links() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = root(&folder);
        let python = environment(&root, "named/bin/python3.11");
        std::fs::create_dir(root.join("named")).expect("made");
        symlink("../real/bin", root.join("named/bin")).expect("linked");
        let walls = Walls::of_python(&python).expect("read");
        assert_eq!(walls.read, ["real", "venv"].map(|name| root.join(name)));
        assert_eq!(walls.links, [(root.join("named/bin"), root.join("real/bin"))]);
    }

    #[tokio::test]
    async fn what_lies_beside_a_link_to_a_python_is_not_let_in() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = root(&folder);
        let python = environment(&root, "home/.local/bin/python3.11");
        let local = root.join("home/.local");
        for folder in ["bin", "share/comfy-farm"] {
            std::fs::create_dir_all(local.join(folder)).expect("made");
        }
        std::fs::write(local.join("share/comfy-farm/key"), "secret").expect("written");
        std::fs::write(local.join("bin/other"), "secret").expect("written");
        std::fs::write(root.join("real/bin/python3.11"), "a python").expect("written");
        symlink("../../../real/bin/python3.11", local.join("bin/python3.11")).expect("linked");
        let walls = Walls::of_python(&python).expect("read");
        assert_eq!(walls.read, ["real", "venv"].map(|name| root.join(name)));
        let check = async |path: &Path, expected: bool| {
            let Some((reads, said)) = within(&walls, &format!("cat {}", path.display())).await else {
                return;
            };
            assert_eq!(reads, expected, "{}: {said}", path.display());
        };
        check(&python, true).await;
        check(&local.join("bin/python3.11"), true).await;
        check(&local.join("bin/other"), false).await;
        check(&local.join("share/comfy-farm/key"), false).await;
    }
}
