//! What this node offers, as its engine describes itself.
//!
//! Not here: when the coordinator hears of it; that is the duty's.

use std::sync::Arc;
use std::time::Duration;

use protocol::{Device, Engine as EngineKind, Offer, SlotId, SlotOffer};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::engine::{Description, Engine};
use crate::os::machine;

/// How often the engine is asked what it can do.
const DESCRIBE: Duration = Duration::from_secs(30);
/// How long it may take to answer. One that is silent for longer executes nothing either.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(30);

/// Asks the engine again and again and tells each offer that differs from the last. It runs beside the
/// duty: an engine that hangs must not keep a node from renewing its leases.
pub(crate) async fn describe_task(
    engine: Arc<dyn Engine>,
    devices: Vec<Device>,
    offers: watch::Sender<Option<Offer>>,
) {
    let mut failed_with = None;
    loop {
        let described = timeout(DESCRIBE_TIMEOUT, engine.describe()).await;
        let described = match described {
            Ok(Ok(description)) => Ok(description),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("it did not say what it can do within {DESCRIBE_TIMEOUT:?}")),
        };
        // The same reason over and over is told once.
        match &described {
            Ok(_) if failed_with.take().is_some() => info!("engine answers again"),
            Err(reason) if failed_with.as_ref() != Some(reason) => {
                warn!(reason, "engine does not answer; this node offers no slots");
                failed_with = Some(reason.clone());
            }
            _ => {}
        }
        let offer = Some(offer(described.ok(), &devices));
        offers.send_if_modified(|told| {
            let is_new = *told != offer;
            if is_new {
                *told = offer;
            }
            is_new
        });
        tokio::time::sleep(DESCRIBE).await;
    }
}

/// The offer of now. Without slots where the engine does not answer: the node stays in the farm, serves
/// its blobs and is given nothing to do.
fn offer(described: Option<Description>, devices: &[Device]) -> Offer {
    let usable = if described.is_some() { devices } else { &[] };
    let Description { engine, classes, models } = described.unwrap_or_else(|| Description {
        engine: EngineKind::Attached { comfyui_version: String::new() },
        classes: Default::default(),
        models: Default::default(),
    });
    let slot = |(index, device): (usize, &Device)| {
        let id = SlotId(u16::try_from(index).expect("a machine has fewer devices than ports"));
        SlotOffer { id, device: device.clone() }
    };
    Offer {
        host_name: machine::host_name(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        platform: machine::platform(),
        engine,
        classes,
        models,
        slots: usable.iter().enumerate().map(slot).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_offers_slots_only_while_its_engine_answers() {
        let devices =
            [Device::Cpu { threads: 4, memory: 8 << 30 }, Device::Cpu { threads: 4, memory: 8 << 30 }];
        let description = Description {
            engine: EngineKind::Builtin,
            classes: ["SaveImage".to_owned()].into(),
            models: Default::default(),
        };
        let answering = offer(Some(description), &devices);
        assert_eq!(answering.slots.iter().map(|slot| slot.id).collect::<Vec<_>>(), [SlotId(0), SlotId(1)]);
        assert!(answering.classes.contains("SaveImage"));
        assert!(offer(None, &devices).slots.is_empty());
    }
}
