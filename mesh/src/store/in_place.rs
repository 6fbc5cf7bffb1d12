//! Files elsewhere that are blobs where they lie, and how a change of one is noticed.
//!
//! Size, time of change and inode are compared; a file that differs in any is another file. Not here:
//! which folders are searched for models; that is `folders`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use protocol::{BlobRef, Sha256};
use serde::{Deserialize, Serialize};

use super::{StoreError, failure, read_json, write_json};

const NAME: &str = "in-place.json";

/// A file that is a blob, as it was when it was hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InPlaceFile {
    pub(crate) path: PathBuf,
    pub(crate) blob: BlobRef,
    modified_seconds: i64,
    modified_nanoseconds: i64,
    inode: u64,
    /// The name of the same bytes in the world of models; absent where nobody asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<Sha256>,
    /// Whether other peers may have it. Defaults to true.
    #[serde(default = "shared")]
    pub(crate) shared: bool,
}

fn shared() -> bool {
    true
}

impl InPlaceFile {
    pub(super) fn new(path: PathBuf, blob: BlobRef, metadata: &fs::Metadata) -> Self {
        Self {
            path,
            blob,
            modified_seconds: metadata.mtime(),
            modified_nanoseconds: metadata.mtime_nsec(),
            inode: metadata.ino(),
            sha256: None,
            shared: true,
        }
    }

    /// Whether the file at the path is still the one that was hashed.
    pub(crate) fn is_unchanged(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|metadata| self.matches(&metadata))
    }

    pub(crate) fn matches(&self, metadata: &fs::Metadata) -> bool {
        metadata.is_file()
            && metadata.len() == self.blob.size
            && metadata.mtime() == self.modified_seconds
            && metadata.mtime_nsec() == self.modified_nanoseconds
            && metadata.ino() == self.inode
    }
}

/// The list of such files on the disk.
pub(crate) struct InPlaceIndex;

impl InPlaceIndex {
    pub(crate) fn read(directory: &Path) -> Result<Vec<InPlaceFile>, StoreError> {
        read_json(directory, NAME)
    }

    /// Writes a list that is of no store, into a folder that may not be there yet.
    pub(crate) fn keep(directory: &Path, files: &[&InPlaceFile]) -> Result<(), StoreError> {
        let temporary = directory.join("temporary");
        fs::create_dir_all(&temporary).map_err(failure("making", &temporary))?;
        Self::write(directory, files)
    }

    pub(super) fn write(directory: &Path, files: &[&InPlaceFile]) -> Result<(), StoreError> {
        write_json(directory, NAME, files)
    }
}
