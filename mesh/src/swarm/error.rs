//! What can go wrong on the control plane, in words for the person at the machine.
//!
//! Not here: what came of one address; that is `attempt`.

use std::io;

use protocol::message::JoinRefusal;

use super::attempt::{Attempt, list};
use crate::frames::FrameError;
use crate::gate::GateError;

/// Why the control plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The environment asks for the session keys of TLS to be written to a file, which libp2p would do.
    #[error("SSLKEYLOGFILE is set, which would write the mesh's session keys to a file: unset it")]
    KeyLog,
    /// An address to listen on cannot be had.
    #[error("listening on {address} did not succeed")]
    Listen {
        /// The address, with protocol and port.
        address: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The transports cannot be made.
    #[error("the transports of the mesh do not start: {0}")]
    Transport(String),
}

/// Why a peer could not be joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The ticket names no address.
    #[error("the ticket names no address of the coordinator")]
    NoAddress,
    /// None of its addresses answers.
    #[error("the coordinator cannot be reached: {}", list(attempts))]
    Unreachable {
        /// Every address that was tried.
        attempts: Vec<Attempt>,
    },
    /// The coordinator says no.
    #[error(transparent)]
    Refused(JoinRefusal),
    /// The peer does not take joins.
    #[error("the peer at that address takes no joins: it is no coordinator, or one of another release")]
    NoCoordinator,
    /// The connection broke before there was an answer.
    #[error("the coordinator gave no answer to the join request")]
    NoAnswer(#[source] FrameError),
    /// It took too long.
    #[error("the coordinator gave no answer to the join request in time")]
    Timeout,
    /// This process is shutting down.
    #[error("the mesh of this process has stopped")]
    Stopped,
}

/// Why no session could be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No address is known.
    #[error("no address of the coordinator is known")]
    NoAddress,
    /// None of its addresses answers.
    #[error("the coordinator cannot be reached: {}", list(attempts))]
    Unreachable {
        /// Every address that was tried.
        attempts: Vec<Attempt>,
    },
    /// One side was not let through.
    #[error(transparent)]
    Gate(GateError),
    /// The peer is no coordinator.
    #[error("the peer is a member of the farm, but no coordinator of it")]
    NoCoordinator,
    /// The connection broke before the session began.
    #[error("the connection to the coordinator broke before the session began")]
    Broken(#[source] io::Error),
    /// `set_credentials` was not called.
    #[error("this process has no membership yet: join first")]
    NoCredentials,
    /// This process is shutting down.
    #[error("the mesh of this process has stopped")]
    Stopped,
}

/// Why there is no connection, before it is known what it was wanted for.
pub(super) enum DialError {
    NoAddress,
    Unreachable(Vec<Attempt>),
    Stopped,
}

impl From<DialError> for JoinError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::NoAddress => Self::NoAddress,
            DialError::Unreachable(attempts) => Self::Unreachable { attempts },
            DialError::Stopped => Self::Stopped,
        }
    }
}

impl From<DialError> for ConnectError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::NoAddress => Self::NoAddress,
            DialError::Unreachable(attempts) => Self::Unreachable { attempts },
            DialError::Stopped => Self::Stopped,
        }
    }
}
