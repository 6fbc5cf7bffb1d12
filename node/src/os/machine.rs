//! What the machine is called, and what it is.

/// The machine's name, for people.
pub(crate) fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| "unnamed".to_owned())
}

/// How much memory it has, in bytes; 0 where the system does not say.
pub(crate) fn memory() -> u64 {
    nix::sys::sysinfo::sysinfo().map_or(0, |told| told.ram_total())
}

/// Operating system and architecture, such as `linux-x86_64`.
pub fn platform() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}
