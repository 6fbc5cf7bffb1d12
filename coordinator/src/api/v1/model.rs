//! The JSON of `/v1`: what each resource looks like to a caller, by resource.
//!
//! Not here: the coordinator's own values (`view`), which these are made from. References between
//! resources are paths on the same server, so that they hold behind any proxy and under any name.

pub(crate) mod blob;
pub(crate) mod event;
pub(crate) mod farm;
pub(crate) mod job;
pub(crate) mod node;
pub(crate) mod transfer;
pub(crate) mod workflow;
