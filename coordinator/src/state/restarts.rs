//! Stories of a coordinator that is killed and starts again.

use protocol::RunErrorKind;

use super::made_farm::{failed, held, job, node, running, settings, succeeded, workflow, workflow_id};
use super::record::Found;
use super::*;

#[test]
fn restart_adopts_running_leases_and_starts_only_what_nobody_has() {
    let (mut farm, lease) = running();
    farm.submit(2);
    farm.restart();
    farm.register(2);
    assert_eq!(farm.granted(), (node(2), farm.lease_on(2)), "the job that nobody had goes out at once");
    assert_eq!(farm.lease_on(2).job, job(2));
    assert_eq!(farm.lease_on(2).id.epoch, 2);
    assert_eq!(farm.view(1).state, JobState::Queued);
    farm.register_with(1, vec![held(lease)], vec![]);
    assert_eq!(farm.view(1).run.expect("adopted").id, lease.run);
    farm.succeed(1, lease);
    assert_eq!(farm.ends(), [(job(1), JobState::Succeeded)]);
}

#[test]
fn restart_takes_a_run_that_finished_meanwhile() {
    let (mut farm, lease) = running();
    farm.restart();
    farm.register(2);
    assert_eq!(farm.grants(), []);
    farm.register_with(1, vec![], vec![succeeded(lease)]);
    farm.apply(Event::OutputsStored { node: node(1), ended: Box::new(succeeded(lease)) });
    assert_eq!(farm.ends(), [(job(1), JobState::Succeeded)]);
}

#[test]
fn restart_waits_for_a_lost_node_no_longer_than_the_grace() {
    let (mut farm, _) = running();
    farm.restart();
    farm.register(2);
    farm.pass(29);
    assert_eq!(farm.grants(), []);
    farm.pass(1);
    assert_eq!(farm.granted().0, node(2));
}

#[test]
fn restart_does_not_wait_for_a_node_that_is_back_without_the_run() {
    let (mut farm, lease) = running();
    farm.restart();
    farm.register(1);
    assert_ne!(farm.granted().1.run, lease.run);
}

#[test]
fn restart_keeps_failures_ends_versions_and_the_order() {
    let (mut farm, lease) = running();
    farm.submit(2);
    farm.apply(Event::Deploy(workflow(2)));
    farm.apply(Event::Restore(workflow_id(1)));
    farm.end(1, failed(lease, RunErrorKind::Stalled));
    farm.apply(Event::Cancel(job(2)));
    let snapshot = farm.state.snapshot();
    farm.restart();
    assert_eq!(farm.state.snapshot(), snapshot);
    assert_eq!(farm.view(1).failures.len(), 1);
    let selector = WorkflowSelector { name: workflow_id(1).name, version: None };
    assert_eq!(farm.state.workflow(&selector).map(|workflow| workflow.id.version), Some(1));
    assert_eq!(farm.state.next_version(&selector.name), 3);
    // The same from the snapshot alone.
    let found =
        Found { snapshot: snapshot.clone(), workflows: farm.written.workflows.clone(), ..Found::default() };
    assert_eq!(State::restore(settings(), 3, found, farm.now()).snapshot(), snapshot);
}
