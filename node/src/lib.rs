//! One machine that lends its GPUs: takes leases from a coordinator, fetches, executes and hands back.
//!
//! Read `run`, then `agent`. Not here: what a lease is (`protocol`) and how bytes cross the network
//! (`mesh`).

pub mod agent;
pub mod ends;
pub mod engine;
pub mod finder;
pub mod gpu;
pub mod join;
mod os;
pub mod policy;
mod provide;
pub mod run;
pub mod slots;
pub mod terms;
pub mod workspace;
#[cfg(test)]
mod testing;

pub use os::machine::platform;
pub use os::sandbox;
