//! Every message between a node and a coordinator, and the words of joining.
//!
//! **Participants.** A node dials; a coordinator accepts. Both have proven their peer id by the
//! transport (noise or TLS).
//!
//! **Streams.** Each is one libp2p stream, named by its protocol; the name carries the version, and a
//! release speaks the one before it as well.
//! - [`JOIN_PROTOCOL`]: outside the gate. One [`JoinMessage::Request`], one answer, at most
//!   [`MAX_HELLO`](crate::codec::MAX_HELLO) bytes each.
//! - [`SESSION_PROTOCOL`]: behind the gate. First [`GateMessage::Hello`] each way, at most
//!   `MAX_HELLO` bytes, within [`HELLO_TIMEOUT`]; then [`NodeMessage`]s one way and
//!   [`CoordinatorMessage`]s the other, at most [`MAX_FRAME`](crate::codec::MAX_FRAME) bytes each.
//!
//! The same Hello opens every connection of the data plane, where the blob wire follows it.
//!
//! **A session.** The node sends `Register`, with its offer and all that it holds: leases at work, and
//! ends of runs that no coordinator has acknowledged. The coordinator answers `Welcome`. From then on
//! the node renews its leases by `Heartbeat`; a `Grant` is answered by `PhaseChanged` (it began) or
//! `Refused`; a run ends with `RunEnded`, which the node repeats on every new session until it gets
//! `EndRecorded`. Progress may be dropped by either end; nothing else may.
//!
//! **Finding.** `Locate` asks who holds a blob, `Located` answers. Who reads a file from the internet asks
//! for ranges of it with `ReadOrigin` and reads what `OriginLease` gives it, so that a farm reads each byte
//! once; without an answer it may read all by itself.
//!
//! **Workspaces.** `WantWorkspaces` names all that a node is to have ready; `WorkspaceReport` says how far it
//! is with one, and `WorkspaceResolved` what it was built from, so that others build from the same. `WarmSlots` says
//! which of them each slot's process serves, so that runs go where none has to start. A node without a managed engine
//! skips the first and never sends the others.
//!
//! **Self-tests.** `SelfTest` asks a node to run a workflow for nobody, when a slot has nothing else to do;
//! `SelfTested` says what came of it. A coordinator asks for one of a workspace that is loaded and not proven, and of a
//! workflow for which the node is set aside, but not of an attached ComfyUI. Whoever does not answer is asked again on the next session.
//!
//! **Watching.** As long as somebody watches a run, the coordinator says so with `WatchRun` again and again, and
//! the node sends the newest `RunPreview` a few times a second. Both may be dropped.
//!
//! **Keeping.** So that a blob outlives the peer that brought it, the coordinator asks nodes with room to
//! `Keep` it: to fetch it, and to pin it. `Storage` says that a node did, `KeepRefused` why it did not. What a
//! deployed lockfile says is not to be shared, `KeepPrivate` tells every node, whoever holds it.
//!
//! **Goals.** A node may vanish at any instant and come back with a finished run; a coordinator may
//! restart under running nodes. Neither loses a job or records its end twice.
//!
//! **Not goals.** Bulk: blobs never cross a session; a grant names them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::blob::{BlobHash, BlobRef};
use crate::codec::messages;
use crate::id::{FarmId, JobId, LeaseId, PeerId, RunId, SlotId, WorkflowVersion};
use crate::job::{Fetched, OutputFile, Phase, Progress, RunError};
use crate::lease::Lease;
use crate::lockfile::LockfileHash;
use crate::membership::{Membership, Role};
use crate::offer::Offer;
use crate::origin::{Alias, BlobName, FileRef, PieceRange};
use crate::preparation::{WantWorkspaces, WarmSlots, WorkspaceReport, WorkspaceResolved};
use crate::preview::PreviewFrame;
use crate::self_test::{SelfTest, SelfTested};
use crate::transfer::Transfers;

/// The label of a process that only serves the models of a workflow's author, and keeps nothing for others.
pub const AUTHOR_LABEL: (&str, &str) = ("role", "author");
/// The protocol by which a stranger with a ticket becomes a member, and a member renews.
pub const JOIN_PROTOCOL: &str = "/comfy-farm/join/1";
/// The protocol of the session between a node and a coordinator.
pub const SESSION_PROTOCOL: &str = "/comfy-farm/session/1";
/// How long either end waits for the other's Hello, and for the answer to a join request.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one `WatchRun` lasts.
pub const WATCH: Duration = Duration::from_secs(10);
/// The most blobs, providers or leases in one list of a message.
pub const MAX_LIST: usize = 4096;
/// The most providers named for one blob.
pub const MAX_PROVIDERS: usize = 32;
/// The largest parameters that a grant carries, in bytes.
pub const MAX_PARAMETERS: usize = 256 << 10;

messages! {
    /// The gate, the same on every transport.
    GateMessage {
        /// The first frame each way.
        0x0001 => Hello(Hello),
    }
}

messages! {
    /// Joining and renewing, outside the gate.
    JoinMessage {
        /// From the one who wants in.
        0x0010 => Request(JoinRequest),
        /// It is in, or has a new certificate.
        0x0011 => Accepted(Box<Accepted>),
        /// It is not.
        0x0012 => Refused(JoinRefusal),
    }
}

messages! {
    /// From a node to its coordinator.
    NodeMessage {
        /// The first message of a session.
        0x0100 => Register(Register),
        /// Renews every lease that it names, and says that the node lives.
        0x0101 => Heartbeat(Heartbeat),
        /// What the node can take has changed.
        0x0102 => OfferChanged(Offer),
        /// The node does not take a grant.
        0x0103 => Refused(Refused),
        /// A run entered a phase.
        0x0104 => PhaseChanged(PhaseChanged),
        /// A run moved on; only the latest counts.
        0x0105 => RunProgress(RunProgress),
        /// A run ended; repeated until it is recorded.
        0x0106 => RunEnded(RunEnded),
        /// Blobs that the node now holds, or no longer.
        0x0107 => Inventory(Inventory),
        /// The node goes away and gives back every lease.
        0x0108 => Leave(Leave),
        /// Who holds a blob?
        0x0109 => Locate(Locate),
        /// What may be read from the internet?
        0x010a => ReadOrigin(ReadOrigin),
        /// Both names of files that the node has read whole.
        0x010b => Aliases(Aliases),
        /// How much room there is, and what is pinned; only the latest counts.
        0x810c => Storage(Storage),
        /// What is being fetched; only the latest counts.
        0x810d => Transfers(Transfers),
        /// A blob is not kept as asked.
        0x810e => KeepRefused(KeepRefused),
        /// How far a workspace is; only the latest counts.
        0x810f => WorkspaceReport(WorkspaceReport),
        /// What the parts of a workspace came to.
        0x8110 => WorkspaceResolved(WorkspaceResolved),
        /// What a run's picture looks like so far; only the latest counts.
        0x8111 => RunPreview(RunPreview),
        /// What came of a self-test.
        0x8112 => SelfTested(SelfTested),
        /// In which workspaces slots can work at once; only the latest counts.
        0x8113 => WarmSlots(WarmSlots),
    }
}

messages! {
    /// From a coordinator to a node.
    CoordinatorMessage {
        /// The answer to `Register`.
        0x0200 => Welcome(Welcome),
        /// A lease on a run.
        0x0201 => Grant(Box<Grant>),
        /// The run is no longer wanted.
        0x0202 => CancelRun(CancelRun),
        /// The end of a run is durable; the node may forget it and its outputs.
        0x0203 => EndRecorded(EndRecorded),
        /// Take no more runs, or take them again.
        0x0204 => SetDraining(SetDraining),
        /// The answer to `Locate`.
        0x0205 => Located(Located),
        /// The answer to `ReadOrigin`.
        0x0206 => OriginLease(OriginLease),
        /// Fetch a blob, and pin it.
        0x8207 => Keep(Keep),
        /// The workspaces that the node is to have.
        0x8208 => WantWorkspaces(WantWorkspaces),
        /// Somebody watches a run.
        0x8209 => WatchRun(WatchRun),
        /// Try a workflow, once there is nothing else to do.
        0x820a => SelfTest(Box<SelfTest>),
        /// Files that no peer may have.
        0x820b => KeepPrivate(KeepPrivate),
    }
}

/// Proof of membership, and the newest revocations that the sender knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The sender's certificates, from the root down.
    pub membership: Membership,
    /// The number of the newest revocation list that the sender holds; 0 for none.
    pub revocations: u64,
}

/// What a process asks for that is no member, or whose certificate is past half its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The farm that it means.
    pub farm: FarmId,
    /// The ticket's secret; `None` renews what the coordinator already knows.
    pub secret: Option<[u8; 16]>,
    /// The role that it wants.
    pub role: Role,
    /// Labels for people and placement, such as `room=2.14`.
    pub labels: BTreeMap<String, String>,
}

/// The certificates of a new or renewed member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// What it presents from now on.
    pub membership: Membership,
}

/// Why a join request was refused. It tells a stranger nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum JoinRefusal {
    /// The coordinator belongs to another farm.
    #[error("this is a coordinator of another farm: the ticket is not for it")]
    WrongFarm,
    /// No ticket of this coordinator has that secret.
    #[error("the coordinator does not know this ticket: it was altered, or made by another coordinator")]
    UnknownTicket,
    /// The ticket is too old.
    #[error("the ticket has expired: ask for a new one (`comfy-farm invite`)")]
    Expired,
    /// The ticket was for fewer uses.
    #[error("the ticket is used up: ask for a new one (`comfy-farm invite`)")]
    UsedUp,
    /// The peer was excluded.
    #[error("this peer was revoked")]
    Revoked,
    /// A renewal by a peer that the coordinator has never admitted.
    #[error("the coordinator does not know this peer: join with a ticket")]
    UnknownPeer,
    /// Too many requests; try again later.
    #[error("too many join requests at the moment: try again in a minute")]
    Busy,
}

/// All that a coordinator must know of a node, at the start of each session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Register {
    /// What the node can take.
    pub offer: Offer,
    /// Where its data plane listens, one address for each interface; the coordinator adds the one it sees.
    pub data_addresses: Vec<SocketAddr>,
    /// The leases that it works on.
    pub leases: Vec<HeldLease>,
    /// Ends of runs that it has not seen recorded.
    pub ended: Vec<RunEnded>,
    /// Whether it was told to drain, by its owner.
    pub draining: bool,
}

/// A lease that a node holds as its session begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldLease {
    /// The lease.
    pub lease: Lease,
    /// On which slot.
    pub slot: SlotId,
    /// What the run is doing.
    pub phase: Phase,
}

/// The leases that a node still works on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Each is renewed for the duration that `Welcome` gave.
    pub leases: Vec<LeaseId>,
}

/// A grant that a node does not take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The lease of the grant.
    pub lease: Lease,
    /// Why.
    pub refusal: Refusal,
}

/// Why a node does not take a grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The slot is taken.
    #[error("slot {0} is busy")]
    SlotBusy(SlotId),
    /// The node was told to drain.
    #[error("the node is draining")]
    Draining,
    /// The node is about to stop.
    #[error("the node is stopping")]
    Stopping,
}

/// A run entered a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseChanged {
    /// The lease.
    pub lease: LeaseId,
    /// The phase.
    pub phase: Phase,
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunProgress {
    /// The lease.
    pub lease: LeaseId,
    /// How far.
    pub progress: Progress,
}

/// A run's picture in the making.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunPreview {
    /// The lease.
    pub lease: LeaseId,
    /// The picture.
    pub frame: PreviewFrame,
}

/// Send previews of a run, for [`WATCH`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRun {
    /// The lease under which it runs.
    pub lease: LeaseId,
}

/// The end of a run, as the node that did it tells it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunEnded {
    /// The lease under which it was done.
    pub lease: Lease,
    /// What came of it.
    pub outcome: Outcome,
    /// What it fetched for it, and from whom.
    pub fetched: Vec<Fetched>,
    /// How long the engine executed.
    pub executed: Duration,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It made these files, which the node serves until the end is recorded.
    Succeeded(Vec<OutputFile>),
    /// It did not.
    Failed(RunError),
}

/// A change of what a node holds: blobs of 1 MiB and more, models where they lie, and what is pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Whether this is all that it holds (the first after `Register`) and replaces what was known.
    pub complete: bool,
    /// Blobs that it now holds whole.
    pub added: Vec<BlobRef>,
    /// Blobs that it no longer holds.
    pub removed: Vec<BlobHash>,
}

/// A question for those who hold a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locate {
    /// Chosen by the node; the answer repeats it.
    pub request: u64,
    /// The blob.
    pub name: BlobName,
}

/// A node is about to read a file from the internet, or goes on with it. It says so again for every next
/// range, and when a lease is about to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadOrigin {
    /// Chosen by the node; the answer repeats it.
    pub request: u64,
    /// The file.
    pub file: FileRef,
    /// What the node holds of it by now, from wherever; at most [`MAX_LIST`] ranges. It serves them.
    pub held: Vec<PieceRange>,
    /// How many pieces it would read, those included that it was leased before and does not hold yet; 0
    /// gives back every lease on this file.
    pub wanted: u64,
}

/// Files under both names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aliases {
    /// At most [`MAX_LIST`], each read whole by the node itself.
    pub aliases: Vec<Alias>,
}

/// What a node's store is like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// How many bytes it can still take, with all gone that may go.
    pub room: u64,
    /// Blobs that are never evicted; at most [`MAX_LIST`].
    pub pinned: Vec<BlobHash>,
}

/// A node does not keep a blob that it was asked to keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepRefused {
    /// The blob.
    pub blob: BlobHash,
    /// Why, in words; at most [`MAX_WORDS`](crate::MAX_WORDS) bytes are kept of it.
    pub reason: String,
}

/// The node goes away in good order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {
    /// The leases that it gives back unfinished.
    pub leases: Vec<LeaseId>,
}

/// What a node must know of its coordinator, at the start of each session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The coordinator's epoch.
    pub epoch: u64,
    /// How often to renew.
    pub heartbeat: Duration,
    /// How long a renewed lease lives.
    pub lease_duration: Duration,
    /// The data plane of the coordinator, which the node dials and keeps open, so that the
    /// coordinator can take outputs from a node that nobody can dial.
    pub data_addresses: Vec<SocketAddr>,
    /// Leases of `Register` that are no longer wanted: the node stops their runs.
    pub unwanted: Vec<LeaseId>,
    /// Whether the node is to drain.
    pub draining: bool,
}

/// A lease on a run, with all that the run needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The lease.
    pub lease: Lease,
    /// The slot to do it on.
    pub slot: SlotId,
    /// Which workflow it is.
    pub workflow: WorkflowVersion,
    /// The lockfile in whose workspace it runs, on a managed engine.
    pub lockfile: LockfileHash,
    /// The workflow in ComfyUI's API format.
    pub graph: BlobRef,
    /// The workflow's interface, as JSON.
    pub interface: BlobRef,
    /// Files that came with the bundle, by the name under which the graph knows them.
    pub inputs: BTreeMap<String, BlobRef>,
    /// The job's parameters, as canonical JSON; at most [`MAX_PARAMETERS`] bytes.
    pub parameters: Vec<u8>,
    /// Who holds what the run needs, as far as the coordinator knows.
    pub providers: Vec<BlobProviders>,
}

/// Who holds one blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobProviders {
    /// The blob.
    pub hash: BlobHash,
    /// At most [`MAX_PROVIDERS`], the preferred first.
    pub providers: Vec<Provider>,
}

/// A peer that holds and serves a blob, and where its data plane listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provider {
    /// The peer.
    pub peer: PeerId,
    /// Addresses to try, best first. Empty: only over a connection that is open already.
    pub addresses: Vec<SocketAddr>,
}

/// A run is no longer wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRun {
    /// The lease under which it runs.
    pub lease: LeaseId,
}

/// The end of a run is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndRecorded {
    /// The run.
    pub run: RunId,
    /// Its job.
    pub job: JobId,
}

/// Who holds a blob, as far as the coordinator knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Located {
    /// That of the question.
    pub request: u64,
    /// The blob, if any node of the farm holds it or an alias names it. What a node said of a SHA-256 is
    /// proven by whoever fetches the blob.
    pub blob: Option<BlobRef>,
    /// Who holds it whole; at most [`MAX_PROVIDERS`], the preferred first.
    pub providers: Vec<Provider>,
    /// Who is reading it from the internet at the moment, and serves what it has; at most
    /// [`MAX_PROVIDERS`].
    pub readers: Vec<Provider>,
}

/// What a node may read from the internet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginLease {
    /// That of the question.
    pub request: u64,
    /// The pieces: nobody else is to read them while the lease lasts. They are all that is leased to the
    /// node by now, those of its earlier questions included that it does not hold yet. Empty where others
    /// read all that the node lacks: it takes those from them, and asks again.
    pub ranges: Vec<PieceRange>,
    /// How long the lease lasts.
    pub duration: Duration,
    /// Who else reads the file, and serves what it has; at most [`MAX_PROVIDERS`].
    pub readers: Vec<Provider>,
}

/// Fetch a blob, and never evict it. Asked again, it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// The blob.
    pub blob: BlobRef,
    /// Who holds it; at most [`MAX_PROVIDERS`].
    pub providers: Vec<Provider>,
}

/// Neither serve these nor name them to other peers, from now on and for good, also where they are still to
/// come: a deployed lockfile says of them `share: false`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepPrivate {
    /// Each by every name that is known; at most [`MAX_LIST`].
    pub names: Vec<BlobName>,
}

/// Take no more runs, or take them again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetDraining {
    /// Whether to drain.
    pub draining: bool,
}

#[cfg(test)]
mod tests;
