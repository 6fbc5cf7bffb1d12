//! Every call of the operating system or of a driver that the node makes.

pub(crate) mod amd;
pub(crate) mod beneath;
pub(crate) mod file;
pub(crate) mod installed;
pub(crate) mod machine;
pub(crate) mod nvml;
pub(crate) mod program;
pub(crate) mod removal;
pub mod sandbox;
pub(crate) mod work;
