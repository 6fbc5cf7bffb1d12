//! The lease: a node's time-bounded duty to a run, and the times that both sides keep.
//!
//! Both ends measure with their own monotonic clock, from when they sent or received the renewal;
//! no clock is compared with another machine's. A node works on past its lease's expiry and presents
//! the end of the run when it reconnects; expiry only lets the coordinator start another run.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::{JobId, LeaseId, RunId};

/// How often a node renews by default.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a lease lives without a renewal, by default.
pub const LEASE_DURATION: Duration = Duration::from_secs(30);
/// How long a restarted coordinator waits for the leases that it knew.
pub const REATTACH_GRACE: Duration = Duration::from_secs(30);

/// What a node holds while it works on a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// The job it is for.
    pub job: JobId,
    /// The attempt at the job.
    pub run: RunId,
}

/// When a lease ends: pure bookkeeping over a monotonic time that the caller supplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseClock {
    expires: Duration,
}

impl LeaseClock {
    /// A lease granted or renewed at `now`, for `duration`.
    pub fn renewed(now: Duration, duration: Duration) -> Self {
        Self { expires: now + duration }
    }

    /// When it ends, in the same monotonic time.
    pub fn expires(self) -> Duration {
        self.expires
    }

    /// Whether it has ended.
    pub fn is_expired(self, now: Duration) -> bool {
        now >= self.expires
    }

    /// A renewal never shortens a lease, whatever order messages arrive in.
    pub fn renew(&mut self, now: Duration, duration: Duration) {
        self.expires = self.expires.max(now + duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_ends_without_renewal_and_never_shortens() {
        let seconds = Duration::from_secs;
        let mut clock = LeaseClock::renewed(seconds(10), seconds(30));
        assert!(!clock.is_expired(seconds(39)));
        assert!(clock.is_expired(seconds(40)));
        clock.renew(seconds(20), seconds(30));
        clock.renew(seconds(15), seconds(30));
        assert_eq!(clock.expires(), seconds(50));
    }
}
