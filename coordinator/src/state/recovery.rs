//! A start: the durable part of the state from the store, and what a snapshot keeps of it.
//!
//! Not here: the nodes that come back afterwards; they register as on any day.

use std::collections::BTreeMap;

use super::aliases::Aliases;
use super::catalog::Catalog;
use super::jobs::{Job, Jobs, Place};
use super::keeps::Keeps;
use super::nodes::Nodes;
use super::origins::Origins;
use super::record::{Found, Snapshot};
use super::{Now, Settings, State};

impl State {
    /// The state at the start of an epoch. Every unfinished job is queued, except that one whose lease
    /// was out is held for its node until the grace is over.
    pub fn restore(settings: Settings, epoch: u64, found: Found, now: Now) -> Self {
        let Found { workflows, snapshot, entries, mut leases } = found;
        let mut state = Self {
            settings,
            epoch,
            granted: 0,
            catalog: Catalog::default(),
            jobs: Jobs::default(),
            nodes: Nodes::default(),
            aliases: Aliases::default(),
            private_blobs: Default::default(),
            origins: Origins::default(),
            keeps: Keeps::default(),
            draining: snapshot.draining.into_iter().collect(),
            resolutions: snapshot.resolutions.into_iter().collect(),
            tested: Default::default(),
            runs: BTreeMap::new(),
            lost: BTreeMap::new(),
            last_tick: now.monotonic,
            plan_due: true,
        };
        for workflow in workflows {
            state.catalog.insert(workflow);
        }
        state.note_private_blobs();
        for (name, version) in snapshot.current {
            state.catalog.make_current(&protocol::WorkflowVersion { name, version });
        }
        for kept in snapshot.jobs {
            state.jobs.keep(kept);
        }
        state.jobs.continue_order(snapshot.next_order);
        for entry in entries {
            state.replay(&entry.record);
        }
        // Should a job have several, the newest is the one that counted.
        leases.sort_by_key(|known| known.lease.id);
        let until = now.monotonic + state.settings.reattach_grace;
        for known in leases {
            state.jobs.put(known.lease.job, Place::Held { known, until });
        }
        state
    }

    /// The durable part of the state, from which a start goes on.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            next_order: self.jobs.next_order(),
            jobs: self.jobs.iter().map(Job::to_kept).collect(),
            current: self.catalog.current().clone(),
            draining: self.draining.iter().map(|(node, draining)| (*node, *draining)).collect(),
            resolutions: self.resolutions.iter().map(|(lockfile, blob)| (*lockfile, *blob)).collect(),
        }
    }
}
