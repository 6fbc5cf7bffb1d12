//! How bytes cross between the peers of a farm: identity, the members-only gate, the control plane on
//! libp2p, the data plane on quinn, and the store of blobs.
//!
//! The only crate that names libp2p, quinn and rustls. Not here: what peers say over a session; that
//! is `protocol::message`; and the words of the blob wire, `protocol::wire`.

pub mod folder;
pub mod identity;
pub mod gate;
pub mod frames;
pub mod interfaces;
pub mod swarm;
pub mod tree;
pub mod store;
pub mod folders;
pub mod control;
pub mod plane;
pub mod links;
pub mod finder;
pub mod limits;
pub mod origin;
mod serve;
pub mod fetch;
pub mod collection;
