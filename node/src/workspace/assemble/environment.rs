//! The Python of a workspace beside its code: at once, where the farm knows the lock, else after it, because the parts of
//! the code say what they need.
//!
//! Not here: how a lock is found and installed.

use std::path::{Path, PathBuf};

use protocol::{BlobHash, EnvironmentLock, EnvironmentSpec, Lockfile, PrepareStep, Resolution, error_chain};
use tokio_util::sync::CancellationToken;

use super::files::Files;
use super::{Assembler, failed, refused};
use crate::os::file::replace;
use crate::workspace::code::CodeTree;
use crate::workspace::log::PrepareLog;
use crate::workspace::prepare::BuildError;
use crate::workspace::progress::Steps;
use crate::workspace::python::{
    Ask, Environment, Environments, INSTALL_SCRIPT, Limits, PINNED_PIP, Private, PythonError, Resolver, Uv,
    WheelError, lock_for,
};

/// What an environment is made of, besides the code.
pub(super) struct Parts<'a> {
    pub(super) lockfile: &'a Lockfile,
    pub(super) known: &'a Resolution,
    pub(super) files: &'a Files<'a>,
    pub(super) log: &'a PrepareLog,
    pub(super) cancel: &'a CancellationToken,
}

impl Assembler {
    /// The code tree, which `code` makes, and the environment.
    pub(super) async fn code_and_python(
        &self,
        code: impl Future<Output = Result<CodeTree, BuildError>>,
        parts: &Parts<'_>,
        steps: &Steps,
    ) -> Result<(CodeTree, Environment), BuildError> {
        let mut code = std::pin::pin!(code);
        // Install scripts are in the code.
        let (tree, locked) = if self.policy.install_scripts {
            let tree = code.await?;
            steps.enter(PrepareStep::Python);
            let locked = self.locked(parts, private(parts.lockfile, &tree).as_ref()).await?;
            (tree, locked)
        } else {
            let mut locked = std::pin::pin!(self.locked(parts, None));
            tokio::select! {
                tree = &mut code => {
                    let tree = tree?;
                    steps.enter(PrepareStep::Python);
                    (tree, locked.await?)
                }
                locked = &mut locked => {
                    let tree = code.await?;
                    steps.enter(PrepareStep::Python);
                    (tree, locked?)
                }
            }
        };
        let environment = match locked {
            Some(environment) => environment,
            None => self.resolved_here(parts, &tree).await?,
        };
        if let Some(private) = private(parts.lockfile, &tree).filter(|_| !self.policy.install_scripts) {
            for node in private.scripts {
                let name = node.file_name().unwrap_or_default().to_string_lossy();
                parts.log.line(&format!(
                    "`{INSTALL_SCRIPT}` of custom node `{name}` is not run, which needs `--allow-install-scripts`"
                ));
            }
        }
        Ok((tree, environment))
    }

    /// The environment of the farm's lock, if there is one that this machine can install.
    async fn locked(
        &self,
        Parts { lockfile, known, files, log, cancel }: &Parts<'_>,
        private: Option<&Private>,
    ) -> Result<Option<Environment>, BuildError> {
        let spec = self.spec(lockfile);
        let Some(lock) = lock_for(known, &spec, &self.uv.indexes) else { return Ok(None) };
        self.policy.judge_lock(lock, &self.uv.indexes).map_err(refused)?;
        let environments = self.environments(log, cancel).await?;
        match environments.build(lock, private, *files, log, cancel).await {
            // Another system of the same platform can be older.
            Err(PythonError::OtherMachine { wanted, here }) => {
                log.line(&format!("the lock of the farm is for {wanted}, and this is {here}"));
                Ok(None)
            }
            built => built.map(Some).map_err(unmade),
        }
    }

    /// The environment of a lock of our own.
    async fn resolved_here(
        &self,
        Parts { lockfile, files, log, cancel, .. }: &Parts<'_>,
        tree: &CodeTree,
    ) -> Result<Environment, BuildError> {
        let environments = self.environments(log, cancel).await?;
        let spec = self.spec(lockfile);
        let asks = asks(tree).map_err(failed)?;
        // Before uv asks them.
        for ask in &asks {
            self.policy.judge_packages(ask.sources(&spec), &self.uv.indexes).map_err(refused)?;
        }
        let kept = self.root.join("locks").join(format!("{}.json", lock_name(&spec, &asks)));
        let lock = match read_lock(&kept) {
            Some(lock) => lock,
            None => {
                let uv = environments.uv.clone();
                let build_sources = environments.build_sources;
                let resolver = Resolver { uv, limits: Limits::default(), build_sources };
                let lock = resolver.resolve(&spec, &asks, *files, log, cancel).await.map_err(unmade)?;
                keep_lock(&kept, &lock).map_err(failed)?;
                lock
            }
        };
        self.policy.judge_lock(&lock, &self.uv.indexes).map_err(refused)?;
        let private = private(lockfile, tree).filter(|_| self.policy.install_scripts);
        environments.build(&lock, private.as_ref(), *files, log, cancel).await.map_err(unmade)
    }

    fn spec(&self, lockfile: &Lockfile) -> EnvironmentSpec {
        EnvironmentSpec::of(lockfile, &crate::platform(), self.accelerator)
    }

    async fn environments(
        &self,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<Environments, BuildError> {
        let uv = Uv::find(self.uv.clone(), log, cancel).await.map_err(failed)?;
        let (folder, limits) = (self.root.join("environments"), Limits::default());
        // Building a source runs its code, as an install script does.
        Ok(Environments { uv, folder, limits, build_sources: self.policy.install_scripts })
    }
}

/// Why there is no environment, and whether to try again could help.
fn unmade(error: PythonError) -> BuildError {
    match error {
        PythonError::File(WheelError::Repository(git)) if git.is_refusal() => {
            BuildError::Refused(error_chain(&git))
        }
        // As long as the owner and the code say the same.
        error @ (PythonError::Repository { .. } | PythonError::NoCommit { .. }) => {
            BuildError::Refused(error_chain(&error))
        }
        error => failed(error),
    }
}

/// What makes the environment this lockfile's own: the install scripts in its code.
fn private(lockfile: &Lockfile, tree: &CodeTree) -> Option<Private> {
    let scripts = tree.custom_nodes.iter().filter(|node| node.join(INSTALL_SCRIPT).is_file());
    let scripts: Vec<PathBuf> = scripts.cloned().collect();
    let comfyui = tree.comfyui.clone();
    (!scripts.is_empty()).then(|| Private { lockfile: lockfile.hash(), comfyui, scripts })
}

/// What the parts of a code tree ask of Python.
fn asks(tree: &CodeTree) -> std::io::Result<Vec<Ask>> {
    let parent = tree.comfyui.parent().unwrap_or(&tree.comfyui);
    let ask = |path: PathBuf| {
        let from = path.strip_prefix(parent).unwrap_or(&path).display().to_string();
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        Ok(Ask { from, text })
    };
    tree.requirements().into_iter().map(ask).collect()
}

/// Names what was asked for beyond the pins, so that it is resolved once.
fn lock_name(spec: &EnvironmentSpec, asks: &[Ask]) -> BlobHash {
    let mut named = format!("{} pip {PINNED_PIP}", spec.hash());
    for ask in asks.iter().filter(|ask| !ask.is_pinned_by(spec)) {
        named.push_str(&BlobHash::of(ask.text.as_bytes()).to_string());
    }
    BlobHash::of(named.as_bytes())
}

fn read_lock(path: &Path) -> Option<EnvironmentLock> {
    EnvironmentLock::parse(&std::fs::read(path).ok()?).ok()
}

fn keep_lock(path: &Path, lock: &EnvironmentLock) -> std::io::Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    replace(path, &lock.to_canonical_json())
}
