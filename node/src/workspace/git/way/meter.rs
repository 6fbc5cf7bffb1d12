//! How fast a server sends, over the time in which it was waited for.

use std::time::Duration;

use super::Patience;

/// What came so far.
#[derive(Debug, Default)]
pub(super) struct Meter {
    received: u64,
    /// What came since the speed was last looked at, and how long that was waited for.
    lately: u64,
    waited: Duration,
}

impl Meter {
    /// How many bytes came.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Notes what came after some waiting; says whether a whole `low_speed_time` was too slow with it.
    pub(super) fn is_slow(&mut self, bytes: u64, waited: Duration, patience: &Patience) -> bool {
        self.received = self.received.saturating_add(bytes);
        self.lately = self.lately.saturating_add(bytes);
        self.waited += waited;
        if self.waited < patience.low_speed_time {
            return false;
        }
        let is_slow = (self.lately as f64) < patience.low_speed_limit as f64 * self.waited.as_secs_f64();
        (self.lately, self.waited) = (0, Duration::ZERO);
        is_slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_window_below_the_limit_is_slow() {
        let patience = Patience {
            low_speed_limit: 1000,
            low_speed_time: Duration::from_secs(60),
            ..Patience::default()
        };
        let second = Duration::from_secs(1);
        let mut meter = Meter::default();
        let mut windows = |bytes: u64, seconds: u32| -> Vec<u32> {
            (1..=seconds).filter(|_| meter.is_slow(bytes, second, &patience)).collect()
        };
        // A slow uplink that keeps to the limit, for as long as it takes.
        assert_eq!(windows(1000, 600), [0; 0]);
        // A drip after it, and what counts and then sends fast.
        assert_eq!(windows(1, 59), [0; 0]);
        assert_eq!(windows(1, 1), [1]);
        assert_eq!(windows(50, 40), [0; 0]);
        assert_eq!(windows(10_000, 20), [0; 0]);
        // What was not waited for is no fault of the server.
        let mut meter = Meter::default();
        assert!((0..1000).all(|_| !meter.is_slow(1, Duration::ZERO, &patience)));
        assert_eq!(meter.received(), 1000);
    }
}
