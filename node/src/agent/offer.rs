//! What this node offers, as its engine describes itself.

use protocol::{Device, Engine as EngineKind, Offer, SlotId, SlotOffer};
use tracing::warn;

use crate::engine::Engine;
use crate::os::machine;

/// The offer of now. Without slots where the engine does not answer: the node stays in the farm, serves
/// its blobs and is given nothing to do.
pub(crate) async fn offer(engine: &dyn Engine, devices: &[Device]) -> Offer {
    let (kind, classes, models, usable) = match engine.describe().await {
        Ok(description) => (description.engine, description.classes, description.models, devices),
        Err(error) => {
            warn!(%error, "engine does not answer; this node offers no slots");
            (
                EngineKind::Attached { comfyui_version: String::new() },
                Default::default(),
                Default::default(),
                &[][..],
            )
        }
    };
    let slot = |(index, device): (usize, &Device)| {
        let id = SlotId(u16::try_from(index).expect("a machine has fewer devices than ports"));
        SlotOffer { id, device: device.clone() }
    };
    Offer {
        host_name: machine::host_name(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        platform: machine::platform(),
        engine: kind,
        classes,
        models,
        slots: usable.iter().enumerate().map(slot).collect(),
    }
}
