//! What a machine computes on: which of its graphics cards the node takes, why it takes the others not, and how a
//! process comes to one of them and to no other.
//!
//! Not here: what drivers and the kernel tell, which are `os::nvml` and `os::amd`.

use std::fmt;
use std::path::PathBuf;

use protocol::{Accelerator, Device, error_chain};
use tracing::{info, warn};

use crate::os::amd::{self, AmdCard, Kernel, Unreachable};
use crate::os::{nvml, sandbox};

/// The least memory of its own that a card of AMD's is taken with. Graphics within a processor have less, unless their
/// owner set more aside for them.
const LEAST_MEMORY: u64 = 2 << 30;

/// The graphics cards of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Those that the node computes on, in their driver's order and all of one make.
    pub cards: Vec<Device>,
    /// What torch can compute on with them.
    pub accelerator: Accelerator,
    /// Those that it does not compute on.
    pub unused: Vec<Unused>,
}

/// A graphics card that the node does not compute on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unused {
    /// Its name and where it is, for people.
    pub card: String,
    /// Why, in words.
    pub reason: String,
}

impl fmt::Display for Unused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.card, self.reason)
    }
}

/// Tells how much of a card's memory is in use; behind a trait so that a test can say what it likes.
pub(crate) trait MemoryProbe: fmt::Debug + Send + Sync {
    /// How many bytes are in use, by whatever program; `None` where nobody says.
    fn used(&self, uuid: &str) -> Option<u64>;
}

/// How a process comes to what it computes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// The devices that walls let in.
    pub(crate) devices: Vec<PathBuf>,
    /// What it is told in its environment.
    pub(crate) variables: Vec<(&'static str, String)>,
}

/// Why no NVIDIA card is used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoNvidia {
    /// The driver is not installed.
    #[error("no NVIDIA driver was found")]
    NoDriver(#[source] nvml_wrapper::error::NvmlError),
    /// The driver does not answer.
    #[error("the NVIDIA driver does not answer")]
    Driver(#[source] nvml_wrapper::error::NvmlError),
}

/// Looks at this machine, and logs what is not used.
pub fn find() -> Found {
    let found = choose(nvml::cards(), Kernel::system().cards());
    for unused in &found.unused {
        info!(card = unused.card, reason = unused.reason, "graphics card is not used");
    }
    found
}

/// The probe of this system.
pub(crate) fn system_probe() -> impl MemoryProbe {
    SystemProbe
}

/// How a process on this device, with walls around it or without, comes to it.
pub(crate) fn access(device: Option<&Device>, walled: bool) -> Access {
    let uuid = match device {
        Some(Device::Gpu { uuid, .. }) => uuid.as_str(),
        _ => "",
    };
    if !amd::is_id(uuid) {
        let variables = vec![("CUDA_VISIBLE_DEVICES", uuid.to_owned())];
        return Access { devices: sandbox::every_card(), variables };
    }
    amd_access(&Kernel::system(), uuid, walled)
}

/// AMD's runtime looks at its own variable first; of the one card that is left then, HIP and torch take the first.
fn amd_access(kernel: &Kernel, id: &str, walled: bool) -> Access {
    let (devices, visible) = kernel.access(id, walled).unwrap_or_else(|| {
        warn!(card = id, "the kernel no longer tells of a graphics card");
        Default::default()
    });
    let first = || "0".to_owned();
    let variables = vec![
        ("ROCR_VISIBLE_DEVICES", visible),
        ("HIP_VISIBLE_DEVICES", first()),
        ("CUDA_VISIBLE_DEVICES", first()),
    ];
    Access { devices, variables }
}

/// What is used of what was found. The environments of a node are made for one accelerator, so its cards are of one
/// make: NVIDIA's where it has some.
fn choose(
    nvidia: Result<(Vec<Device>, Accelerator), NoNvidia>,
    amd: Vec<Result<AmdCard, Unreachable>>,
) -> Found {
    let mut unused = Vec::new();
    let (mut cards, mut accelerator) = match nvidia {
        Ok((cards, cuda)) if !cards.is_empty() => (cards, cuda),
        Ok(_) | Err(NoNvidia::NoDriver(_)) => (Vec::new(), Accelerator::Cpu),
        Err(error) => {
            unused.push(Unused { card: "NVIDIA".to_owned(), reason: error_chain(&error) });
            (Vec::new(), Accelerator::Cpu)
        }
    };
    let is_other_make = !cards.is_empty();
    for found in amd {
        let card = match found {
            Ok(card) => card,
            Err(unreachable) => {
                let reason = error_chain(&unreachable.reason);
                unused.push(Unused { card: unreachable.card, reason });
                continue;
            }
        };
        match reason_against(&card, is_other_make) {
            Some(reason) => unused.push(Unused { card: card.to_string(), reason }),
            None => {
                accelerator = Accelerator::Rocm;
                cards.push(Device::Gpu { uuid: card.id(), name: card.name, memory: card.memory });
            }
        }
    }
    Found { cards, accelerator, unused }
}

fn reason_against(card: &AmdCard, is_other_make: bool) -> Option<String> {
    if card.memory < LEAST_MEMORY {
        let (own, least) = (card.memory >> 20, LEAST_MEMORY >> 20);
        return Some(format!(
            "it has {own} MiB of memory of its own, as graphics within a processor do, and {least} MiB are wanted"
        ));
    }
    is_other_make.then(|| "a node computes on cards of one make, and those of NVIDIA go first".to_owned())
}

#[derive(Debug)]
struct SystemProbe;

impl MemoryProbe for SystemProbe {
    fn used(&self, uuid: &str) -> Option<u64> {
        if amd::is_id(uuid) { Kernel::system().used(uuid) } else { nvml::used(uuid) }
    }
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

#[cfg(test)]
mod tests;
