//! A cap on bytes per second: the arithmetic, which reads no clock, and a stream that keeps to it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How much of a pause may be caught up with.
const BURST: Duration = Duration::from_millis(250);
/// The most that is written at once, so that nobody waits long behind one write.
const CHUNK: usize = 64 << 10;

/// How fast bytes may cross.
#[derive(Debug)]
struct Pace {
    per_second: u64,
    /// When all that crossed so far was due.
    due: Duration,
}

impl Pace {
    fn new(per_second: u64) -> Self {
        Self { per_second: per_second.max(1), due: Duration::ZERO }
    }

    /// Counts bytes that crossed at `now`, a time since any fixed moment; says how long to wait before the
    /// next.
    fn count(&mut self, bytes: usize, now: Duration) -> Duration {
        let cost = Duration::from_secs_f64(bytes as f64 / self.per_second as f64);
        self.due = self.due.max(now.saturating_sub(BURST)) + cost;
        self.due.saturating_sub(now)
    }

    /// How long nothing has crossed, give or take a burst.
    fn idle(&self, now: Duration) -> Duration {
        now.saturating_sub(self.due)
    }
}

/// A pace that several streams keep to together.
#[derive(Clone, Debug)]
pub(super) struct SharedPace {
    start: Instant,
    pace: Arc<Mutex<Pace>>,
}

impl SharedPace {
    pub(super) fn new(per_second: u64) -> Self {
        Self { start: Instant::now(), pace: Arc::new(Mutex::new(Pace::new(per_second))) }
    }

    /// Waits until nothing crossed for so long.
    pub(super) async fn idle(&self, longest: Duration) {
        loop {
            let now = self.start.elapsed();
            let idle = self.pace.lock().expect("nothing panics while it holds it").idle(now);
            if idle >= longest {
                return;
            }
            sleep(longest - idle).await;
        }
    }

    fn count(&self, bytes: usize) -> Duration {
        let mut pace = self.pace.lock().expect("nothing panics while it holds it");
        pace.count(bytes, self.start.elapsed())
    }
}

/// Half of a stream that keeps to the slower of two paces and breaks when its link is closed.
pub(super) struct Paced<H> {
    half: H,
    paces: [SharedPace; 2],
    pause: Option<Pin<Box<Sleep>>>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<H> Paced<H> {
    pub(super) fn new(half: H, paces: [SharedPace; 2], closed: CancellationToken) -> Self {
        Self { half, paces, pause: None, closed: Box::pin(closed.cancelled_owned()) }
    }

    /// Ready once the next bytes may cross.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closed.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        Poll::Ready(Ok(()))
    }

    fn count(&mut self, bytes: usize) {
        let pause = self.paces.iter().map(|pace| pace.count(bytes)).max().unwrap_or_default();
        if !pause.is_zero() {
            self.pause = Some(Box::pin(sleep(pause)));
        }
    }
}

impl<H: AsyncRead + Unpin> AsyncRead for Paced<H> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_turn(context))?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.half).poll_read(context, buffer))?;
        self.count(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<H: AsyncWrite + Unpin> AsyncWrite for Paced<H> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(context))?;
        let chunk = &bytes[..bytes.len().min(CHUNK)];
        let written = ready!(Pin::new(&mut self.half).poll_write(context, chunk))?;
        self.count(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long it takes a sender that waits as it is told.
    fn takes(pace: &mut Pace, start: Duration, bytes: usize) -> Duration {
        let mut now = start;
        for _ in 0..bytes / CHUNK {
            now += pace.count(CHUNK, now);
        }
        now - start
    }

    #[test]
    fn rate_holds_for_whoever_never_stops() {
        let mut pace = Pace::new(4 << 20);
        let took = takes(&mut pace, Duration::from_secs(100), 64 << 20);
        assert_eq!(took, Duration::from_secs(16) - BURST);
    }

    #[test]
    fn pause_is_caught_up_with_only_a_little() {
        let mut pace = Pace::new(1 << 20);
        let first = takes(&mut pace, Duration::from_secs(100), 1 << 20);
        let after_an_hour = takes(&mut pace, Duration::from_secs(3700), 1 << 20);
        assert_eq!((first, after_an_hour), (Duration::from_secs(1) - BURST, Duration::from_secs(1) - BURST));
    }

    #[test]
    fn two_that_share_a_pace_share_its_rate() {
        let mut pace = Pace::new(1 << 20);
        let now = Duration::from_secs(100);
        let first = pace.count(1 << 20, now);
        let second = pace.count(1 << 20, now);
        assert_eq!((first, second), (Duration::from_secs(1) - BURST, Duration::from_secs(2) - BURST));
    }

    #[test]
    fn pace_is_idle_from_the_last_byte_on() {
        let mut pace = Pace::new(1 << 20);
        let at = Duration::from_secs;
        assert_eq!(pace.idle(at(40)), at(40));
        pace.count(1 << 20, at(100));
        assert_eq!([pace.idle(at(100)), pace.idle(at(401))], [Duration::ZERO, at(300) + BURST]);
    }

    #[test]
    fn rate_of_nothing_is_no_division_by_zero() {
        assert!(Pace::new(0).count(1, Duration::ZERO) <= Duration::from_secs(1));
    }
}
