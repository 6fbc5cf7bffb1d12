//! Folders that cross as collections: made of a folder where it lies, and made into one.
//!
//! Not here: what a collection is; that is `protocol::Collection`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use protocol::message::Provider;
use protocol::{BlobRef, CollectedFile, Collection, CollectionError, MAX_COLLECTION, PeerId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::fetch::{Exchange, FetchError};
use crate::folders::walk::walk;
use crate::folders::{IndexError, IndexProgress, index};
use crate::store::{BlobStore, StoreError};

/// Why a folder does not cross.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It could not be read.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// It is no collection.
    #[error(transparent)]
    Collection(#[from] CollectionError),
    /// A file has a name that is no text.
    #[error("`{}` has a name that is not UTF-8: rename it", .0.display())]
    Name(PathBuf),
    /// A file changed while it was read.
    #[error("`{}` changed while it was read, or cannot be read: try again", .0.display())]
    Changed(PathBuf),
    /// The list of files is larger than any that is read.
    #[error("the list of the folder's files has {0} bytes: at most {MAX_COLLECTION} are taken")]
    TooLarge(u64),
    /// Its blobs did not come.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Its blobs cannot be stored or moved.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes the files of a folder blobs where they lie, and their list a blob of the store's own. Hidden
/// files and symbolic links are left out.
pub async fn collect_folder(
    store: &BlobStore,
    folder: &Path,
    stop: CancellationToken,
    tell: impl Fn(IndexProgress) + Send + Sync + 'static,
) -> Result<(Collection, BlobRef), FolderError> {
    index(store, folder, stop, tell).await?;
    let read = |source: io::Error| IndexError::Read { path: folder.to_owned(), source };
    let root = std::fs::canonicalize(folder).map_err(read)?;
    let mut files = Vec::new();
    for found in walk(&root).map_err(read)?.found {
        let blob = match store.file_at(&found.path) {
            Some(file) => file.blob,
            None if found.metadata.len() == 0 => store.import_bytes(&[]).await?,
            None => return Err(FolderError::Changed(found.path)),
        };
        let below = found.path.strip_prefix(&root).unwrap_or(&found.path);
        let path = below.to_str().ok_or_else(|| FolderError::Name(found.path.clone()))?.to_owned();
        files.push(CollectedFile { path, hash: blob.hash, size: blob.size });
    }
    let collection = Collection::new(files)?;
    let list = collection.to_canonical_json();
    if list.len() as u64 > MAX_COLLECTION {
        return Err(FolderError::TooLarge(list.len() as u64));
    }
    let blob = store.import_bytes(&list).await?;
    Ok((collection, blob))
}

/// Fetches the list of a collection.
pub async fn fetch_collection(
    exchange: &Exchange,
    list: BlobRef,
    providers: &[Provider],
) -> Result<Collection, FolderError> {
    if list.size > MAX_COLLECTION {
        return Err(FolderError::TooLarge(list.size));
    }
    exchange.fetch(list, providers, None).await?;
    let bytes = exchange.store().read_all(list.hash, MAX_COLLECTION).await?;
    Ok(Collection::parse(&bytes)?)
}

/// Fetches the files of a collection and makes this folder of them, where nothing or an empty folder is.
/// It appears as a whole; until then its files lie in `staging` on the same file system. Progress is in
/// bytes that are here and verified. It says from whom how many bytes came.
pub async fn fetch_folder(
    exchange: &Exchange,
    collection: &Collection,
    providers: &[Provider],
    staging: PathBuf,
    destination: PathBuf,
    progress: Option<&watch::Sender<u64>>,
) -> Result<BTreeMap<PeerId, u64>, FolderError> {
    let blobs: Vec<BlobRef> = collection.files().iter().map(CollectedFile::blob).collect();
    let store = exchange.store();
    let _held: Vec<_> = blobs.iter().map(|blob| store.hold(blob.hash)).collect();
    let from = exchange.fetch_many(&blobs, providers, progress).await?;
    store.hand_over_folder(collection.files().to_vec(), staging, destination).await?;
    Ok(from)
}
