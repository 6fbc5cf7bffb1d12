//! Python of a workspace, by uv: pins are completed to a lock, and a lock becomes an environment.
//!
//! ```text
//! Uv            the program: found, given or installed; its folders, and what it may see of ours
//! Resolver      pins and asks -> EnvironmentLock; asks the package indexes
//! WheelSource   a file of the lock -> a path, or its parts as they come; peers and internet are behind it
//! Environments  EnvironmentLock -> a folder with bin/python; asks no index
//! ```
//!
//! The only home of uv. Not here: how files cross the network, which environments are wanted, and whose
//! code may run; who calls decides that.

mod uv;
mod workshop;
mod interpreter;
mod tags;
mod ask;
mod marker;
mod torch;
mod fitting;
mod project;
mod pylock;
mod repositories;
mod resolve;
mod complete;
mod wheels;
mod counter;
mod install;
mod build;
mod changed;
mod source;
mod script;
mod verify;
mod process;
mod error;
#[cfg(test)]
pub(super) mod tests;

use std::time::Duration;

pub use ask::Ask;
pub use build::{Environment, Environments, Private, is_equivalent, lock_of};
pub(super) use changed::Changed;
pub use error::{PythonError, WrongHash};
pub(crate) use fitting::lock_for;
pub use interpreter::Interpreter;
pub(crate) use project::PINNED_PIP;
pub use resolve::Resolver;
pub use script::{INSTALL_SCRIPT, run_install_script};
pub(crate) use torch::build_for;
pub use torch::{Indexes, PACKAGE_INDEX, TORCH_INDEX};
pub use uv::{PINNED_UV, Uv, UvConfig};
pub use verify::{Damage, missing_packages, verify};
pub use wheels::{WheelError, WheelSource};

/// How long each kind of step may take before it counts as hanging.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Completing the pins. Defaults to 10 minutes.
    pub resolve: Duration,
    /// Building one package from its source. Defaults to 30 minutes.
    pub build: Duration,
    /// Installing the wheels of an environment. Defaults to 20 minutes.
    pub install: Duration,
    /// One install script. Defaults to 15 minutes.
    pub script: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        Self { resolve: minutes(10), build: minutes(30), install: minutes(20), script: minutes(15) }
    }
}
