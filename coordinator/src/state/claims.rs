//! What a node may claim: which leases are its own, and what the end of a run may say.
//!
//! A member of the farm is not therefore honest, or free of faults: nothing that it names moves another
//! node's run, and nothing that it tells is kept without a limit. Not here: what follows from an end
//! that was found good (`runs`).

use std::collections::BTreeSet;

use protocol::message::{MAX_LIST, Outcome, RunEnded};
use protocol::{Lease, LeaseId, Offer, OutputFile, PeerId, RunError, RunErrorKind, WorkflowVersion};

use super::State;
use super::record::KnownLease;
use super::runs::Run;

/// The most bytes that the outputs of one run may have together: 64 GiB.
const MAX_OUTPUTS: u64 = 64 << 30;
/// The longest name of an output file, and the longest media type.
const MAX_NAME: usize = 255;
/// The most slots of one node.
const MAX_SLOTS: usize = 64;
/// The most transfers of one run that are kept.
const MAX_FETCHED: usize = 1024;
/// The longest account of an error, in bytes.
const MAX_DETAIL: usize = 4 << 10;
/// The longest address of a file that a failed run wanted.
const MAX_URL: usize = 2 << 10;
/// The longest traceback of an error, in bytes.
const MAX_TRACEBACK: usize = 16 << 10;

impl State {
    /// Whether a node can have been granted this lease. Those of this start of the coordinator that may
    /// still count are remembered, each with its node; of earlier starts only some are.
    pub(super) fn is_own(&self, peer: PeerId, lease: &Lease) -> bool {
        match self.remembered(lease.id) {
            Some(known) => known.node == peer && known.lease == *lease,
            None => lease.id.epoch < self.epoch,
        }
    }

    fn remembered(&self, id: LeaseId) -> Option<KnownLease> {
        let at_work = self.runs.get(&id).map(Run::to_known);
        let lost = || self.lost.get(&id).copied();
        let held = || self.jobs.held().into_iter().map(|(_, known, _)| known).find(|it| it.lease.id == id);
        at_work.or_else(lost).or_else(held)
    }

    /// A success must name the outputs that the workflow has, all of them, and within limits. This is
    /// looked at before a byte of them is fetched.
    pub(super) fn check_outputs(
        &self,
        workflow: &WorkflowVersion,
        outputs: &[OutputFile],
    ) -> Result<(), RunError> {
        let Some(workflow) = self.catalog.get(workflow) else { return Ok(()) };
        let fault = |detail: String| Err(RunError::new(RunErrorKind::NodeFault, detail));
        if outputs.len() > MAX_LIST {
            return fault(format!("the node names {} outputs; at most {MAX_LIST} are taken", outputs.len()));
        }
        let mut places = BTreeSet::new();
        for file in outputs {
            let shown = shortened(&file.output, MAX_NAME);
            if !workflow.interface.outputs.iter().any(|output| output.name == file.output) {
                return fault(format!("the node names an output `{shown}`, which the workflow has not"));
            }
            if !places.insert((&file.output, file.index)) {
                return fault(format!("the node names file {} of output `{shown}` twice", file.index));
            }
            if !is_file_name(&file.file_name) || !is_media_type(&file.media_type) {
                return fault(format!(
                    "file {} of output `{shown}` has a name or a media type that cannot be one",
                    file.index
                ));
            }
        }
        let sizes = outputs.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.blob.size));
        if sizes.is_none_or(|sum| sum > MAX_OUTPUTS) {
            return fault(format!("its outputs are more than {} GiB", MAX_OUTPUTS >> 30));
        }
        let is_missing = |name: &str| !outputs.iter().any(|file| file.output == name);
        match workflow.interface.outputs.iter().find(|output| is_missing(&output.name)) {
            Some(output) => {
                let detail = format!("the node names no file of output `{}`", output.name);
                Err(RunError::new(RunErrorKind::NoOutput, detail))
            }
            None => Ok(()),
        }
    }
}

/// The end of a run, with no more in it than is kept.
pub(super) fn bounded(mut ended: RunEnded) -> RunEnded {
    ended.fetched.truncate(MAX_FETCHED);
    if let Outcome::Failed(error) = &mut ended.outcome {
        shorten(&mut error.detail, MAX_DETAIL);
        if let Some(url) = &mut error.url {
            *url = shortened(url, MAX_URL).into();
        }
        if let Some(op) = &mut error.op {
            shorten(&mut op.id, MAX_NAME);
            shorten(&mut op.class, MAX_NAME);
            if let Some(traceback) = &mut op.traceback {
                shorten(traceback, MAX_TRACEBACK);
            }
        }
    }
    ended
}

/// What a node offers, with no more in it than is planned with and shown.
pub(super) fn bounded_offer(mut offer: Offer) -> Offer {
    offer.slots.truncate(MAX_SLOTS);
    for text in [&mut offer.host_name, &mut offer.agent_version, &mut offer.platform] {
        shorten(text, MAX_NAME);
    }
    offer
}

/// What a node says that it is doing, with no more in it than is shown.
pub(super) fn bounded_detail(mut detail: String) -> String {
    shorten(&mut detail, MAX_NAME);
    detail
}

/// Why something went wrong on a node, with no more in it than is kept.
pub(super) fn bounded_reason(mut reason: String) -> String {
    shorten(&mut reason, MAX_DETAIL);
    reason
}

fn shorten(text: &mut String, bytes: usize) {
    text.truncate(text.floor_char_boundary(bytes));
}

fn shortened(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// Whether a text is the name of a file, without folders.
fn is_file_name(text: &str) -> bool {
    let is_harmful = |letter: char| letter.is_control() || letter == '/' || letter == '\\';
    (1..=MAX_NAME).contains(&text.len()) && text != "." && text != ".." && !text.contains(is_harmful)
}

/// Whether a text looks like `image/png`, perhaps with parameters.
fn is_media_type(text: &str) -> bool {
    let is_printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    text.len() <= MAX_NAME && text.contains('/') && text.bytes().all(is_printable)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocol::message::{NodeMessage, Refusal, Refused};
    use protocol::{BlobHash, BlobRef, FailedOp, Fetched, JobState, SlotId, SlotOffer};

    use super::super::made_farm::{Farm, failed, held, job, node, output, succeeded};
    use super::super::{Action, Event};
    use super::*;

    /// A farm whose first node has job 1 and whose second one has job 2, with their leases. Job 3 waits.
    fn two_at_work() -> (Farm, Lease, Lease) {
        let mut farm = Farm::new();
        for number in [1, 2] {
            farm.register(number);
            farm.submit(u64::from(number));
        }
        farm.submit(3);
        farm.done();
        let (first, second) = (farm.lease_on(1), farm.lease_on(2));
        (farm, first, second)
    }

    fn is_untouched(farm: &Farm, first: Lease) {
        assert_eq!(farm.view(1).state, JobState::Running);
        assert_eq!(farm.view(1).run.expect("still there").node, node(1));
        assert_eq!(farm.lease_on(1), first);
        assert_eq!((farm.view(1).failures, farm.ends()), (vec![], vec![]));
    }

    #[test]
    fn node_cannot_end_refuse_or_hold_the_run_of_another() {
        let (mut farm, first, _) = two_at_work();
        farm.end(2, succeeded(first));
        assert!(!farm.done().iter().any(|action| matches!(action, Action::Collect { .. })));
        is_untouched(&farm, first);
        farm.say(2, NodeMessage::Refused(Refused { lease: first, refusal: Refusal::SlotBusy(SlotId(0)) }));
        is_untouched(&farm, first);
        farm.register_with(3, vec![held(first)], vec![]);
        is_untouched(&farm, first);
    }

    #[test]
    fn another_nodes_lease_cannot_be_moved_to_a_job_that_waits() {
        let (mut farm, first, _) = two_at_work();
        let forged = Lease { job: job(3), ..first };
        farm.end(2, succeeded(forged));
        farm.register_with(3, vec![held(forged)], vec![]);
        is_untouched(&farm, first);
        assert!(farm.view(3).run.is_none_or(|run| run.id != first.run));
    }

    #[test]
    fn lease_that_was_never_granted_is_unwanted() {
        let (mut farm, first, _) = two_at_work();
        let later = LeaseId { epoch: first.id.epoch, counter: 1000 };
        let next_start = LeaseId { epoch: first.id.epoch + 1, counter: 1 };
        for id in [later, next_start] {
            let forged = Lease { id, job: job(3), ..first };
            farm.register_with(3, vec![held(forged)], vec![succeeded(forged)]);
            assert!(!farm.state.runs.contains_key(&id), "{id}");
            assert!(!farm.done().iter().any(|action| matches!(action, Action::Collect { .. })), "{id}");
            farm.disconnect(3);
        }
    }

    #[test]
    fn run_that_failed_cannot_be_taken_up_again() {
        let (mut farm, first, _) = two_at_work();
        farm.apply(Event::SetDraining(node(1), true));
        farm.end(1, failed(first, RunErrorKind::Stalled));
        farm.register_with(1, vec![held(first)], vec![]);
        assert_eq!(farm.view(1).state, JobState::Queued);
    }

    #[test]
    fn absurd_outputs_are_the_nodes_fault_and_never_fetched() {
        let huge = |size| BlobRef { hash: BlobHash([9; 32]), size };
        let check = |outputs: Vec<OutputFile>, kind: RunErrorKind| {
            let (mut farm, first, _) = two_at_work();
            farm.end(1, RunEnded { outcome: Outcome::Succeeded(outputs), ..succeeded(first) });
            assert!(!farm.done().iter().any(|action| matches!(action, Action::Collect { .. })));
            assert_eq!(farm.view(1).failures[0].error.kind, kind);
        };
        let fault = RunErrorKind::NodeFault;
        check(vec![OutputFile { blob: huge(u64::MAX), ..output() }], fault);
        let second = OutputFile { index: 1, blob: huge(u64::MAX), ..output() };
        check(vec![OutputFile { blob: huge(2), ..output() }, second], fault);
        check(vec![output(), output()], fault);
        check((0..5000).map(|index| OutputFile { index, ..output() }).collect(), fault);
        for file_name in ["", "..", "a/b.png", "a\\b.png", "a\nb", &"x".repeat(256)] {
            check(vec![OutputFile { file_name: file_name.to_owned(), ..output() }], fault);
        }
        for media_type in ["", "png", "image/png\r\nx: y"] {
            check(vec![OutputFile { media_type: media_type.to_owned(), ..output() }], fault);
        }
        check(vec![], RunErrorKind::NoOutput);
    }

    #[test]
    fn node_has_no_more_slots_than_can_be() {
        let mut farm = Farm::new();
        farm.register(1);
        let mut offer = farm.state.node_view(node(1)).expect("registered").offer;
        let slot = offer.slots[0].clone();
        offer.slots = (0..u16::MAX).map(|id| SlotOffer { id: SlotId(id), ..slot.clone() }).collect();
        farm.say(1, NodeMessage::OfferChanged(offer));
        assert_eq!(farm.state.node_view(node(1)).expect("still there").offer.slots.len(), MAX_SLOTS);
    }

    #[test]
    fn what_a_node_tells_is_kept_only_within_limits() {
        let (farm, lease, _) = two_at_work();
        let fetched = Fetched { blob: output().blob, from: node(2), bytes: 1 };
        let traceback = Some("ä".repeat(100_000));
        let op = Some(FailedOp { id: "x".repeat(999), class: "y".repeat(999), traceback });
        let url = Some("u".repeat(100_000).into());
        let error = RunError { op, url, ..RunError::new(RunErrorKind::OpFailed, "z".repeat(100_000)) };
        let outcome = Outcome::Failed(error);
        let told = RunEnded { lease, outcome, fetched: vec![fetched; 9000], executed: Duration::ZERO };
        let kept = bounded(told);
        assert_eq!(kept.fetched.len(), MAX_FETCHED);
        let Outcome::Failed(error) = kept.outcome else { panic!("it failed") };
        let op = error.op.expect("named");
        assert_eq!((error.detail.len(), op.id.len(), op.class.len()), (MAX_DETAIL, MAX_NAME, MAX_NAME));
        assert_eq!(error.url.map(|url| url.len()), Some(MAX_URL));
        assert_eq!(op.traceback.map(|text| text.len()), Some(MAX_TRACEBACK));
        is_untouched(&farm, lease);
    }
}
