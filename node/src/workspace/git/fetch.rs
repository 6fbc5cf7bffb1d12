//! Getting a commit, with its submodules, from its upstream, or from the first of its mirrors that gives it.
//!
//! The commit alone is asked for, without its past. A server that gives no single commits is asked for all that
//! its branches and tags name. A folder of this machine is read by opening it. Asked is the very address that was judged,
//! whatever the user's own settings of git would put in its place.

use std::collections::BTreeSet;
use std::path::Path;

use git2::{AutotagOption, FetchOptions, FetchPrune, Oid, RemoteCallbacks, Repository};
use protocol::{GitCommit, GitPin, GitUrl};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::pack::read_pack;
use super::way::{Terms, Way};
use super::{Came, Checkout, GitError, GitStore, MAX_REPOSITORIES, Part};
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
    /// Fetches a commit and its submodules, unless they are here: from each of its addresses until one gives it whole.
    /// Where the owner names hosts, only what this node itself once fetched from these counts as here.
    pub fn fetch(&self, pin: &GitPin, fetching: &Fetching<'_>) -> Result<(), GitError> {
        if self.whole(pin, &fetching.policy.hosts).is_ok() {
            return Ok(());
        }
        let mut tried = Vec::new();
        for url in pin.urls() {
            match self.fetch_from(url, &pin.commit, fetching) {
                Ok(()) => return Ok(()),
                Err(error) if error.is_everywhere() => return Err(error),
                Err(error) => tried.push(error),
            }
        }
        match tried.pop() {
            Some(error) if tried.is_empty() => Err(error),
            last => {
                tried.extend(last);
                Err(GitError::NoUpstream { commit: pin.commit.to_string(), tried })
            }
        }
    }

    /// Lays a commit out in a folder that does not exist yet: byte for byte, read-only, without `.git`. What of it is not
    /// here, or cannot be read any more, is fetched.
    pub fn lay_out(&self, pin: &GitPin, into: &Path, fetching: &Fetching<'_>) -> Result<Checkout, GitError> {
        let mut healed = BTreeSet::new();
        loop {
            self.fetch(pin, fetching)?;
            match self.checkout(pin, into, fetching.cancel) {
                Err(GitError::Damaged { url, .. }) if healed.insert(url.clone()) => self.heal(&url)?,
                laid_out => return laid_out,
            }
        }
    }

    /// Fetches a commit from one upstream, and its submodules from where that leads.
    fn fetch_from(
        &self,
        upstream: &GitUrl,
        commit: &GitCommit,
        fetching: &Fetching<'_>,
    ) -> Result<(), GitError> {
        let (mut before, mut healed) = (0, BTreeSet::new());
        for _ in 0..=MAX_REPOSITORIES {
            let (_, missing) = match self.parts(upstream, commit, &fetching.policy.hosts) {
                Err(GitError::Damaged { url, .. }) if healed.insert(url.clone()) => {
                    self.heal(&url)?;
                    continue;
                }
                parts => parts?,
            };
            let Some(missing) = missing else { return Ok(()) };
            check(fetching.policy, upstream, &missing.url)?;
            before += self.fetch_one(upstream, &missing, fetching, before).inspect_err(|error| {
                if error.is_refusal() {
                    self.forget(&missing.url);
                }
            })?;
        }
        Err(GitError::TooManySubmodules { url: upstream.to_string() })
    }

    /// Removes the store of an upstream of which nothing was ever taken: what was refused is there for nothing.
    fn forget(&self, url: &GitUrl) {
        let Ok(repository) = Repository::open_bare(self.path(url, Came::Fetched)) else { return };
        let has_whole =
            repository.references_glob("refs/whole/*").is_ok_and(|mut whole| whole.next().is_some());
        if !has_whole && let Err(error) = std::fs::remove_dir_all(repository.path()) {
            warn!(%url, %error, "what was refused stays");
        }
    }

    /// Fetches one commit, and says how many bytes that took.
    fn fetch_one(
        &self,
        upstream: &GitUrl,
        part: &Part,
        fetching: &Fetching<'_>,
        before: u64,
    ) -> Result<u64, GitError> {
        let Part { url, commit, .. } = part;
        let commit = *commit;
        let repository = self.repository(url, Came::Fetched)?;
        if url.as_str().starts_with("file://") {
            let progress = |bytes| (fetching.progress)(before + bytes);
            let mut pack = self.read_folder(part, progress, fetching.cancel)?;
            let bytes = pack.metadata().map_err(|source| GitError::io(&self.root, source))?.len();
            read_pack(&repository, &mut pack).map_err(|source| GitError::git("copy from", url, source))?;
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
            let may_be_private = may_be_private(fetching.policy, upstream, url);
            let terms = Terms {
                patience: self.patience,
                only_public: (!may_be_private).then_some(self.lookup),
                most: self.bounds.bytes.saturating_sub(before),
                cancel: fetching.cancel,
            };
            let way = Way::new(part, &terms)?;
            let progress = |bytes| (fetching.progress)(before + bytes);
            let asked = way.lend(|| ask(&repository, url, refspecs, depth, progress, fetching.cancel));
            failed = match (asked, way.fault()) {
                (Ok(()), _) if self.mark_whole(&repository, part)? => return Ok(way.received()),
                (Ok(()), _) => None,
                (Err(_), Some(fault)) if fault.is_final() => return Err(fault),
                (Err(_), Some(fault)) => Some(fault),
                (Err(_), None) if fetching.cancel.is_cancelled() => return Err(GitError::Canceled),
                (Err(source), None) => Some(GitError::git("fetch from", url, source)),
            };
            debug!(%url, ?refspecs, error = ?failed, "the commit did not come with these");
        }
        Err(failed.unwrap_or_else(|| no_commit(url, commit)))
    }
}

/// Whether the owner lets a repository be asked, for a commit of this upstream that needs it.
fn check(policy: &Policy, upstream: &GitUrl, url: &GitUrl) -> Result<(), GitError> {
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
    if upstream.is_public() {
        return refused("it is private, and a submodule of a public one leads to it; record it by itself");
    }
    Ok(())
}

/// Whether the name of a host may lead to a private address: with the owner's word, and not where a stranger wrote it
/// into a public repository, unless the owner named the host.
pub(super) fn may_be_private(policy: &Policy, upstream: &GitUrl, url: &GitUrl) -> bool {
    let host = url.host();
    policy.private_origins
        && (!upstream.is_public() || upstream.host() == host || policy.hosts.contains(&host))
}

/// Asks an upstream for these. Told is how many bytes of them came.
fn ask(
    repository: &Repository,
    url: &GitUrl,
    refspecs: &[&str],
    depth: Option<i32>,
    progress: impl Fn(u64),
    cancel: &CancellationToken,
) -> Result<(), git2::Error> {
    let mut callbacks = RemoteCallbacks::new();
    callbacks.transfer_progress(|so_far| {
        progress(so_far.received_bytes() as u64);
        !cancel.is_cancelled()
    });
    let mut options = FetchOptions::new();
    options.remote_callbacks(callbacks).download_tags(AutotagOption::None).prune(FetchPrune::Off);
    if let Some(depth) = depth {
        options.depth(depth);
    }
    remote(repository, url)?.fetch(refspecs, Some(&mut options), None)
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

pub(super) fn no_commit(url: &GitUrl, commit: Oid) -> GitError {
    GitError::NoCommit { url: url.to_string(), commit: commit.to_string() }
}
