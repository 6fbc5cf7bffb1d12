//! What executes a workflow on this machine.
