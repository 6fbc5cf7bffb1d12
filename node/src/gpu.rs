//! What a machine computes on, behind a trait so that a test can say what it likes.
//!
//! Not here: the driver's library, which is `os::nvml`.

use std::fmt;

use protocol::{Accelerator, Device};

/// Finds the graphics cards of a machine.
pub trait GpuProbe: fmt::Debug + Send + Sync {
    /// The cards, in the driver's order; the reason in words where none can be used.
    fn gpus(&self) -> Result<Vec<Device>, NoGpu>;

    /// What torch can compute on with the driver that is installed.
    fn accelerator(&self) -> Accelerator;

    /// How many bytes of a card's memory are in use, by whatever program; `None` where nobody says.
    fn used(&self, uuid: &str) -> Option<u64>;
}

/// Why no graphics card is used.
#[derive(Debug, thiserror::Error)]
pub enum NoGpu {
    /// No driver that this release knows is installed.
    #[error("no NVIDIA driver was found")]
    NoDriver(#[source] nvml_wrapper::error::NvmlError),
    /// The driver does not answer.
    #[error("the NVIDIA driver does not answer")]
    Driver(#[source] nvml_wrapper::error::NvmlError),
}

/// The probe of this system.
pub fn system_probe() -> impl GpuProbe {
    crate::os::nvml::NvmlProbe
}

/// The processor, as a device.
pub fn cpu() -> Device {
    cpu_part(1)
}

/// The processor, as so many devices that share its threads.
pub fn cpu_slots(count: u16) -> Vec<Device> {
    vec![cpu_part(u32::from(count)); usize::from(count)]
}

fn cpu_part(of: u32) -> Device {
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    let threads = u32::try_from(threads).unwrap_or(u32::MAX);
    Device::Cpu { threads: (threads / of.max(1)).max(1), memory: crate::os::machine::memory() }
}
