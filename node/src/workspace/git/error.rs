//! Why a repository is not at its commit, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh::origin::PrivateAddress;
use protocol::{GitUrl, ParseTextError, error_chain};

/// Why something with a repository did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The owner's policy does not let it be asked.
    #[error("`{url}` is not asked: {reason}")]
    Refused {
        /// The repository.
        url: String,
        /// Why, and what the owner can do.
        reason: &'static str,
    },
    /// The repository answers, and has no such commit.
    #[error(
        "commit `{commit}` is not in `{url}`: it does not exist there, or the history was rewritten since; record a commit that is there, or a fork that still has it"
    )]
    NoCommit {
        /// The repository.
        url: String,
        /// The commit.
        commit: String,
    },
    /// None of the addresses that are recorded gives the commit.
    #[error("commit `{commit}` comes from none of its {} recorded repositories: {}", tried.len(), each(tried))]
    NoUpstream {
        /// The commit.
        commit: String,
        /// What came of each, in order.
        tried: Vec<GitError>,
    },
    /// The repository says nothing, from the beginning or in the middle.
    #[error(
        "`{url}` was asked for commit `{commit}` and said nothing for {} s, after {received} bytes: see whether this machine reaches it; a node of the farm that has the commit would give it as well",
        waited.as_secs()
    )]
    Silent {
        /// The repository.
        url: String,
        /// The commit.
        commit: String,
        /// For how long.
        waited: Duration,
        /// How much had come.
        received: u64,
    },
    /// The repository sends slower than anybody would wait for.
    #[error(
        "`{url}` was asked for commit `{commit}` and sent fewer than {low_speed_limit} bytes a second for {} s, {received} bytes in all: see how this machine reaches it; a node of the farm that has the commit would give it as well",
        low_speed_time.as_secs()
    )]
    Slow {
        /// The repository.
        url: String,
        /// The commit.
        commit: String,
        /// How many bytes a second are the fewest.
        low_speed_limit: u64,
        /// For how long it may send fewer.
        low_speed_time: Duration,
        /// How much had come.
        received: u64,
    },
    /// The name of the repository's host leads into this machine or its network.
    #[error(
        "`{url}` is not asked: the name of its host is a public one and its address is not; the node's owner can say `--allow-private-origins` and, for a submodule at another host than its repository, `--allow-code-host`"
    )]
    Private {
        /// The repository.
        url: String,
        /// Where it leads.
        #[source]
        source: PrivateAddress,
    },
    /// The server gives no repository.
    #[error("`{url}` answers {status}: {hint}")]
    Answered {
        /// The repository.
        url: String,
        /// The number of HTTP.
        status: u16,
        /// What it means, and what to do.
        hint: String,
    },
    /// There is no connection, or it broke.
    #[error("the connection to `{url}` failed: see whether this machine reaches it")]
    Connection {
        /// The repository.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// Nothing can be connected to.
    #[error("a connection to `{url}` cannot be set up")]
    Setup {
        /// The repository.
        url: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The commit has more in it than is taken.
    #[error(
        "`{url}` has more files or bytes than a node takes of one commit: leave out what the workflow does not need, such as models, which have a place of their own"
    )]
    TooLarge {
        /// The repository.
        url: String,
    },
    /// A file of the commit is larger than is taken.
    #[error(
        "file `{entry}` of `{url}` has {size} bytes, and a node takes {most} of one file at most: leave it out of the repository; a model has a place of its own"
    )]
    FileTooLarge {
        /// The repository.
        url: String,
        /// The file.
        entry: String,
        /// How many bytes it has.
        size: u64,
        /// How many it may have.
        most: u64,
    },
    /// git did not do what it was asked.
    #[error("attempt to {attempt} `{url}` did not succeed")]
    Git {
        /// What was attempted.
        attempt: &'static str,
        /// The repository.
        url: String,
        /// Why.
        #[source]
        source: git2::Error,
    },
    /// What a store should have is gone or another thing, as after a power cut.
    #[error("what is kept of `{url}` cannot be read: it is damaged, or a part of it is missing")]
    Damaged {
        /// The repository.
        url: GitUrl,
        /// Why.
        #[source]
        source: git2::Error,
    },
    /// A file or folder here.
    #[error("`{}` cannot be made", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the commit would lie outside its folder, or is none.
    #[error("entry `{entry}` of `{url}` {fault}")]
    Entry {
        /// The repository.
        url: String,
        /// The entry.
        entry: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A submodule has no address that is followed.
    #[error(
        "submodule `{path}` of `{url}` at commit `{commit}` cannot be followed: record a commit, or a fork, whose `.gitmodules` has an https address"
    )]
    Submodule {
        /// The repository.
        url: String,
        /// Its commit.
        commit: String,
        /// Where the submodule goes.
        path: String,
        /// Why.
        #[source]
        source: ParseTextError,
    },
    /// A submodule is not in `.gitmodules`.
    #[error(
        "submodule `{path}` of `{url}` at commit `{commit}` has no address in `.gitmodules`: record a commit, or a fork, that lists it there or does without it"
    )]
    UnknownSubmodule {
        /// The repository.
        url: String,
        /// Its commit.
        commit: String,
        /// Where the submodule goes.
        path: String,
    },
    /// There is no end of submodules.
    #[error("`{url}` has more submodules, or deeper ones, than are followed")]
    TooManySubmodules {
        /// The repository.
        url: String,
    },
    /// The commit was not fetched before.
    #[error("commit `{commit}` of `{url}` is not here yet")]
    NotHere {
        /// The repository.
        url: String,
        /// The commit.
        commit: String,
    },
    /// A packed commit is damaged, or another one.
    #[error("packed commit of `{url}` {fault}")]
    Pack {
        /// The repository.
        url: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// It was broken off as asked.
    #[error("it was broken off as asked")]
    Canceled,
}

/// All of them, with their causes.
fn each(tried: &[GitError]) -> String {
    tried.iter().map(|error| error_chain(error)).collect::<Vec<_>>().join("; ")
}

impl GitError {
    /// The commit that its repositories answered that they do not have.
    pub(in crate::workspace) fn lacks(&self) -> Option<&str> {
        match self {
            Self::NoCommit { commit, .. } => Some(commit),
            Self::NoUpstream { tried, .. } => tried.iter().find_map(Self::lacks),
            _ => None,
        }
    }

    /// Whether the owner or what the commit has in it is the reason: to try again would bring the same once more.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::NoUpstream { tried, .. } => tried.iter().all(Self::is_refusal),
            Self::Refused { .. } | Self::Submodule { .. } => true,
            _ => self.is_of_the_commit(),
        }
    }

    /// Whether another upstream would bring the same.
    pub(super) fn is_everywhere(&self) -> bool {
        matches!(self, Self::Canceled | Self::Io { .. }) || self.is_of_the_commit()
    }

    /// Whether what the commit has in it is the reason.
    fn is_of_the_commit(&self) -> bool {
        matches!(
            self,
            Self::TooLarge { .. }
                | Self::FileTooLarge { .. }
                | Self::Entry { .. }
                | Self::UnknownSubmodule { .. }
                | Self::TooManySubmodules { .. }
        )
    }

    /// Whether the same upstream, asked otherwise, would bring the same.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Canceled | Self::Silent { .. } | Self::Slow { .. } | Self::Private { .. })
            || self.is_refusal()
    }

    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(super) fn too_large(url: &GitUrl) -> Self {
        Self::TooLarge { url: url.to_string() }
    }

    pub(super) fn damaged(url: &GitUrl, source: git2::Error) -> Self {
        Self::Damaged { url: url.clone(), source }
    }

    pub(super) fn git(attempt: &'static str, url: &GitUrl, source: git2::Error) -> Self {
        Self::Git { attempt, url: url.to_string(), source }
    }
}
