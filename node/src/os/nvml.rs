//! NVIDIA's management library, loaded when it is there.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use protocol::Device;

use crate::gpu::{GpuProbe, NoGpu};

/// Asks NVML.
pub(crate) struct NvmlProbe;

impl GpuProbe for NvmlProbe {
    fn gpus(&self) -> Result<Vec<Device>, NoGpu> {
        let nvml = Nvml::init().map_err(NoGpu::NoDriver)?;
        list(&nvml).map_err(NoGpu::Driver)
    }
}

fn list(nvml: &Nvml) -> Result<Vec<Device>, NvmlError> {
    let device = |index| {
        let device = nvml.device_by_index(index)?;
        Ok(Device::Gpu { name: device.name()?, uuid: device.uuid()?, memory: device.memory_info()?.total })
    };
    (0..nvml.device_count()?).map(device).collect()
}
