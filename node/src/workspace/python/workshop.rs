//! Where code of strangers is at work: a home, a cache and temporary files of its own, which are thrown away.
//!
//! What uv and the node keep is not to be changed by it, because others use that, some of it without walls. So it gets
//! nothing of uv's cache, finds its Pythons as they are, and asks indexes without the owner's name and password. Not here: what is taken out of a workshop, and whether the
//! owner allows any of this.

use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::process::Command;

use super::uv::without_passwords;
use super::{PythonError, Uv};
use crate::os::sandbox::{Walls, every_card};

/// A workshop, which is gone once this is dropped.
#[derive(Debug)]
pub(super) struct Workshop {
    folder: TempDir,
}

impl Uv {
    /// A new workshop.
    pub(super) fn workshop(&self) -> Result<Workshop, PythonError> {
        let workshop = Workshop { folder: self.temporary()? };
        for folder in [workshop.home(), workshop.cache(), workshop.temporary()] {
            std::fs::create_dir(&folder).map_err(|source| PythonError::io("making", &folder, source))?;
        }
        Ok(workshop)
    }
}

impl Workshop {
    /// All of it.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A call of uv that runs code of packages.
    pub(super) fn uv(&self, uv: &Uv, arguments: &[&str], python: &Path) -> Result<Command, PythonError> {
        let mut command = self.command(uv, &uv.program, python, &[])?;
        command.args(arguments);
        Ok(command)
    }

    /// A call of a program, with walls around it where there are some: it reaches the network, reads the system, a
    /// Python and uv, and writes here and in these folders.
    pub(super) fn command(
        &self,
        uv: &Uv,
        program: &Path,
        python: &Path,
        folders: &[&Path],
    ) -> Result<Command, PythonError> {
        let mut command = match &uv.config.sandbox {
            None => uv.other(program),
            Some(sandbox) => {
                let reading = |source| PythonError::io("finding", python, source);
                let mut walls = Walls::of_python(python).map_err(reading)?;
                if walls.read.iter().any(|folder| uv.folder("").starts_with(folder)) {
                    let fault = "the data of this node lies in its folder: let the node have another Python";
                    return Err(reading(io::Error::other(fault)));
                }
                walls.read.extend([uv.program.clone(), uv.folder("python")]);
                walls.write.push(self.path().to_owned());
                walls.write.extend(folders.iter().map(|folder| folder.to_path_buf()));
                let walls = Walls { cards: every_card(), network: true, ..walls };
                let mut command = sandbox.command(&walls, program);
                uv.scrub(&mut command);
                command
            }
        };
        without_passwords(&mut command);
        command.current_dir(self.home()).env("HOME", self.home());
        command.env("UV_CACHE_DIR", self.cache()).env("TMPDIR", self.temporary());
        Ok(command)
    }

    fn home(&self) -> PathBuf {
        self.path().join("home")
    }

    fn cache(&self) -> PathBuf {
        self.path().join("cache")
    }

    fn temporary(&self) -> PathBuf {
        self.path().join("temporary")
    }
}
