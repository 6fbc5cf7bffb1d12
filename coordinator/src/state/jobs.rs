//! The unfinished jobs: each in exactly one place, and the queue in the order in which they are due.
//!
//! Not here: why a job moves. An ended job is not kept in memory at all.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use protocol::{JobId, LeaseId, PeerId, RunErrorKind, WorkflowVersion};
use time::OffsetDateTime;

use super::record::{KeptJob, KnownLease, NewJob};
use crate::view::FailedRun;

/// Where a job stands in the queue: the higher priority first, then the earlier submission.
pub(crate) type Due = (Reverse<u8>, u64);

/// An unfinished job.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// The job as it was submitted.
    pub(crate) new: NewJob,
    /// Its place in the order of submission, which it keeps when it is queued again.
    pub(crate) order: u64,
    /// Where it is.
    place: Place,
    /// What a job that was never run has not: boxed, so that a long queue stays small.
    history: Option<Box<History>>,
}

/// What happened to a job so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// When its latest run was leased.
    pub(crate) started: Option<OffsetDateTime>,
    /// Runs that failed and count.
    pub(crate) failures: Vec<FailedRun>,
    /// How often a node vanished with a run of it.
    pub(crate) losses: u32,
}

/// The one place where an unfinished job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It waits for a slot.
    Queued,
    /// A node was at work on it before the coordinator restarted, and has until then to come back.
    Held { known: KnownLease, until: Duration },
    /// This lease is the one on it.
    Running(LeaseId),
}

impl Job {
    /// Where it is.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// Where it stands in the queue.
    pub(crate) fn due(&self) -> Due {
        (Reverse(self.new.priority), self.order)
    }

    /// What happened to it so far, if anything.
    pub(crate) fn history(&self) -> Option<&History> {
        self.history.as_deref()
    }

    /// The same, to add to it.
    pub(crate) fn history_mut(&mut self) -> &mut History {
        self.history.get_or_insert_default()
    }

    /// The runs that failed.
    pub(crate) fn failures(&self) -> &[FailedRun] {
        self.history().map_or(&[], |history| &history.failures)
    }

    /// The job for a snapshot.
    pub(crate) fn to_kept(&self) -> KeptJob {
        KeptJob { job: self.new.clone(), order: self.order, failures: self.failures().to_vec() }
    }
}

/// All unfinished jobs.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    all: BTreeMap<JobId, Job>,
    /// The queued ones of each class, in the order in which they are due.
    queues: HashMap<WorkflowVersion, BTreeMap<Due, JobId>>,
    /// The held ones.
    held: BTreeSet<JobId>,
    /// Those that expire, the first first.
    expiring: BTreeSet<(OffsetDateTime, JobId)>,
    queued: usize,
    next_order: u64,
}

impl Jobs {
    /// Takes a new job into the queue.
    pub(crate) fn submit(&mut self, new: NewJob) {
        let order = self.next_order;
        self.keep(KeptJob { job: new, order, failures: Vec::new() });
    }

    /// Takes a job of a snapshot into the queue.
    pub(crate) fn keep(&mut self, kept: KeptJob) {
        let KeptJob { job: new, order, failures } = kept;
        self.next_order = self.next_order.max(order + 1);
        let id = new.id;
        let history = (!failures.is_empty()).then(|| Box::new(History { failures, ..History::default() }));
        let job = Job { new, order, place: Place::Queued, history };
        self.enqueue(&job);
        self.expiring.extend(job.new.expires.map(|expires| (expires, id)));
        self.all.insert(id, job);
    }

    /// Moves a job to a place.
    pub(crate) fn put(&mut self, id: JobId, place: Place) {
        let Some(mut job) = self.all.remove(&id) else { return };
        self.leave_place(&job);
        job.place = place;
        match place {
            Place::Queued => self.enqueue(&job),
            Place::Held { .. } => {
                self.held.insert(id);
            }
            Place::Running(_) => {}
        }
        self.all.insert(id, job);
    }

    /// Lets go of a job.
    pub(crate) fn remove(&mut self, id: JobId) -> Option<Job> {
        let job = self.all.remove(&id)?;
        self.leave_place(&job);
        if let Some(expires) = job.new.expires {
            self.expiring.remove(&(expires, id));
        }
        Some(job)
    }

    /// A job.
    pub(crate) fn get(&self, id: JobId) -> Option<&Job> {
        self.all.get(&id)
    }

    /// A job, to add to its history.
    pub(crate) fn get_mut(&mut self, id: JobId) -> Option<&mut Job> {
        self.all.get_mut(&id)
    }

    /// All, oldest first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Job> {
        self.all.values()
    }

    /// Those submitted before this one, newest first.
    pub(crate) fn newest_before(&self, before: Option<JobId>) -> Box<dyn Iterator<Item = &Job> + '_> {
        match before {
            Some(before) => Box::new(self.all.range(..before).rev().map(|(_, job)| job)),
            None => Box::new(self.all.values().rev()),
        }
    }

    /// The queued jobs of each class, in order.
    pub(crate) fn queues(&self) -> impl Iterator<Item = (&WorkflowVersion, impl Iterator<Item = &Job>)> {
        self.queues.iter().map(|(workflow, queue)| {
            (
                workflow,
                queue.values().map(|id| self.all.get(id).expect("a queued job is kept until it leaves")),
            )
        })
    }

    /// The jobs that wait for a node to come back, with what is known of its lease.
    pub(crate) fn held(&self) -> Vec<(JobId, KnownLease, Duration)> {
        let held = |id: &JobId| match self.all.get(id)?.place {
            Place::Held { known, until } => Some((*id, known, until)),
            Place::Queued | Place::Running(_) => None,
        };
        self.held.iter().filter_map(held).collect()
    }

    /// The queued jobs that wait longer than they were to.
    pub(crate) fn expired(&self, now: OffsetDateTime) -> Vec<JobId> {
        let due = self.expiring.iter().take_while(|(expires, _)| *expires <= now);
        let is_queued = |id: &JobId| self.all.get(id).is_some_and(|job| job.place == Place::Queued);
        due.map(|(_, id)| *id).filter(is_queued).collect()
    }

    /// How many wait, the held ones among them.
    pub(crate) fn waiting(&self) -> usize {
        self.queued + self.held.len()
    }

    /// How many are at work.
    pub(crate) fn running(&self) -> usize {
        self.all.len() - self.waiting()
    }

    /// The order that the next job gets.
    pub(crate) fn next_order(&self) -> u64 {
        self.next_order
    }

    /// Goes on counting from there.
    pub(crate) fn continue_order(&mut self, next_order: u64) {
        self.next_order = self.next_order.max(next_order);
    }

    /// How many jobs stand before each of these in the queue.
    pub(crate) fn positions(&self, wanted: &HashSet<JobId>) -> HashMap<JobId, u64> {
        let mut due: Vec<Due> = wanted.iter().filter_map(|id| self.all.get(id)).map(Job::due).collect();
        due.sort_unstable();
        let mut before = vec![0_u64; due.len()];
        for queue in self.queues.values() {
            for place in queue.keys() {
                // This job stands before all of the wanted ones that are due after it.
                let first = due.partition_point(|wanted| wanted <= place);
                if let Some(count) = before.get_mut(first) {
                    *count += 1;
                }
            }
        }
        let mut sum = 0;
        let counted: HashMap<Due, u64> = due
            .iter()
            .zip(before)
            .map(|(due, count)| {
                sum += count;
                (*due, sum)
            })
            .collect();
        let position = |id: &JobId| Some((*id, *counted.get(&self.all.get(id)?.due())?));
        wanted.iter().filter_map(position).collect()
    }

    /// Nodes on which a job failed, each once; not those that were not given what they need, or on one of whose
    /// devices it ran out of memory.
    pub(crate) fn failed_on(job: &Job) -> Vec<PeerId> {
        let is_its_own =
            |failed: &&FailedRun| failed.error.kind != RunErrorKind::LostBlob && failed.ran_out_of.is_none();
        let failures = job.failures().iter().filter(is_its_own);
        let nodes: BTreeSet<PeerId> = failures.map(|failed| failed.node).collect();
        nodes.into_iter().collect()
    }

    fn enqueue(&mut self, job: &Job) {
        let queue = self.queues.entry(job.new.workflow.clone()).or_default();
        queue.insert(job.due(), job.new.id);
        self.queued += 1;
    }

    fn leave_place(&mut self, job: &Job) {
        match job.place {
            Place::Queued => {
                if let Some(queue) = self.queues.get_mut(&job.new.workflow) {
                    queue.remove(&job.due());
                    if queue.is_empty() {
                        self.queues.remove(&job.new.workflow);
                    }
                }
                self.queued -= 1;
            }
            Place::Held { .. } => {
                self.held.remove(&job.new.id);
            }
            Place::Running(_) => {}
        }
    }
}
