//! A blob and those who hold it, as JSON. Not here: transfers of one node (`transfer`).

use protocol::BlobName;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::view::{BlobHolder, BlobPart, BlobUse, BlobView, KeepView};

/// The most nodes that are asked to keep one blob.
pub(crate) const MAX_COPIES: u32 = 16;

/// A blob, as the farm knows it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Blob {
    /// The name that was asked for.
    name: String,
    /// Its BLAKE3 hash in hex, where it is known.
    #[schema(required)]
    hash: Option<String>,
    /// How many bytes it has, where that is known.
    #[schema(required)]
    size: Option<u64>,
    /// Its SHA-256 in hex, where it is known.
    #[schema(required)]
    sha256: Option<String>,
    /// The nodes that hold it whole.
    holders: Vec<Holder>,
    /// The nodes that are fetching it.
    parts: Vec<Part>,
    /// Whether the coordinator itself holds it.
    in_coordinator: bool,
    /// The deployed workflows that use it as a model.
    used_by: Vec<Use>,
    /// Who is to keep it, as long as somebody wishes that.
    #[schema(required)]
    keep: Option<Keep>,
}

/// A node that holds a blob whole.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BlobHolder)]
pub(crate) struct Holder {
    /// Its peer id.
    peer: String,
    /// The machine's name.
    host_name: String,
    /// Whether its session is open.
    connected: bool,
    /// Whether it never evicts it.
    pinned: bool,
}

/// A node that is fetching a blob.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BlobPart)]
pub(crate) struct Part {
    /// Its peer id.
    peer: String,
    /// The machine's name.
    host_name: String,
    /// How many bytes it has.
    here: u64,
    /// Of how many.
    size: u64,
}

/// A workflow that uses a blob as a model.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BlobUse)]
pub(crate) struct Use {
    /// Which, as `name@3`.
    workflow: String,
    /// Where it lies in the ComfyUI folder.
    path: String,
}

/// That so many nodes are to keep a blob.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BlobKeep)]
pub(crate) struct Keep {
    /// How many.
    copies: u64,
    /// Those that were asked and do not.
    refused: Vec<Refused>,
}

/// A node that does not keep a blob.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BlobKeepRefused)]
pub(crate) struct Refused {
    /// Its peer id.
    peer: String,
    /// Why, in its words.
    reason: String,
}

/// How a blob is to be kept.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = BlobKeepRequest)]
pub(crate) struct KeepRequest {
    /// How many bytes it has.
    pub(crate) size: u64,
    /// How many nodes are to keep it, 1 to 16. Defaults to 2.
    #[serde(default = "two")]
    #[schema(minimum = 1, maximum = 16, default = 2)]
    pub(crate) copies: u32,
    /// The node that brought it, which does not count. Defaults to none.
    #[serde(default)]
    pub(crate) author: Option<String>,
}

fn two() -> u32 {
    2
}

impl Blob {
    /// What was asked by this name.
    pub(crate) fn new(name: &BlobName, view: BlobView) -> Self {
        Self {
            name: name.to_string(),
            hash: view.blob.map(|blob| blob.hash.to_string()),
            size: view.blob.map(|blob| blob.size),
            sha256: view.sha256.map(|sha256| sha256.to_string()),
            holders: view.holders.into_iter().map(Holder::from).collect(),
            parts: view.parts.into_iter().map(Part::from).collect(),
            in_coordinator: view.in_coordinator,
            used_by: view.used_by.into_iter().map(Use::from).collect(),
            keep: view.keep.map(Keep::from),
        }
    }
}

impl From<BlobHolder> for Holder {
    fn from(holder: BlobHolder) -> Self {
        let BlobHolder { peer, host_name, connected, pinned } = holder;
        Self { peer: peer.to_string(), host_name, connected, pinned }
    }
}

impl From<BlobPart> for Part {
    fn from(part: BlobPart) -> Self {
        let BlobPart { peer, host_name, here, size } = part;
        Self { peer: peer.to_string(), host_name, here, size }
    }
}

impl From<BlobUse> for Use {
    fn from(used: BlobUse) -> Self {
        Self { workflow: used.workflow.to_string(), path: used.path }
    }
}

impl From<KeepView> for Keep {
    fn from(keep: KeepView) -> Self {
        let refused = keep.refused.into_iter();
        let refused = refused.map(|(peer, reason)| Refused { peer: peer.to_string(), reason });
        Self { copies: keep.copies, refused: refused.collect() }
    }
}
