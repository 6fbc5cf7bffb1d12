//! What install scripts changed of the code that they ran in, kept in their environment, so that it is not taken for
//! damage later.
//!
//! Blocks. Not here: whether other files are as they are to be.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use protocol::BlobRef;

use crate::os::file::replace;

/// The file in an environment that has it.
const FILE: &str = "changed.json";

/// Each file of the code that is another one since, by its path in the folder of ComfyUI; nothing where it is gone.
#[derive(Debug, Default)]
pub(in crate::workspace) struct Changed(BTreeMap<String, Option<BlobRef>>);

impl Changed {
    /// Compares the code with the copy of it in which scripts ran.
    pub(super) fn of(tree: &Path, copy: &Path) -> io::Result<Self> {
        let mut changed = Self::default();
        changed.enter(tree, copy, "")?;
        Ok(changed)
    }

    fn enter(&mut self, tree: &Path, copy: &Path, below: &str) -> io::Result<()> {
        for entry in fs::read_dir(tree.join(below))? {
            let entry = entry?;
            // No commit and no archive that is laid out has another one.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.enter(tree, copy, &path)?;
            } else if kind.is_file() {
                let now = plain_file(&copy.join(&path));
                if now != plain_file(&entry.path()) {
                    self.0.insert(path, now);
                }
            }
        }
        Ok(())
    }

    /// Keeps it in an environment.
    pub(super) fn save(&self, environment: &Path) -> io::Result<()> {
        replace(&environment.join(FILE), &serde_json::to_vec(&self.0)?)
    }

    /// What is kept in an environment.
    pub(in crate::workspace) fn load(environment: &Path) -> Self {
        let kept = fs::read(environment.join(FILE)).ok();
        Self(kept.and_then(|kept| serde_json::from_slice(&kept).ok()).unwrap_or_default())
    }

    /// Whether a file of the copy is what scripts made of it.
    pub(in crate::workspace) fn accounts_for(&self, copy: &Path, path: &str) -> bool {
        self.0.get(path).is_some_and(|made| *made == plain_file(&copy.join(path)))
    }
}

/// A file's contents by name; `None` of what is gone, or is a link or a pipe by now.
fn plain_file(path: &Path) -> Option<BlobRef> {
    // Before it is opened: a pipe would wait for somebody at its other end.
    fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
    File::open(path).and_then(BlobRef::of_reader).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_scripts_changed_is_accounted_for_as_long_as_it_stays_so() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [tree, copy, environment] = ["tree", "copy", "environment"].map(|name| folder.path().join(name));
        let write = |root: &Path, path: &str, text: &str| {
            fs::create_dir_all(root.join(path).parent().expect("a folder")).expect("own folder");
            fs::write(root.join(path), text).expect("own folder");
        };
        fs::create_dir(&environment).expect("own folder");
        for root in [&tree, &copy] {
            for path in ["main.py", "custom_nodes/a/settings.json", "custom_nodes/a/gone"] {
                write(root, path, "as it was");
            }
        }
        write(&copy, "custom_nodes/a/settings.json", "set");
        write(&copy, "custom_nodes/a/new", "built");
        fs::remove_file(copy.join("custom_nodes/a/gone")).expect("own folder");
        Changed::of(&tree, &copy).and_then(|changed| changed.save(&environment)).expect("own folder");

        let changed = Changed::load(&environment);
        let accounted = |path| changed.accounts_for(&copy, path);
        assert!(accounted("custom_nodes/a/settings.json") && accounted("custom_nodes/a/gone"));
        assert!(!accounted("main.py"), "nobody changed it");
        write(&copy, "custom_nodes/a/settings.json", "damaged");
        write(&copy, "main.py", "damaged");
        assert!(!accounted("custom_nodes/a/settings.json") && !accounted("main.py"));
    }
}
