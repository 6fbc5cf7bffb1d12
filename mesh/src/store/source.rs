//! Where the bytes of a blob are read from to be served: a whole file, or a partial one that grows.

use std::fs;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Weak};

use protocol::{BlobName, BlobRef, FileRef, Sha256};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::cached::{read_ahead, read_cached};
use super::{BlobStore, PartialBlob, Pieces, StoreError, UnprovenFile, blocking, failure};
use crate::tree::{outboard_size, piece_size};

/// A blob that can be served, whole or in part.
#[derive(Clone)]
pub(crate) enum Source {
    /// One of a single group has no outboard.
    Whole {
        blob: BlobRef,
        file: Arc<fs::File>,
        outboard: Option<Arc<fs::File>>,
    },
    Partial(Arc<PartialBlob>),
    Unproven(Arc<UnprovenFile>),
}

impl BlobStore {
    /// What can be served of this blob; `None` where nothing of it is here, it is of another size, or it
    /// is not shared.
    pub(crate) async fn source(&self, blob: BlobRef) -> Result<Option<Source>, StoreError> {
        if self.index().is_private(blob.hash) {
            return Ok(None);
        }
        let source = self.own_source(blob).await?;
        // Of a whole one all files in place may be private.
        let is_shared = |source: &Source| match source {
            Source::Whole { .. } => self.index().is_shared(blob.hash),
            Source::Partial(_) | Source::Unproven(_) => true,
        };
        Ok(source.filter(is_shared))
    }

    /// The same for ourselves, shared or not.
    pub(super) async fn own_source(&self, blob: BlobRef) -> Result<Option<Source>, StoreError> {
        let store = self.clone();
        blocking(move || {
            if let Some((file, found)) = store.use_whole(blob.hash)? {
                if found != blob {
                    return Ok(None);
                }
                let outboard = store.open_outboard(blob)?.map(Arc::new);
                return Ok(Some(Source::Whole { blob, file: Arc::new(file), outboard }));
            }
            let partial = store.index().partial.get(&blob.hash).and_then(Weak::upgrade);
            // One with nothing yet is served as well: two who begin at once find each other by that.
            Ok(partial.filter(|partial| partial.blob() == blob).map(Source::Partial))
        })
        .await
    }

    /// Whether what was offered under this name is not others' any more.
    pub(crate) fn keeps_private(&self, name: BlobName) -> bool {
        match name {
            BlobName::Blake3(hash) => self.index().is_private(hash),
            BlobName::Sha256(sha256) => self.index().is_private_file(sha256),
        }
    }

    /// What can be served of this file: all of it, if it was proven, or the pieces that came so far; `None`
    /// also where it is not shared.
    pub(crate) async fn file_source(&self, file: FileRef) -> Result<Option<Source>, StoreError> {
        if self.index().is_private_file(file.sha256) {
            return Ok(None);
        }
        match self.unproven_or_blob(file) {
            Some(Ok(unproven)) => Ok(Some(Source::Unproven(unproven))),
            Some(Err(blob)) => self.source(blob).await,
            None => Ok(None),
        }
    }

    /// The same for ourselves, shared or not.
    pub(super) async fn own_file_source(&self, file: FileRef) -> Result<Option<Source>, StoreError> {
        match self.unproven_or_blob(file) {
            Some(Ok(unproven)) => Ok(Some(Source::Unproven(unproven))),
            Some(Err(blob)) => self.own_source(blob).await,
            None => Ok(None),
        }
    }

    /// What is put together of a file; else the blob that it is, or is said to be by those whom we fetch it from.
    fn unproven_or_blob(&self, file: FileRef) -> Option<Result<Arc<UnprovenFile>, BlobRef>> {
        let unproven = self.index().unproven.get(&file.sha256).and_then(Weak::upgrade);
        // The index is free again: whoever lets go of one last asks for it.
        if let Some(unproven) = unproven.filter(|unproven| unproven.file() == file) {
            return Some(Ok(unproven));
        }
        let index = self.index();
        let named = index.named(&file.sha256).filter(|blob| index.get(blob.hash) == Some(*blob));
        let blob = named.or_else(|| index.said.get(&file.sha256).copied());
        blob.filter(|blob| blob.size == file.size).map(Err)
    }

    /// Lets a file be asked for by its SHA-256 while it is fetched as the blob that it is said to be.
    pub(crate) fn say(&self, sha256: Sha256, blob: BlobRef) -> Said {
        self.index().said.insert(sha256, blob);
        Said { store: self.clone(), sha256 }
    }
}

/// What others say of a file holds as long as this lives.
pub(crate) struct Said {
    store: BlobStore,
    sha256: Sha256,
}

impl Drop for Said {
    fn drop(&mut self) {
        self.store.index().said.remove(&self.sha256);
    }
}

impl Source {
    /// The pieces that can be asked for now. Of some, the rest is still to come.
    pub(crate) fn pieces(&self) -> Pieces {
        match self {
            Self::Whole { blob, .. } => Pieces::all(blob.pieces()),
            Self::Partial(partial) => partial.offered(),
            Self::Unproven(unproven) => unproven.pieces(),
        }
    }

    /// Whether there is nothing more to come.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Self::Whole { .. } => true,
            Self::Partial(partial) => partial.pieces().is_full(),
            Self::Unproven(unproven) => unproven.pieces().is_full(),
        }
    }

    /// Changes whenever there are more pieces, or parts of one; `None` where there will be no more.
    pub(crate) fn growth(&self) -> Option<watch::Receiver<()>> {
        match self {
            Self::Whole { .. } => None,
            Self::Partial(partial) => Some(partial.growth()),
            Self::Unproven(unproven) => Some(unproven.grown()),
        }
    }

    /// How many bytes there are of the whole.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Whole { blob, .. } => blob.size,
            Self::Partial(partial) => partial.blob().size,
            Self::Unproven(unproven) => unproven.file().size,
        }
    }

    /// How many bytes of a piece can be read now, from its beginning.
    pub(crate) fn here_of(&self, piece: u64) -> usize {
        match self {
            Self::Partial(partial) => partial.here_of(piece),
            Self::Unproven(unproven) if !unproven.has(piece) => 0,
            _ => piece_size(self.size(), piece),
        }
    }

    /// Whether all of a piece can be read now.
    pub(crate) fn has(&self, piece: u64) -> bool {
        self.here_of(piece) == piece_size(self.size(), piece)
    }

    /// Waits until this many bytes of a piece can be read. It may be cancelled.
    pub(crate) async fn arrival(&self, piece: u64, length: usize) {
        let Some(mut growth) = self.growth() else { return };
        // Looked at after each change, and once before, so that none is missed.
        while self.here_of(piece) < length {
            // Its sender lives as long as the source, which is held here.
            let _ = growth.changed().await;
        }
    }

    /// Fills a place in `bytes` with those from `offset` on. What is longer than the place stays as long, so
    /// that room that is used again is not zeroed again.
    pub(crate) async fn read(&self, offset: u64, place: Range<usize>, bytes: &mut Vec<u8>) -> io::Result<()> {
        self.read_from(Self::data, offset, place, bytes).await
    }

    /// Fills a place in `bytes` with those of the outboard from `offset` on.
    pub(crate) async fn read_outboard(
        &self,
        offset: u64,
        place: Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> io::Result<()> {
        self.read_from(Self::outboard, offset, place, bytes).await
    }

    /// Reads on a thread that may block where a disk has to be waited for.
    async fn read_from(
        &self,
        file: fn(&Self) -> io::Result<&fs::File>,
        offset: u64,
        place: Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> io::Result<()> {
        if bytes.len() < place.end {
            bytes.resize(place.end, 0);
        }
        if place.is_empty() || read_cached(file(self)?, &mut bytes[place.clone()], offset)? {
            return Ok(());
        }
        let (source, mut room) = (self.clone(), std::mem::take(bytes));
        let reading = spawn_blocking(move || {
            read_ahead(file(&source)?, &mut room[place], offset)?;
            Ok::<_, io::Error>(room)
        });
        *bytes = reading.await.map_err(io::Error::other)??;
        Ok(())
    }

    fn data(&self) -> io::Result<&fs::File> {
        Ok(match self {
            Self::Whole { file, .. } => file,
            Self::Partial(partial) => partial.data(),
            Self::Unproven(unproven) => unproven.data(),
        })
    }

    fn outboard(&self) -> io::Result<&fs::File> {
        match self {
            Self::Whole { outboard: Some(outboard), .. } => Ok(outboard),
            Self::Partial(partial) => Ok(partial.outboard()),
            Self::Whole { outboard: None, .. } | Self::Unproven(_) => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl BlobStore {
    /// The file with the outboard of a whole blob, unless it is too small to have one.
    fn open_outboard(&self, blob: BlobRef) -> Result<Option<fs::File>, StoreError> {
        if outboard_size(blob.size) == 0 {
            return Ok(None);
        }
        let path = self.outboard_path(blob.hash);
        fs::File::open(&path).map(Some).map_err(failure("opening", &path))
    }
}
