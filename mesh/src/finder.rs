//! Who holds what, as somebody outside this process knows it: a coordinator, or the mesh without one.
//!
//! Not here: the answers; each kind of process brings its own.

use async_trait::async_trait;
use protocol::message::{Located, OriginLease, Provider};
use protocol::{BlobName, BlobRef, FileRef, PieceRange};

/// Whom a data plane asks where blobs are.
#[async_trait]
pub trait Finder: Send + Sync {
    /// Who holds this blob, whole or growing.
    async fn locate(&self, name: &BlobName) -> Result<Found, FindError>;

    /// Which pieces of a file may be read from the internet by us, having these: a lease, so that a farm
    /// reads each piece once. `wanted` 0 gives back what was leased.
    async fn read_origin(
        &self,
        file: &FileRef,
        held: Vec<PieceRange>,
        wanted: u64,
    ) -> Result<OriginLease, FindError>;
}

/// Who holds a blob.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its two numbers, if anybody knows it.
    pub blob: Option<BlobRef>,
    /// Who holds it whole, the preferred first.
    pub providers: Vec<Provider>,
    /// Who reads it from the internet at the moment.
    pub readers: Vec<Provider>,
}

impl From<Located> for Found {
    fn from(located: Located) -> Self {
        let Located { blob, providers, readers, .. } = located;
        Self { blob, providers, readers }
    }
}

/// Why nobody could be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// There is no session.
    #[error("no coordinator can be reached at the moment")]
    Offline,
    /// There is no session, and none of the members that are reached holds it.
    #[error("no coordinator can be reached at the moment, and no member says that it has it")]
    Nowhere,
    /// It did not answer in time.
    #[error("the coordinator did not answer in time")]
    Timeout,
}
