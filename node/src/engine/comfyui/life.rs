//! Whether a ComfyUI that shows no progress is at work all the same.
//!
//! An op without a progress bar tells nothing for as long as it takes, and a process that is dead does nothing at all.
//! An op that waits for its card is at work on a processor: the drivers' waiting spins. Not here: how work is counted.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// From which part of one processor on a process is at work. One that idles takes a thousandth, to answer what is asked
/// of it.
const BUSY: f64 = 0.03;
/// How many bytes a second it reads or writes that waits for its disk.
const BYTES: f64 = (256 << 10) as f64;

/// What a process has done since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// Its time on processors, and that of its children.
    pub(crate) processor: Duration,
    /// What it read from disks, and wrote.
    pub(crate) bytes: u64,
    /// The lines that it said.
    pub(crate) lines: u64,
}

/// Counts what a process does. Blocks.
pub(crate) trait Pulse: fmt::Debug + Send + Sync {
    /// All of it.
    fn done(&self) -> Done;
}

/// What was last seen of a process, if anybody counts.
#[derive(Debug)]
pub(super) struct Life {
    pulse: Option<Arc<dyn Pulse>>,
    before: Option<(Instant, Done)>,
}

impl Life {
    pub(super) fn new(pulse: Option<Arc<dyn Pulse>>) -> Self {
        Self { pulse, before: None }
    }

    /// Whether it was at work since it was last looked.
    pub(super) async fn shows(&mut self) -> bool {
        let Some(pulse) = self.pulse.clone() else { return false };
        let Ok(done) = tokio::task::spawn_blocking(move || pulse.done()).await else { return false };
        let now = Instant::now();
        let before = self.before.replace((now, done));
        before.is_some_and(|(then, before)| done.is_work_since(before, now - then))
    }
}

impl Done {
    fn is_work_since(self, before: Self, elapsed: Duration) -> bool {
        let bytes = self.bytes.saturating_sub(before.bytes) as f64;
        self.lines > before.lines
            || self.processor.saturating_sub(before.processor) > elapsed.mul_f64(BUSY)
            || bytes > elapsed.as_secs_f64() * BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_computes_reads_or_speaks_is_at_work_and_who_only_answers_is_not() {
        let check = |processor: u64, bytes: u64, lines: u64, expected: bool| {
            let before = Done { processor: Duration::from_secs(9), bytes: 1 << 40, lines: 7 };
            let now = Done {
                processor: before.processor + Duration::from_millis(processor),
                bytes: before.bytes + bytes,
                lines: before.lines + lines,
            };
            assert_eq!(now.is_work_since(before, Duration::from_secs(5)), expected, "{now:?}");
        };
        check(0, 0, 0, false);
        check(20, 4096, 0, false);
        check(400, 0, 0, true);
        check(0, 5 << 20, 0, true);
        check(0, 0, 1, true);
    }
}
