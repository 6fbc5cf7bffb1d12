//! Whole stories of jobs, told in events and a made-up time.

use protocol::message::{Inventory, Leave, Outcome as RunOutcome, PhaseChanged, Refusal, Refused};
use protocol::{OutputFile, Phase, RunErrorKind, SlotId};

use super::made_farm::{
    Farm, coordinator, failed, held, input, job, node, output, running, seconds, settings, succeeded,
};
use super::record::Found;
use super::*;
use crate::handle::JobsFilter;

#[test]
fn job_succeeds_when_its_outputs_are_stored_and_not_before() {
    let (mut farm, lease) = running();
    farm.end(1, succeeded(lease));
    assert!(matches!(&farm.done()[..], [Action::Notify(_), Action::Collect { .. }]));
    assert_eq!(farm.view(1).run.expect("still there").phase, Phase::Collecting);
    farm.apply(Event::OutputsStored { node: node(1), ended: Box::new(succeeded(lease)) });
    let done = farm.done();
    let [Action::Archive(ended), Action::Send(to, CoordinatorMessage::EndRecorded(_))] = &done[..] else {
        panic!("{done:?}")
    };
    assert_eq!((ended.state, &ended.outputs[..], *to), (JobState::Succeeded, &[output()][..], node(1)));
    assert_eq!(ended.run.expect("it ran").node, node(1));
    assert_eq!(farm.ends(), [(job(1), JobState::Succeeded)]);
}

#[test]
fn expired_lease_returns_job_to_queue_in_its_old_place() {
    let (mut farm, lease) = running();
    farm.submit(2);
    farm.disconnect(1);
    farm.pass(29);
    assert_eq!(farm.view(1).state, JobState::Running);
    farm.pass(1);
    assert_eq!((farm.view(1).queue_position, farm.view(2).queue_position), (Some(0), Some(1)));
    farm.register(2);
    let (on, second) = farm.granted();
    assert_eq!((on, second.job), (node(2), job(1)));
    assert_ne!(second.run, lease.run);
}

#[test]
fn heartbeats_keep_a_lease_alive() {
    let (mut farm, lease) = running();
    for _ in 0..20 {
        farm.pass(5);
        farm.heartbeat(1, vec![lease.id]);
    }
    assert_eq!(farm.view(1).state, JobState::Running);
    assert_eq!(farm.told(), (vec![], vec![]));
}

#[test]
fn standing_still_counts_against_no_lease() {
    let (mut farm, lease) = running();
    farm.now += seconds(3600);
    farm.apply(Event::Tick);
    farm.heartbeat(1, vec![lease.id]);
    assert_eq!(farm.view(1).state, JobState::Running);
}

#[test]
fn late_success_of_a_lost_run_is_taken_and_the_other_run_cancelled() {
    let (mut farm, lease) = running();
    farm.disconnect(1);
    farm.pass(30);
    farm.register(2);
    let (_, second) = farm.granted();
    farm.register_with(1, vec![], vec![succeeded(lease)]);
    farm.apply(Event::OutputsStored { node: node(1), ended: Box::new(succeeded(lease)) });
    assert_eq!(farm.told(), (vec![node(2)], vec![node(1)]));
    assert_eq!(farm.ends(), [(job(1), JobState::Succeeded)]);
    // The other one was as good as done: its end is acknowledged and changes nothing.
    farm.succeed(2, second);
    assert_eq!(farm.told(), (vec![], vec![node(2), node(2)]));
    assert_eq!(farm.ends().len(), 1);
}

#[test]
fn lost_run_that_goes_on_is_taken_up_again_while_nobody_else_has_the_job() {
    let (mut farm, lease) = running();
    farm.disconnect(1);
    farm.pass(30);
    farm.register_with(1, vec![held(lease)], vec![]);
    assert_eq!(farm.view(1).run.expect("adopted").id, lease.run);
    assert_eq!(farm.grants(), []);
}

#[test]
fn lost_run_that_goes_on_is_unwanted_once_another_node_has_the_job() {
    let (mut farm, lease) = running();
    farm.disconnect(1);
    farm.pass(30);
    farm.register(2);
    farm.done();
    farm.register_with(1, vec![held(lease)], vec![]);
    let done = farm.done();
    let Action::Send(_, CoordinatorMessage::Welcome(welcome)) = &done[0] else { panic!("{done:?}") };
    assert_eq!(welcome.unwanted, [lease.id]);
    // Its slot is free only when it has stopped.
    farm.submit(2);
    assert_eq!(farm.grants(), []);
    farm.pass(5);
    farm.heartbeat(1, vec![]);
    assert_eq!(farm.granted(), (node(1), Lease { job: job(2), ..farm.lease_on(1) }));
}

#[test]
fn superseded_run_cannot_fail_the_job() {
    let (mut farm, lease) = running();
    farm.disconnect(1);
    farm.pass(30);
    farm.register(2);
    farm.done();
    farm.register_with(1, vec![], vec![failed(lease, RunErrorKind::InvalidInput)]);
    assert_eq!(farm.told(), (vec![], vec![node(1)]), "the node may forget it");
    assert_eq!((farm.view(1).state, farm.view(1).failures), (JobState::Running, vec![]));
}

#[test]
fn node_that_comes_back_without_its_run_gives_the_job_back_at_once() {
    let (mut farm, lease) = running();
    farm.disconnect(1);
    farm.register(1);
    let (_, second) = farm.granted();
    assert_eq!((second.job, second.run == lease.run), (job(1), false));
}

#[test]
fn same_exception_on_two_nodes_fails_the_job() {
    let (mut farm, lease) = running();
    farm.register(2);
    farm.end(1, failed(lease, RunErrorKind::OpFailed));
    let (on, second) = farm.granted();
    assert_eq!(on, node(2), "the node on which it failed is avoided");
    farm.end(2, failed(second, RunErrorKind::OpFailed));
    assert_eq!(farm.ends(), [(job(1), JobState::Failed)]);
    let done = farm.done();
    let Some(Action::Archive(ended)) = done.first() else { panic!("{done:?}") };
    assert_eq!(
        (ended.failures.len(), ended.error.as_ref().map(|error| error.kind)),
        (2, Some(RunErrorKind::OpFailed))
    );
}

#[test]
fn invalid_input_fails_the_job_at_once_and_other_errors_after_three_attempts() {
    let attempts = |kind| {
        let (mut farm, mut lease) = running();
        for attempt in 1.. {
            farm.end(1, failed(lease, kind));
            match farm.grants()[..] {
                [(_, next)] => lease = next,
                _ => return (attempt, farm.ends()),
            }
        }
        unreachable!("it ends")
    };
    let failed = vec![(job(1), JobState::Failed)];
    assert_eq!(attempts(RunErrorKind::InvalidInput), (1, failed.clone()));
    assert_eq!(attempts(RunErrorKind::Stalled), (3, failed.clone()));
    assert_eq!(attempts(RunErrorKind::OpFailed), (3, failed), "one node proves nothing about the job");
}

#[test]
fn node_that_stops_costs_the_job_no_attempt() {
    let (mut farm, mut lease) = running();
    for _ in 0..5 {
        farm.end(1, failed(lease, RunErrorKind::NodeStopping));
        assert_eq!(farm.grants(), [], "the slot rests, so that nothing spins");
        farm.pass(5);
        lease = farm.granted().1;
    }
    assert_eq!(farm.view(1).failures, []);
    farm.say(1, NodeMessage::Leave(Leave { leases: vec![lease.id] }));
    assert_eq!(farm.view(1).state, JobState::Queued);
    assert_eq!(farm.grants(), [], "nothing goes to a node that leaves");
}

#[test]
fn job_whose_nodes_vanish_again_and_again_fails() {
    let (mut farm, _) = running();
    for _ in 0..runs::MAX_LOSSES {
        farm.disconnect(1);
        farm.register(1);
    }
    assert_eq!(farm.ends(), [(job(1), JobState::Failed)]);
}

#[test]
fn cancelling_a_queued_job_ends_it_and_a_running_one_is_stopped_too() {
    let (mut farm, lease) = running();
    farm.submit(2);
    farm.apply(Event::Cancel(job(2)));
    farm.apply(Event::Cancel(job(1)));
    assert_eq!(farm.ends(), [(job(2), JobState::Canceled), (job(1), JobState::Canceled)]);
    assert_eq!(farm.told().0, [node(1)]);
    // The slot is free when the node says so, and the end changes nothing.
    farm.submit(3);
    assert_eq!(farm.grants(), []);
    farm.end(1, failed(lease, RunErrorKind::Canceled));
    assert_eq!(farm.granted().1.job, job(3));
    farm.apply(Event::Cancel(job(1)));
    assert_eq!(farm.ends().len(), 2);
}

#[test]
fn job_that_waits_longer_than_its_time_to_live_expires_and_a_running_one_does_not() {
    let mut farm = Farm::new();
    farm.register(1);
    (1..=2).for_each(|number| farm.submit_for(number, Some(60)));
    farm.submit_for(3, None);
    let (_, lease) = farm.granted();
    for _ in 0..11 {
        farm.pass(5);
        farm.heartbeat(1, vec![lease.id]);
    }
    assert_eq!((farm.ends(), farm.view(2).state), (vec![], JobState::Queued));
    let snapshot = farm.state.snapshot();
    farm.pass(5);
    assert_eq!(farm.ends(), [(job(2), JobState::Expired)]);
    // The other one is too late as well once it is queued again.
    farm.end(1, failed(lease, RunErrorKind::Stalled));
    assert_eq!(farm.granted().1.job, job(1), "it is still taken where a node is there for it");
    assert_eq!(farm.view(1).state, JobState::Running);
    farm.disconnect(1);
    farm.pass(31);
    assert_eq!(farm.ends()[1], (job(1), JobState::Expired));
    // A restart knows of it too.
    let found = Found { snapshot, workflows: farm.written.workflows.clone(), ..Found::default() };
    let late = Now { wall: farm.now().wall + seconds(3600), ..farm.now() };
    let mut state = State::restore(settings(), 2, found, late);
    state.apply(Event::Tick, late);
    let left: Vec<JobId> = state
        .live_jobs(&JobsFilter { limit: 9, ..JobsFilter::default() }, late)
        .iter()
        .map(|view| view.id)
        .collect();
    assert_eq!(left, [job(3)]);
}

#[test]
fn drained_node_gets_nothing_and_keeps_its_run() {
    let (mut farm, lease) = running();
    farm.submit(2);
    farm.apply(Event::SetDraining(node(1), true));
    farm.done();
    farm.succeed(1, lease);
    assert_eq!(farm.grants(), []);
    assert_eq!(farm.view(2).waits[1].reason, "it is draining");
    farm.restart();
    farm.register(1);
    assert_eq!(farm.grants(), [], "it is remembered");
    farm.apply(Event::SetDraining(node(1), false));
    assert_eq!(farm.granted().1.job, job(2));
}

#[test]
fn refused_grant_goes_back_and_the_slot_rests() {
    let (mut farm, lease) = running();
    farm.say(1, NodeMessage::Refused(Refused { lease, refusal: Refusal::SlotBusy(SlotId(0)) }));
    assert_eq!((farm.view(1).state, farm.grants()), (JobState::Queued, vec![]));
    farm.pass(5);
    assert_eq!(farm.granted().1.job, job(1));
    assert_eq!(farm.view(1).failures, []);
}

#[test]
fn outputs_that_cannot_be_fetched_are_asked_for_again_and_then_the_run_has_failed() {
    let (mut farm, lease) = running();
    farm.register(2);
    farm.end(1, succeeded(lease));
    let mut asked = 0;
    while farm.view(1).run.is_some_and(|run| run.id == lease.run) {
        farm.apply(Event::CollectFailed { lease: lease.id, reason: "cut off".into() });
        farm.pass(8);
        asked += 1;
    }
    assert_eq!(asked, 5);
    assert_eq!(farm.view(1).failures[0].error.kind, RunErrorKind::MissingBlob);
    assert_eq!(farm.view(1).run.expect("started again").node, node(2));
    // The node still has them, and may have its link back: then they are taken after all.
    farm.done();
    farm.register_with(1, vec![], vec![succeeded(lease)]);
    assert!(farm.done().iter().any(|action| matches!(action, Action::Collect { .. })));
}

#[test]
fn node_that_the_coordinator_did_not_give_what_it_needs_is_not_avoided() {
    let check = |fail: fn(&mut Farm, Lease), kind: RunErrorKind, next: u8| {
        let (mut farm, lease) = running();
        farm.register(2);
        fail(&mut farm, lease);
        assert_eq!(farm.view(1).failures[0].error.kind, kind);
        assert_eq!(farm.granted().0, node(next), "{kind:?}");
    };
    check(|farm, lease| farm.end(1, failed(lease, RunErrorKind::MissingBlob)), RunErrorKind::MissingBlob, 2);
    check(|farm, lease| farm.end(1, failed(lease, RunErrorKind::LostBlob)), RunErrorKind::LostBlob, 1);
    let unreadable = |farm: &mut Farm, lease: Lease| {
        farm.apply(Event::GrantFailed { lease: lease.id, reason: "gone".into() })
    };
    check(unreadable, RunErrorKind::LostBlob, 1);
}

#[test]
fn success_with_an_output_that_the_workflow_has_not_is_the_nodes_failure() {
    let (mut farm, lease) = running();
    let mut ended = succeeded(lease);
    ended.outcome = RunOutcome::Succeeded(vec![OutputFile { output: "../x".into(), ..output() }]);
    farm.end(1, ended);
    assert_eq!(farm.view(1).failures[0].error.kind, RunErrorKind::NodeFault);
}

#[test]
fn grant_names_other_nodes_as_providers_first_and_the_coordinator_last() {
    let (mut farm, lease) = running();
    farm.succeed(1, lease);
    farm.apply(Event::SetDraining(node(1), true));
    farm.register(2);
    farm.done();
    farm.submit(2);
    let done = farm.done();
    let order = done.iter().find_map(|action| match action {
        Action::Grant(order) => Some(order),
        _ => None,
    });
    let providers = &order.expect("granted").grant.providers;
    let of_input = providers.iter().find(|providers| providers.hash == input().hash).expect("named");
    let peers: Vec<PeerId> = of_input.providers.iter().map(|provider| provider.peer).collect();
    assert_eq!(peers, [node(1), coordinator()], "the drained node still serves");
    let gone = Inventory { complete: true, added: vec![], removed: vec![] };
    farm.say(1, NodeMessage::Inventory(gone));
    assert_eq!(farm.state.nodes.blob(input().hash), None);
}

#[test]
fn phases_and_progress_of_another_nodes_run_are_ignored() {
    let (mut farm, lease) = running();
    farm.register(2);
    let executing = PhaseChanged { lease: lease.id, phase: Phase::Executing };
    farm.say(2, NodeMessage::PhaseChanged(executing));
    assert_eq!(farm.view(1).run.expect("running").phase, Phase::Leased);
    farm.say(1, NodeMessage::PhaseChanged(executing));
    assert_eq!(farm.view(1).run.expect("running").phase, Phase::Executing);
}

#[test]
fn queued_job_is_small_and_lists_are_newest_first() {
    let mut farm = Farm::new();
    (1..=5).for_each(|number| farm.submit(number));
    let list = |before, limit| {
        let filter = JobsFilter { before, limit, ..JobsFilter::default() };
        let jobs = farm.state.live_jobs(&filter, farm.now());
        jobs.into_iter().map(|view| (view.id, view.queue_position)).collect::<Vec<_>>()
    };
    assert_eq!(list(None, 2), [(job(5), Some(4)), (job(4), Some(3))]);
    assert_eq!(list(Some(job(2)), 9), [(job(1), Some(0))]);
    let kept = farm.state.jobs.get(job(1)).expect("queued");
    let heap = kept.new.workflow.name.as_str().len() + size_of_val(&kept.new.inputs[..]);
    assert!(size_of_val(kept) + heap < 512, "{} bytes", size_of_val(kept) + heap);
}
