//! What the machine is called and how much room it has.

use std::path::Path;

/// The machine's name, for people.
pub(crate) fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "unnamed".to_owned())
}

/// Operating system and architecture, such as `linux-x86_64`.
pub(crate) fn platform() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}

/// The free bytes of the file system that holds a folder.
pub(crate) fn free_space(folder: &Path) -> std::io::Result<u64> {
    let numbers = nix::sys::statvfs::statvfs(folder)?;
    Ok(numbers.blocks_available() * numbers.fragment_size())
}
