//! The mesh over real sockets on the loopback: joining, sessions, links and blobs.

mod askers;
mod beside;
mod collections;
mod cut;
mod discovery;
mod exchange;
mod farm;
mod files;
mod planes;
mod private;
mod gate;
mod namespaces;
mod translator;
mod internet;
mod punch;
mod leases;
mod log;
mod origins;
mod parts;
mod relay;
mod rogue;
mod room;
mod session;
mod swarm;
mod web;
