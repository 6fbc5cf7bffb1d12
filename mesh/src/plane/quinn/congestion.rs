//! How fast a link over QUIC is sent to: by loss where the peer is near, by the measured rate where it is far.
//!
//! On a far path with a little loss, whatever takes each loss for congestion sends next to nothing (Cubic); on a near
//! one, whatever measures the rate finds less than there is and costs several times the work (BBR). Both are told of
//! everything, and the least round trip says whose word counts. Not here: either of them; they are quinn's.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{BbrConfig, Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// The round trip from which on a peer is far: more than any office's network takes.
const FAR: Duration = Duration::from_millis(5);

/// Makes the controller of each link.
pub(super) struct ByDistance;

impl ControllerFactory for ByDistance {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let near = Arc::new(CubicConfig::default()).build(now, current_mtu);
        let far = Arc::new(BbrConfig::default()).build(now, current_mtu);
        Box::new(Controllers { near, far, is_far: false })
    }
}

/// Both, of one link.
struct Controllers {
    near: Box<dyn Controller>,
    far: Box<dyn Controller>,
    /// Whether every round trip so far took long.
    is_far: bool,
}

impl Controllers {
    fn chosen(&self) -> &dyn Controller {
        if self.is_far { &*self.far } else { &*self.near }
    }

    fn both(&mut self) -> [&mut dyn Controller; 2] {
        [&mut *self.near, &mut *self.far]
    }
}

impl Controller for Controllers {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.both().into_iter().for_each(|one| one.on_sent(now, bytes, last_packet_number));
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.is_far = rtt.min() >= FAR;
        self.both().into_iter().for_each(|one| one.on_ack(now, sent, bytes, app_limited, rtt));
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.both().into_iter().for_each(|one| one.on_end_acks(now, in_flight, app_limited, largest));
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.both().into_iter().for_each(|one| one.on_congestion_event(now, sent, is_persistent, lost_bytes));
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.both().into_iter().for_each(|one| one.on_mtu_update(new_mtu));
    }

    fn window(&self) -> u64 {
        self.chosen().window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.chosen().metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { near: self.near.clone_box(), far: self.far.clone_box(), is_far: self.is_far })
    }

    fn initial_window(&self) -> u64 {
        self.chosen().initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_slows_what_a_near_peer_is_sent_and_not_what_a_far_one_is() {
        let now = Instant::now();
        let near = Arc::new(CubicConfig::default()).build(now, 1200);
        let far = Arc::new(BbrConfig::default()).build(now, 1200);
        let mut controllers = Controllers { near, far, is_far: false };
        let window = |controllers: &mut Controllers, is_far| {
            controllers.is_far = is_far;
            controllers.window()
        };
        let before = [false, true].map(|is_far| window(&mut controllers, is_far));
        controllers.on_congestion_event(now + FAR, now + FAR, false, 1200);
        let mut copy = controllers.clone_box();
        let after = [false, true].map(|is_far| window(&mut controllers, is_far));
        assert!(after[0] < before[0] && after[1] == before[1], "{before:?} became {after:?}");
        copy.on_mtu_update(1400);
        assert_eq!(copy.window(), after[1], "a copy is as far away");
    }
}
