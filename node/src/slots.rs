//! Which slot holds which lease: the node's own truth, pure.
//!
//! Not here: doing the run, and telling the coordinator. A slot takes one run at a time; what it is
//! asked beyond that it refuses, so a coordinator that is wrong about a node learns it at once.

use std::collections::BTreeMap;

use protocol::message::{HeldLease, Refusal};
use protocol::{Lease, LeaseId, Phase, SlotId};

/// The slots of a node.
#[derive(Debug, Default)]
pub struct Slots {
    held: BTreeMap<SlotId, Option<HeldLease>>,
    draining: bool,
    stopping: bool,
}

impl Slots {
    /// So many free slots.
    pub fn new(ids: impl IntoIterator<Item = SlotId>) -> Self {
        Self { held: ids.into_iter().map(|id| (id, None)).collect(), ..Self::default() }
    }

    /// Puts a granted lease on its slot, or says why not.
    pub fn take(&mut self, lease: Lease, slot: SlotId) -> Result<(), Refusal> {
        if self.stopping {
            return Err(Refusal::Stopping);
        }
        if self.draining {
            return Err(Refusal::Draining);
        }
        match self.held.get_mut(&slot) {
            Some(place @ None) => {
                *place = Some(HeldLease { lease, slot, phase: Phase::Leased });
                Ok(())
            }
            Some(Some(_)) | None => Err(Refusal::SlotBusy(slot)),
        }
    }

    /// Notes the phase of a lease's run.
    pub fn enter(&mut self, lease: LeaseId, phase: Phase) {
        if let Some(held) = self.held.values_mut().flatten().find(|held| held.lease.id == lease) {
            held.phase = phase;
        }
    }

    /// Frees the slot of a lease whose run ended.
    pub fn release(&mut self, lease: LeaseId) {
        for place in self.held.values_mut() {
            if place.is_some_and(|held| held.lease.id == lease) {
                *place = None;
            }
        }
    }

    /// The leases at work.
    pub fn held(&self) -> Vec<HeldLease> {
        self.held.values().flatten().copied().collect()
    }

    /// The slots without a lease.
    pub fn free(&self) -> impl Iterator<Item = SlotId> {
        self.held.iter().filter(|(_, held)| held.is_none()).map(|(slot, _)| *slot)
    }

    /// Whether the node takes nothing new.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Takes nothing new, or takes runs again.
    pub fn set_draining(&mut self, draining: bool) {
        self.draining = draining;
    }

    /// Takes nothing new for good, because the process ends.
    pub fn stop(&mut self) {
        self.stopping = true;
    }
}

#[cfg(test)]
mod tests {
    use protocol::{JobId, RunId};

    use super::*;

    fn lease(counter: u64) -> Lease {
        let id = LeaseId { epoch: 1, counter };
        Lease { id, job: JobId(uuid::Uuid::from_u128(1)), run: RunId(uuid::Uuid::from_u128(counter.into())) }
    }

    #[test]
    fn slot_takes_one_run_at_a_time() {
        let mut slots = Slots::new([SlotId(0), SlotId(1)]);
        assert_eq!(slots.take(lease(1), SlotId(0)), Ok(()));
        assert_eq!(slots.take(lease(2), SlotId(0)), Err(Refusal::SlotBusy(SlotId(0))));
        assert_eq!(slots.take(lease(2), SlotId(1)), Ok(()));
        assert_eq!(slots.take(lease(3), SlotId(7)), Err(Refusal::SlotBusy(SlotId(7))));
        slots.release(lease(1).id);
        assert_eq!(slots.take(lease(3), SlotId(0)), Ok(()));
        assert_eq!((slots.held().len(), slots.free().count()), (2, 0));
        slots.release(lease(3).id);
        assert_eq!(slots.free().collect::<Vec<_>>(), [SlotId(0)]);
    }

    #[test]
    fn draining_and_stopping_slots_take_nothing() {
        let mut slots = Slots::new([SlotId(0)]);
        slots.set_draining(true);
        assert_eq!(slots.take(lease(1), SlotId(0)), Err(Refusal::Draining));
        slots.set_draining(false);
        slots.stop();
        assert_eq!(slots.take(lease(1), SlotId(0)), Err(Refusal::Stopping));
    }

    #[test]
    fn phase_is_told_with_the_lease() {
        let mut slots = Slots::new([SlotId(0)]);
        slots.take(lease(1), SlotId(0)).expect("free");
        slots.enter(lease(1).id, Phase::Executing);
        slots.enter(lease(9).id, Phase::Fetching);
        assert_eq!(slots.held()[0].phase, Phase::Executing);
    }
}
