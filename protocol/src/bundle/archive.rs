//! A zip whose entries were all looked at before the first is read.
//!
//! Not here: what the entries mean.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek};

use zip::ZipArchive;
use zip::read::{Config, ZipFile};
use zip::result::ZipError;
use zip::unstable::read::ZipIterable;

use super::{BundleError, BundleLimits, Sink};
use crate::blob::BlobRef;
use crate::lockfile::relative_path;

/// The bits of a Unix mode that say what kind of file it is, and the kind of a plain file.
const KIND_OF_FILE: u32 = 0o170_000;
const PLAIN_FILE: u32 = 0o100_000;

/// An open zip with its plain files.
pub(super) struct Archive<'a, R> {
    zip: ZipArchive<R>,
    /// The size of each file, once it was measured.
    files: BTreeMap<String, Option<u64>>,
    limits: &'a BundleLimits,
    total: u64,
}

impl<'a, R: Read + Seek> Archive<'a, R> {
    /// Opens a zip; refuses it if any entry could do harm, also one that nobody asks for.
    pub(super) fn open(mut reader: R, limits: &'a BundleLimits) -> Result<Self, BundleError> {
        let mut files = BTreeMap::new();
        // This walk keeps entries of one name apart, which the archive itself does not.
        let mut directory = ZipIterable::try_new(&mut reader, Config::default()).map_err(BundleError::Zip)?;
        if directory.len() > limits.entries {
            return Err(BundleError::TooManyEntries { count: directory.len(), limit: limits.entries });
        }
        for entry in directory.files().map_err(BundleError::Zip)? {
            let entry = entry.map_err(BundleError::Zip)?;
            let name = entry.name().map_err(BundleError::Zip)?.into_owned();
            let shown = || name.chars().filter(|character| !character.is_control()).take(200).collect();
            if let Err(fault) = relative_path(name.strip_suffix('/').unwrap_or(&name)) {
                return Err(BundleError::EntryName { entry: shown(), fault });
            }
            let kind = entry.unix_mode().map_or(0, |mode| mode & KIND_OF_FILE);
            if entry.encrypted() {
                return Err(BundleError::Encrypted { entry: name });
            }
            if entry.is_dir() {
                continue;
            }
            if entry.is_symlink() || !matches!(kind, 0 | PLAIN_FILE) {
                return Err(BundleError::NotAFile { entry: name });
            }
            if entry.size() > limits.entry_size {
                return Err(BundleError::EntryTooLarge { entry: name, limit: limits.entry_size });
            }
            if files.insert(name.clone(), None).is_some() {
                return Err(BundleError::DuplicateEntry { entry: name });
            }
        }
        let zip = ZipArchive::new(reader).map_err(BundleError::Zip)?;
        Ok(Self { zip, files, limits, total: 0 })
    }

    /// The names of all files.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// Whether there is a file of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// The bytes of a file of at most `limit` bytes, if there is one.
    pub(super) fn read(&mut self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, BundleError> {
        if !self.has(name) {
            return Ok(None);
        }
        let size = self.measure(name)?;
        if size > limit {
            return Err(BundleError::EntryTooLarge { entry: name.to_owned(), limit });
        }
        let mut bytes = Vec::new();
        let read = self.entry(name)?.take(size).read_to_end(&mut bytes);
        read.map_err(|source| BundleError::Entry { entry: name.to_owned(), source })?;
        Ok(Some(bytes))
    }

    /// Inflates a file to nowhere: counts its bytes, checks its sum, and holds both limits.
    pub(super) fn measure(&mut self, name: &str) -> Result<u64, BundleError> {
        if let Some(&Some(size)) = self.files.get(name) {
            return Ok(size);
        }
        let limit = self.limits.entry_size;
        let size = io::copy(&mut self.entry(name)?.take(limit.saturating_add(1)), &mut io::sink());
        let size = size.map_err(|source| BundleError::Entry { entry: name.to_owned(), source })?;
        if size > limit {
            return Err(BundleError::EntryTooLarge { entry: name.to_owned(), limit });
        }
        self.total = self.total.saturating_add(size);
        if self.total > self.limits.total_size {
            return Err(BundleError::TooLarge { entry: name.to_owned(), limit: self.limits.total_size });
        }
        self.files.insert(name.to_owned(), Some(size));
        Ok(size)
    }

    /// Hands the bytes of a file to the sink.
    pub(super) fn store(&mut self, name: &str, sink: &mut Sink<'_>) -> Result<BlobRef, BundleError> {
        let size = self.measure(name)?;
        let mut entry = self.entry(name)?.take(size);
        sink(name, &mut entry).map_err(|source| BundleError::Sink { entry: name.to_owned(), source })
    }

    pub(super) fn entry(&mut self, name: &str) -> Result<ZipFile<'_, R>, BundleError> {
        let unreadable =
            |error: ZipError| BundleError::Entry { entry: name.to_owned(), source: error.into() };
        self.zip.by_name(name).map_err(unreadable)
    }
}
