//! Ends of runs: what counts as an attempt, which success is taken, when a job has failed for good.
//!
//! Not here: sessions, and leases that expire.

use std::collections::BTreeSet;
use std::time::Duration;

use protocol::message::{self, CancelRun, CoordinatorMessage, EndRecorded, RunEnded};
use protocol::{
    Fetched, JobId, JobState, Lease, LeaseClock, LeaseId, OutputFile, PeerId, Phase, Progress, RunError,
    RunErrorKind, SlotId,
};

use super::claims::bounded;
use super::jobs::{Job, Place};
use super::record::{EndedJob, EndedRun, KnownLease, Record};
use super::{Action, Now, State, Turn};
use crate::schedule::{Lack, RanOut};
use crate::view::{FailedRun, FarmEventKind, RunView};

/// The most runs of a job that may fail and count.
pub(crate) const MAX_ATTEMPTS: usize = 3;
/// The most runs of a job with which nodes may vanish.
pub(crate) const MAX_LOSSES: u32 = 5;
/// How often the outputs of one run are asked for before it counts as failed.
const MAX_COLLECTS: u32 = 5;
/// How long a slot rests on which a node did not take a run, or from which it gave one back.
const REST: Duration = Duration::from_secs(5);
/// The pause after the first failure to fetch outputs; it doubles.
const COLLECT_PAUSE: Duration = Duration::from_secs(1);

/// A run that is at work, or whose outputs are being collected.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// The lease under which it is done.
    pub(crate) lease: Lease,
    /// The node.
    pub(crate) node: PeerId,
    /// The slot on it.
    pub(crate) slot: SlotId,
    /// What it is doing.
    pub(crate) phase: Phase,
    /// How far it is.
    pub(crate) progress: Option<Progress>,
    /// When its lease ends.
    pub(crate) clock: LeaseClock,
    /// Set once it succeeded on the node.
    pub(crate) collecting: Option<Box<Collecting>>,
}

/// A run whose outputs are being fetched.
#[derive(Clone, Debug)]
pub(crate) struct Collecting {
    /// The end that the node told.
    pub(crate) ended: RunEnded,
    /// How often the fetch has failed.
    pub(crate) tries: u32,
    /// When to ask again; `None` while the service is at it.
    pub(crate) again: Option<Duration>,
}

impl Run {
    /// The run as people see it.
    pub(crate) fn to_view(&self) -> RunView {
        let progress = self.progress.clone();
        RunView { id: self.lease.run, node: self.node, slot: self.slot, phase: self.phase, progress }
    }

    /// What is remembered of its lease across a restart.
    pub(crate) fn to_known(&self) -> KnownLease {
        KnownLease { lease: self.lease, node: self.node, slot: self.slot }
    }
}

/// How a job ends.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) state: JobState,
    /// The run whose end was taken; `None` for whichever is current.
    pub(crate) taken: Option<EndedRun>,
    pub(crate) outputs: Vec<OutputFile>,
    pub(crate) error: Option<RunError>,
    pub(crate) fetched: Vec<Fetched>,
}

impl Outcome {
    /// An end that no run brought about.
    pub(crate) fn without_run(state: JobState) -> Self {
        Self { state, taken: None, outputs: Vec::new(), error: None, fetched: Vec::new() }
    }
}

impl State {
    /// Ends a job, with all that is known of it written down, and stops its other runs. Does nothing
    /// to an ended one.
    pub(super) fn end_job(&mut self, id: JobId, outcome: Outcome, turn: &mut Turn) {
        let Some(job) = self.jobs.get(id) else { return };
        let Outcome { state, taken, outputs, error, fetched } = outcome;
        let history = job.history().cloned().unwrap_or_default();
        let current = match job.place() {
            Place::Running(lease) => self.runs.get(&lease).map(|run| self.ended_run(run.node, run.lease)),
            Place::Queued | Place::Held { .. } => None,
        };
        let run = taken.or(current);
        let ended = EndedJob {
            job: job.new.clone(),
            state,
            started: history.started,
            ended: turn.now.wall,
            run,
            failures: history.failures,
            outputs,
            error,
            fetched,
        };
        let runs: Vec<Run> =
            self.runs.extract_if(.., |_, run| run.lease.job == id).map(|(_, run)| run).collect();
        for run in runs {
            if taken.is_none_or(|taken| taken.id != run.lease.run) {
                self.stop(&run, turn);
            }
        }
        self.lost.retain(|_, known| known.lease.job != id);
        turn.actions.push(Action::Archive(Box::new(ended)));
        self.record(Record::Ended { job: id, state }, turn);
    }

    /// Stops a run that is no longer wanted. Its slot stays taken until the node has done so.
    pub(super) fn stop(&mut self, run: &Run, turn: &mut Turn) {
        if run.collecting.is_some() {
            return self.forget_end(run.node, run.lease, turn);
        }
        self.await_slot(run, turn.now.monotonic);
        turn.send(run.node, CoordinatorMessage::CancelRun(CancelRun { lease: run.lease.id }));
    }

    /// A node told the end of a run, perhaps not for the first time.
    pub(super) fn run_ended(&mut self, node: PeerId, ended: RunEnded, turn: &mut Turn) {
        let lease = ended.lease;
        let ended = bounded(ended);
        self.release_slot(node, lease.id, turn);
        let Some(job) = self.jobs.get(lease.job).filter(|_| self.is_own(node, &lease)) else {
            // The job has ended, by this very run or otherwise, or it was never the node's: it may forget.
            return self.forget_end(node, lease, turn);
        };
        let outcome = match &ended.outcome {
            message::Outcome::Failed(error) => Err(error.clone()),
            message::Outcome::Succeeded(outputs) => self.check_outputs(&job.new.workflow, outputs),
        };
        match outcome {
            Ok(()) => self.collect(node, ended, turn),
            Err(error) => self.run_failed(node, lease, error, turn),
        }
    }

    /// Has the outputs of a success fetched. It does not matter whether the run is the current one.
    fn collect(&mut self, node: PeerId, ended: RunEnded, turn: &mut Turn) {
        let (lease, now) = (ended.lease, turn.now.monotonic);
        let clock = LeaseClock::renewed(now, self.settings.lease_duration);
        let slot = self.lost.remove(&lease.id).map_or(SlotId(0), |known| known.slot);
        let fresh =
            || Run { lease, node, slot, phase: Phase::Collecting, progress: None, clock, collecting: None };
        let run = self.runs.entry(lease.id).or_insert_with(fresh);
        match &mut run.collecting {
            Some(collecting) => {
                if collecting.again.take().is_none() {
                    // The service is at it.
                    return;
                }
            }
            None => {
                run.collecting = Some(Box::new(Collecting { ended: ended.clone(), tries: 0, again: None }))
            }
        }
        (run.node, run.phase, run.progress) = (node, Phase::Collecting, None);
        let view = run.to_view();
        if matches!(self.jobs.get(lease.job).map(Job::place), Some(Place::Queued | Place::Held { .. })) {
            // While its outputs come in, no other run of the job is begun.
            self.jobs.put(lease.job, Place::Running(lease.id));
        }
        turn.notify(FarmEventKind::Progress { job: lease.job, run: view });
        turn.actions.push(Action::Collect { node, ended: Box::new(ended) });
    }

    /// The outputs of a run are here: the first of a job's runs to get this far ends the job.
    pub(super) fn outputs_stored(&mut self, node: PeerId, ended: RunEnded, turn: &mut Turn) {
        let RunEnded { lease, outcome, fetched, .. } = ended;
        let message::Outcome::Succeeded(outputs) = outcome else { return };
        if let Some(job) = self.jobs.get(lease.job) {
            let workflow = job.new.workflow.clone();
            let failures = job.failures().to_vec();
            if let Some(node) = self.nodes.get_mut(node) {
                node.note_ran(&workflow);
            }
            self.succeeded_on(node, &workflow, &failures, turn);
            let blobs =
                fetched.iter().map(|fetched| fetched.blob).chain(outputs.iter().map(|file| file.blob));
            self.nodes.note_held(node, blobs);
            let taken = Some(self.ended_run(node, lease));
            let outcome = Outcome { state: JobState::Succeeded, taken, outputs, error: None, fetched };
            self.end_job(lease.job, outcome, turn);
        }
        self.forget_end(node, lease, turn);
    }

    /// The outputs of a run could not be fetched: they are asked for again, a few times.
    pub(super) fn collect_failed(&mut self, lease: LeaseId, reason: &str, turn: &mut Turn) {
        let Some(run) = self.runs.get_mut(&lease) else { return };
        let Some(collecting) = &mut run.collecting else { return };
        collecting.tries += 1;
        if collecting.tries < MAX_COLLECTS {
            collecting.again = Some(turn.now.monotonic + COLLECT_PAUSE * 2_u32.pow(collecting.tries - 1));
            return;
        }
        let (node, lease, known) = (run.node, run.lease, run.to_known());
        let error =
            RunError::new(RunErrorKind::MissingBlob, format!("its outputs could not be fetched: {reason}"));
        if self.is_current(&lease) {
            self.fail_current(node, lease, error, turn);
        }
        self.runs.remove(&lease.id);
        if self.jobs.get(lease.job).is_some() {
            // Its node still has them, and may come back with them.
            self.lost.insert(lease.id, known);
        }
    }

    /// The coordinator could not send a grant.
    pub(super) fn grant_failed(&mut self, lease: LeaseId, reason: String, turn: &mut Turn) {
        let Some(run) = self.runs.get(&lease) else { return };
        let (node, lease) = (run.node, run.lease);
        self.release_slot(node, lease.id, turn);
        let detail = format!("the job's parameters could not be read by the coordinator: {reason}");
        self.fail_current(node, lease, RunError::new(RunErrorKind::LostBlob, detail), turn);
    }

    /// A run failed. Only the current run of a job can fail it; the node may forget any.
    fn run_failed(&mut self, node: PeerId, lease: Lease, error: RunError, turn: &mut Turn) {
        self.lost.remove(&lease.id);
        let holder = match self.jobs.get(lease.job).map(Job::place) {
            Some(Place::Held { known, .. }) => Some(known.node),
            _ => self.runs.get(&lease.id).map(|run| run.node),
        };
        if self.is_current(&lease) && holder == Some(node) {
            self.fail_current(node, lease, error, turn);
        }
        self.forget_end(node, lease, turn);
    }

    /// Decides what the failure of a job's current run means for the job.
    fn fail_current(&mut self, node: PeerId, lease: Lease, error: RunError, turn: &mut Turn) {
        let taken = self.ended_run(node, lease);
        self.runs.remove(&lease.id);
        if self.jobs.get(lease.job).is_none() {
            return;
        }
        if !error.kind.counts_as_attempt() {
            self.rest_slot(node, taken.slot, turn);
            let reason = format!("{} gave it back: {}", node.fmt_short(), error.detail);
            return self.queue_again(lease.job, lease.id, reason, turn);
        }
        // A machine's memory, which its programs share, says nothing of cards.
        let memory = || self.nodes.get(node)?.card_memory(taken.slot);
        let ran_out_of = (error.kind == RunErrorKind::OutOfMemory).then(memory).flatten();
        let mut failed = FailedRun { id: lease.run, node, error, ran_out_of };
        let lack = self.lack_of_memory(lease.job, &failed, turn.now);
        let Some(job) = self.jobs.get_mut(lease.job) else { return };
        if is_final(job.failures(), &failed, lack.as_ref()) {
            if let Some(lack) = lack.filter(|_| ran_out_of.is_some()) {
                failed.error.detail = format!("{}; {lack}", failed.error.detail);
            }
            let error = failed.error.clone();
            job.history_mut().failures.push(failed);
            let outcome =
                Outcome { taken: Some(taken), error: Some(error), ..Outcome::without_run(JobState::Failed) };
            return self.end_job(lease.job, outcome, turn);
        }
        self.record(Record::RunFailed { job: lease.job, failed }, turn);
        self.jobs.put(lease.job, Place::Queued);
        turn.actions.push(Action::Unleased(lease.id));
    }

    /// What a job lacks that has run out of memory on all devices that the farm has for it.
    fn lack_of_memory(&self, id: JobId, failed: &FailedRun, now: Now) -> Option<Lack> {
        let job = self.jobs.get(id)?;
        let ran_out = RanOut::of(job.failures().iter().chain([failed]))?;
        let requirements = &self.catalog.get(&job.new.workflow)?.requirements;
        ran_out.lack(requirements, &self.node_pictures(now))
    }

    /// A node vanished with a run, or came back without it.
    pub(super) fn lose_run(&mut self, lease: LeaseId, reason: &str, turn: &mut Turn) {
        let Some(run) = self.runs.remove(&lease) else { return };
        self.await_slot(&run, turn.now.monotonic);
        let is_current = self.is_current(&run.lease);
        let Some(job) = self.jobs.get_mut(run.lease.job) else { return };
        self.lost.insert(lease, run.to_known());
        if !is_current {
            return;
        }
        let history = job.history_mut();
        history.losses += 1;
        if history.losses >= MAX_LOSSES {
            let detail = format!("nodes vanished {MAX_LOSSES} times with a run of it, at last: {reason}");
            let error = Some(RunError::new(RunErrorKind::NodeFault, detail));
            let outcome = Outcome { error, ..Outcome::without_run(JobState::Failed) };
            return self.end_job(run.lease.job, outcome, turn);
        }
        self.queue_again(run.lease.job, lease, reason.to_owned(), turn);
    }

    /// A run as it is written down with the end of its job.
    pub(super) fn ended_run(&self, node: PeerId, lease: Lease) -> EndedRun {
        let run = self.runs.get(&lease.id).map(|run| (run.slot, run.phase));
        let lost = || self.lost.get(&lease.id).map(|known| (known.slot, Phase::Collecting));
        let (slot, phase) = run.or_else(lost).unwrap_or((SlotId(0), Phase::Collecting));
        EndedRun { id: lease.run, node, slot, phase }
    }

    /// Tells a node that it may forget the end of a run and its outputs.
    pub(super) fn forget_end(&mut self, node: PeerId, lease: Lease, turn: &mut Turn) {
        let recorded = EndRecorded { run: lease.run, job: lease.job };
        turn.send(node, CoordinatorMessage::EndRecorded(recorded));
    }

    /// Frees the slot of a lease: its node said that the run is over.
    pub(super) fn release_slot(&mut self, node: PeerId, lease: LeaseId, turn: &Turn) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.release(lease, turn.now.monotonic);
            self.plan_due = true;
        }
    }

    /// Grants nothing on a slot for a while, if it is free: its node has just given a run back.
    pub(super) fn rest_slot(&mut self, node: PeerId, slot: SlotId, turn: &Turn) {
        let slot = self.nodes.get_mut(node).and_then(|node| node.slots.get_mut(&slot));
        if let Some(slot) = slot.filter(|slot| slot.lease.is_none()) {
            slot.not_before = turn.now.monotonic + REST;
        }
    }

    /// From now on the slot of a run that nobody wants is waited for.
    pub(super) fn await_slot(&mut self, run: &Run, now: Duration) {
        let slots = self.nodes.get_mut(run.node).map(|node| node.slots.values_mut());
        for slot in slots.into_iter().flatten().filter(|slot| slot.lease == Some(run.lease.id)) {
            slot.since = now;
        }
    }
}

/// Whether a job has failed with this failure after the earlier ones.
fn is_final(earlier: &[FailedRun], failed: &FailedRun, lack: Option<&Lack>) -> bool {
    let kind = failed.error.kind;
    // The same on two nodes is the job's fault, and a third would only take longer.
    let is_jobs_fault = matches!(kind, RunErrorKind::OpFailed | RunErrorKind::NoOutput);
    let nodes: BTreeSet<PeerId> =
        earlier.iter().chain([failed]).filter(|run| run.error.kind == kind).map(|run| run.node).collect();
    let attempts = attempts(earlier.iter().chain([failed]), lack);
    !kind.retry_elsewhere() || attempts >= MAX_ATTEMPTS || (is_jobs_fault && nodes.len() >= 2)
}

/// How many of a job's failures count: not those that ran out of memory where a larger device was tried after them,
/// or is there to be tried.
fn attempts<'a>(failures: impl Iterator<Item = &'a FailedRun>, lack: Option<&Lack>) -> usize {
    let (mut most, mut count) = (0, 0);
    for failed in failures {
        match failed.ran_out_of {
            Some(memory) if memory > most => most = memory,
            _ => count += 1,
        }
    }
    count + usize::from(lack.is_some())
}
