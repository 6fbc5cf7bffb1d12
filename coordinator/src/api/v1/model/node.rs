//! A node and its slots as JSON. Not here: what a run on a slot is doing (`job`).

use std::collections::BTreeMap;

use protocol::{Preparing, WorkspaceState};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::v1::model::job::Run;
use crate::api::v1::model::transfer::{Fault, Transfer};
use crate::view::{AsideView, NodeView, WorkspaceView};

/// All nodes that the coordinator knows.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Nodes {
    pub(crate) nodes: Vec<Node>,
}

/// A machine that lends GPUs.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Node {
    /// Its peer id.
    peer: String,
    /// The machine's name.
    host_name: String,
    /// Whether its session is open.
    connected: bool,
    /// Whether it takes no more runs.
    draining: bool,
    /// What executes workflows there.
    engine: Engine,
    /// The version of comfy-farm that it runs.
    agent_version: String,
    /// Operating system and architecture, such as `linux-x86_64`.
    platform: String,
    /// The labels of its certificate.
    labels: BTreeMap<String, String>,
    /// The address that its session comes from.
    #[schema(required)]
    address: Option<String>,
    /// One for each run that it can do at a time.
    slots: Vec<Slot>,
    /// The workspaces that it is to have, and how far it is with each.
    workspaces: Vec<NodeWorkspace>,
    /// The workflows that failed there and not elsewhere, or in a self-test, and for which it is set aside.
    set_aside: Vec<SetAside>,
    /// How many blobs it is known to hold.
    blobs: u64,
    /// What it fetches at the moment.
    transfers: Vec<Transfer>,
    /// Who sent it wrong bytes lately.
    faults: Vec<Fault>,
    /// When it was last heard of.
    #[serde(with = "time::serde::rfc3339")]
    seen: OffsetDateTime,
}

/// What executes workflows on a node.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[schema(as = NodeEngine)]
pub(crate) enum Engine {
    /// The small CPU engine of comfy-farm itself.
    Builtin,
    /// A ComfyUI that the node's owner runs.
    Attached {
        /// ComfyUI's version.
        comfyui_version: String,
    },
    /// A ComfyUI for each slot, which the node makes from a locked workspace.
    Managed,
}

/// The unit of capacity: one run at a time.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Slot {
    /// Its number on the node.
    id: u16,
    /// What it computes on.
    device: Device,
    /// What it is doing.
    #[schema(required)]
    run: Option<SlotRun>,
}

/// What a slot computes on.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Device {
    /// The processor.
    Cpu {
        /// Its threads.
        threads: u32,
    },
    /// A graphics card.
    Gpu {
        /// Its name.
        name: String,
        /// Its memory in bytes.
        memory: u64,
    },
}

/// A locked workspace on a node.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NodeWorkspace {
    /// The hash of its lockfile.
    lockfile: String,
    /// The workflows that run in it, as `name@version`.
    workflows: Vec<String>,
    /// `waiting`, `preparing`, `loaded` (one run may try it), `proven`, `failed` or `refused`.
    state: String,
    /// Whether it is equivalent to the author's and not identical: torch is another build of the recorded version, as
    /// this machine needs it. Known once the workspace is loaded.
    equivalent: bool,
    /// What people should know of it though it works, such as a custom node that it is without because nobody can give
    /// that and no op needs it. Known once the workspace is loaded.
    notes: Vec<String>,
    /// The step that it is at, or at which it failed: `lockfile`, `code`, `python`, `models` or `proof`.
    #[schema(required)]
    step: Option<String>,
    /// How many bytes of the step are done.
    done: u64,
    /// How many bytes the step moves; 0 where that is not known.
    total: u64,
    /// Why it failed or was refused, and what to do.
    #[schema(required)]
    reason: Option<String>,
}

/// A workflow that failed on a node.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SetAside {
    /// As `name@version`.
    workflow: String,
    /// What went wrong.
    reason: String,
    /// Whether other nodes go first because of it: not where a self-test failed that succeeded nowhere yet.
    others_first: bool,
}

/// A run on a slot.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SlotRun {
    /// The job that it is an attempt at.
    job: Uuid,
    /// The run.
    #[serde(flatten)]
    run: Run,
}

impl From<NodeView> for Node {
    fn from(view: NodeView) -> Self {
        let slots = view.offer.slots.iter().map(|slot| Slot {
            id: slot.id.0,
            device: slot.device.clone().into(),
            run: view
                .runs
                .iter()
                .find(|(_, run)| run.slot == slot.id)
                .map(|(job, run)| SlotRun { job: job.0, run: run.clone().into() }),
        });
        Self {
            peer: view.peer.to_string(),
            connected: view.connected,
            draining: view.draining,
            slots: slots.collect(),
            host_name: view.offer.host_name,
            engine: view.offer.engine.into(),
            agent_version: view.offer.agent_version,
            platform: view.offer.platform,
            labels: view.labels,
            address: view.address.map(|address| address.to_string()),
            set_aside: view.aside.into_iter().map(SetAside::from).collect(),
            workspaces: view.workspaces.into_iter().map(NodeWorkspace::from).collect(),
            blobs: view.blobs,
            transfers: view.transfers.transfers.into_iter().map(Transfer::from).collect(),
            faults: view.transfers.faults.into_iter().map(Fault::from).collect(),
            seen: view.seen,
        }
    }
}

impl From<AsideView> for SetAside {
    fn from(AsideView { workflow, reason, others_first }: AsideView) -> Self {
        Self { workflow: workflow.to_string(), reason, others_first }
    }
}

impl From<WorkspaceView> for NodeWorkspace {
    fn from(view: WorkspaceView) -> Self {
        let (step, done, total, reason) = match view.state.clone() {
            WorkspaceState::Preparing(Preparing { step, done, total }) => (Some(step), done, total, None),
            WorkspaceState::Failed { step, reason } => (Some(step), 0, 0, Some(reason)),
            WorkspaceState::Refused { reason } => (None, 0, 0, Some(reason)),
            WorkspaceState::Waiting | WorkspaceState::Loaded | WorkspaceState::Proven => (None, 0, 0, None),
        };
        Self {
            lockfile: view.lockfile.to_string(),
            workflows: view.workflows.iter().map(ToString::to_string).collect(),
            state: view.state.as_str().to_owned(),
            equivalent: view.equivalent,
            notes: view.notes.iter().map(str::to_owned).collect(),
            step: step.map(|step| step.to_string()),
            done,
            total,
            reason,
        }
    }
}

impl From<protocol::Engine> for Engine {
    fn from(engine: protocol::Engine) -> Self {
        match engine {
            protocol::Engine::Builtin => Self::Builtin,
            protocol::Engine::Attached { comfyui_version } => Self::Attached { comfyui_version },
            protocol::Engine::Managed => Self::Managed,
        }
    }
}

impl From<protocol::Device> for Device {
    fn from(device: protocol::Device) -> Self {
        match device {
            protocol::Device::Cpu { threads, .. } => Self::Cpu { threads },
            protocol::Device::Gpu { name, memory, .. } => Self::Gpu { name, memory },
        }
    }
}
