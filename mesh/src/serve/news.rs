//! What an asker is told unasked: pieces that came meanwhile, and who else asks.
//!
//! News are told in batches, so that a blob that grows fast costs few of them. Not here: how they are sent.

use std::sync::Arc;
use std::time::Duration;

use protocol::message::Provider;
use protocol::wire::MAX_GAINED;
use protocol::{BlobName, PeerId, PieceRange};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Askers;
use crate::store::{Pieces, Source};

/// How long after news the next may be told.
const PAUSE: Duration = Duration::from_millis(50);

/// What one asker was told of one blob.
pub(super) struct News {
    name: BlobName,
    asker: PeerId,
    askers: Arc<Askers>,
    added: watch::Receiver<()>,
    growth: Option<watch::Receiver<()>>,
    /// Up to which of the other askers it was told.
    told: u64,
    /// The pieces that it knows of.
    pieces: Pieces,
    is_due: bool,
    earliest: Instant,
}

impl News {
    /// The asker was told of these pieces of the source.
    pub(super) fn new(
        name: BlobName,
        asker: PeerId,
        askers: Arc<Askers>,
        source: &Source,
        pieces: Pieces,
    ) -> Self {
        // What came since the pieces were counted is due, so that nothing is missed between the two.
        let (added, growth, earliest) = (askers.added(), source.growth(), Instant::now());
        Self { name, asker, askers, added, growth, told: 0, pieces, is_due: true, earliest }
    }

    /// Waits until there may be something to tell, and it may be told. It may be cancelled.
    pub(super) async fn due(&mut self) {
        if !self.is_due {
            let growth = async {
                match &mut self.growth {
                    Some(growth) => growth.changed().await,
                    None => std::future::pending().await,
                }
            };
            // Both senders live as long as the source and the askers do, which are held here.
            tokio::select! {
                _ = self.added.changed() => {}
                _ = growth => {}
            }
            self.is_due = true;
        }
        sleep_until(self.earliest).await;
    }

    /// Whether there may be something to tell now.
    pub(super) fn is_due(&mut self) -> bool {
        let has_changed = |receiver: &watch::Receiver<()>| receiver.has_changed().unwrap_or(false);
        self.is_due |= has_changed(&self.added) || self.growth.as_ref().is_some_and(has_changed);
        self.is_due && self.earliest <= Instant::now()
    }

    /// Takes what is to be told: others who ask, and pieces.
    pub(super) fn take(&mut self, source: &Source) -> (Vec<Provider>, Vec<PieceRange>) {
        self.added.mark_unchanged();
        self.growth.iter_mut().for_each(watch::Receiver::mark_unchanged);
        self.earliest = Instant::now() + PAUSE;
        let providers = self.askers.news(&self.name, self.asker, &mut self.told);
        let mut gained = self.pieces.missing_from(&source.pieces(), u64::MAX);
        // The rest is told the next time.
        self.is_due = gained.len() > MAX_GAINED;
        gained.truncate(MAX_GAINED);
        gained.iter().cloned().flatten().for_each(|piece| self.pieces.insert(piece));
        (providers, gained.into_iter().map(PieceRange::from).collect())
    }
}
