//! The publishers that the node's owner trusts, beside the farm: a file of keys, one a line.
//!
//! Read again for each judgement, so that `comfy-farm publisher trust` takes effect on a running node.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use protocol::{ParseTextError, PublisherKey};

use crate::os::file::replace;

/// The file in a node's data folder.
const FILE: &str = "trusted-publishers";

/// Keys of publishers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedPublishers(BTreeSet<PublisherKey>);

/// Why the file of trusted publishers was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum TrustedPublishersError {
    /// The operating system refuses.
    #[error("trusted publishers cannot be kept in `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is no key.
    #[error("line {line} of `{}` is no publisher's key", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Why.
        #[source]
        source: ParseTextError,
    },
}

impl TrustedPublishers {
    /// Those of a node's data folder; none where it has no such file.
    pub fn load(data: &Path) -> Result<Self, TrustedPublishersError> {
        let path = data.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(TrustedPublishersError::Io { path, source }),
        };
        let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
        let keys = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let key = |(line, text): (usize, &str)| {
            text.parse().map_err(|source| TrustedPublishersError::Line { path: path.clone(), line, source })
        };
        keys.map(key).collect::<Result<_, _>>().map(Self)
    }

    /// Writes them, as a whole or not at all.
    pub fn save(&self, data: &Path) -> Result<(), TrustedPublishersError> {
        let path = data.join(FILE);
        let lines: String = self.0.iter().map(|key| format!("{key}\n")).collect();
        replace(&path, lines.as_bytes()).map_err(|source| TrustedPublishersError::Io { path, source })
    }

    /// Whether this one is trusted.
    pub fn contains(&self, key: &PublisherKey) -> bool {
        self.0.contains(key)
    }

    /// Trusts one; says whether it was not trusted before.
    pub fn insert(&mut self, key: PublisherKey) -> bool {
        self.0.insert(key)
    }

    /// Trusts one no more; says whether it was trusted.
    pub fn remove(&mut self, key: &PublisherKey) -> bool {
        self.0.remove(key)
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = &PublisherKey> {
        self.0.iter()
    }
}

impl FromIterator<PublisherKey> for TrustedPublishers {
    fn from_iter<I: IntoIterator<Item = PublisherKey>>(keys: I) -> Self {
        Self(keys.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusted_publishers_survive_and_a_wrong_line_is_named() {
        let data = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(TrustedPublishers::load(data.path()).expect("none yet"), TrustedPublishers::default());
        let mut trusted = TrustedPublishers::default();
        assert!(trusted.insert(PublisherKey([1; 32])) && !trusted.insert(PublisherKey([1; 32])));
        trusted.save(data.path()).expect("written");
        assert_eq!(TrustedPublishers::load(data.path()).expect("read"), trusted);
        fs::write(data.path().join(FILE), "# mine\n\nnonsense\n").expect("written");
        let error = TrustedPublishers::load(data.path()).expect_err("no key");
        assert!(error.to_string().contains("line 3"), "{error}");
    }
}
