//! One machine that lends its GPUs: takes leases from a coordinator, fetches, executes and hands back.
//!
//! Read `run`, then `agent`. Not here: what a lease is (`protocol`) and how bytes cross the network
//! (`mesh`).

pub mod run;
pub mod slots;
pub mod ends;
pub mod agent;
pub mod join;
pub mod terms;
pub mod gpu;
pub mod engine;
mod os;
