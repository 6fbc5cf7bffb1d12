//! The role that takes jobs and grants leases on them to nodes.
//!
//! Read `state` and `schedule` first: they decide everything and touch nothing. `service` drives them;
//! `api` and `net` are its two faces. Not here: how a workflow is executed (`node`).

pub mod state;
pub mod schedule;
pub mod store;
mod admission;
mod net;
pub mod service;
pub mod api;
pub mod handle;
pub mod view;
