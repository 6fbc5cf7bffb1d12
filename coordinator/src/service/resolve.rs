//! Joining what nodes report of a lockfile: fetched, checked against it, signed by the farm, stored.
//!
//! Not here: which report is wanted, and who is told of the result; that is the state machine's.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh::fetch::Exchange;
use mesh::identity::Identity;
use mesh::store::BlobStore;
use protocol::message::Provider;
use protocol::{
    BlobRef, Lockfile, LockfileHash, MAX_LOCKFILE, MAX_RESOLUTION, Resolution, WorkspaceResolved,
};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tracing::{info, warn};

use super::work::longest;
use crate::state::Event;

/// What each lockfile came to by the latest report; reports are joined one after another.
pub(super) type Resolutions = Arc<Mutex<BTreeMap<LockfileHash, BlobRef>>>;

/// One report.
pub(super) struct Reported {
    /// The node, which serves it.
    pub(super) provider: Provider,
    /// What it reported.
    pub(super) resolved: WorkspaceResolved,
    /// The lockfile.
    pub(super) document: BlobRef,
    /// What was known as it came.
    pub(super) known: Option<BlobRef>,
}

/// Why a report is not taken.
#[derive(Debug, thiserror::Error)]
enum ResolveError {
    #[error("it could not be fetched from the node")]
    Fetch(#[from] mesh::fetch::FetchError),
    #[error("the node sends it too slowly")]
    Slow,
    #[error(transparent)]
    Store(#[from] mesh::store::StoreError),
    #[error(transparent)]
    Lockfile(#[from] protocol::LockfileError),
    #[error(transparent)]
    Resolution(#[from] protocol::ResolutionError),
}

/// Takes a report in; an event where it brought something new.
pub(super) async fn resolve(
    reported: Reported,
    resolutions: Resolutions,
    exchange: Exchange,
    publisher: Arc<Identity>,
) -> Option<Event> {
    let (node, lockfile) = (reported.provider.peer, reported.resolved.lockfile);
    let mut latest = resolutions.lock().await;
    let known = latest.get(&lockfile).copied().or(reported.known);
    match join(reported, known, &exchange, &publisher).await {
        Ok(Some(resolution)) => {
            info!(lockfile = %lockfile.0.fmt_short(), node = %node.fmt_short(), "lockfile is resolved");
            latest.insert(lockfile, resolution);
            Some(Event::Resolved { lockfile, resolution, node })
        }
        Ok(None) => None,
        Err(error) => {
            let error = protocol::error_chain(&error);
            warn!(error, node = %node.fmt_short(), "what a lockfile came to is not taken");
            None
        }
    }
}

/// What is known joined with what was reported, if that brings something new.
async fn join(
    reported: Reported,
    known: Option<BlobRef>,
    exchange: &Exchange,
    publisher: &Identity,
) -> Result<Option<BlobRef>, ResolveError> {
    let Reported { provider, resolved, document, .. } = reported;
    let store = exchange.store();
    let fetching = exchange.fetch(resolved.resolution, std::slice::from_ref(&provider), None);
    timeout(longest(resolved.resolution), fetching).await.map_err(|_| ResolveError::Slow)??;
    let lockfile = Lockfile::parse(&store.read_all(document.hash, MAX_LOCKFILE as u64).await?)?;
    let report = read(store, resolved.resolution).await?;
    let mut joined = match known {
        Some(known) => read(store, known).await?,
        None => Resolution::new(resolved.lockfile),
    };
    if !joined.join(&report, &lockfile) {
        return Ok(None);
    }
    joined.sign(publisher.signing_key());
    Ok(Some(store.import_bytes(&joined.to_canonical_json()).await?))
}

async fn read(store: &BlobStore, resolution: BlobRef) -> Result<Resolution, ResolveError> {
    Ok(Resolution::parse(&store.read_all(resolution.hash, MAX_RESOLUTION as u64).await?)?)
}
