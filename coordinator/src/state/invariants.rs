//! What holds after any sequence of events: no job in two places, no slot with two runs, an end
//! recorded once, and a restart that finds exactly the unfinished jobs.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use protocol::message::{Heartbeat, HeldLease, Leave, Refusal, Refused};
use protocol::{Lease, Phase, RunErrorKind, SlotId};

use super::jobs::Place;
use super::made_farm::{Farm, failed, job, node, succeeded};
use super::*;

/// What may happen next; numbers choose among the jobs, nodes and leases that there are.
#[derive(Clone, Debug)]
enum Step {
    Submit,
    Cancel(u64),
    Register(u8),
    Disconnect(u8),
    Drain(u8, bool),
    Heartbeat(u8),
    Succeed(usize),
    Store(usize),
    Fail(usize, RunErrorKind),
    CollectFail(usize),
    Refuse(usize),
    /// A node claims what another one was granted.
    Steal(u8, usize),
    Leave(u8),
    Pass(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let kinds = prop::sample::select(vec![
        RunErrorKind::InvalidInput,
        RunErrorKind::OpFailed,
        RunErrorKind::OutOfMemory,
        RunErrorKind::NodeStopping,
        RunErrorKind::Stalled,
        RunErrorKind::Canceled,
    ]);
    let lease = || 0_usize..8;
    prop_oneof![
        4 => Just(Step::Submit),
        1 => (0_u64..12).prop_map(Step::Cancel),
        4 => (1_u8..4).prop_map(Step::Register),
        1 => (1_u8..4).prop_map(Step::Disconnect),
        1 => (1_u8..4, any::<bool>()).prop_map(|(seed, draining)| Step::Drain(seed, draining)),
        2 => (1_u8..4).prop_map(Step::Heartbeat),
        3 => lease().prop_map(Step::Succeed),
        3 => lease().prop_map(Step::Store),
        3 => (lease(), kinds).prop_map(|(lease, kind)| Step::Fail(lease, kind)),
        1 => lease().prop_map(Step::CollectFail),
        1 => lease().prop_map(Step::Refuse),
        1 => (1_u8..4, lease()).prop_map(|(seed, lease)| Step::Steal(seed, lease)),
        1 => (1_u8..4).prop_map(Step::Leave),
        2 => (1_u64..40).prop_map(Step::Pass),
        1 => Just(Step::Restart),
    ]
}

/// A farm with the memory of its nodes: all grants that they ever got.
struct World {
    farm: Farm,
    submitted: u64,
    granted: Vec<(PeerId, Lease)>,
}

impl World {
    fn grant_at(&self, place: usize) -> Option<(PeerId, Lease)> {
        // The newest ones are the likely ones to matter.
        self.granted.iter().rev().nth(place).copied()
    }

    fn say(&mut self, place: usize, message: impl FnOnce(Lease) -> NodeMessage) {
        if let Some((node, lease)) = self.grant_at(place) {
            self.farm.say(node.0[0], message(lease));
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Submit => {
                self.submitted += 1;
                self.farm.submit(self.submitted);
            }
            Step::Cancel(number) => self.farm.apply(Event::Cancel(job(number))),
            Step::Register(seed) => {
                // It still holds the last run that it was granted, and tells the end of the one before.
                let own: Vec<Lease> = self
                    .granted
                    .iter()
                    .rev()
                    .filter(|(on, _)| *on == node(seed))
                    .map(|(_, lease)| *lease)
                    .collect();
                let held =
                    own.first().map(|&lease| HeldLease { lease, slot: SlotId(0), phase: Phase::Executing });
                let ended = own.get(1).map(|&lease| succeeded(lease));
                self.farm.register_with(seed, held.into_iter().collect(), ended.into_iter().collect());
            }
            Step::Disconnect(seed) => self.farm.disconnect(seed),
            Step::Drain(seed, draining) => self.farm.apply(Event::SetDraining(node(seed), draining)),
            Step::Heartbeat(seed) => {
                let of_node = self.granted.iter().filter(|(on, _)| *on == node(seed));
                let leases = of_node.map(|(_, lease)| lease.id).rev().take(2).collect();
                self.farm.say(seed, NodeMessage::Heartbeat(Heartbeat { leases }));
            }
            Step::Succeed(place) => self.say(place, |lease| NodeMessage::RunEnded(succeeded(lease))),
            Step::Store(place) => {
                if let Some((node, lease)) = self.grant_at(place) {
                    let ended = Box::new(succeeded(lease));
                    self.farm.apply(Event::OutputsStored { node, ended });
                }
            }
            Step::Fail(place, kind) => self.say(place, |lease| NodeMessage::RunEnded(failed(lease, kind))),
            Step::CollectFail(place) => {
                if let Some((_, lease)) = self.grant_at(place) {
                    self.farm.apply(Event::CollectFailed { lease: lease.id, reason: String::new() });
                }
            }
            Step::Refuse(place) => self.say(place, |lease| {
                NodeMessage::Refused(Refused { lease, refusal: Refusal::SlotBusy(SlotId(0)) })
            }),
            Step::Steal(seed, place) => {
                if let Some((_, lease)) = self.grant_at(place).filter(|(owner, _)| *owner != node(seed)) {
                    let before = self.farm.state.runs.get(&lease.id).map(|run| run.node);
                    let refused = Refused { lease, refusal: Refusal::SlotBusy(SlotId(0)) };
                    self.farm.say(seed, NodeMessage::Refused(refused));
                    self.farm.say(seed, NodeMessage::RunEnded(failed(lease, RunErrorKind::InvalidInput)));
                    self.farm.say(seed, NodeMessage::RunEnded(succeeded(lease)));
                    let after = self.farm.state.runs.get(&lease.id).map(|run| run.node);
                    if before.is_some_and(|owner| owner != node(seed)) {
                        assert_eq!(after, before, "a run was moved by another node");
                    }
                }
            }
            Step::Leave(seed) => self.farm.say(seed, NodeMessage::Leave(Leave { leases: vec![] })),
            Step::Pass(seconds) => self.farm.pass(seconds),
            Step::Restart => self.farm.restart(),
        }
        let grants = self.farm.grants();
        self.granted.extend(grants);
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let state = &self.farm.state;
        let ends = self.farm.ends();
        let ended: BTreeSet<JobId> = ends.iter().map(|(job, _)| *job).collect();
        prop_assert_eq!(ended.len(), ends.len(), "an end was recorded twice");
        let live: BTreeSet<JobId> = state.jobs.iter().map(|job| job.new.id).collect();
        let all: BTreeSet<JobId> = (1..=self.submitted).map(job).collect();
        prop_assert!(live.is_disjoint(&ended));
        prop_assert_eq!(&live | &ended, all, "a job is lost");

        let queued: Vec<JobId> =
            state.jobs.queues().flat_map(|(_, jobs)| jobs.map(|job| job.new.id)).collect();
        for job in state.jobs.iter() {
            let times = queued.iter().filter(|queued| **queued == job.new.id).count();
            prop_assert_eq!(times, usize::from(job.place() == Place::Queued), "{:?}", job.place());
            if let Place::Running(lease) = job.place() {
                let run = state.runs.get(&lease);
                prop_assert!(
                    run.is_some_and(|run| run.lease.job == job.new.id),
                    "a running job without a run"
                );
            }
        }
        let mut on_slots: BTreeMap<(PeerId, SlotId), u32> = BTreeMap::new();
        for run in state.runs.values().filter(|run| run.collecting.is_none()) {
            prop_assert!(live.contains(&run.lease.job), "a run of an ended job");
            *on_slots.entry((run.node, run.slot)).or_default() += 1;
        }
        prop_assert!(on_slots.values().all(|runs| *runs == 1), "a slot with two runs");
        prop_assert_eq!(state.jobs.waiting() + state.jobs.running(), live.len());
        Ok(())
    }
}

proptest! {
    #[test]
    fn any_sequence_of_events_keeps_every_job_and_ends_it_once(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World { farm: Farm::new(), submitted: 0, granted: vec![] };
        for step in steps {
            world.take(step);
            world.check()?;
        }
        let snapshot = world.farm.state.snapshot();
        world.farm.restart();
        world.check()?;
        prop_assert_eq!(world.farm.state.snapshot(), snapshot, "a restart changes nothing durable");
    }
}
