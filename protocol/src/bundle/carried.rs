//! The files of a custom node that travels with a bundle: one zip, whose bytes follow from the files alone.
//!
//! Its entries lie below the custom node's name, or there is one of just that name: a single file. Nothing of a
//! folder but names, bytes and what may be executed is in it. Not here: which files of a folder are taken, and where
//! they are laid out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read, Seek, Write};

use super::archive::Archive;
use super::write::BundleWriter;
use super::{BundleError, BundleLimits, CARRIED, WriteBundleError};
use crate::blob::BlobRef;
use crate::lockfile::{CustomNode, FileName, Lockfile};

/// The largest archive of one custom node, and the most that its files come to, in bytes.
pub const MAX_CARRIED: u64 = 256 << 20;
/// The most files of one custom node.
pub const MAX_CARRIED_FILES: usize = 10_000;

const LIMITS: BundleLimits =
    BundleLimits { entries: MAX_CARRIED_FILES, entry_size: MAX_CARRIED, total_size: MAX_CARRIED };
/// The permissions of a file, and of one that may be executed.
const PLAIN: u32 = 0o644;
const EXECUTABLE: u32 = 0o755;

/// One file of a custom node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CarriedFile {
    /// Where it lies in `custom_nodes`.
    pub path: String,
    /// Whether it may be executed.
    pub executable: bool,
}

/// Why a carried custom node is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CarriedFault {
    /// The bundle does not have its archive.
    Missing {
        /// What it should have.
        entry: String,
    },
    /// The archive is another one than the lockfile says.
    Another,
    /// The archive is larger than any that is taken.
    TooLarge,
    /// The archive has no file.
    Empty,
    /// The archive has a file of something else.
    Astray {
        /// The file.
        entry: String,
    },
}

impl fmt::Display for CarriedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { entry } => write!(f, "the bundle has no `{entry}`; pack it again"),
            Self::Another => f.write_str("its archive is not the one that the lockfile names"),
            Self::TooLarge => write!(f, "its archive has more than {MAX_CARRIED} bytes"),
            Self::Empty => f.write_str("its archive has no file"),
            Self::Astray { entry } => write!(f, "its archive has `{entry}`, which is not below its name"),
        }
    }
}

/// Writes the archive of a custom node. Equal files give equal bytes, in whatever order they come.
pub fn write_carried<R: Read>(
    writer: impl Write + Seek,
    files: impl IntoIterator<Item = CarriedFile>,
    mut open: impl FnMut(&CarriedFile) -> io::Result<R>,
) -> Result<(), WriteBundleError> {
    let files: BTreeMap<String, CarriedFile> =
        files.into_iter().map(|file| (file.path.clone(), file)).collect();
    let mut archive = BundleWriter::new(writer, LIMITS);
    for (path, file) in &files {
        archive.add(path, if file.executable { EXECUTABLE } else { PLAIN }, open(file))?;
    }
    archive.finish()
}

/// Why a zip did not become the archive of a custom node.
#[derive(Debug, thiserror::Error)]
pub enum CarryZipError {
    /// It is none that is taken.
    #[error(transparent)]
    Zip(#[from] BundleError),
    /// The archive cannot be written.
    #[error(transparent)]
    Write(#[from] WriteBundleError),
}

/// Makes the archive of a custom node of a zip that has its files without the folder around them, as the Comfy registry
/// gives it: all of it is checked before the first file is written. Equal files give equal bytes.
pub fn carry_zip(
    zip: impl Read + Seek,
    name: &FileName,
    writer: impl Write + Seek,
) -> Result<(), CarryZipError> {
    let mut zip = Archive::open(zip, &LIMITS)?;
    let entries: Vec<String> = zip.names().map(str::to_owned).collect();
    if entries.is_empty() {
        return Err(BundleError::Carried { name: name.to_string(), fault: CarriedFault::Empty }.into());
    }
    for entry in &entries {
        zip.measure(entry)?;
    }
    let mut archive = BundleWriter::new(writer, LIMITS);
    for path in entries {
        let size = zip.measure(&path)?;
        let entry = zip.entry(&path)?;
        let executable = entry.unix_mode().is_some_and(|mode| mode & 0o100 != 0);
        let mode = if executable { EXECUTABLE } else { PLAIN };
        archive.add(&format!("{name}/{path}"), mode, Ok(entry.take(size)))?;
    }
    Ok(archive.finish()?)
}

/// Reads the archive of a custom node of this name: all of it is checked before the first file goes to `take`.
pub fn read_carried(
    reader: impl Read + Seek,
    name: &FileName,
    take: &mut dyn FnMut(&CarriedFile, &mut dyn Read) -> io::Result<()>,
) -> Result<(), BundleError> {
    let mut archive = Archive::open(reader, &LIMITS)?;
    let entries: Vec<String> = archive.names().map(str::to_owned).collect();
    let fault = |fault| Err(BundleError::Carried { name: name.to_string(), fault });
    let is_of_it = |entry: &String| {
        entry.strip_prefix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if let Some(entry) = entries.iter().find(|entry| !is_of_it(entry)) {
        return fault(CarriedFault::Astray { entry: entry.clone() });
    }
    if entries.is_empty() {
        return fault(CarriedFault::Empty);
    }
    for entry in &entries {
        archive.measure(entry)?;
    }
    for path in entries {
        let size = archive.measure(&path)?;
        let entry = archive.entry(&path)?;
        let executable = entry.unix_mode().is_some_and(|mode| mode & 0o100 != 0);
        let file = CarriedFile { path, executable };
        take(&file, &mut entry.take(size))
            .map_err(|source| BundleError::Sink { entry: file.path.clone(), source })?;
    }
    Ok(())
}

/// The entry of a bundle in which a custom node travels.
pub(super) fn carried_entry(name: &FileName) -> String {
    format!("{CARRIED}{name}.zip")
}

/// The custom nodes of a lockfile that travel with its bundle, each with its entry and what is in that; each once.
pub(super) fn entries(lockfile: &Lockfile) -> BTreeSet<(String, String, BlobRef)> {
    let entry = |node: &CustomNode| match node {
        CustomNode::Carried { name, files, .. } => Some((name.to_string(), carried_entry(name), *files)),
        _ => None,
    };
    lockfile.custom_nodes.iter().filter_map(entry).collect()
}

impl<R: Read + Seek> Archive<'_, R> {
    /// Sees that an entry is the archive that a lockfile names.
    pub(super) fn check_carried(
        &mut self,
        name: &str,
        entry: &str,
        files: BlobRef,
    ) -> Result<(), BundleError> {
        let fault = |fault| Err(BundleError::Carried { name: name.to_owned(), fault });
        if !self.has(entry) {
            return fault(CarriedFault::Missing { entry: entry.to_owned() });
        }
        let size = self.measure(entry)?;
        if size > MAX_CARRIED {
            return fault(CarriedFault::TooLarge);
        }
        let found = BlobRef::of_reader(self.entry(entry)?.take(size));
        match found.map_err(|source| BundleError::Entry { entry: entry.to_owned(), source })? == files {
            true => Ok(()),
            false => fault(CarriedFault::Another),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;
    use crate::bundle::{Bundle, read_bundle, write_bundle};
    use crate::schema::Exposure;

    type Zip<'a> = ZipWriter<Cursor<&'a mut Vec<u8>>>;

    fn name() -> FileName {
        "own".parse().unwrap()
    }

    fn file(path: &str, executable: bool) -> CarriedFile {
        CarriedFile { path: path.to_owned(), executable }
    }

    fn archive(files: Vec<CarriedFile>) -> Vec<u8> {
        let mut archive = Vec::new();
        let path = |file: &CarriedFile| Ok(Cursor::new(file.path.clone().into_bytes()));
        write_carried(Cursor::new(&mut archive), files, path).unwrap();
        archive
    }

    fn read(archive: &[u8]) -> Result<Vec<(CarriedFile, String)>, BundleError> {
        let mut read = Vec::new();
        read_carried(Cursor::new(archive), &name(), &mut |file, reader| {
            read.push((file.clone(), io::read_to_string(reader)?));
            Ok(())
        })?;
        Ok(read)
    }

    #[test]
    fn archive_is_a_function_of_its_files_and_is_read_back() {
        let files = [file("own/a.py", false), file("own/b/run.sh", true)];
        let (one, turned) = (archive(files.to_vec()), archive(files.iter().rev().cloned().collect()));
        assert_eq!(one, turned);
        assert_ne!(one, archive(vec![files[0].clone(), file("own/b/run.sh", false)]));
        assert_eq!(read(&one).unwrap(), files.map(|file| (file.clone(), file.path)));
        let single = vec![file("own", false)];
        assert_eq!(read(&archive(single.clone())).unwrap()[0].0, single[0]);
    }

    #[test]
    fn zip_of_the_registry_becomes_the_archive_of_its_files_or_is_refused() {
        let zip = |files: &[(&str, u32)]| {
            let mut bytes = Vec::new();
            let mut zip = ZipWriter::new(Cursor::new(&mut bytes));
            zip.add_directory("b", SimpleFileOptions::default()).unwrap();
            for (path, mode) in files {
                zip.start_file(*path, SimpleFileOptions::default().unix_permissions(*mode)).unwrap();
                zip.write_all(format!("own/{path}").as_bytes()).unwrap();
            }
            zip.finish().unwrap();
            bytes
        };
        let carry = |zip: &[u8]| -> Result<Vec<u8>, CarryZipError> {
            let mut bytes = Vec::new();
            carry_zip(Cursor::new(zip), &name(), Cursor::new(&mut bytes))?;
            Ok(bytes)
        };
        let files = [file("own/a.py", false), file("own/b/run.sh", true)];
        let given = zip(&[("b/run.sh", 0o755), ("a.py", 0o600)]);
        assert_eq!(carry(&given).unwrap(), archive(files.to_vec()), "as `pack` writes it");
        for (hostile, expected) in [
            (zip(&[("../x", 0o644)]), "has `..`, which leads outside"),
            (zip(&[]), "its archive has no file"),
            (b"no zip".to_vec(), "cannot be read as a zip"),
        ] {
            let error = crate::error_chain(&carry(&hostile).unwrap_err());
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn hostile_archive_is_refused_before_any_file_of_it_is_taken() {
        let zip = |write: &dyn Fn(&mut Zip<'_>)| {
            let mut bytes = Vec::new();
            let mut zip = ZipWriter::new(Cursor::new(&mut bytes));
            zip.start_file("own/good.py", SimpleFileOptions::default()).unwrap();
            write(&mut zip);
            zip.finish().unwrap();
            bytes
        };
        let check = |bytes: &[u8], expected: &str| {
            let mut taken = Vec::new();
            let read = read_carried(Cursor::new(bytes), &name(), &mut |file, _| {
                taken.push(file.path.clone());
                Ok(())
            });
            let error = crate::error_chain(&read.unwrap_err());
            assert!(error.contains(expected) && taken.is_empty(), "{expected}: {error}, {taken:?}");
        };
        for (path, expected) in [
            ("own/../../x", "has `..`, which leads outside"),
            ("/etc/own", "is absolute"),
            ("other/x.py", "has `other/x.py`, which is not below its name"),
            ("ownx.py", "has `ownx.py`, which is not below its name"),
        ] {
            let bytes = zip(&|zip| zip.start_file(path, SimpleFileOptions::default()).unwrap());
            check(&bytes, expected);
        }
        let link = zip(&|zip| zip.add_symlink("own/x", "/etc", SimpleFileOptions::default()).unwrap());
        check(&link, "is not a plain file but a link");
        let bomb = zip(&|zip| {
            zip.start_file("own/x", SimpleFileOptions::default()).unwrap();
            io::copy(&mut io::repeat(0).take(MAX_CARRIED + 1), zip).unwrap();
        });
        check(&bomb, "inflates to more than 268435456 bytes");
        check(&archive(vec![]), "its archive has no file");
        check(b"own", "cannot be read as a zip");
    }

    #[test]
    fn bundle_brings_the_archives_that_its_lockfile_names_and_no_other() {
        let node = |files| CustomNode::Carried { name: name(), files, registry: None };
        let bundle = |node: CustomNode,
                      carried: Option<&[u8]>|
         -> Result<(Bundle, Vec<String>), BundleError> {
            let lockfile = Lockfile { custom_nodes: vec![node], ..Lockfile::default() };
            let graph = br#"{"1": {"class_type": "EmptyImage", "inputs": {}}}"#;
            let mut zip = Vec::new();
            let carried = carried.map(|archive| (name(), Ok(archive)));
            write_bundle(Cursor::new(&mut zip), graph, &lockfile, &Exposure::default(), [], carried, [])
                .unwrap();
            let mut stored = Vec::new();
            let read = read_bundle(Cursor::new(&zip), &BundleLimits::default(), &mut |entry, reader| {
                stored.push(entry.to_owned());
                BlobRef::of_reader(reader)
            });
            match read {
                Ok(bundle) => Ok((bundle, stored)),
                Err(error) => {
                    assert_eq!(stored, Vec::<String>::new(), "of a bundle that is refused, nothing stays");
                    Err(error)
                }
            }
        };
        let archive = archive(vec![file("own/a.py", false)]);
        let files = BlobRef::of(&archive);
        let (read, stored) = bundle(node(files), Some(&archive)).unwrap();
        assert_eq!(read.lockfile.custom_nodes, [node(files)]);
        assert_eq!(stored, ["workflow_api.json", "lockfile.json", "custom_nodes/own.zip"]);
        let check = |node: CustomNode, carried: Option<&[u8]>, expected: &str| {
            let error = bundle(node, carried).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(
            node(files),
            None,
            "custom node `own` is not carried as it should be: the bundle has no `custom_nodes/own.zip`",
        );
        check(node(files), Some(b"another"), "its archive is not the one that the lockfile names");
    }
}
