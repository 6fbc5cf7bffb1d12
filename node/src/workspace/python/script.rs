//! The `install.py` of a custom node, which its author expects to be run once after its checkout.
//!
//! It runs a stranger's code with the environment and the code tree in it open to it, within walls where there are some.
//! Not here: whether the owner allows that.

use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::process::Step;
use super::{PythonError, Uv};
use crate::workspace::log::PrepareLog;

/// What the script is called.
pub const INSTALL_SCRIPT: &str = "install.py";

/// Runs the install script of the custom node in this folder with the environment's Python.
pub async fn run_install_script(
    uv: &Uv,
    environment: &Path,
    node: &Path,
    limit: Duration,
    log: &PrepareLog,
    cancel: &CancellationToken,
) -> Result<(), PythonError> {
    let programs = environment.join("bin");
    let python = programs.join("python");
    let workshop = uv.workshop()?;
    let mut command = workshop.command(uv, &python, &python, &[environment, node])?;
    command.arg(INSTALL_SCRIPT).current_dir(node).env("VIRTUAL_ENV", environment);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(programs).chain(std::env::split_paths(&path));
    if let Ok(path) = std::env::join_paths(path) {
        command.env("PATH", path);
    }
    let what = format!("running `{}`", node.join(INSTALL_SCRIPT).display());
    Step { what: &what, command, limit }.succeed(log, cancel).await.map(|_| ())
}
