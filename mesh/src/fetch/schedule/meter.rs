//! How fast a source is, from when its pieces came.
//!
//! Bytes and busy time both fade with the time that passed, so a burst counts as little as it lasts, and
//! time in which nothing was asked for does not count at all.

use std::time::Duration;

use protocol::PIECE_SIZE;

/// How long what was measured counts, in seconds.
const MEMORY: f64 = 1.5;
/// What a source is taken for before its first piece, in bytes per second.
pub(crate) const UNKNOWN: f64 = (8 * PIECE_SIZE) as f64;
/// Time that is shorter is not measured, in seconds.
const INSTANT: f64 = 1e-4;
/// Silence that is shorter says nothing.
const HICCUP: f64 = 0.15;

/// The speed of one source.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    bytes: f64,
    seconds: f64,
    /// When the last piece came, or when the source had to begin.
    mark: Duration,
}

impl Meter {
    /// The source has something to do from now on.
    pub(crate) fn begin(&mut self, now: Duration) {
        self.mark = now;
    }

    /// So many bytes came.
    pub(crate) fn received(&mut self, bytes: u64, now: Duration) {
        let passed = now.saturating_sub(self.mark).as_secs_f64();
        let kept = (-passed / MEMORY).exp();
        self.bytes = self.bytes * kept + bytes as f64;
        self.seconds = self.seconds * kept + passed;
        self.mark = now;
    }

    /// The speed; less, the longer the source has been waited for, if it is waited for at all.
    pub(crate) fn bytes_per_second(&self, waiting: Option<Duration>) -> f64 {
        let measured = if self.bytes > 0.0 { self.bytes / self.seconds.max(INSTANT) } else { UNKNOWN };
        let silent = waiting.map_or(0.0, |now| now.saturating_sub(self.mark).as_secs_f64());
        let expected = PIECE_SIZE as f64 / measured;
        if silent > HICCUP.max(2.0 * expected) { PIECE_SIZE as f64 / silent } else { measured }
    }

    /// For how long the source has been waited for since its last piece, in seconds.
    pub(crate) fn silence(&self, now: Duration) -> f64 {
        now.saturating_sub(self.mark).as_secs_f64()
    }

    /// What was measured, in bytes per second.
    pub(crate) fn measured(&self) -> Option<u64> {
        (self.bytes > 0.0).then(|| (self.bytes / self.seconds.max(INSTANT)) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_follows_what_came_and_sinks_in_silence() {
        let mut meter = Meter::default();
        assert_eq!(meter.measured(), None);
        meter.begin(Duration::ZERO);
        for step in 1..=40 {
            meter.received(PIECE_SIZE, Duration::from_millis(100 * step));
        }
        let measured = meter.measured().expect("it was measured");
        assert!(measured.abs_diff(10 * PIECE_SIZE) < PIECE_SIZE / 10, "{measured}");
        let at = |seconds: u64| meter.bytes_per_second(Some(Duration::from_secs(4 + seconds)));
        assert!(at(1) < 1.01 * PIECE_SIZE as f64);
        assert!(at(10) < 0.11 * PIECE_SIZE as f64);
        assert_eq!(meter.bytes_per_second(None) as u64, measured, "nobody waits for it");
    }
}
