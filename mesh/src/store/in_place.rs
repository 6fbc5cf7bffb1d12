//! Files elsewhere that are blobs where they lie, and how a change of one is noticed.
//!
//! Size, time of change and inode are compared; a file that differs in any is another file. Not here:
//! which folders are searched for models.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use protocol::BlobRef;
use serde::{Deserialize, Serialize};

use super::{StoreError, failure};

const NAME: &str = "in-place.json";

/// A file that is a blob, as it was when it was hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InPlaceFile {
    pub(super) path: PathBuf,
    pub(super) blob: BlobRef,
    modified_seconds: i64,
    modified_nanoseconds: i64,
    inode: u64,
}

impl InPlaceFile {
    pub(super) fn new(path: PathBuf, blob: BlobRef, metadata: &fs::Metadata) -> Self {
        Self {
            path,
            blob,
            modified_seconds: metadata.mtime(),
            modified_nanoseconds: metadata.mtime_nsec(),
            inode: metadata.ino(),
        }
    }

    /// Whether the file at the path is still the one that was hashed.
    pub(super) fn is_unchanged(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|metadata| self.matches(&metadata))
    }

    pub(super) fn matches(&self, metadata: &fs::Metadata) -> bool {
        metadata.is_file()
            && metadata.len() == self.blob.size
            && metadata.mtime() == self.modified_seconds
            && metadata.mtime_nsec() == self.modified_nanoseconds
            && metadata.ino() == self.inode
    }
}

/// The list of such files on the disk.
pub(super) struct InPlaceIndex;

impl InPlaceIndex {
    pub(super) fn read(directory: &Path) -> Result<Vec<InPlaceFile>, StoreError> {
        let path = directory.join(NAME);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.map_err(failure("reading", &path))?,
        };
        serde_json::from_slice(&bytes).map_err(|error| failure("reading", &path)(error.into()))
    }

    pub(super) fn write(directory: &Path, mut files: Vec<InPlaceFile>) -> Result<(), StoreError> {
        files.sort_by(|one, other| one.path.cmp(&other.path));
        let path = directory.join(NAME);
        let file = tempfile::NamedTempFile::new_in(directory.join("temporary"));
        let file = file.map_err(failure("writing", &path))?;
        serde_json::to_writer_pretty(file.as_file(), &files)
            .map_err(|error| failure("writing", &path)(error.into()))?;
        file.as_file().sync_all().map_err(failure("writing", &path))?;
        file.persist(&path).map_err(|error| failure("writing", &path)(error.error))?;
        Ok(())
    }
}
