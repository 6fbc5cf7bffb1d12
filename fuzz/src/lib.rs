//! Fuzz targets for everything that a peer or a stranger can send: frames, bodies of messages, hash trees,
//! bitmaps, tickets, lists of files.
//!
//! Each target is a test, which tries a bounded number of inputs wherever tests run. To go on for hours with
//! libFuzzer: `cargo install cargo-bolero`, then `cargo +nightly bolero test --package fuzz wire::frames`.
//! What is asked of each: it ends, it does not panic, and what it takes means one thing only. Not here:
//! conversations out of turn; the tests of `mesh` have those.

#[cfg(test)]
mod wire;
#[cfg(test)]
mod blobs;
#[cfg(test)]
mod texts;

/// How many inputs a test tries.
#[cfg(test)]
const INPUTS: usize = 5000;
