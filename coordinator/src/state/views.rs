//! What the coordinator shows of its live jobs and its nodes, made when somebody asks.

use std::collections::HashSet;

use protocol::message::Provider;
use protocol::{FarmId, JobId, JobState, PeerId};

use super::grants::waiting;
use super::jobs::{Job, Place};
use super::nodes::Node;
use super::runs::Run;
use super::{Now, State};
use crate::handle::JobsFilter;
use crate::schedule::{NodePicture, explain};
use crate::view::{FarmView, JobView, NodeView, WaitReason};

impl State {
    /// An unfinished job.
    pub fn job_view(&self, id: JobId, now: Now) -> Option<JobView> {
        self.job_views(vec![self.jobs.get(id)?], now).pop()
    }

    /// The unfinished jobs that match, newest first.
    pub fn live_jobs(&self, filter: &JobsFilter, now: Now) -> Vec<JobView> {
        let matches = |job: &&Job| {
            filter.state.is_none_or(|state| state == state_of(job))
                && filter.workflow.as_ref().is_none_or(|name| *name == job.new.workflow.name)
        };
        let limit = usize::try_from(filter.limit).unwrap_or(usize::MAX);
        let jobs = self.jobs.newest_before(filter.before).filter(matches).take(limit).collect();
        self.job_views(jobs, now)
    }

    /// All nodes that this coordinator knows.
    pub fn node_views(&self) -> Vec<NodeView> {
        self.nodes.iter().map(|(peer, node)| self.to_node_view(peer, node)).collect()
    }

    /// One node.
    pub fn node_view(&self, peer: PeerId) -> Option<NodeView> {
        self.nodes.get(peer).map(|node| self.to_node_view(peer, node))
    }

    /// The farm as a whole.
    pub fn farm_view(&self, farm: FarmId) -> FarmView {
        let connected = || self.nodes.iter().filter(|(_, node)| node.session.is_some());
        let Provider { peer: coordinator, .. } = self.settings.provider;
        FarmView {
            farm,
            coordinator,
            epoch: self.epoch,
            queued: self.jobs.waiting() as u64,
            running: self.jobs.running() as u64,
            nodes: connected().count() as u64,
            slots: connected().map(|(_, node)| node.slots.len() as u64).sum(),
        }
    }

    fn job_views(&self, jobs: Vec<&Job>, now: Now) -> Vec<JobView> {
        let is_waiting = |job: &&&Job| !matches!(job.place(), Place::Running(_));
        let waiting: HashSet<JobId> = jobs.iter().filter(is_waiting).map(|job| job.new.id).collect();
        let positions = self.jobs.positions(&waiting);
        let nodes = if waiting.is_empty() { Vec::new() } else { self.node_pictures(now) };
        let view = |job: &Job| {
            let run = match job.place() {
                Place::Running(lease) => self.runs.get(&lease).map(Run::to_view),
                Place::Queued | Place::Held { .. } => None,
            };
            let history = job.history();
            JobView {
                id: job.new.id,
                workflow: job.new.workflow.clone(),
                state: state_of(job),
                priority: job.new.priority,
                parameters: job.new.parameters,
                submitted: job.new.submitted,
                expires: job.new.expires,
                started: history.and_then(|history| history.started),
                ended: None,
                queue_position: positions.get(&job.new.id).copied(),
                waits: self.waits(job, &nodes),
                run,
                failures: job.failures().to_vec(),
                outputs: Vec::new(),
                error: None,
                fetched: Vec::new(),
            }
        };
        jobs.into_iter().map(view).collect()
    }

    fn waits(&self, job: &Job, nodes: &[NodePicture<'_>]) -> Vec<WaitReason> {
        match job.place() {
            Place::Running(_) => Vec::new(),
            Place::Held { known, .. } => {
                let reason =
                    "it was at work on the job before the coordinator restarted, and may come back with it";
                vec![WaitReason { node: Some(known.node), reason: reason.to_owned() }]
            }
            Place::Queued => {
                let Some(workflow) = self.catalog.get(&job.new.workflow) else { return Vec::new() };
                explain(&workflow.id, &workflow.requirements, &waiting(job), nodes)
            }
        }
    }

    fn to_node_view(&self, peer: PeerId, node: &Node) -> NodeView {
        let of_node = self.runs.values().filter(|run| run.node == peer);
        NodeView {
            peer,
            connected: node.session.is_some(),
            draining: self.is_draining(peer),
            offer: node.offer.clone(),
            labels: node.labels.clone(),
            address: node.address,
            runs: of_node.map(|run| (run.lease.job, run.to_view())).collect(),
            blobs: node.blobs.len() as u64,
            workspaces: self.workspace_views(node),
            aside: self.aside_views(node),
            transfers: node.transfers.clone(),
            seen: node.seen,
        }
    }
}

fn state_of(job: &Job) -> JobState {
    match job.place() {
        Place::Queued | Place::Held { .. } => JobState::Queued,
        Place::Running(_) => JobState::Running,
    }
}
