//! What a workflow fetches and calls as it runs: it is run once, and the files that appear, and the programs of the system,
//! are recorded for its lockfile.
//!
//! ```text
//! tree     a copy of ComfyUI and the custom nodes as a node would have them, in which it runs
//! run      the workflow, filled with its own inputs, in a ComfyUI that ends with it
//! found    the files that the run left there and in its home: which of them are recorded, and where they are from; and
//!          what it called
//! record   these files in the lockfile, and which of them travel with the bundle
//! ```
//!
//! In a copy, and with an empty home, because what the author's own folder has from earlier runs is not fetched again
//! there. It runs with the network and without walls, as the author's own ComfyUI does. Not here: how a ComfyUI process
//! is run (`engine::managed`).

mod tree;
mod run;
mod found;
mod record;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use mesh::store::StoreError;
use percent_encoding::percent_decode_str;
use protocol::RunError;

use self::found::Findings as Found;
use self::record::{MAX_TRAVELLING, record};
use self::run::run;
use self::tree::Tree;
use super::{LockRequest, Locked, system};
use crate::workspace::git::GitError;

pub use record::Traced;

/// The shortest password of a proxy that is looked for in files, in bytes.
const MIN_PASSWORD: usize = 4;

/// How a workflow is traced.
#[derive(Debug)]
pub struct TraceOptions<'a> {
    /// A folder with room for what is fetched; the run has a folder of its own in it, until the end.
    pub beside: &'a Path,
    /// What the process is told of its environment, such as tokens and proxies.
    pub environment: Vec<(String, OsString)>,
}

/// Why a workflow could not be traced.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The folder of the run cannot be made, or what is in it not be read.
    #[error("the folder of the traced run, `{}`, cannot be made or read", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A repository cannot be copied.
    #[error(transparent)]
    Git(#[from] GitError),
    /// A custom node that travels cannot be laid out.
    #[error("custom node `{name}` cannot be laid out for the traced run")]
    Carried {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: protocol::BundleError,
    },
    /// The workflow does not say what it runs on.
    #[error("the workflow cannot be run on its own inputs: {0}")]
    Inputs(String),
    /// The run failed.
    #[error("the traced run failed: {}", .0.detail)]
    Run(RunError),
    /// What appeared cannot be hashed.
    #[error("a file that the traced run fetched could not be hashed")]
    Hash(#[from] StoreError),
}

impl TraceError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}

/// Runs a workflow once as its lockfile has it, and adds to the lockfile the files that appeared. `begun` hears where
/// the process writes down what it says.
pub async fn trace(
    request: &LockRequest<'_>,
    locked: &mut Locked,
    options: TraceOptions<'_>,
    begun: &(dyn Fn(&Path) + Sync),
) -> Result<Traced, TraceError> {
    let folder = tempfile::Builder::new().prefix(".pack-").tempdir_in(options.beside);
    let folder = folder.map_err(TraceError::io(options.beside))?;
    let root = folder.path().canonicalize().map_err(TraceError::io(folder.path()))?;
    let tree = Tree { comfyui: root.join("tree"), files: root.join("files") };
    tree.lay_out(request, locked)?;
    let slots = root.join("slots");
    let secrets = secrets(&options.environment);
    let slot = slots.join("slot-0");
    begun(&slot.with_extension("log"));
    run(request, locked, &tree, &slots, options.environment).await?;
    let found = Found::after(&slot, &tree, &secrets).map_err(TraceError::io(&slot))?;
    locked.lacking.extend(found.left_out);
    system::add_programs(&mut locked.lockfile.system, &found.called);
    record(request, locked, found.files, MAX_TRAVELLING, folder)
}

/// What of an environment nobody else may see: tokens, and addresses of proxies with a password in them, of which the
/// password may stand somewhere by itself, as it is written in an address or as it is.
fn secrets(environment: &[(String, OsString)]) -> Vec<Vec<u8>> {
    let mut secrets = Vec::new();
    for (name, value) in environment {
        let value = value.to_string_lossy();
        let value = value.trim();
        if !value.is_empty() && (name.ends_with("TOKEN") || value.contains('@')) {
            secrets.push(value.as_bytes().to_owned());
        }
        if let Some(password) = password_of(value) {
            let both = [password.as_bytes().to_owned(), percent_decode_str(password).collect()];
            // A shorter one stands in any file by chance.
            secrets.extend(both.into_iter().filter(|password| password.len() >= MIN_PASSWORD));
        }
    }
    secrets.dedup();
    secrets
}

/// The password in an address.
fn password_of(url: &str) -> Option<&str> {
    let (user, _) = url.split_once("://").map_or(url, |(_, rest)| rest).rsplit_once('@')?;
    Some(user.split_once(':')?.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_tokens_and_addresses_with_a_password() {
        let of = |name: &str, value: &str| secrets(&[(name.to_owned(), value.into())]).len();
        assert_eq!((of("HF_TOKEN", "hf_x"), of("HTTPS_PROXY", "http://me:x@proxy:1")), (1, 1));
        let found = secrets(&[("HTTPS_PROXY".to_owned(), "http://me:p%40ss/w@proxy:1".into())]);
        let expected = ["http://me:p%40ss/w@proxy:1", "p%40ss/w", "p@ss/w"];
        assert_eq!(found, expected.map(|secret| secret.as_bytes().to_owned()));
        assert_eq!(of("HTTPS_PROXY", "me:pass@proxy:1"), 2, "each once, also without a scheme");
        assert_eq!(
            (of("HF_TOKEN", ""), of("HTTPS_PROXY", "http://proxy:1"), of("HF_ENDPOINT", "https://a.org")),
            (0, 0, 0)
        );
    }
}
