//! Every call of the operating system or of a driver that the node makes.

pub(crate) mod machine;
pub(crate) mod nvml;
