//! How much of a machine's links its owner lends: caps in bytes a second, by time of day, the number of uploads
//! at once, and what goes through relays.
//!
//! Not here: what crosses, and where the settings come from.

mod rate;
mod turns;

pub(crate) use rate::Rate;
pub(crate) use turns::{Turn, Turns};

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::sleep;

use crate::store::ByteSize;

/// What a relay passes on in a second, unless its owner says otherwise.
const RELAY_RATE: ByteSize = ByteSize(128 << 20);
const MINUTES_OF_DAY: u64 = 24 * 60;
/// How often it is looked which caps hold.
const LOOK: Duration = Duration::from_secs(20);

/// What an owner allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How many pieces are sent at once, to all askers together, each asker in its turn. Defaults to 32.
    pub uploads: usize,
    /// The caps that hold outside of `hours`. Defaults to none.
    pub caps: Caps,
    /// Other caps at some hours of the day; the first that fits holds. Defaults to none.
    pub hours: Vec<Hours>,
    /// How many minutes the owner's clock is ahead of UTC. Defaults to 0.
    pub utc_offset: i32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { uploads: 32, caps: Caps::default(), hours: Vec::new(), utc_offset: 0 }
    }
}

/// What a process does with relays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relaying {
    /// Whether it passes on what members send each other that cannot reach each other. Defaults to yes.
    pub passes_on: bool,
    /// How much may go through relays in a second: of what it sends and receives through others, and of what it
    /// passes on, which is nothing under 4 MiB and never more than its owner lets it upload. Defaults to 16 MiB and
    /// 128 MiB.
    pub rate: Option<ByteSize>,
}

impl Default for Relaying {
    fn default() -> Self {
        Self { passes_on: true, rate: None }
    }
}

impl Relaying {
    /// How much it passes on in a second where these limits hold: no more than may be uploaded at any hour of the
    /// day, since nobody can slow a relay while it is one.
    pub fn passed_on(&self, limits: &Limits) -> ByteSize {
        let rate = self.rate.unwrap_or(RELAY_RATE);
        limits.uploads_allowed().fold(rate, ByteSize::min)
    }
}

/// How much may cross in a second, to and from all peers and origins together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caps {
    /// Sent. Defaults to no cap.
    pub upload: Option<ByteSize>,
    /// Received. Defaults to no cap.
    pub download: Option<ByteSize>,
}

/// Caps at some hours of the day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hours {
    /// From this minute of the day on.
    pub from: u16,
    /// Until this one, of the next day where it is not later than `from`.
    pub until: u16,
    /// The caps.
    pub caps: Caps,
}

impl Hours {
    fn contain(&self, minute: u16) -> bool {
        if self.from < self.until {
            (self.from..self.until).contains(&minute)
        } else {
            minute >= self.from || minute < self.until
        }
    }
}

impl Limits {
    /// The caps at this minute of the owner's day.
    pub fn caps_at(&self, minute: u16) -> Caps {
        let hours = self.hours.iter().find(|hours| hours.contain(minute));
        hours.map_or(self.caps, |hours| hours.caps)
    }

    /// What may be uploaded in a second, at some hour or another.
    fn uploads_allowed(&self) -> impl Iterator<Item = ByteSize> {
        let hours = self.hours.iter().map(|hours| hours.caps);
        hours.chain([self.caps]).filter_map(|caps| caps.upload)
    }

    fn minute_of_day(&self, since_epoch: Duration) -> u16 {
        let minutes = (since_epoch.as_secs() / 60).saturating_add_signed(self.utc_offset.into());
        (minutes % MINUTES_OF_DAY) as u16
    }
}

/// The limits at work.
#[derive(Debug)]
pub(crate) struct Throttle {
    pub(crate) upload: Rate,
    pub(crate) download: Rate,
    pub(crate) uploads: Arc<Turns>,
    limits: watch::Sender<Limits>,
}

impl Throttle {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        let throttle = Self {
            upload: Rate::default(),
            download: Rate::default(),
            uploads: Arc::new(Turns::new(limits.uploads)),
            limits: watch::Sender::new(limits),
        };
        throttle.apply();
        Arc::new(throttle)
    }

    /// Other limits hold from now on, also for what crosses at the moment.
    pub(crate) fn set(&self, limits: Limits) {
        self.uploads.set(limits.uploads);
        self.limits.send_replace(limits);
        self.apply();
    }

    /// Follows the time of day; never ends.
    pub(crate) async fn follow_the_clock(self: Arc<Self>) {
        loop {
            sleep(LOOK).await;
            self.apply();
        }
    }

    fn apply(&self) {
        let limits = self.limits.borrow();
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let Caps { upload, download } = limits.caps_at(limits.minute_of_day(since_epoch));
        self.upload.set(upload.map(|ByteSize(bytes)| bytes));
        self.download.set(download.map(|ByteSize(bytes)| bytes));
    }
}

#[cfg(test)]
mod tests;
