//! Counts what a ComfyUI process does, for whoever has to tell one that is at work from one that is dead.
//!
//! Not here: what the numbers mean.

use super::log::ProcessLog;
use crate::engine::comfyui::life::{Done, Pulse};
use crate::os::work;

/// A process, and what it says.
#[derive(Debug)]
pub(super) struct ProcessPulse {
    /// The system's id of it; none where it has ended already.
    pub(super) process: Option<u32>,
    pub(super) log: ProcessLog,
}

impl Pulse for ProcessPulse {
    fn done(&self) -> Done {
        let (processor, bytes) = self.process.map(work::of).unwrap_or_default();
        Done { processor, bytes, lines: self.log.lines_said() }
    }
}
