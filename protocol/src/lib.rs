//! What peers of a farm say to each other and what they keep: names, formats, messages and the pure
//! rules over them.
//!
//! Nothing here opens a socket, reads a file or a clock. Read `job`, then `message`.

mod id;
mod blob;
mod job;
mod lease;
mod offer;
mod workflow;
mod schema;
mod parameters;
mod rewrite;
mod lockfile;
mod origin;
mod url_part;
mod transfer;
mod bundle;
mod workspace;
mod environment;
mod resolution;
mod preparation;
mod self_test;
mod preview;
mod collection;
pub mod membership;
pub mod ticket;
pub mod blob_ticket;
pub mod word;
pub mod message;
pub mod contact;
pub mod wire;
pub mod introduction;
pub mod codec;
mod error_chain;
mod nearest;
#[cfg(test)]
mod facts;

pub use blob::{BlobHash, BlobRef, GROUP_SIZE, PIECE_SIZE, ParseBlobHashError};
pub use bundle::{
    Bundle, BundleError, BundleHash, BundleLimits, BundleManifest, CarriedFault, CarriedFile, CarryZipError,
    MAX_CARRIED, MAX_CARRIED_FILES, Repair, SignBundleError, Sink, SnapshotError, WriteBundleError,
    carry_zip, read_bundle, read_carried, sign_bundle, write_bundle, write_carried,
};
pub use collection::{CollectedFile, Collection, CollectionError, MAX_COLLECTED, MAX_COLLECTION};
pub use environment::{
    BuildSource, BuiltWheel, EnvironmentKey, EnvironmentLock, EnvironmentLockError, LockedFile, LockedWheel,
    MAX_ENVIRONMENT_LOCK,
};
pub use error_chain::error_chain;
pub use id::{
    FarmId, JobId, LeaseId, ParseIdError, PeerId, RunId, SlotId, WorkflowName, WorkflowSelector,
    WorkflowVersion,
};
pub use job::{FailedOp, Fetched, JobState, OutputFile, Phase, Progress, RunError, RunErrorKind};
pub use lease::{HEARTBEAT, LEASE_DURATION, Lease, LeaseClock, REATTACH_GRACE};
pub use lockfile::{
    CustomNode, FileName, FolderPath, GitCommit, GitPin, GitSource, GitUrl, HttpsUrl, LockedModel, Lockfile,
    LockfileError, LockfileHash, MAX_LOCKFILE, MAX_MIRRORS, ModelPath, PackagePin, ParseTextError, Pin,
    PublisherKey, PublisherSignature, RegistryPin, Sha256, SignatureError, Source, SystemNeed, SystemNeeds,
    Token, WebUrl, is_code,
};
pub use nearest::nearest;
pub use offer::{Device, Engine, Offer, SlotOffer, lacking};
pub use origin::{Alias, BlobName, FileRef, ParseBlobNameError, PieceRange};
pub use parameters::{Argument, MAX_FILE_NAME, Parameters, ParametersError};
pub use preparation::{
    MAX_NOTE, MAX_NOTES, MAX_PROVEN, MAX_REASON, MAX_WORKSPACES, Notes, PrepareStep, Preparing,
    WantWorkspaces, WantedWorkspace, WarmSlots, WorkspaceReport, WorkspaceResolved, WorkspaceState,
};
pub use preview::{MAX_PREVIEW, PreviewFrame};
pub use resolution::{GitPack, MAX_PACK, MAX_RESOLUTION, RegistryNode, Resolution, ResolutionError};
pub use rewrite::{FillError, Filled, FilledOutput, Filling, Making, fill, notes_on_outputs};
pub use schema::{
    CandidateInput, CandidateOutput, Candidates, ExposeError, ExposedInput, Exposure, FieldError, Input,
    InputKind, Interface, Output, OutputKind, ParseExposedInputError, Range, Rule, SchemaError,
};
pub use self_test::{SelfTest, SelfTested, SmallFile};
pub use transfer::{
    Fault, MAX_SOURCES, MAX_TRANSFERS, MAX_WORDS, SourceName, Transfer, TransferSource, Transfers,
};
pub use url_part::{URL_PART, URL_PATH};
pub use workflow::{Link, MAX_OP_ID, MAX_OPS, MAX_WORKFLOW, Op, Workflow, WorkflowError, link_of};
pub use workspace::{
    Accelerator, CodeHash, CodeSpec, EnvironmentHash, EnvironmentSpec, ParseAcceleratorError, TORCH_FAMILY,
    follows_torch, hashes_of, is_torch_build, is_torch_family, normalized, registry_folder,
};
