//! Every call of the operating system or of a driver that the node makes.

pub(crate) mod nvml;
pub(crate) mod machine;
