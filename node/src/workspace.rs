//! The locked workspace of a bundle: any node becomes the machine on which the workflow was made.
//!
//! Not here: which workspaces are wanted; that is the coordinator's.

pub mod plan;
pub mod python;
pub mod log;
