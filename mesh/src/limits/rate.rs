//! A cap in bytes a second: whoever wants to send waits until those before it are paid for.
//!
//! Not here: how large the cap is.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// How much idle time is made up for.
const BURST: Duration = Duration::from_millis(100);

/// A cap that all who take from it share, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Rate {
    bucket: Mutex<Bucket>,
    /// Held by the first of those who wait.
    first: tokio::sync::Mutex<()>,
    changed: Notify,
    began: Instant,
}

impl Default for Rate {
    fn default() -> Self {
        let (bucket, first) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { bucket, first, changed: Notify::new(), began: Instant::now() }
    }
}

impl Rate {
    /// Sets the cap; `None` is none.
    pub(crate) fn set(&self, cap: Option<u64>) {
        if self.lock().set(cap) {
            self.changed.notify_waiters();
        }
    }

    /// Whether there is a cap.
    pub(crate) fn is_capped(&self) -> bool {
        self.lock().cap.is_some()
    }

    /// Waits until so many bytes may cross.
    pub(crate) async fn take(&self, bytes: usize) {
        if !self.is_capped() {
            return;
        }
        let _first = self.first.lock().await;
        loop {
            let changed = self.changed.notified();
            let now = self.began.elapsed();
            let wait = {
                let mut bucket = self.lock();
                match bucket.wait(now) {
                    Duration::ZERO => return bucket.spend(bytes, now),
                    wait => wait,
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = changed => {}
            }
        }
    }

    /// How many bytes were taken under the caps that there were.
    #[cfg(test)]
    pub(super) fn spent(&self) -> u64 {
        self.lock().spent
    }

    fn lock(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().expect("nothing panics while it holds the bucket")
    }
}

/// What was spent, as the time until which it is paid for.
#[derive(Debug, Default)]
struct Bucket {
    cap: Option<u64>,
    paid: Duration,
    #[cfg(test)]
    spent: u64,
}

impl Bucket {
    /// Says whether that is another cap; what was spent under the one before is forgotten.
    fn set(&mut self, cap: Option<u64>) -> bool {
        // A cap of nothing at all would stop what crosses in the middle.
        let cap = cap.map(|cap| cap.max(1));
        let is_other = self.cap != cap;
        if is_other {
            self.cap = cap;
            self.paid = Duration::ZERO;
        }
        is_other
    }

    fn wait(&self, now: Duration) -> Duration {
        if self.cap.is_some() { self.paid.saturating_sub(now) } else { Duration::ZERO }
    }

    fn spend(&mut self, bytes: usize, now: Duration) {
        let Some(cap) = self.cap else { return };
        #[cfg(test)]
        {
            self.spent += bytes as u64;
        }
        let price = Duration::from_secs_f64(bytes as f64 / cap as f64);
        self.paid = self.paid.max(now.saturating_sub(BURST)) + price;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_second_take_a_second_and_idle_time_is_not_saved_up() {
        let mut bucket = Bucket::default();
        assert!(bucket.set(Some(1000)));
        let mut now = Duration::from_secs(60);
        let began = now;
        for _ in 0..100 {
            now += bucket.wait(now);
            bucket.spend(50, now);
        }
        let took = now - began;
        assert!(took > Duration::from_millis(4800) && took < Duration::from_millis(5000), "{took:?}");
        assert!(bucket.set(Some(10)));
        assert_eq!(bucket.wait(now), Duration::ZERO, "another cap begins anew");
        bucket.spend(10, now);
        assert!(bucket.set(None));
        assert_eq!(bucket.wait(now), Duration::ZERO);
    }

    #[tokio::test]
    async fn whoever_waits_goes_on_when_the_cap_is_lifted() {
        let rate = Rate::default();
        rate.set(Some(1));
        rate.take(1 << 20).await;
        let waiting = rate.take(1);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        rate.set(None);
        tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("it waits no more");
    }
}
