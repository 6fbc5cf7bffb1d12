//! The tools of others that a test needs, where `tests/run` has installed them.

use std::path::PathBuf;

/// Prints why a test does not run. The runner counts it as passed; `tests/run` finds this line, counts it, and under
/// continuous integration fails where `COMFY_FARM_TEST_WITHOUT` does not allow the reason.
pub fn skipped(reason: &str) {
    eprintln!("skipped: {reason}");
}

fn variable(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if value.is_none() {
        skipped(&format!("{name} is not set; `tests/run` sets it"));
    }
    value
}

/// The folder of a real ComfyUI: `ComfyUI/`, `venv/` and `front/`.
pub fn comfyui_folder() -> Option<PathBuf> {
    variable("COMFY_FARM_TEST_COMFYUI")
}

/// The program uv.
pub fn uv() -> Option<PathBuf> {
    variable("COMFY_FARM_TEST_UV")
}

/// A Python with a public OpenAPI validator, and with comfy-pack.
pub fn validator_python() -> Option<PathBuf> {
    variable("COMFY_FARM_TEST_PYTHON")
}

/// The folder in which the browser's driver is installed.
pub fn driver_folder() -> Option<PathBuf> {
    variable("COMFY_FARM_TEST_BROWSER")
}

/// Whether this test may make network namespaces.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A file of `examples/`.
pub fn example(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples")).join(name)
}

/// The recordings of the real ComfyUI, comfy-pack and client libraries.
pub fn facts() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/facts"))
}
