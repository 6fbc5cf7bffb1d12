//! What the peers of a test warn of, as people see it who change no setting.
//!
//! All tests of one process share it: a test looks for lines that name its own peers.

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use protocol::PeerId;

static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Begins to listen; what was logged before is lost.
pub(crate) fn listen() {
    static LISTENING: OnceLock<()> = OnceLock::new();
    LISTENING.get_or_init(|| {
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_ansi(false);
        log.with_writer(|| Written).init();
    });
}

/// The warnings that name this peer.
pub(crate) fn warnings_about(peer: PeerId) -> Vec<String> {
    let log = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    let log = String::from_utf8_lossy(&log);
    let is_one = |line: &&str| line.contains(" WARN ") && line.contains(&peer.fmt_short());
    log.lines().filter(is_one).map(str::to_owned).collect()
}

struct Written;

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
