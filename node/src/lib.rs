//! One machine that lends its GPUs: takes leases from a coordinator, fetches, executes and hands back.
//!
//! Not here: what a lease is (`protocol`) and how bytes cross the network (`mesh`).

pub mod engine;
