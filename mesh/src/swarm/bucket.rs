//! How often something may be done: a token bucket. It reads no clock.

use std::time::Duration;

/// Allows a burst, then a steady rate.
#[derive(Debug)]
pub(crate) struct Bucket {
    capacity: f64,
    per_second: f64,
    tokens: f64,
    filled: Duration,
}

impl Bucket {
    pub(crate) fn new(capacity: u32, per_second: u32) -> Self {
        let capacity = f64::from(capacity);
        Self { capacity, per_second: f64::from(per_second), tokens: capacity, filled: Duration::ZERO }
    }

    /// Whether it may be done at `now`, a time since any fixed moment.
    pub(crate) fn take(&mut self, now: Duration) -> bool {
        self.tokens = self.tokens_at(now);
        self.filled = now;
        let allowed = self.tokens >= 1.0;
        if allowed {
            self.tokens -= 1.0;
        }
        allowed
    }

    /// Whether it is at `now` as if nothing had been done.
    pub(crate) fn is_full(&self, now: Duration) -> bool {
        self.tokens_at(now) >= self.capacity
    }

    fn tokens_at(&self, now: Duration) -> f64 {
        let passed = now.saturating_sub(self.filled).as_secs_f64();
        self.capacity.min(self.tokens + passed * self.per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_is_allowed_and_then_the_rate() {
        let mut bucket = Bucket::new(20, 5);
        let at = Duration::from_millis;
        assert_eq!((0..30).filter(|_| bucket.take(at(0))).count(), 20);
        assert!(!bucket.take(at(190)));
        assert!(bucket.take(at(410)));
        assert_eq!((0..100).filter(|_| bucket.take(at(3_600_000))).count(), 20);
    }
}
