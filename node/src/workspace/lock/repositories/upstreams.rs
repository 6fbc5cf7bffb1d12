//! Where a repository and its commit can be cloned from.
//!
//! Not here: whether its files are as the commit has them.

use protocol::{GitPin, GitUrl, MAX_MIRRORS, ParseTextError};

use crate::workspace::git::{LocalRepository, Remote};
use crate::workspace::lock::error::What;
use crate::workspace::lock::{Fault, Findings};

/// The remotes of a repository, as a lockfile has them.
pub(in crate::workspace::lock) struct Upstreams {
    /// Each address once: first those that are known to have its commit, and of these such as everybody reaches.
    pub(in crate::workspace::lock) urls: Vec<GitUrl>,
    /// How many are left out, which only its user reaches and nobody needs.
    left_out: usize,
    /// Why others are none that a lockfile can have.
    faults: Vec<ParseTextError>,
}

impl Upstreams {
    /// Those of this repository.
    pub(in crate::workspace::lock) fn of(repository: &LocalRepository) -> Self {
        let (mut urls, mut faults): (Vec<(bool, GitUrl)>, _) = (Vec::new(), Vec::new());
        for Remote { url, has_commit } in repository.remotes() {
            match url.parse::<GitUrl>() {
                Ok(url) if urls.iter().any(|(_, known)| known.is_same(&url)) => {}
                Ok(url) => urls.push((has_commit, url)),
                Err(fault) => faults.push(fault),
            }
        }
        let all = urls.len();
        // What lies where, on the user's machine and in the network, is nobody's business.
        if urls.iter().any(|(has_commit, url)| *has_commit && url.is_public()) {
            urls.retain(|(_, url)| url.is_public());
        }
        let left_out = all - urls.len();
        urls.sort_by_key(|(has_commit, url)| (!has_commit, !url.is_public()));
        urls.truncate(1 + MAX_MIRRORS);
        Self { urls: urls.into_iter().map(|(_, url)| url).collect(), left_out, faults }
    }
}

/// The upstreams and commit of a repository.
pub(super) fn pin(what: What, repository: &LocalRepository, findings: &mut Findings) -> Option<GitPin> {
    let Upstreams { mut urls, left_out, faults } = Upstreams::of(repository);
    let mirrors = urls.split_off(urls.len().min(1));
    let url = urls.pop();
    let not_recorded = |fault: &ParseTextError| format!("{what}: a remote is not recorded: {fault}");
    match &url {
        Some(_) => findings.notes.extend(faults.iter().map(not_recorded)),
        None if faults.is_empty() => findings.faults.push(Fault::NoRemote { what: what.clone() }),
        None => {
            let fault = |fault| Fault::Text { what: what.clone(), fault };
            findings.faults.extend(faults.into_iter().map(fault));
        }
    }
    if let Some(url) = &url
        && left_out > 0
    {
        findings.notes.push(format!(
            "{what}: {left_out} of its remotes, which not everybody reaches, are left out: `{url}` has the commit"
        ));
    }
    let commit = match repository.commit() {
        Ok(Some(commit)) => commit,
        Ok(None) => {
            findings.faults.push(Fault::NoCommit { what });
            return None;
        }
        Err(fault) => {
            findings.faults.push(Fault::Git { what, fault });
            return None;
        }
    };
    let url = url?;
    if ![&url].into_iter().chain(&mirrors).any(GitUrl::is_public) {
        findings.lacking.push(format!("{what}: `{url}` is no https address that everybody reaches"));
    }
    if !repository.is_published() {
        match what {
            // Nothing else could be done, and what is known here may be old.
            What::ComfyUi => findings.notes.push(format!(
                "{what} is at a commit that no branch of `{url}` is known to have here: nodes can fetch it only if it \
                 is pushed"
            )),
            What::CustomNode(_) => findings.faults.push(Fault::Unpublished { what, url: url.to_string() }),
        }
    }
    Some(GitPin { url, commit, mirrors })
}
