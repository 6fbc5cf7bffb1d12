//! A collection: a folder of files under one hash, so that many small blobs are asked for by one name.
//!
//! It is a list of paths and blobs as canonical JSON, and itself a blob. Every path in it was checked as it
//! was read: it names a file below the folder that is to be made, and no file is the folder of another. Not
//! here: where the files come from.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::blob::{BlobHash, BlobRef};
use crate::lockfile::relative_path;

/// The most files in one collection.
pub const MAX_COLLECTED: usize = 100_000;
/// The largest collection that is read, in bytes of its list.
pub const MAX_COLLECTION: u64 = 64 << 20;

/// A folder's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collection {
    /// The format's version: 1.
    format: u32,
    /// The files, by path.
    files: Vec<CollectedFile>,
}

/// One file of a collection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectedFile {
    /// Where it lies below the folder, with `/` between the parts.
    pub path: String,
    /// The hash of its bytes.
    pub hash: BlobHash,
    /// How many they are.
    pub size: u64,
}

impl CollectedFile {
    /// Its bytes.
    pub fn blob(&self) -> BlobRef {
        BlobRef { hash: self.hash, size: self.size }
    }
}

/// Why files make no collection.
#[derive(Debug, thiserror::Error)]
pub enum CollectionError {
    /// The list is no JSON, or something in it is not what it should be.
    #[error("list of the collection is not valid")]
    Json(#[source] serde_json::Error),
    /// It was written by a later release.
    #[error("collection of format {0}: this release reads format 1")]
    Format(u32),
    /// There are too many.
    #[error("collection of {0} files: at most {MAX_COLLECTED} are taken")]
    TooMany(usize),
    /// A path leads elsewhere, or is not plain.
    #[error("path {path:?} of a collection {problem}")]
    Path {
        /// Which.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Together they have more bytes than can be counted.
    #[error("files of the collection have more bytes than there can be")]
    Size,
}

impl Collection {
    /// The collection of these files, in the order of their paths.
    pub fn new(mut files: Vec<CollectedFile>) -> Result<Self, CollectionError> {
        files.sort_by(|one, other| one.path.cmp(&other.path));
        let collection = Self { format: 1, files };
        collection.check()?;
        Ok(collection)
    }

    /// Reads what [`to_canonical_json`](Self::to_canonical_json) writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, CollectionError> {
        let collection: Self = serde_json::from_slice(bytes).map_err(CollectionError::Json)?;
        collection.check()?;
        Ok(collection)
    }

    /// The list as it is hashed and carried.
    pub fn to_canonical_json(&self) -> Vec<u8> {
        serde_json_canonicalizer::to_vec(self).expect("a collection has only text keys")
    }

    /// The files, in the order of their paths.
    pub fn files(&self) -> &[CollectedFile] {
        &self.files
    }

    /// The bytes of all files together.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    fn check(&self) -> Result<(), CollectionError> {
        if self.format != 1 {
            return Err(CollectionError::Format(self.format));
        }
        if self.files.len() > MAX_COLLECTED {
            return Err(CollectionError::TooMany(self.files.len()));
        }
        let sizes = self.files.iter().map(|file| file.size);
        sizes.into_iter().try_fold(0, u64::checked_add).ok_or(CollectionError::Size)?;
        let mut paths = BTreeSet::new();
        let mut folders = BTreeSet::new();
        for CollectedFile { path, .. } in &self.files {
            let wrong = |problem| CollectionError::Path { path: path.chars().take(80).collect(), problem };
            relative_path(path).map_err(wrong)?;
            if !paths.insert(path.as_str()) {
                return Err(wrong("is there twice"));
            }
            folders.extend(path.match_indices('/').map(|(end, _)| &path[..end]));
        }
        match paths.intersection(&folders).next() {
            Some(path) => {
                Err(CollectionError::Path { path: (*path).to_owned(), problem: "is a file and a folder" })
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> CollectedFile {
        CollectedFile { path: path.to_owned(), hash: BlobHash::of(path.as_bytes()), size: path.len() as u64 }
    }

    #[test]
    fn collection_is_the_same_bytes_in_whatever_order_its_files_came() {
        let [one, other] = [["b/c", "a"], ["a", "b/c"]].map(|paths| {
            Collection::new(paths.into_iter().map(file).collect()).expect("a collection").to_canonical_json()
        });
        assert_eq!(one, other);
        let read = Collection::parse(&one).expect("it was written by us");
        assert_eq!(read.files(), [file("a"), file("b/c")]);
        assert_eq!(read.size(), 4);
    }

    #[test]
    fn paths_that_lead_elsewhere_or_meet_are_refused() {
        let check = |paths: &[&str], expected: &str| {
            let made = Collection::new(paths.iter().copied().map(file).collect());
            let error = made.expect_err("it is refused").to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&["../a"], "leads outside");
        check(&["/a"], "absolute");
        check(&["a", "a"], "twice");
        check(&["a", "a/b"], "a file and a folder");
        check(&["a/b", "a-", "a/b/c"], "a file and a folder");
        let huge = CollectedFile { size: u64::MAX, ..file("a") };
        assert!(matches!(Collection::new(vec![huge, file("b")]), Err(CollectionError::Size)));
    }
}
