//! Where a process is talked to: a port on loopback or, within walls that leave it no network, a Unix socket.
//!
//! The socket is the node's, and its name where the process sees nothing of it: the process gets the open end alone, so
//! it can lead the node to no other socket. Not here: what is said.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixListener;
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
        /// Its folder, where its name would be too long for a socket otherwise.
        _temporary: Option<TempDir>,
    },
}

impl Door {
    /// A port that nobody has at this moment.
    pub(super) fn port() -> io::Result<Self> {
        Ok(Self::Port(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port()))
    }

    /// A socket at this path, in place of that of an earlier process, or in a folder of its own where the path is too
    /// long; with what the process is to listen on.
    pub(super) fn socket(path: PathBuf) -> io::Result<(Self, UnixListener)> {
        let (path, temporary) = match path.as_os_str().len() <= LONGEST {
            true => (path, None),
            false => {
                let folder = tempfile::Builder::new().prefix("comfy-farm-").tempdir()?;
                (folder.path().join("comfyui"), Some(folder))
            }
        };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        Ok((Self::Socket { path, _temporary: temporary }, listener))
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
    use super::*;

    #[test]
    fn socket_is_where_it_is_wanted_unless_its_name_gets_too_long() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let check = |name: &str, is_there: bool| {
            let wanted = folder.path().join(name);
            std::fs::create_dir_all(&wanted).expect("made");
            let wanted = wanted.join("slot-0.sock");
            // Those of earlier processes stay behind.
            for _ in 0..2 {
                let (door, _listener) = Door::socket(wanted.clone()).expect("bound");
                let Door::Socket { path, .. } = &door else { panic!("a socket") };
                assert_eq!(path == &wanted, is_there);
                assert!(path.as_os_str().len() <= LONGEST, "{}", path.display());
            }
        };
        check("slots", true);
        check(&"long/".repeat(20), false);
    }
}
