//! A lock becomes an environment: a folder with `bin/python` and everything that the lock names.
//!
//! It is made under another name and renamed when it is whole, so there is never half of one. No index is
//! asked but by the build of a source that nobody has built yet. Byte code is not compiled: a start imports
//! a part of what is installed, and keeps the byte code of that in a folder of its own. Not here: where the
//! files come from, and when an environment is removed.
//!
//! Install scripts write into the custom nodes that they are of, so what they run in is one lockfile's own: the
//! environment, and a copy of the code tree in it.

use std::io;
use std::path::{Path, PathBuf};

use protocol::{EnvironmentKey, EnvironmentLock, LockedWheel, LockfileHash};
use tokio_util::sync::CancellationToken;

use super::changed::Changed;
use super::install::Installing;
use super::script::{INSTALL_SCRIPT, run_install_script};
use super::source::Building;
use super::wheels::{Wheel, get};
use super::{Interpreter, Limits, PythonError, Uv, WheelSource};
use crate::os::file::{copy_tree, replace};
use crate::os::removal::remove;
use crate::workspace::log::PrepareLog;

/// The file in an environment that says what it is.
const LOCK: &str = "environment.json";
/// Its Python, a link.
const PYTHON: &str = "bin/python";
/// The code tree in an environment of one lockfile's own.
const CODE: &str = "ComfyUI";

/// The environments of a node.
#[derive(Clone, Debug)]
pub struct Environments {
    /// Which uv.
    pub uv: Uv,
    /// Where they lie, each in a folder named after its key.
    pub folder: PathBuf,
    /// How long steps may take.
    pub limits: Limits,
    /// Whether what nobody has built yet may be built from its source, which runs its code.
    pub build_sources: bool,
}

/// One environment, whole, on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// What it is called by.
    pub key: EnvironmentKey,
    /// Where it is.
    pub folder: PathBuf,
    /// Its Python.
    pub python: PathBuf,
    /// The code tree in which install scripts ran, where some did.
    pub comfyui: Option<PathBuf>,
    /// What it was installed from. It names the wheels that were built here.
    pub lock: EnvironmentLock,
    /// Those wheels.
    pub built: Vec<PathBuf>,
}

/// What makes an environment one lockfile's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Private {
    /// The lockfile.
    pub lockfile: LockfileHash,
    /// The code tree, which stays as it is.
    pub comfyui: PathBuf,
    /// The folders in it of the custom nodes whose install scripts run, in order.
    pub scripts: Vec<PathBuf>,
}

impl Environments {
    /// The environment of a lock, if it is here.
    pub fn find(&self, lock: &EnvironmentLock, private_to: Option<LockfileHash>) -> Option<Environment> {
        let key = lock.key(private_to);
        let folder = self.folder.join(key.to_string());
        let lock = lock_of(&folder)?;
        let python = folder.join(PYTHON);
        // A link, whose target the owner may have removed.
        if !python.is_file() {
            return None;
        }
        let comfyui = private_to.map(|_| folder.join(CODE));
        if comfyui.as_ref().is_some_and(|comfyui| !comfyui.is_dir()) {
            return None;
        }
        let wheels = self.uv.folder("wheels");
        let built = lock.built.iter().filter_map(|built| built.wheel.as_ref());
        let built = built.map(|wheel| wheels.join(wheel.sha256.to_string()).join(wheel.file_name.as_str()));
        let built = built.filter(|path| path.is_file()).collect();
        Some(Environment { key, folder, python, comfyui, lock, built })
    }

    /// Builds the environment of a lock, unless it is here.
    pub async fn build(
        &self,
        lock: &EnvironmentLock,
        private: Option<&Private>,
        files: &dyn WheelSource,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<Environment, PythonError> {
        let private_to = private.map(|private| private.lockfile);
        if let Some(environment) = self.find(lock, private_to) {
            return Ok(environment);
        }
        let here = crate::platform();
        if lock.platform != here {
            return Err(PythonError::OtherMachine { wanted: lock.platform.clone(), here });
        }
        let python = self.uv.python(&lock.python, log, cancel).await?;
        check_tags(lock, &python)?;
        let (lock, wheels) = self.wheels(lock, &python, files, log, cancel).await?;
        let key = lock.key(private_to);
        let making = |source| PythonError::io("making a folder in", &self.folder, source);
        std::fs::create_dir_all(&self.folder).map_err(making)?;
        let temporary =
            tempfile::Builder::new().prefix(&format!(".{key}-")).tempdir_in(&self.folder).map_err(making)?;
        let folder = temporary.path().join("environment");
        let installing = Installing { uv: &self.uv, limits: &self.limits, folder: &folder, wheels: &wheels };
        installing.run(&python, files, private.is_some(), log, cancel).await?;
        if let Some(private) = private {
            self.run_scripts(&folder, private, log, cancel).await?;
        }
        let target = self.folder.join(key.to_string());
        write_lock(&folder, &lock)?;
        if target.exists() && self.find(&lock, private_to).is_none() {
            // Its Python is gone, so it would never work again.
            remove(&target).map_err(|source| PythonError::io("removing", &target, source))?;
        }
        if let Err(source) = std::fs::rename(&folder, &target)
            // Somebody else may have been quicker.
            && self.find(&lock, private_to).is_none()
        {
            return Err(PythonError::io("making", &target, source));
        }
        let failed = || PythonError::io("reading", &target, io::ErrorKind::NotFound.into());
        self.find(&lock, private_to).ok_or_else(failed)
    }

    /// Runs the install scripts of custom nodes, in a copy of their code tree.
    async fn run_scripts(
        &self,
        folder: &Path,
        private: &Private,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<(), PythonError> {
        let comfyui = folder.join(CODE);
        let (from, to) = (private.comfyui.clone(), comfyui.clone());
        let copied = tokio::task::spawn_blocking(move || copy_tree(&from, &to)).await;
        let copied = copied.unwrap_or_else(|broken| Err(io::Error::other(broken)));
        copied.map_err(|source| PythonError::io("copying", &private.comfyui, source))?;
        let reading = |source| PythonError::io("reading", folder, source);
        let python = std::fs::read_link(folder.join(PYTHON)).map_err(reading)?;
        for node in &private.scripts {
            let below = Path::new(CODE).join(node.strip_prefix(&private.comfyui).unwrap_or(node));
            let node = folder.join(&below);
            if !node.join(INSTALL_SCRIPT).is_file() {
                continue;
            }
            stays_inside(folder, &below).map_err(reading)?;
            run_install_script(&self.uv, folder, &node, self.limits.script, log, cancel).await?;
            stays_inside(folder, Path::new(CODE)).map_err(reading)?;
            stays_inside(folder, Path::new("bin")).map_err(reading)?;
            if std::fs::read_link(folder.join(PYTHON)).map_err(reading)? != python {
                return Err(reading(io::Error::other("an install script changed its Python")));
            }
        }
        let (tree, folder) = (private.comfyui.clone(), folder.to_owned());
        let compared = tokio::task::spawn_blocking(move || {
            Changed::of(&tree, &folder.join(CODE)).and_then(|changed| changed.save(&folder))
        });
        let compared = compared.await.unwrap_or_else(|broken| Err(io::Error::other(broken)));
        compared.map_err(|source| PythonError::io("comparing", &comfyui, source))
    }

    /// What is installed of a lock; what is built here is named in the lock that is returned.
    async fn wheels(
        &self,
        lock: &EnvironmentLock,
        python: &Interpreter,
        files: &dyn WheelSource,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<(EnvironmentLock, Vec<Wheel>), PythonError> {
        let kept = self.uv.folder("wheels");
        let mut wheels: Vec<Wheel> =
            lock.wheels.iter().map(|wheel| Wheel { locked: wheel.clone(), path: None }).collect();
        let mut lock = lock.clone();
        let building = Building { uv: &self.uv, python, limit: self.limits.build, log, cancel };
        for built in &mut lock.built {
            let mut path = None;
            if let Some(wheel) = &built.wheel {
                // It may have been built here, which nobody was told of yet.
                let own = kept.join(wheel.sha256.to_string()).join(wheel.file_name.as_str());
                let got = if own.is_file() { Ok(own) } else { get(wheel, files, &kept, cancel).await };
                match got {
                    Ok(got) => path = Some(got),
                    Err(PythonError::Canceled) => return Err(PythonError::Canceled),
                    Err(error) => log.line(&format!("what another node built did not come: {error}")),
                }
            }
            if path.is_none() && !self.build_sources {
                let (name, version) = (&built.name, &built.version);
                return Err(PythonError::NoWheel { explanation: format!("`{name}` {version}") });
            }
            if path.is_none() {
                let (made, wheel) = building.build(built.name.as_str(), &built.source, files).await?;
                (path, built.wheel) = (Some(made), Some(wheel));
            }
            if let Some(file) = built.wheel.clone() {
                let locked = LockedWheel { name: built.name.clone(), version: built.version.clone(), file };
                wheels.push(Wheel { locked, path });
            }
        }
        Ok((lock, wheels))
    }
}

/// What the environment in this folder was installed from, if it can be read.
pub fn lock_of(folder: &Path) -> Option<EnvironmentLock> {
    EnvironmentLock::parse(&std::fs::read(folder.join(LOCK)).ok()?).ok()
}

/// Whether the environment in this folder has another build of torch than was recorded.
pub fn is_equivalent(folder: &Path) -> bool {
    lock_of(folder).is_some_and(|lock| lock.equivalent)
}

/// Refuses a lock with a wheel that this machine cannot install.
fn check_tags(lock: &EnvironmentLock, python: &Interpreter) -> Result<(), PythonError> {
    let unfit = |name: &&str| python.tags.rank(name).is_none();
    let built = lock.built.iter().filter_map(|built| built.wheel.as_ref());
    let wheels = lock.wheels.iter().map(|wheel| &wheel.file).chain(built);
    match wheels.map(|file| file.file_name.as_str()).find(unfit) {
        Some(name) => Err(PythonError::OtherMachine {
            wanted: format!("one that installs `{name}`"),
            here: format!("{} with Python {}", crate::platform(), python.version),
        }),
        None => Ok(()),
    }
}

/// Refuses a folder that an install script put a link in the place of: it would open what lies there to the next one,
/// and to the runs.
fn stays_inside(folder: &Path, below: &Path) -> io::Result<()> {
    match folder.join(below).canonicalize()? == folder.canonicalize()?.join(below) {
        true => Ok(()),
        false => {
            let fault = format!("an install script left a link in the place of `{}`", below.display());
            Err(io::Error::other(fault))
        }
    }
}

fn write_lock(folder: &Path, lock: &EnvironmentLock) -> Result<(), PythonError> {
    let path = folder.join(LOCK);
    // Not through what a script left there.
    replace(&path, &lock.to_canonical_json()).map_err(|source| PythonError::io("writing", &path, source))
}
