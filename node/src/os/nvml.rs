//! NVIDIA's management library, loaded when it is there.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{cuda_driver_version_major, cuda_driver_version_minor};
use protocol::{Accelerator, Device};

use crate::gpu::NoNvidia;

/// The cards, in the driver's order, and what torch can compute on with this driver.
pub(crate) fn cards() -> Result<(Vec<Device>, Accelerator), NoNvidia> {
    let nvml = Nvml::init().map_err(NoNvidia::NoDriver)?;
    Ok((list(&nvml).map_err(NoNvidia::Driver)?, accelerator(&nvml)))
}

/// How many bytes of a card's memory are in use.
pub(crate) fn used(uuid: &str) -> Option<u64> {
    let nvml = Nvml::init().ok()?;
    Some(nvml.device_by_uuid(uuid).ok()?.memory_info().ok()?.used)
}

fn list(nvml: &Nvml) -> Result<Vec<Device>, NvmlError> {
    let device = |index| {
        let device = nvml.device_by_index(index)?;
        Ok(Device::Gpu { name: device.name()?, uuid: device.uuid()?, memory: device.memory_info()?.total })
    };
    (0..nvml.device_count()?).map(device).collect()
}

fn accelerator(nvml: &Nvml) -> Accelerator {
    let part = |number: i32| u16::try_from(number).unwrap_or_default();
    nvml.sys_cuda_driver_version().map_or(Accelerator::Cpu, |version| Accelerator::Cuda {
        major: part(cuda_driver_version_major(version)),
        minor: part(cuda_driver_version_minor(version)),
    })
}
