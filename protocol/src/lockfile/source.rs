//! The source of a Python package in a repository, as `pip freeze` writes it.
//!
//! Not here: how it is fetched and built.

use serde::{Deserialize, Serialize};

use super::GitPin;
use super::text::{FolderPath, GitCommit, GitUrl};

/// A package's source at one commit of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitSource {
    /// The repository.
    pub url: GitUrl,
    /// The commit.
    pub commit: GitCommit,
    /// The folder in it that the package is in; absent where that is its top.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subdirectory: Option<FolderPath>,
}

impl GitSource {
    /// Reads `URL@COMMIT`, with `#subdirectory=FOLDER` behind it if need be. `None` where that names no whole commit, or a
    /// folder that is elsewhere.
    pub fn of(address: &GitUrl) -> Option<Self> {
        let (address, fragment) = match address.as_str().split_once('#') {
            Some((address, fragment)) => (address, fragment),
            None => (address.as_str(), ""),
        };
        let (url, commit) = address.rsplit_once('@')?;
        let folder = fragment.split('&').find_map(|part| part.strip_prefix("subdirectory="));
        let subdirectory = folder.map(str::parse).transpose().ok()?;
        Some(Self { url: url.parse().ok()?, commit: commit.parse().ok()?, subdirectory })
    }

    /// The commit that it is in.
    pub fn pin(&self) -> GitPin {
        GitPin::new(self.url.clone(), self.commit.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_a_repository_its_commit_and_a_folder_in_it() {
        let commit = "dcba3cb2e2827b402d2701e7e1c7d9fed8a20ef1";
        let check = |address: &str, expected: Option<(&str, Option<&str>)>| {
            let source = GitSource::of(&address.replace("COMMIT", commit).parse().expect("an address"));
            let found = source.as_ref().map(|source| {
                assert_eq!(source.commit.as_str(), commit);
                (source.url.as_str(), source.subdirectory.as_ref().map(FolderPath::as_str))
            });
            assert_eq!(found, expected, "{address}");
        };
        let clip = "https://github.com/openai/CLIP.git";
        check("https://github.com/openai/CLIP.git@COMMIT", Some((clip, None)));
        check(
            "https://github.com/openai/CLIP.git@COMMIT#egg=clip&subdirectory=a/b",
            Some((clip, Some("a/b"))),
        );
        check("ssh://git@github.com/openai/CLIP.git@COMMIT", Some((clip, None)));
        check("file:///srv/me@home/x@COMMIT", Some(("file:///srv/me@home/x", None)));
        for wrong in ["", "@main", "@dcba3cb", "@COMMIT#subdirectory=../x", "@COMMIT#subdirectory=/etc"] {
            check(&format!("{clip}{wrong}"), None);
        }
    }
}
