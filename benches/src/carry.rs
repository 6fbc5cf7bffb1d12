//! One file from one process to another over a chosen plane: `blob share` and `blob get` leave no choice.
//!
//! Not here: anything that is measured.

use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use mesh::fetch::{Exchange, ExchangeConfig};
use mesh::gate::Credentials;
use mesh::identity::Identity;
use mesh::plane::{Plane, QuinnPlane, TlsPlane};
use mesh::store::BlobStore;
use protocol::PIECE_SIZE;
use protocol::blob_ticket::BlobTicket;
use protocol::message::Provider;
use tokio::signal::unix::{SignalKind, signal};

/// A way of making links.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum PlaneName {
    /// TLS over TCP.
    Tls,
    /// QUIC over UDP.
    Quic,
}

impl PlaneName {
    /// How it is named on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Quic => "quic",
        }
    }

    pub(crate) async fn bind(self, identity: &Identity, address: SocketAddr) -> Result<Arc<dyn Plane>> {
        Ok(match self {
            Self::Tls => Arc::new(TlsPlane::bind(identity, address).await?),
            Self::Quic => Arc::new(QuinnPlane::bind(identity, address).await?),
        })
    }
}

/// Serves a file.
#[derive(Debug, Args)]
pub(crate) struct Share {
    #[arg(long)]
    plane: PlaneName,
    #[arg(long)]
    listen: SocketAddr,
    /// Alter every sixteenth piece of what is served once SIGUSR1 comes.
    #[arg(long)]
    lie: bool,
    file: PathBuf,
}

/// Fetches it.
#[derive(Debug, Args)]
pub(crate) struct Get {
    #[arg(long)]
    plane: PlaneName,
    #[arg(long)]
    listen: SocketAddr,
    /// The file to make.
    #[arg(long)]
    output: PathBuf,
    /// The file with the ticket.
    ticket: PathBuf,
}

pub(crate) async fn share(share: Share) -> Result<()> {
    let identity = Identity::generate()?;
    let plane = share.plane.bind(&identity, share.listen).await?;
    let folder = tempfile::tempdir()?;
    let store = BlobStore::open(folder.path()).await?;
    // A file in place that changes would no longer be served; the store trusts its own.
    let blob = match share.lie {
        true => store.import_file(&share.file).await?,
        false => store.import_in_place(&share.file).await?,
    };
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("the system gives no random bytes")?;
    let ticket = BlobTicket::new(blob, "file", identity.peer(), plane.addresses(), seed);
    let _exchange = join(&ticket, &identity, plane, store.clone());
    println!("{ticket}");
    if share.lie {
        signal(SignalKind::user_defined1())?.recv().await;
        alter(&store.path_of(blob.hash).context("it is not in the store")?, blob.size)?;
    }
    std::future::pending().await
}

/// Flips a byte in every sixteenth piece.
fn alter(path: &Path, size: u64) -> Result<()> {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    for place in (0..size).step_by(16 * PIECE_SIZE as usize) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, place)?;
        file.write_all_at(&[!byte[0]], place)?;
    }
    Ok(())
}

pub(crate) async fn get(get: Get) -> Result<()> {
    let ticket: BlobTicket = std::fs::read_to_string(&get.ticket)?.trim().parse()?;
    let identity = Identity::generate()?;
    let plane = get.plane.bind(&identity, get.listen).await?;
    let beside = get.output.parent().unwrap_or(Path::new("."));
    let folder = tempfile::tempdir_in(beside)?;
    let store = BlobStore::open(folder.path()).await?;
    let exchange = join(&ticket, &identity, plane, store.clone());
    let sharer = [Provider { peer: ticket.peer, addresses: ticket.addresses.clone() }];
    exchange.fetch(ticket.blob, &sharer, None).await?;
    store.hand_over(ticket.blob.hash, &get.output).await?;
    exchange.shutdown().await;
    Ok(())
}

fn join(ticket: &BlobTicket, identity: &Identity, plane: Arc<dyn Plane>, store: BlobStore) -> Exchange {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let peer = identity.peer();
    let credentials = Credentials::new(ticket.farm(), peer, ticket.admit(peer, now));
    Exchange::start(ExchangeConfig::new(store, plane, credentials))
}
