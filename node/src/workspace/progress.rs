//! How far a preparation is: at which step, and how many bytes of it are done.
//!
//! The files of a step come several at once, and those of the next one beside them. So each step is counted by itself,
//! and the one that the preparation is at is told, so often and no more: to the shelf, from which the coordinator and
//! the owner have it, and to the node's log. Not here: what the steps do.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh::fetch::Progress;
use protocol::{LockfileHash, PrepareStep, Preparing};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{Span, info};

use super::shelf::Shelf;

/// How often bytes are told, and how often they are logged.
const TELL: Duration = Duration::from_millis(500);
const LOG: Duration = Duration::from_secs(10);

/// Where a builder tells at which step it is and how far. A clone tells the same.
#[derive(Clone)]
pub struct Steps {
    shelf: Shelf,
    lockfile: LockfileHash,
    /// Of the preparation; steps work on other threads as well.
    span: Span,
    told: Arc<Mutex<Told>>,
}

struct Told {
    step: PrepareStep,
    counts: BTreeMap<PrepareStep, Count>,
    tell_at: Instant,
    log_at: Instant,
}

/// What is known of a step.
#[derive(Clone, Copy, Default)]
struct Count {
    done: u64,
    total: u64,
    /// More comes than anybody knows.
    is_open: bool,
}

impl Told {
    fn preparing(&self) -> Preparing {
        let Count { done, total, is_open } = self.counts.get(&self.step).copied().unwrap_or_default();
        Preparing { step: self.step, done, total: if is_open { 0 } else { total } }
    }
}

impl Steps {
    pub(super) fn new(shelf: Shelf, lockfile: LockfileHash) -> Self {
        let (step, now) = (PrepareStep::Lockfile, Instant::now());
        let told = Told { step, counts: BTreeMap::new(), tell_at: now, log_at: now };
        let steps = Self { shelf, lockfile, span: Span::current(), told: Arc::new(Mutex::new(told)) };
        steps.enter(step);
        steps
    }

    /// Goes on to the next step.
    pub fn enter(&self, step: PrepareStep) {
        let mut told = self.told();
        told.step = step;
        self.span.in_scope(|| info!(%step, "workspace is at a step"));
        told.log_at = Instant::now() + LOG;
        self.tell(&mut told);
    }

    /// Notes that so many bytes more are to come in a step.
    pub(super) fn expect(&self, step: PrepareStep, bytes: u64) {
        let mut told = self.told();
        let count = told.counts.entry(step).or_default();
        count.total = count.total.saturating_add(bytes);
        self.tell(&mut told);
    }

    /// Notes that nobody knows how much is to come in a step.
    pub(super) fn open(&self, step: PrepareStep) {
        self.told().counts.entry(step).or_default().is_open = true;
    }

    /// Something that comes in a step.
    pub(super) fn part(&self, step: PrepareStep) -> Part {
        Part { steps: self.clone(), step, done: AtomicU64::new(0) }
    }

    /// The step that it is at.
    pub(super) fn step(&self) -> PrepareStep {
        self.told().step
    }

    fn moved(&self, step: PrepareStep, more: u64, less: u64) {
        let mut told = self.told();
        let count = told.counts.entry(step).or_default();
        count.done = count.done.saturating_add(more).saturating_sub(less);
        let now = Instant::now();
        if told.step == step && now >= told.tell_at {
            self.tell(&mut told);
        }
        if told.step == step && now >= told.log_at {
            told.log_at = now + LOG;
            self.span.in_scope(|| info!(progress = %told.preparing(), "workspace comes"));
        }
    }

    fn tell(&self, told: &mut Told) {
        told.tell_at = Instant::now() + TELL;
        self.shelf.set_preparing(self.lockfile, told.preparing());
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that comes in a step: a file, or a commit.
pub(super) struct Part {
    steps: Steps,
    step: PrepareStep,
    done: AtomicU64,
}

impl Part {
    /// Tells how many bytes of it are here. That may be fewer than before: what was wrong is taken back.
    pub(super) fn set(&self, done: u64) {
        let before = self.done.swap(done, Ordering::Relaxed);
        self.steps.moved(self.step, done.saturating_sub(before), before.saturating_sub(done));
    }

    /// Tells how many bytes are here of whatever comes at the moment; fewer than before are of the next.
    pub(super) fn set_of_next(&self, done: u64) {
        let before = self.done.swap(done, Ordering::Relaxed);
        self.steps.moved(self.step, done.checked_sub(before).unwrap_or(done), 0);
    }

    /// Waits for a fetch, and counts what it says that came.
    pub(super) async fn count<T>(
        &self,
        mut progress: watch::Receiver<Progress>,
        fetching: impl Future<Output = T>,
    ) -> T {
        let mut fetching = std::pin::pin!(fetching);
        loop {
            let changed = tokio::select! {
                biased;
                fetched = &mut fetching => return fetched,
                changed = progress.changed() => changed,
            };
            if changed.is_err() {
                return fetching.await;
            }
            let bytes = progress.borrow_and_update().bytes;
            self.set(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::{BlobHash, WorkspaceState};

    use super::*;

    const LOCKFILE: LockfileHash = LockfileHash(BlobHash([1; 32]));

    fn told(shelf: &Shelf) -> (PrepareStep, u64, u64) {
        match shelf.state(LOCKFILE) {
            Some(WorkspaceState::Preparing(Preparing { step, done, total })) => (step, done, total),
            other => panic!("{other:?}"),
        }
    }

    fn started() -> (Shelf, Steps) {
        let shelf = Shelf::new(std::path::PathBuf::new());
        shelf.keep_only(&[LOCKFILE].into());
        let steps = Steps::new(shelf.clone(), LOCKFILE);
        (shelf, steps)
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_of_each_step_are_counted_apart_and_told_so_often() {
        let (shelf, steps) = started();
        steps.enter(PrepareStep::Code);
        let (pack, wheel) = (steps.part(PrepareStep::Code), steps.part(PrepareStep::Python));
        steps.expect(PrepareStep::Code, 100);
        steps.expect(PrepareStep::Python, 30);
        wheel.set(10);
        pack.set(40);
        assert_eq!(told(&shelf), (PrepareStep::Code, 0, 100), "it was told a moment ago");
        tokio::time::advance(TELL).await;
        pack.set(60);
        assert_eq!(told(&shelf), (PrepareStep::Code, 60, 100));
        tokio::time::advance(TELL).await;
        pack.set(50);
        assert_eq!(told(&shelf), (PrepareStep::Code, 50, 100), "some of it was wrong");
        steps.enter(PrepareStep::Python);
        assert_eq!(told(&shelf), (PrepareStep::Python, 10, 30), "it came beside the code");
    }

    #[tokio::test(start_paused = true)]
    async fn commits_come_one_after_another_and_nobody_knows_how_large() {
        let (shelf, steps) = started();
        steps.enter(PrepareStep::Code);
        steps.expect(PrepareStep::Code, 5);
        steps.open(PrepareStep::Code);
        let commits = steps.part(PrepareStep::Code);
        for bytes in [30, 70, 20] {
            tokio::time::advance(TELL).await;
            commits.set_of_next(bytes);
        }
        assert_eq!(told(&shelf), (PrepareStep::Code, 90, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn fetch_is_counted_while_it_goes_on() {
        let (shelf, steps) = started();
        steps.enter(PrepareStep::Models);
        steps.expect(PrepareStep::Models, 9);
        let (sender, progress) = watch::channel(Progress::default());
        let part = steps.part(PrepareStep::Models);
        let fetching = async {
            for bytes in [4, 6] {
                tokio::time::sleep(TELL).await;
                sender.send_replace(Progress { bytes, ..Progress::default() });
                tokio::task::yield_now().await;
            }
            "here"
        };
        assert_eq!(part.count(progress, fetching).await, "here");
        assert_eq!(told(&shelf), (PrepareStep::Models, 6, 9));
    }
}
