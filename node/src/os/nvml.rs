//! NVIDIA's management library, loaded when it is there.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{cuda_driver_version_major, cuda_driver_version_minor};
use protocol::{Accelerator, Device};

use crate::gpu::{GpuProbe, NoGpu};

/// Asks NVML.
#[derive(Debug)]
pub(crate) struct NvmlProbe;

impl GpuProbe for NvmlProbe {
    fn gpus(&self) -> Result<Vec<Device>, NoGpu> {
        let nvml = Nvml::init().map_err(NoGpu::NoDriver)?;
        list(&nvml).map_err(NoGpu::Driver)
    }

    fn accelerator(&self) -> Accelerator {
        let version = Nvml::init().and_then(|nvml| nvml.sys_cuda_driver_version());
        let part = |number: i32| u16::try_from(number).unwrap_or_default();
        version.map_or(Accelerator::Cpu, |version| Accelerator::Cuda {
            major: part(cuda_driver_version_major(version)),
            minor: part(cuda_driver_version_minor(version)),
        })
    }

    fn used(&self, uuid: &str) -> Option<u64> {
        let nvml = Nvml::init().ok()?;
        Some(nvml.device_by_uuid(uuid).ok()?.memory_info().ok()?.used)
    }
}

fn list(nvml: &Nvml) -> Result<Vec<Device>, NvmlError> {
    let device = |index| {
        let device = nvml.device_by_index(index)?;
        Ok(Device::Gpu { name: device.name()?, uuid: device.uuid()?, memory: device.memory_info()?.total })
    };
    (0..nvml.device_count()?).map(device).collect()
}
