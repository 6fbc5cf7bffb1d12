//! Whole blobs that become the files of a folder, which appears by one rename, and are served from there on.
//!
//! Not here: one file by itself; that is `hand_over`.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::syncfs;
use protocol::CollectedFile;

use super::draft::sync_folder;
use super::in_place::InPlaceFile;
use super::{BlobStore, StoreError, blocking, failure};

impl BlobStore {
    /// Makes this folder of these files, on the same file system, where nothing or an empty folder is. The
    /// blobs of the store's own are moved. Until they are all in place, they lie in `staging`, which
    /// another try begins anew.
    pub(crate) async fn hand_over_folder(
        &self,
        files: Vec<CollectedFile>,
        staging: PathBuf,
        destination: PathBuf,
    ) -> Result<(), StoreError> {
        let store = self.clone();
        blocking(move || {
            match fs::remove_dir_all(&staging) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failure("clearing", &staging)(error));
                }
                _ => fs::create_dir_all(&staging).map_err(failure("creating", &staging))?,
            }
            for file in &files {
                store.place(file, &staging.join(&file.path))?;
            }
            let flushed = fs::File::open(&staging).and_then(|folder| syncfs(folder).map_err(Into::into));
            flushed.map_err(failure("writing", &staging))?;
            fs::rename(&staging, &destination).map_err(failure("moving the files to", &destination))?;
            let destination = fs::canonicalize(&destination).map_err(failure("finding", &destination))?;
            sync_folder(&destination)?;
            store.serve_from(&files, &destination)
        })
        .await
    }

    /// Puts a blob at this path as well: by a link where it is the store's own, else by a copy.
    fn place(&self, file: &CollectedFile, path: &Path) -> Result<(), StoreError> {
        let (mut blob, _) = self.open_whole(file.hash)?.ok_or(StoreError::Missing(file.hash))?;
        let folder = path.parent().expect("it lies in the staging folder");
        fs::create_dir_all(folder).map_err(failure("creating", folder))?;
        let own = self.blob_path(file.hash);
        if self.index().own(file.hash).is_some() && is_only_name(&blob)? {
            return fs::hard_link(&own, path).map_err(failure("linking the blob to", path));
        }
        let mut copy = fs::File::create(path).map_err(failure("creating", path))?;
        io::copy(&mut blob, &mut copy).map(drop).map_err(failure("writing", path))
    }

    /// Forgets the store's own names of what lies in the folder, and serves it there.
    fn serve_from(&self, files: &[CollectedFile], folder: &Path) -> Result<(), StoreError> {
        let mut index = self.index();
        for file in files {
            let path = folder.join(&file.path);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
                .map_err(failure("changing", &path))?;
            if index.own(file.hash).is_some() {
                let own = self.blob_path(file.hash);
                fs::remove_file(&own).map_err(failure("removing", &own))?;
                index.remove_own(file.hash);
            }
            let metadata = fs::metadata(&path).map_err(failure("reading", &path))?;
            index.add_file(InPlaceFile::new(path, file.blob(), &metadata));
        }
        self.save_in_place(&index)
    }
}

/// Whether the file has no second name yet: the same bytes at two paths are two files.
fn is_only_name(file: &fs::File) -> Result<bool, StoreError> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata().map_err(failure("reading", Path::new("a blob")))?;
    Ok(metadata.nlink() == 1)
}
