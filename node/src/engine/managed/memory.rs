//! Whether the memory of a graphics card came back after a process on it ended.
//!
//! A driver gives it back a moment after the end; where it does not, or another program took it, the next run is the one
//! that fails, and says so. A processor has no such memory. Not here: ending the process.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use protocol::Device;
use tokio::time::{Instant, sleep};

use super::process::blocking;
use crate::gpu::{MemoryProbe, system_probe};

/// How long the memory may take to come back.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked.
const POLL: Duration = Duration::from_millis(100);
/// How much more than before counts as the same: what drivers and desktops take and leave by themselves.
const SLACK: u64 = 256 << 20;

/// The card of a slot.
#[derive(Clone, Debug)]
pub(super) struct Card {
    uuid: String,
    probe: Arc<dyn MemoryProbe>,
}

/// Memory that did not come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotBack {
    /// How much is in use.
    used: u64,
    /// How much was, before the process started.
    before: u64,
}

impl NotBack {
    /// The same a while later, with so much in use, unless it came back meanwhile.
    pub(super) fn still(self, used: Option<u64>) -> Option<Self> {
        let used = used.filter(|used| *used > self.before.saturating_add(SLACK))?;
        Some(Self { used, ..self })
    }
}

impl fmt::Display for NotBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (used, before) = (self.used >> 20, self.before >> 20);
        write!(
            f,
            "{used} MiB of the card's memory are in use with no ComfyUI of this slot on it, {before} MiB before that \
             started: another program holds them, or the driver does not give them back (`nvidia-smi` or \
             `amd-smi` tells)"
        )
    }
}

impl Card {
    /// That of a device, if it is one.
    pub(super) fn of(device: Option<&Device>) -> Option<Self> {
        match device? {
            Device::Gpu { uuid, .. } => Some(Self { uuid: uuid.clone(), probe: Arc::new(system_probe()) }),
            Device::Cpu { .. } => None,
        }
    }

    /// How much of its memory is in use.
    pub(super) async fn used(&self) -> Option<u64> {
        let Self { uuid, probe } = self.clone();
        blocking(move || Ok(probe.used(&uuid))).await.ok().flatten()
    }

    /// Waits until no more is in use than before.
    pub(super) async fn until_back(&self, before: u64) -> Result<(), NotBack> {
        let end = Instant::now() + PATIENCE;
        loop {
            // Where nobody says any more, nothing is known against it.
            let used = self.used().await;
            let Some(not_back) = (NotBack { used: before, before }).still(used) else { return Ok(()) };
            if Instant::now() >= end {
                return Err(not_back);
            }
            sleep(POLL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A card that tells these, one after another, and the last one for ever.
    #[derive(Debug)]
    struct Told(Mutex<Vec<u64>>);

    impl MemoryProbe for Told {
        fn used(&self, uuid: &str) -> Option<u64> {
            assert_eq!(uuid, "GPU-1");
            let mut told = self.0.lock().expect("no panic");
            if told.len() > 1 { Some(told.remove(0)) } else { told.first().copied() }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn memory_that_does_not_come_back_is_told_after_a_while() {
        let check = async |gib: &[u64], expected: Result<(), NotBack>, waited: Duration| {
            let told = gib.iter().map(|gib| gib << 30).collect();
            let card = Card { uuid: "GPU-1".to_owned(), probe: Arc::new(Told(Mutex::new(told))) };
            let begun = Instant::now();
            assert_eq!(card.until_back(1 << 30).await, expected, "{gib:?}");
            assert_eq!(begun.elapsed(), waited, "{gib:?}");
        };
        check(&[1], Ok(()), Duration::ZERO).await;
        check(&[], Ok(()), Duration::ZERO).await;
        check(&[7, 7, 0], Ok(()), POLL * 2).await;
        let not_back = NotBack { used: 7 << 30, before: 1 << 30 };
        check(&[9, 7], Err(not_back), PATIENCE).await;
        assert!(not_back.to_string().starts_with("7168 MiB of the card's memory"), "{not_back}");
    }
}
