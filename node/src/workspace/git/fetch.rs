//! Getting a commit, with its submodules, from its upstream.
//!
//! The commit alone is asked for, without its past. A server that gives no single commits is asked for all that
//! its branches and tags name. A path on this machine is read by opening it. Asked is the very address that was judged,
//! whatever the user's own settings of git would put in its place.

use std::sync::Once;
use std::time::Duration;

use git2::{AutotagOption, FetchOptions, FetchPrune, Oid, RemoteCallbacks, RemoteRedirect, Repository};
use protocol::{GitPin, GitUrl};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::pack::copy_commit;
use super::{GitError, GitStore, MAX_REPOSITORIES, Part, tree};
use crate::policy::Policy;

/// How long a server may say nothing, at any point. It says that it counts and compresses while it does.
pub(super) const SILENCE: Duration = Duration::from_secs(if cfg!(test) { 5 } else { 60 });
/// How long it may take to reach one.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);

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
            check(fetching.policy, pin, &missing.url)?;
            before += self.fetch_one(&missing, fetching, before).inspect_err(|error| {
                if error.is_refusal() {
                    self.forget(&missing.url);
                }
            })?;
        }
        Err(GitError::TooManySubmodules { url: pin.url.to_string() })
    }

    /// Removes the store of an upstream of which nothing was ever taken: what was refused is there for nothing.
    fn forget(&self, url: &GitUrl) {
        let Ok(repository) = self.repository(url) else { return };
        let has_whole =
            repository.references_glob("refs/whole/*").is_ok_and(|mut whole| whole.next().is_some());
        if !has_whole && let Err(error) = std::fs::remove_dir_all(repository.path()) {
            warn!(%url, %error, "what was refused stays");
        }
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
            self.weigh(&upstream, part, &tree::entries(&upstream, part, self.bounds.entries)?)?;
            let bytes = copy_commit(&upstream, &repository, commit)
                .map_err(|source| GitError::git("copy from", url, source))?;
            (fetching.progress)(before + bytes);
            let is_whole = self.mark_whole(&repository, part)?;
            return if is_whole { Ok(bytes) } else { Err(no_commit(url, commit)) };
        }
        let alone = format!("+{commit}:refs/farm/{commit}");
        let (alone, all) =
            ([alone.as_str()], ["+refs/heads/*:refs/farm/heads/*", "+refs/tags/*:refs/farm/tags/*"]);
        let attempts: [(&[&str], _); 2] = [(&alone, Some(1)), (&all, None)];
        let mut failed = None;
        for (refspecs, depth) in attempts {
            let mut received = 0;
            let asked = ask(&repository, url, refspecs, depth, |bytes| {
                received = bytes;
                (fetching.progress)(before + bytes);
                before + bytes <= self.bounds.bytes && !fetching.cancel.is_cancelled()
            });
            failed = match asked {
                Ok(bytes) if self.mark_whole(&repository, part)? => return Ok(bytes),
                Ok(_) => None,
                Err(_) if fetching.cancel.is_cancelled() => return Err(GitError::Canceled),
                Err(_) if before + received > self.bounds.bytes => return Err(GitError::too_large(url)),
                Err(error) if is_silence(&error) => {
                    let (url, commit) = (url.to_string(), commit.to_string());
                    return Err(GitError::Silent { url, commit, received });
                }
                Err(error) => Some(error),
            };
            debug!(%url, ?refspecs, error = ?failed, "the commit did not come with these");
        }
        Err(failed.map_or_else(|| no_commit(url, commit), |source| GitError::git("fetch from", url, source)))
    }
}

/// Whether the owner lets a repository be asked, for a commit that needs it.
fn check(policy: &Policy, pin: &GitPin, url: &GitUrl) -> Result<(), GitError> {
    let refused = |reason| Err(GitError::Refused { url: url.to_string(), reason });
    if !policy.allows_host(&url.host()) {
        return refused("its host is not among those that this node's owner allows (`--allow-code-host`)");
    }
    if url.is_public() {
        return Ok(());
    }
    if !policy.private_origins {
        return refused(
            "only https addresses of public hosts are, unless the node's owner says `--allow-private-origins`",
        );
    }
    // What strangers wrote into theirs is no reason to look about in the owner's network.
    if pin.url.is_public() {
        return refused("it is private, and a submodule of a public one leads to it; record it by itself");
    }
    Ok(())
}

/// Asks an upstream for these, and says how many bytes came. Broken off as soon as `goes_on` says so of the bytes that
/// came so far.
fn ask(
    repository: &Repository,
    url: &GitUrl,
    refspecs: &[&str],
    depth: Option<i32>,
    goes_on: impl FnMut(u64) -> bool,
) -> Result<u64, git2::Error> {
    bound_silence();
    let state = std::cell::RefCell::new((goes_on, 0));
    let is_wanted = |bytes: Option<u64>| {
        let (goes_on, received) = &mut *state.borrow_mut();
        *received = bytes.unwrap_or(*received);
        goes_on(*received)
    };
    let mut callbacks = RemoteCallbacks::new();
    callbacks.transfer_progress(|progress| is_wanted(Some(progress.received_bytes() as u64)));
    callbacks.sideband_progress(|_| is_wanted(None));
    let mut options = FetchOptions::new();
    options.remote_callbacks(callbacks).download_tags(AutotagOption::None).prune(FetchPrune::Off);
    // Where a repository has moved, its new address is to be recorded: this one may lead anywhere.
    options.follow_redirects(RemoteRedirect::None);
    if let Some(depth) = depth {
        options.depth(depth);
    }
    let mut remote = remote(repository, url)?;
    remote.fetch(refspecs, Some(&mut options), None)?;
    Ok(remote.stats().received_bytes() as u64)
}

/// The upstream at this very address. A user's settings may put another one in place of whatever begins like it, and of
/// such settings that with the longest beginning holds: so one of the store's own says that it stays as it is.
fn remote<'r>(repository: &'r Repository, url: &GitUrl) -> Result<git2::Remote<'r>, git2::Error> {
    let url = url.as_str();
    repository.config()?.set_str(&format!("url.{url}.insteadOf"), url)?;
    let remote = repository.remote_anonymous(url)?;
    match remote.url() {
        Ok(asked) if asked == url => Ok(remote),
        _ => Err(git2::Error::from_str("a setting of git (`insteadOf`) puts another address in its place")),
    }
}

/// Has libgit2 give up on a server that says nothing.
fn bound_silence() {
    static BOUND: Once = Once::new();
    let milliseconds = |limit: Duration| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    #[expect(unsafe_code, reason = "libgit2 has no other way to say it")]
    BOUND.call_once(|| {
        // SAFETY: these are numbers that are read where a connection is made, which this process does after this call
        // alone, and written nowhere else.
        let set = unsafe {
            git2::opts::set_server_connect_timeout_in_milliseconds(milliseconds(CONNECT_WITHIN))
                .and_then(|()| git2::opts::set_server_timeout_in_milliseconds(milliseconds(SILENCE)))
        };
        debug_assert!(set.is_ok(), "{set:?}");
    });
}

/// Whether this is how libgit2 tells that it gave up. Through TLS it is told as a call that would have waited.
fn is_silence(error: &git2::Error) -> bool {
    let said = error.message();
    said.contains("socket: timed out") || said.contains("failure: Resource temporarily unavailable")
}

fn no_commit(url: &GitUrl, commit: Oid) -> GitError {
    GitError::NoCommit { url: url.to_string(), commit: commit.to_string() }
}
