//! What came of a blob goes on as a file that only its SHA-256 names, and the way back.
//!
//! Where a blob is said to be a file and its peers are gone, the bytes that came are the file's first pieces: they
//! move to that name, with the hash tree that proved them. If that file does not come about either, whoever wants
//! the blob next finds its tree there and takes the bytes back, with those that came meanwhile, as far as they
//! verify. So bytes cross once and take room once, under whichever name they are asked for. Not here: which name a
//! fetch goes by.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use protocol::{BlobName, BlobRef, FileRef, PIECE_SIZE, Sha256};
use tokio::time::{sleep, timeout};

use super::index::Index;
use super::room::partial_name;
use super::unproven::MARK;
use super::{BlobStore, Pieces, StoreError, blocking, failure, remove_file};
use crate::tree::{OutboardVerifier, PieceLeaves, outboard_size, piece_size, upper_size};

/// How long is waited for those who let go of a blob, and how often that is looked at.
const LINGER: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);

impl BlobStore {
    /// Whether the hash tree of a blob that is not whole is here, so that its pieces can be told right from wrong.
    pub(crate) fn has_tree(&self, blob: BlobRef) -> bool {
        let outboard = fs::metadata(self.partial_path(blob.hash, "outboard"));
        blob.pieces() > 1 && outboard.is_ok_and(|outboard| outboard.len() == outboard_size(blob.size))
    }

    /// Goes on with what came of a blob as the file that it is said to be, of which nothing is here yet; says
    /// whether it does.
    pub(crate) async fn take_over(&self, blob: BlobRef, file: FileRef) -> Result<bool, StoreError> {
        if !self.has_tree(blob) {
            return Ok(false);
        }
        let partial = self.partial(blob).await?;
        // Whoever wrote to it or read along lets go of it in a moment.
        let alone = async {
            while Arc::strong_count(&partial) > 1 {
                sleep(LOOK).await;
            }
        };
        let _ = timeout(LINGER, alone).await;
        let store = self.clone();
        blocking(move || {
            let target = store.partial_path(file.sha256, "data");
            let pieces = partial.pieces();
            // Whoever else has it goes on with it.
            let mut index = store.index();
            if pieces.is_empty() || target.exists() || Arc::strong_count(&partial) > 1 {
                return Ok(false);
            }
            index.partial.remove(&blob.hash);
            drop(index);
            let marks = store.partial_path(file.sha256, "pieces");
            let written = fs::File::create(&marks).map_err(failure("writing", &marks))?;
            let mut bytes = Vec::new();
            for piece in (0..pieces.count()).filter(|piece| pieces.contains(*piece)) {
                bytes.resize(piece_size(blob.size, piece), 0);
                let read = partial.data().read_exact_at(&mut bytes, piece * PIECE_SIZE);
                read.map_err(failure("reading", &store.partial_path(blob.hash, "data")))?;
                let mark = PieceLeaves::of(blob.size, piece, &bytes).digest();
                let marked = written.write_all_at(&mark, piece * MARK as u64);
                marked.map_err(|error| store.write_failure(MARK as u64, &marks, error))?;
            }
            // A crash between the two costs the way back, and no byte.
            for part in ["data", "outboard"] {
                store.rename_partial(blob.hash, file.sha256, part)?;
            }
            remove_file(&store.partial_path(blob.hash, "pieces"))?;
            Ok(true)
        })
        .await
    }

    /// Waits a moment for those who let go of what came of a file, so that its bytes can go back to their blob.
    pub(crate) async fn let_go(&self, sha256: Sha256) {
        let free = async {
            while self.index().is_filled(&sha256) {
                sleep(LOOK).await;
            }
        };
        let _ = timeout(LINGER, free).await;
    }

    /// Takes the bytes of a blob back from the file that went on with them, unless somebody fills that. Nothing is
    /// believed: whoever opens the blob verifies them. It blocks on the disk.
    pub(super) fn take_back(&self, blob: BlobRef) -> Result<(), StoreError> {
        if blob.pieces() <= 1 || self.partial_path(blob.hash, "data").exists() {
            return Ok(());
        }
        // The lock is kept, so that nobody begins to fill the file meanwhile.
        let index = self.index();
        let Some(sha256) = self.who_goes_on_with(blob, &index)? else { return Ok(()) };
        let marks = self.partial_path(sha256, "pieces");
        let marked = match fs::read(&marks) {
            // None is there for certain, then.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(failure("reading", &marks))?,
        };
        let mut pieces = Pieces::none(blob.pieces());
        let (marked, _) = marked.as_chunks::<MARK>();
        let is_there = (0..blob.pieces()).zip(marked).filter(|(_, mark)| **mark != [0; MARK]);
        is_there.for_each(|(piece, _)| pieces.insert(piece));
        let path = self.partial_path(blob.hash, "pieces");
        let written = fs::write(&path, pieces.bits());
        written.map_err(|error| self.write_failure(pieces.bits().len() as u64, &path, error))?;
        for part in ["outboard", "data"] {
            self.rename_partial(sha256, blob.hash, part)?;
        }
        remove_file(&marks)
    }

    /// The file that nobody fills and that has the hash tree of this blob.
    fn who_goes_on_with(&self, blob: BlobRef, index: &Index) -> Result<Option<Sha256>, StoreError> {
        let folder = self.inner.directory.join("partial");
        for entry in fs::read_dir(&folder).map_err(failure("reading", &folder))? {
            let path = entry.map_err(failure("reading", &folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Some(BlobName::Sha256(sha256)) = name.strip_suffix(".outboard").and_then(partial_name) else {
                continue;
            };
            let is_free = !index.is_filled(&sha256) && self.partial_path(sha256, "data").exists();
            // One that cannot be read is nobody's.
            if is_free && is_tree_of(blob, &path).unwrap_or(false) {
                return Ok(Some(sha256));
            }
        }
        Ok(None)
    }

    fn rename_partial(
        &self,
        from: impl Into<BlobName>,
        to: impl Into<BlobName>,
        part: &str,
    ) -> Result<(), StoreError> {
        let from = self.partial_path(from, part);
        fs::rename(&from, self.partial_path(to, part)).map_err(failure("moving", &from))
    }
}

/// Whether the file at this path is a hash tree of the blob, by its upper pairs.
fn is_tree_of(blob: BlobRef, path: &Path) -> io::Result<bool> {
    let file = fs::File::open(path)?;
    if file.metadata()?.len() != outboard_size(blob.size) {
        return Ok(false);
    }
    let mut upper = vec![0; upper_size(blob.size) as usize];
    file.read_exact_at(&mut upper, 0)?;
    let mut verifier = OutboardVerifier::new(blob);
    let _ = verifier.update(&upper);
    Ok(verifier.finish().is_ok())
}
