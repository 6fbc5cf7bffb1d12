//! Where a process is talked to: a port on loopback or, within walls that leave it no network, a Unix socket.
//!
//! Not here: what is said.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use tempfile::TempDir;

use crate::engine::comfyui::{ComfyUi, ComfyUiOptions};

/// The longest name of a socket that every system takes, in bytes.
const LONGEST: usize = 100;
/// The port within the walls, where nobody else is.
const INNER_PORT: u16 = 8188;

/// Where a process is talked to.
#[derive(Debug)]
pub(super) enum Door {
    /// A port on loopback.
    Port(u16),
    /// A Unix socket.
    Socket {
        /// The socket.
        path: PathBuf,
        /// Its folder, where that is not among the process's own.
        temporary: Option<TempDir>,
    },
}

impl Door {
    /// A port that nobody has at this moment.
    pub(super) fn port() -> io::Result<Self> {
        Ok(Self::Port(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port()))
    }

    /// A socket at this path among the folders of a process or, where that is too long, in a folder of its own.
    pub(super) fn socket(path: PathBuf) -> io::Result<Self> {
        if path.as_os_str().len() <= LONGEST {
            return Ok(Self::Socket { path, temporary: None });
        }
        let folder = tempfile::Builder::new().prefix("comfy-farm-").tempdir()?;
        Ok(Self::Socket { path: folder.path().join("comfyui"), temporary: Some(folder) })
    }

    /// Whether the process has a network.
    pub(super) fn has_network(&self) -> bool {
        matches!(self, Self::Port(_))
    }

    /// Where the process itself listens.
    pub(super) fn inner_port(&self) -> u16 {
        match self {
            Self::Port(port) => *port,
            Self::Socket { .. } => INNER_PORT,
        }
    }

    /// The ComfyUI behind it.
    pub(super) fn comfyui(&self, options: ComfyUiOptions) -> ComfyUi {
        match self {
            Self::Port(port) => ComfyUi::new(&format!("http://127.0.0.1:{port}"), options)
                .expect("that is the address of a ComfyUI"),
            Self::Socket { path, .. } => ComfyUi::behind(path, options),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn socket_is_among_the_folders_of_its_process_unless_its_name_gets_too_long() {
        let check = |folder: &str, is_inside: bool| {
            let Ok(Door::Socket { path, temporary }) = Door::socket(Path::new(folder).join("comfyui.sock"))
            else {
                panic!("a socket")
            };
            assert_eq!((path.starts_with(folder), temporary.is_none()), (is_inside, is_inside));
            assert!(path.as_os_str().len() <= LONGEST, "{}", path.display());
        };
        check("/data/workspaces/slots/slot-0", true);
        check(&format!("/data/{}/slot-0", "long".repeat(30)), false);
    }
}
