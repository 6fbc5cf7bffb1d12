//! How a failure ends the process: one printed chain, a hint where a person can act, and an exit code
//! for each kind.

use std::io;
use std::process::ExitCode;

use coordinator::api::ServeError;
use coordinator::service::StartError as CoordinatorStartError;
use mesh::control::{CustodianError, FailureKind};
use mesh::identity::IdentityError;
use mesh::swarm::JoinError;
use node::agent::StartError as NodeStartError;
use node::engine::comfyui::client::AddressError;
use node::join::BelongError;

use crate::client::ClientError;
use crate::settings::SettingsError;

/// The exit codes, as `--help` shows them.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done                          6  no such workflow, job, node or blob
  1  any other failure             7  the farm or the file refused the input
  2  wrong command line            8  the job failed
  3  wrong settings                9  the job was cancelled or expired
  4  the farm cannot be reached   10  the ticket was refused or reached nobody
  5  the key is missing or wrong  11  a folder or port is in use
                                  12  the owner did not agree";

/// A failure that a command itself finds.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Words that the command line cannot take.
    #[error("{0}")]
    Usage(String),
    /// A ticket that is none, or cannot be read.
    #[error("{0}")]
    Ticket(String),
    /// A file or parameter that cannot be used.
    #[error("{0}")]
    Input(String),
    /// Nothing has that name.
    #[error("{0}")]
    NotFound(String),
    /// A job ended as failed.
    #[error("job {job} failed: {detail}")]
    JobFailed {
        /// The job.
        job: String,
        /// Why, in words.
        detail: String,
        /// What to do about it, where that is known.
        hint: Option<&'static str>,
    },
    /// A job ended without being done.
    #[error("job {job} was {state}")]
    JobNotDone {
        /// The job.
        job: String,
        /// `canceled` or `expired`.
        state: String,
    },
    /// Blobs that are not what their name says.
    #[error("{0}")]
    Damaged(String),
    /// Workspaces that are not what their lockfiles say.
    #[error("{0}")]
    DamagedWorkspace(String),
    /// The owner was asked and did not agree, or could not be asked.
    #[error("{0}")]
    NotAgreed(String),
}

/// Prints an error with its causes, and gives the exit code of its kind.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    let (code, hint) = classify(error);
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(code)
}

fn classify(error: &anyhow::Error) -> (u8, Option<&'static str>) {
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return match failure {
                Failure::Damaged(_) => (1, Some("damaged blobs are fetched again when a run needs them")),
                Failure::DamagedWorkspace(_) => (
                    1,
                    Some(
                        "`comfy-farm workspace rm LOCKFILE` removes one; where it is wanted it is built anew",
                    ),
                ),
                Failure::Usage(_) => (2, None),
                Failure::NotFound(_) => (6, None),
                Failure::Input(_) => (7, None),
                Failure::JobFailed { hint, .. } => (8, *hint),
                Failure::JobNotDone { .. } => (9, None),
                Failure::Ticket(_) => (10, None),
                Failure::NotAgreed(_) => (12, Some("`--yes` agrees without asking")),
            };
        }
        if cause.is::<SettingsError>() || cause.is::<AddressError>() {
            return (3, None);
        }
        if let Some(error) = cause.downcast_ref::<ClientError>() {
            return match error {
                ClientError::Unreachable { .. } => (
                    4,
                    Some(
                        "start it with `comfy-farm coordinator`, or name another with `--url` or COMFY_FARM_URL",
                    ),
                ),
                ClientError::Refused { status: 401 | 403, .. } => (
                    5,
                    Some(
                        "give a key with `--key` or COMFY_FARM_KEY; the coordinator printed one when it first started",
                    ),
                ),
                ClientError::Refused { status: 404, .. } => (6, None),
                ClientError::Refused { status: 400..=499, .. } | ClientError::File { .. } => (7, None),
                _ => (1, None),
            };
        }
        if let Some(error) = cause.downcast_ref::<CustodianError>() {
            return match error.kind() {
                _ if error.is_in_use() => (11, None),
                FailureKind::NotFound => (6, Some("`comfy-farm blob ls` lists what is here")),
                FailureKind::Input => (7, None),
                FailureKind::Other => (1, None),
            };
        }
        if let Some(error) = cause.downcast_ref::<IdentityError>() {
            return (if matches!(error, IdentityError::Random(_)) { 1 } else { 7 }, None);
        }
        if cause.is::<JoinError>() {
            return (10, None);
        }
        if let Some(ServeError::Insecure(_)) = cause.downcast_ref() {
            return (3, None);
        }
        match cause.downcast_ref::<NodeStartError>() {
            Some(error) if error.is_in_use() => return (11, None),
            Some(NodeStartError::Belong(BelongError::NoTicket | BelongError::OtherFarm { .. })) => {
                return (10, None);
            }
            _ => {}
        }
        if cause.downcast_ref::<CoordinatorStartError>().is_some_and(CoordinatorStartError::is_in_use) {
            return (11, None);
        }
        if cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::AddrInUse) {
            return (11, None);
        }
    }
    (1, None)
}
