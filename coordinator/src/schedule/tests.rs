//! The planner's rules one by one, and its promises over random farms.

use std::collections::BTreeMap;

use proptest::prelude::*;
use protocol::{Device, SlotOffer};
use uuid::Uuid;

use super::*;

/// A node of a made-up farm, which owns what its picture borrows.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) peer: PeerId,
    pub(super) offer: Offer,
    connected: bool,
    draining: bool,
    pub(super) free: Vec<(SlotId, Duration)>,
    pub(super) warm: BTreeMap<SlotId, BTreeSet<LockfileHash>>,
    pub(super) ran: BTreeSet<WorkflowVersion>,
    holds: HashSet<BlobHash>,
    pub(super) workspaces: BTreeMap<LockfileHash, WorkspaceState>,
    pub(super) wanted: BTreeSet<LockfileHash>,
    aside: BTreeMap<WorkflowVersion, String>,
    at_work: BTreeSet<LockfileHash>,
}

impl Made {
    pub(super) fn node(seed: u8, slots: u16) -> Self {
        let free: Vec<_> = (0..slots).map(|slot| (SlotId(slot), Duration::from_secs(slot.into()))).collect();
        let device = Device::Cpu { threads: 1, memory: 8 << 30 };
        let offer = Offer {
            host_name: format!("host-{seed}"),
            agent_version: String::new(),
            platform: String::new(),
            engine: Engine::Builtin,
            classes: names(&["LoadImage", "SaveImage"]),
            models: names(&["checkpoints/a.safetensors"]),
            slots: free.iter().map(|(id, _)| SlotOffer { id: *id, device: device.clone() }).collect(),
        };
        Self {
            peer: PeerId([seed; 32]),
            offer,
            connected: true,
            draining: false,
            free,
            warm: BTreeMap::new(),
            ran: BTreeSet::new(),
            holds: HashSet::new(),
            workspaces: BTreeMap::new(),
            wanted: BTreeSet::new(),
            aside: BTreeMap::new(),
            at_work: BTreeSet::new(),
        }
    }

    pub(super) fn picture(&self) -> NodePicture<'_> {
        NodePicture {
            peer: self.peer,
            connected: self.connected,
            draining: self.draining,
            offer: &self.offer,
            free: self
                .free
                .iter()
                .map(|&(id, since)| {
                    let memory =
                        self.offer.slots.iter().find(|slot| slot.id == id).map(|slot| slot.device.memory());
                    FreeSlot { id, since, serves: self.warm.get(&id), memory: memory.unwrap_or_default() }
                })
                .collect(),
            ran: &self.ran,
            holds: &self.holds,
            workspaces: &self.workspaces,
            wanted: Arc::new(self.wanted.clone()),
            aside: self.aside.iter().map(|(workflow, why)| (workflow, why.as_str())).collect(),
            at_work: self.at_work.clone(),
        }
    }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

pub(super) fn version(version: u32) -> WorkflowVersion {
    WorkflowVersion { name: "pixel-art".parse().expect("valid"), version }
}

fn job(number: u64) -> JobId {
    JobId(Uuid::from_u128(number.into()))
}

pub(super) fn waiting(number: u64) -> Waiting<'static> {
    Waiting { job: job(number), priority: 50, order: number, inputs: &[], avoid: vec![], ran_out: None }
}

pub(super) fn needs(classes: &[&str]) -> Requirements {
    Requirements { classes: names(classes), ..Requirements::default() }
}

fn plan_one_class(jobs: Vec<Waiting<'_>>, requirements: &Requirements, nodes: &[Made]) -> Vec<(u128, u8)> {
    let workflow = version(1);
    let classes = vec![Class { workflow: &workflow, requirements, jobs }];
    let nodes = nodes.iter().map(Made::picture).collect();
    let placements = plan(&Picture { classes, nodes });
    placements.iter().map(|placement| (placement.job.0.as_u128(), placement.node.0[0])).collect()
}

#[test]
fn higher_priority_goes_first_and_then_the_earlier_job() {
    let urgent = Waiting { priority: 90, ..waiting(3) };
    let placed = plan_one_class(vec![urgent, waiting(1), waiting(2)], &needs(&[]), &[Made::node(1, 2)]);
    assert_eq!(placed, [(3, 1), (1, 1)]);
}

#[test]
fn warm_node_is_preferred_then_the_one_with_the_inputs_then_the_longest_idle() {
    let input = [BlobHash([7; 32])];
    let with_input = || vec![Waiting { inputs: &input, ..waiting(1) }];
    let mut nodes = [Made::node(1, 1), Made::node(2, 1), Made::node(3, 1)];
    nodes[0].free[0].1 = Duration::from_secs(9);
    assert_eq!(plan_one_class(with_input(), &needs(&[]), &nodes), [(1, 2)]);
    nodes[2].holds.insert(input[0]);
    assert_eq!(plan_one_class(with_input(), &needs(&[]), &nodes), [(1, 3)]);
    nodes[0].ran.insert(version(1));
    assert_eq!(plan_one_class(with_input(), &needs(&[]), &nodes), [(1, 1)]);
}

#[test]
fn node_where_the_job_failed_is_avoided_while_another_could_take_it() {
    let failed = || vec![Waiting { avoid: vec![PeerId([1; 32])], ..waiting(1) }];
    let mut nodes = vec![Made::node(1, 1), Made::node(2, 1)];
    nodes[1].free.clear();
    assert_eq!(plan_one_class(failed(), &needs(&[]), &nodes), [], "the busy one is waited for");
    nodes[1].connected = false;
    assert_eq!(plan_one_class(failed(), &needs(&[]), &nodes), [(1, 1)]);
}

#[test]
fn node_that_is_set_aside_for_a_workflow_takes_it_where_no_other_could() {
    let mut nodes = vec![Made::node(1, 1), Made::node(2, 1)];
    nodes[0].aside.insert(version(1), "out of memory".to_owned());
    nodes[1].free.clear();
    let one = || vec![waiting(1)];
    assert_eq!(plan_one_class(one(), &needs(&[]), &nodes), [], "the busy one is waited for");
    let pictures: Vec<_> = nodes.iter().map(Made::picture).collect();
    let told = explain(&version(1), &needs(&[]), &waiting(1), &pictures);
    assert!(told[0].reason.contains("set aside") && told[0].reason.ends_with("out of memory"), "{told:?}");
    let other = explain(&version(2), &needs(&[]), &waiting(1), &pictures);
    assert_eq!(other[0].reason, "it is next in turn");
    nodes[1].draining = true;
    assert_eq!(plan_one_class(one(), &needs(&[]), &nodes), [(1, 1)]);
}

#[test]
fn node_that_is_set_aside_goes_before_one_on_which_the_job_failed() {
    let mut nodes = vec![Made::node(1, 1), Made::node(2, 1), Made::node(3, 1)];
    nodes[0].ran.insert(version(1));
    for aside in [1, 2] {
        nodes[aside].aside.insert(version(1), "out of memory".to_owned());
    }
    let avoid = vec![PeerId([1; 32]), PeerId([3; 32])];
    let one = || vec![Waiting { avoid: avoid.clone(), ..waiting(1) }];
    assert_eq!(plan_one_class(one(), &needs(&[]), &nodes), [(1, 2)], "though the other one is warm");
    let pictures: Vec<_> = nodes.iter().map(Made::picture).collect();
    let told = explain(&version(1), &needs(&[]), &one()[0], &pictures);
    assert!(told[0].reason.contains("the job failed there"), "{told:?}");
    assert_eq!(told[1].reason, "it is next in turn");
    nodes[1].connected = false;
    assert_eq!(plan_one_class(one(), &needs(&[]), &nodes), [(1, 1)]);
    let pictures: Vec<_> = nodes.iter().map(Made::picture).collect();
    let told = explain(&version(1), &needs(&[]), &one()[0], &pictures);
    assert!(told[2].reason.contains("set aside"), "{told:?}");
}

#[test]
fn each_hard_rule_is_told_in_words() {
    let check = |change: fn(&mut Made), requirements: Requirements, expected: &str| {
        let mut node = Made::node(1, 1);
        change(&mut node);
        let reasons = explain(&version(1), &requirements, &waiting(1), &[node.picture()]);
        let told = reasons.last().map(|reason| (reason.node, reason.reason.as_str()));
        assert_eq!(told, Some((Some(node.peer), expected)));
        let can_wait_for_it = ["it is next in turn", "all its slots are busy"].contains(&expected);
        assert_eq!(reasons[0].node.is_none(), !can_wait_for_it, "the farm as a whole: {reasons:?}");
        let placed = plan_one_class(vec![waiting(1)], &requirements, &[node]);
        assert_eq!(placed.len(), usize::from(expected == "it is next in turn"));
    };
    check(|_| (), needs(&["LoadImage"]), "it is next in turn");
    check(|node| node.connected = false, needs(&[]), "it is not connected");
    check(|node| node.draining = true, needs(&[]), "it is draining");
    check(|_| (), needs(&["KSampler", "LoadImage"]), "it lacks the op `KSampler`");
    check(|node| node.free.clear(), needs(&[]), "all its slots are busy");
    let models = Requirements { models: names(&["loras/b"]), ..Requirements::default() };
    check(|_| (), models, "it lacks the model `loras/b`");
    let attach = |node: &mut Made| node.offer.engine = Engine::Attached { comfyui_version: "0.8.0".into() };
    let refused = "it has an attached ComfyUI, which proves no lock, and the workflow was not deployed with `--accept-attached`";
    check(attach, needs(&[]), refused);
    check(attach, Requirements { accept_attached: true, ..needs(&[]) }, "it is next in turn");
    assert_eq!(explain(&version(1), &needs(&[]), &waiting(1), &[])[0].node, None);
}

#[test]
fn managed_node_runs_in_proven_workspaces_and_tries_a_loaded_one_with_one_run() {
    let lockfile = LockfileHash(BlobHash([9; 32]));
    let requirements = Requirements { lockfile: Some(lockfile), ..needs(&["KSampler"]) };
    let placed = |state: Option<WorkspaceState>, at_work: bool, requirements: &Requirements| {
        let mut node = Made::node(1, 2);
        node.offer.engine = Engine::Managed;
        node.workspaces.extend(state.map(|state| (lockfile, state)));
        node.at_work.extend(at_work.then_some(lockfile));
        plan_one_class(vec![waiting(1), waiting(2)], requirements, &[node]).len()
    };
    assert_eq!(placed(None, false, &requirements), 0);
    assert_eq!(placed(Some(WorkspaceState::Waiting), false, &requirements), 0);
    assert_eq!(placed(Some(WorkspaceState::Loaded), false, &requirements), 1);
    assert_eq!(placed(Some(WorkspaceState::Loaded), true, &requirements), 0);
    assert_eq!(placed(Some(WorkspaceState::Proven), true, &requirements), 2);
    assert_eq!(placed(Some(WorkspaceState::Proven), false, &needs(&[])), 0, "nothing to rebuild from");
}

#[test]
fn slot_whose_comfyui_serves_the_job_is_preferred_and_one_with_work_of_its_own_is_left_to_it() {
    let lockfile = |number| LockfileHash(BlobHash([number; 32]));
    let of = |number| Requirements { lockfile: Some(lockfile(number)), ..needs(&[]) };
    let managed = |seed, warm: &[Option<u8>]| {
        let mut node = Made::node(seed, u16::try_from(warm.len()).expect("few"));
        node.offer.engine = Engine::Managed;
        node.workspaces = (1..=3).map(|number| (lockfile(number), WorkspaceState::Proven)).collect();
        let slots = warm.iter().enumerate().map(|(slot, serves)| (SlotId(slot as u16), *serves));
        let serves = |(slot, serves): (SlotId, Option<u8>)| Some((slot, [lockfile(serves?)].into()));
        node.warm = slots.filter_map(serves).collect();
        node
    };
    let check = |nodes: &[Made], jobs: &[u8], expected: &[(u8, u16)]| {
        let (workflows, requirements) = ([1, 2, 3].map(version), [1, 2, 3].map(of));
        let class = |number: u8| Class {
            workflow: &workflows[usize::from(number) - 1],
            requirements: &requirements[usize::from(number) - 1],
            jobs: (0..).zip(jobs).filter(|(_, of)| **of == number).map(|(order, _)| waiting(order)).collect(),
        };
        let nodes = nodes.iter().map(Made::picture).collect();
        let placements = plan(&Picture { classes: [1, 2, 3].map(class).into(), nodes });
        let places: Vec<_> = placements.iter().map(|placed| (placed.node.0[0], placed.slot.0)).collect();
        assert_eq!(places, expected, "{jobs:?}");
    };
    let mixed = || [managed(1, &[None, Some(2)]), managed(2, &[Some(3), Some(1)])];
    check(&mixed(), &[1], &[(2, 1)]);
    check(&mixed(), &[2, 3, 1], &[(1, 1), (2, 0), (2, 1)]);
    // Once what is warm is taken, a slot with nothing goes before one whose ComfyUI would have to end.
    check(&mixed(), &[1, 1], &[(2, 1), (1, 0)]);
    // Of two that would have to end, the one that has work stays.
    check(&[managed(1, &[Some(2)]), managed(2, &[Some(3)])], &[1, 2], &[(2, 0), (1, 0)]);
    // No matter how warm another one is: a free slot is not left empty.
    let mut busy = [managed(1, &[Some(1)]), managed(2, &[Some(2)])];
    busy[0].free.clear();
    check(&busy, &[1, 1, 1], &[(2, 0)]);
    // It matters more than what ran there before, and than files that are small beside a start.
    let mut ran = [managed(1, &[Some(2)]), managed(2, &[Some(1)])];
    ran[0].ran.insert(version(1));
    check(&ran, &[1], &[(2, 0)]);
}

#[test]
fn job_that_nothing_can_take_holds_up_no_other() {
    let (workflow, other) = (version(1), version(2));
    let (hard, easy) = (needs(&["KSampler"]), needs(&[]));
    let classes = vec![
        Class {
            workflow: &workflow,
            requirements: &hard,
            jobs: vec![Waiting { priority: 100, ..waiting(1) }],
        },
        Class { workflow: &other, requirements: &easy, jobs: vec![waiting(2)] },
    ];
    let node = Made::node(1, 1);
    let placements = plan(&Picture { classes, nodes: vec![node.picture()] });
    assert_eq!(placements, [Placement { job: job(2), node: node.peer, slot: SlotId(0) }]);
}

prop_compose! {
    fn any_node(seed: u8)(
        slots in 0_u16..4, connected in any::<bool>(), draining in any::<bool>(), small in any::<bool>()
    ) -> Made {
        let mut node = Made::node(seed, slots);
        node.connected = connected;
        node.draining = draining;
        if small {
            node.offer.classes.clear();
        }
        node
    }
}

fn any_farm() -> impl Strategy<Value = Vec<Made>> {
    (1_u8..6).prop_flat_map(|count| (1..=count).map(any_node).collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn no_slot_and_no_job_is_placed_twice_and_none_is_left_that_could_go(
        nodes in any_farm(),
        jobs in prop::collection::vec((0_u8..3, 0_u8..101, prop::option::of(1_u8..6)), 0..20),
    ) {
        let requirements = [needs(&[]), needs(&["LoadImage"]), needs(&["KSampler"])];
        let workflows = [version(1), version(2), version(3)];
        let mut by_class: BTreeMap<u8, Vec<Waiting<'_>>> = BTreeMap::new();
        for (number, (class, priority, avoid)) in jobs.iter().enumerate() {
            let avoid = avoid.iter().map(|seed| PeerId([*seed; 32])).collect();
            let one = Waiting { priority: *priority, avoid, ..waiting(number as u64) };
            by_class.entry(*class).or_default().push(one);
        }
        let classes = by_class.into_iter().map(|(class, jobs)| {
            let class = usize::from(class);
            Class { workflow: &workflows[class], requirements: &requirements[class], jobs }
        });
        let picture = Picture { classes: classes.collect(), nodes: nodes.iter().map(Made::picture).collect() };
        let placements = plan(&picture);

        prop_assert!(are_different(placements.iter().map(|placement| placement.job)));
        prop_assert!(are_different(placements.iter().map(|placement| (placement.node, placement.slot))));
        for placement in &placements {
            let node = nodes.iter().find(|node| node.peer == placement.node).expect("a node of the farm");
            prop_assert!(node.connected && !node.draining);
            prop_assert!(node.free.iter().any(|(slot, _)| *slot == placement.slot));
        }
        for class in &picture.classes {
            for left in class.jobs.iter().filter(|job| placements.iter().all(|placed| placed.job != job.job)) {
                for node in picture.nodes.iter().filter(|node| obstacle(class.requirements, node).is_none()) {
                    let taken = placements.iter().filter(|placed| placed.node == node.peer).count();
                    let is_full = taken == node.free.len();
                    prop_assert!(is_full || left.avoid.contains(&node.peer), "a fitting slot is left over");
                }
            }
        }
    }
}
