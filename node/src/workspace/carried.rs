//! Custom nodes that travelled with a bundle: an archive kept beside its tree, laid out, and compared with it.
//!
//! Blocks. Not here: how the archive comes here, and how it is read (`protocol`).

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use protocol::{BlobRef, BundleError, CarriedFault, CarriedFile, FileName, read_carried};

/// Why a custom node that travelled is not there.
#[derive(Debug, thiserror::Error)]
pub enum CarriedError {
    /// Its archive is none that is taken.
    #[error("custom node `{name}` cannot be laid out from its archive")]
    Archive {
        /// The custom node.
        name: FileName,
        /// Why.
        #[source]
        source: BundleError,
    },
    /// A file or folder cannot be read or written.
    #[error("`{}` of custom node `{name}` cannot be read or written", path.display())]
    Io {
        /// The custom node.
        name: FileName,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl CarriedError {
    fn io(name: &FileName, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let (name, path) = (name.clone(), path.to_owned());
        move |source| Self::Io { name, path, source }
    }
}

/// Copies an archive into a folder, sees that it is the one that is meant, and says where it lies.
pub(super) fn keep(
    name: &FileName,
    files: BlobRef,
    archive: &Path,
    folder: &Path,
) -> Result<PathBuf, CarriedError> {
    let path = place(name, folder);
    fs::create_dir_all(folder).map_err(CarriedError::io(name, folder))?;
    fs::copy(archive, &path).map_err(CarriedError::io(name, archive))?;
    fs::set_permissions(&path, Permissions::from_mode(0o444)).map_err(CarriedError::io(name, &path))?;
    open(name, files, &path)?;
    Ok(path)
}

/// Lays the files of an archive out in `custom_nodes`: byte for byte, read-only.
pub(super) fn lay_out(name: &FileName, archive: &Path, custom_nodes: &Path) -> Result<(), CarriedError> {
    let reader = BufReader::new(File::open(archive).map_err(CarriedError::io(name, archive))?);
    unpack(name, reader, custom_nodes).map_err(|source| CarriedError::Archive { name: name.clone(), source })
}

/// Lays the files of an archive that is being read out in `custom_nodes`: byte for byte, read-only.
pub(super) fn unpack(
    name: &FileName,
    archive: impl Read + Seek,
    custom_nodes: &Path,
) -> Result<(), BundleError> {
    let mut write = |CarriedFile { path, executable }: &CarriedFile, contents: &mut dyn Read| {
        let path = custom_nodes.join(path);
        fs::create_dir_all(path.parent().unwrap_or(custom_nodes))?;
        let mode = if *executable { 0o555 } else { 0o444 };
        // Never over another file, which the system may take for the same name.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        io::copy(contents, &mut file)?;
        file.set_permissions(Permissions::from_mode(mode))
    };
    read_carried(archive, name, &mut write)
}

/// The files that are not in `custom_nodes` as the kept archive has them, by their paths there.
pub(super) fn differences(
    name: &FileName,
    files: BlobRef,
    folder: &Path,
    custom_nodes: &Path,
) -> Result<Vec<String>, CarriedError> {
    let archive = open(name, files, &place(name, folder))?;
    let mut differing = Vec::new();
    let mut compare = |CarriedFile { path, .. }: &CarriedFile, contents: &mut dyn Read| {
        let wanted = BlobRef::of_reader(contents)?;
        let place = custom_nodes.join(path);
        let is_file = fs::symlink_metadata(&place).is_ok_and(|metadata| metadata.is_file());
        let found = File::open(&place).and_then(BlobRef::of_reader);
        if !is_file || found.ok() != Some(wanted) {
            differing.push(path.clone());
        }
        Ok(())
    };
    read_carried(archive, name, &mut compare)
        .map_err(|source| CarriedError::Archive { name: name.clone(), source })?;
    Ok(differing)
}

fn place(name: &FileName, folder: &Path) -> PathBuf {
    folder.join(format!("{name}.zip"))
}

/// Opens an archive that is the one that is meant.
fn open(name: &FileName, files: BlobRef, path: &Path) -> Result<BufReader<File>, CarriedError> {
    let read = || -> io::Result<(BlobRef, BufReader<File>)> {
        let found = BlobRef::of_reader(File::open(path)?)?;
        Ok((found, BufReader::new(File::open(path)?)))
    };
    let (found, archive) = read().map_err(CarriedError::io(name, path))?;
    if found != files {
        let source = BundleError::Carried { name: name.to_string(), fault: CarriedFault::Another };
        return Err(CarriedError::Archive { name: name.clone(), source });
    }
    Ok(archive)
}
