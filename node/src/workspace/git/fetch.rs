//! Getting a commit, with its submodules, from its upstream.
//!
//! The commit alone is asked for, without its past. A server that gives no single commits is asked for all that
//! its branches and tags name. A path on this machine is read by opening it.

use git2::{AutotagOption, FetchOptions, Oid, RemoteCallbacks, RemoteRedirect, Repository};
use protocol::{GitPin, GitUrl};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::pack::copy_commit;
use super::{GitError, GitStore, MAX_REPOSITORIES, Part, mark_whole};
use crate::policy::Policy;

/// What a fetch keeps to, and whom it tells.
pub struct Fetching<'a> {
    /// What the owner allows: which repositories may be asked.
    pub policy: &'a Policy,
    /// Told how many bytes came so far.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Breaks it off.
    pub cancel: &'a CancellationToken,
}

impl GitStore {
    /// Fetches a commit and its submodules, unless they are here.
    pub fn fetch(&self, pin: &GitPin, fetching: &Fetching<'_>) -> Result<(), GitError> {
        let mut before = 0;
        for _ in 0..=MAX_REPOSITORIES {
            let (_, missing) = self.parts(pin)?;
            let Some(missing) = missing else { return Ok(()) };
            check(fetching.policy, &missing.url)?;
            before += self.fetch_one(&missing, fetching, before)?;
        }
        Err(GitError::TooManySubmodules { url: pin.url.to_string() })
    }

    /// Fetches one commit, and says how many bytes that took.
    fn fetch_one(&self, part: &Part, fetching: &Fetching<'_>, before: u64) -> Result<u64, GitError> {
        let Part { url, commit, .. } = part;
        let commit = *commit;
        let repository = self.repository(url)?;
        if let Some(path) = url.as_str().strip_prefix("file://") {
            let upstream = Repository::open(path).map_err(|source| GitError::git("open", url, source))?;
            if !upstream.odb().is_ok_and(|odb| odb.exists(commit)) {
                return Err(no_commit(url, commit));
            }
            let bytes = copy_commit(&upstream, &repository, commit)
                .map_err(|source| GitError::git("copy from", url, source))?;
            (fetching.progress)(before + bytes);
            return if mark_whole(&repository, part)? { Ok(bytes) } else { Err(no_commit(url, commit)) };
        }
        let alone = format!("+{commit}:refs/farm/{commit}");
        let (alone, all) =
            ([alone.as_str()], ["+refs/heads/*:refs/farm/heads/*", "+refs/tags/*:refs/farm/tags/*"]);
        let attempts: [(&[&str], _); 2] = [(&alone, Some(1)), (&all, None)];
        let mut failed = None;
        for (refspecs, depth) in attempts {
            failed = match ask(&repository, url, refspecs, depth, fetching, before) {
                Ok(bytes) if mark_whole(&repository, part)? => return Ok(bytes),
                Ok(_) => None,
                Err(_) if fetching.cancel.is_cancelled() => return Err(GitError::Canceled),
                Err(error) => Some(error),
            };
            debug!(%url, ?refspecs, error = ?failed, "the commit did not come with these");
        }
        Err(failed.map_or_else(|| no_commit(url, commit), |source| GitError::git("fetch from", url, source)))
    }
}

/// Whether the owner lets a repository be asked.
fn check(policy: &Policy, url: &GitUrl) -> Result<(), GitError> {
    let refused = |reason| Err(GitError::Refused { url: url.to_string(), reason });
    if !policy.allows_host(&url.host()) {
        return refused("its host is not among those that this node's owner allows (`--allow-code-host`)");
    }
    if !policy.private_origins && !url.is_public() {
        return refused(
            "only https addresses of public hosts are, unless the node's owner says `--allow-private-origins`",
        );
    }
    Ok(())
}

/// Asks an upstream for these, and says how many bytes came.
fn ask(
    repository: &Repository,
    url: &GitUrl,
    refspecs: &[&str],
    depth: Option<i32>,
    fetching: &Fetching<'_>,
    before: u64,
) -> Result<u64, git2::Error> {
    let mut callbacks = RemoteCallbacks::new();
    callbacks.transfer_progress(|progress| {
        (fetching.progress)(before + progress.received_bytes() as u64);
        !fetching.cancel.is_cancelled()
    });
    callbacks.sideband_progress(|_| !fetching.cancel.is_cancelled());
    let mut options = FetchOptions::new();
    options.remote_callbacks(callbacks).download_tags(AutotagOption::None);
    // Where a repository has moved, its new address is to be recorded: this one may lead anywhere.
    options.follow_redirects(RemoteRedirect::None);
    if let Some(depth) = depth {
        options.depth(depth);
    }
    let mut remote = repository.remote_anonymous(url.as_str())?;
    remote.fetch(refspecs, Some(&mut options), None)?;
    Ok(remote.stats().received_bytes() as u64)
}

fn no_commit(url: &GitUrl, commit: Oid) -> GitError {
    GitError::NoCommit { url: url.to_string(), commit: commit.to_string() }
}
