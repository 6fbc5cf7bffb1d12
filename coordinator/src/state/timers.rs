//! What time alone brings: leases and jobs that expire, graces that end, fetches to try again.

use std::time::Duration;

use protocol::{JobState, LeaseId};

use super::nodes::Slot;
use super::runs::{Outcome, Run};
use super::{Action, State, Turn};

/// The longest pause between two ticks that is not the coordinator's own absence.
const STANDSTILL: Duration = Duration::from_secs(5);
/// How long a node is remembered that is not heard of.
const FORGET_NODE: Duration = Duration::from_secs(7 * 24 * 3600);

impl State {
    pub(super) fn tick(&mut self, turn: &mut Turn) {
        let now = turn.now.monotonic;
        self.make_up_for_standstill(now);
        self.collect_again(turn);
        self.expire_leases(turn);
        for (job, known, until) in self.jobs.held() {
            if now >= until {
                let reason = format!("{} did not come back in time", known.node.fmt_short());
                self.queue_again(job, known.lease.id, reason, turn);
            }
        }
        for job in self.jobs.expired(turn.now.wall) {
            self.end_job(job, Outcome::without_run(JobState::Expired), turn);
        }
        self.free_silent_slots(now);
        for gone in self.nodes.forget_silent(now, FORGET_NODE) {
            self.aliases.forget(gone);
            self.note_private_blobs();
        }
        self.origins.forget_silent(now);
        self.keep_wished(turn);
        self.ask_due_self_tests(turn);
        // A slot that rested after a refusal may be granted again.
        self.plan_due = true;
    }

    /// Renewals may still lie unread when the coordinator itself stood still, so its leases do too.
    fn make_up_for_standstill(&mut self, now: Duration) {
        let pause = now.saturating_sub(self.last_tick);
        self.last_tick = now;
        if pause > STANDSTILL {
            for run in self.runs.values_mut() {
                let left = run.clock.expires().saturating_sub(now - pause);
                run.clock.renew(now, left);
            }
        }
    }

    fn collect_again(&mut self, turn: &mut Turn) {
        for run in self.runs.values_mut() {
            let Some(collecting) = &mut run.collecting else { continue };
            if collecting.again.is_some_and(|again| turn.now.monotonic >= again) {
                collecting.again = None;
                let ended = Box::new(collecting.ended.clone());
                turn.actions.push(Action::Collect { node: run.node, ended });
            }
        }
    }

    fn expire_leases(&mut self, turn: &mut Turn) {
        let now = turn.now.monotonic;
        // Outputs are fetched without a lease, as long as their node is there.
        let is_served = |run: &Run| {
            run.collecting.is_some() && self.nodes.get(run.node).is_some_and(|node| node.session.is_some())
        };
        let is_over = |run: &&Run| run.clock.is_expired(now) && !is_served(run);
        let expired: Vec<LeaseId> = self.runs.values().filter(is_over).map(|run| run.lease.id).collect();
        for lease in expired {
            let node = self.runs.get(&lease).map(|run| run.node.fmt_short()).unwrap_or_default();
            self.lose_run(lease, &format!("{node} was not heard of until its lease expired"), turn);
        }
    }

    /// A node that was told to stop a run and says nothing of it for a whole lease is taken at its
    /// word that it takes grants; if its slot is busy after all, it refuses them.
    fn free_silent_slots(&mut self, now: Duration) {
        let (runs, patience) = (&self.runs, self.settings.lease_duration);
        for (_, node) in self.nodes.iter_mut() {
            for slot in node.slots.values_mut() {
                let is_over = slot.lease.is_some_and(|lease| !runs.contains_key(&lease));
                if is_over && now.saturating_sub(slot.since) >= patience {
                    *slot = Slot::free(now);
                }
            }
        }
    }
}
