//! A farm in a test: a coordinator and nodes as real processes on loopback, and the calls that a test
//! makes of them.
//!
//! Not here: what is expected; that is `it/`.

mod farm;
mod index;
mod machines;
mod namespaces;
mod origin;
mod process;
mod registry;
mod studio;
mod tools;

pub use farm::{Farm, FarmOptions, NodeHandle, eventually, eventually_within, job_input};
pub use index::PackageIndex;
pub use machines::Machines;
pub use namespaces::Namespaces;
pub use origin::Origin;
pub use process::{Process, binary};
pub use registry::Registry;
pub use studio::Studio;
pub use tools::{comfyui_folder, driver_folder, example, facts, is_root, skipped, uv, validator_python};
