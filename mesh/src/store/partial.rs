//! A blob whose hash is known and whose bytes arrive in pieces, each verified before it counts.
//!
//! It survives a restart: the outboard and the pieces on the disk are verified again when it is opened,
//! so a crash in the middle of a write costs that piece and nothing else. Not here: whom to ask.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use protocol::{BlobRef, PIECE_SIZE};
use tokio::sync::watch;

use super::draft::sync_folder;
use super::piece_buffer::PieceBuffer;
use super::{BlobHold, BlobStore, Pieces, StoreError, blocking, failure, remove_file};
use crate::tree::{
    OutboardVerifier, PieceTree, Tree, outboard_size, pairs_of, pairs_within, piece_size, upper_size,
};

/// What is there of a blob that is not whole yet.
#[derive(Debug)]
pub struct PartialBlob {
    blob: BlobRef,
    store: BlobStore,
    _hold: BlobHold,
    data: fs::File,
    outboard: fs::File,
    marks: fs::File,
    /// Set once the upper pairs of the outboard are there.
    tree: OnceLock<Tree>,
    /// The pieces that are coming.
    coming: Mutex<BTreeMap<u64, Coming>>,
    /// Held by whoever writes the upper pairs; that may take a while, and the pieces are looked at meanwhile.
    adding: Mutex<()>,
    pieces: Mutex<Pieces>,
    /// Changes with every part of a piece.
    grown: watch::Sender<()>,
}

/// A piece of which some parts are there.
#[derive(Debug)]
struct Coming {
    tree: Arc<PieceTree>,
    /// How many bytes from its beginning are there and verified.
    here: usize,
}

impl PartialBlob {
    pub(super) fn open(store: &BlobStore, blob: BlobRef) -> Result<Self, StoreError> {
        take_back_outboard(store, blob)?;
        store.take_back(blob)?;
        let open = |path: PathBuf| {
            let mut options = fs::File::options();
            options
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(|error| store.write_failure(blob.size, &path, error))
        };
        let partial = Self {
            blob,
            store: store.clone(),
            _hold: store.hold(blob.hash),
            data: open(store.partial_path(blob.hash, "data"))?,
            outboard: open(store.partial_path(blob.hash, "outboard"))?,
            marks: open(store.partial_path(blob.hash, "pieces"))?,
            tree: OnceLock::new(),
            coming: Mutex::default(),
            adding: Mutex::default(),
            pieces: Mutex::new(Pieces::none(blob.pieces())),
            grown: watch::Sender::new(()),
        };
        partial.resume()?;
        Ok(partial)
    }

    /// Takes up what an earlier process left, as far as it verifies.
    fn resume(&self) -> Result<(), StoreError> {
        let Some(tree) = self.read_tree().map_err(failure("reading", &self.outboard_path()))? else {
            return Ok(());
        };
        self.reserve()?;
        // It is opened just now, so nobody came first.
        let _ = self.tree.set(tree);
        let path = self.store.partial_path(self.blob.hash, "pieces");
        // A file that is too short misses only marks that were never set.
        let length = self.blob.pieces().div_ceil(8);
        let sized = self.marks.set_len(length);
        sized.map_err(|error| self.store.write_failure(length, &path, error))?;
        let mut marked = vec![0; length as usize];
        self.marks.read_exact_at(&mut marked, 0).map_err(failure("reading", &path))?;
        let Some(marked) = Pieces::from_bits(self.blob.pieces(), marked) else { return Ok(()) };
        for piece in (0..self.blob.pieces()).filter(|piece| marked.contains(*piece)) {
            if self.verifies(piece).is_ok_and(|verifies| verifies) {
                self.lock().insert(piece);
            }
        }
        Ok(())
    }

    /// The tree that an earlier process began with.
    fn read_tree(&self) -> io::Result<Option<Tree>> {
        let mut verifier = OutboardVerifier::new(self.blob);
        if self.outboard.metadata()?.len() == outboard_size(self.blob.size) {
            let mut upper = vec![0; upper_size(self.blob.size) as usize];
            self.outboard.read_exact_at(&mut upper, 0)?;
            // One that does not verify is written again, when it comes.
            let _ = verifier.update(&upper);
        }
        Ok(verifier.finish().ok())
    }

    /// Whether a piece on the disk is what it is to be. Its pairs are made of it where they did not come with it.
    fn verifies(&self, piece: u64) -> io::Result<bool> {
        let (first, length) = pairs_of(self.blob.size, piece);
        let mut pairs = vec![0; length];
        self.outboard.read_exact_at(&mut pairs, first)?;
        let Some(tree) = self.tree.get() else { return Ok(false) };
        let bytes = self.read_bytes(piece)?;
        if tree.piece(piece, &pairs).is_ok_and(|tree| tree.verifies(0, &bytes)) {
            return Ok(true);
        }
        let pairs = pairs_within(&bytes, piece);
        let is_right = tree.piece(piece, &pairs).is_ok_and(|tree| tree.verifies(0, &bytes));
        if is_right {
            self.outboard.write_all_at(&pairs, first)?;
        }
        Ok(is_right)
    }

    /// The blob that it becomes.
    pub fn blob(&self) -> BlobRef {
        self.blob
    }

    /// Whether the upper pairs of the outboard are still to come: before them, no piece can be verified.
    pub fn needs_outboard(&self) -> bool {
        self.tree.get().is_none()
    }

    /// The pieces that are there and verified.
    pub fn pieces(&self) -> Pieces {
        self.lock().clone()
    }

    /// How many bytes those are.
    pub fn bytes(&self) -> u64 {
        let pieces = self.lock();
        let last = self.blob.pieces().saturating_sub(1);
        let lacking = PIECE_SIZE - piece_size(self.blob.size, last) as u64;
        pieces.len() * PIECE_SIZE - if pieces.contains(last) { lacking } else { 0 }
    }

    /// Keeps the upper pairs that `tree` was verified with. It blocks on the disk.
    pub(crate) fn add_tree(&self, tree: Tree, upper: &[u8]) -> Result<(), StoreError> {
        debug_assert_eq!(tree.blob(), self.blob);
        self.reserve()?;
        let _adding = self.adding.lock().expect("nothing panics while it writes the outboard");
        // Whoever comes second verified the same tree.
        if self.needs_outboard() {
            let written = self.outboard.write_all_at(upper, 0);
            let sized = written.and_then(|()| self.outboard.set_len(outboard_size(self.blob.size)));
            sized.map_err(|error| {
                self.store.write_failure(upper.len() as u64, &self.outboard_path(), error)
            })?;
            let _ = self.tree.set(tree);
        }
        Ok(())
    }

    /// Takes the pairs within a piece, which come with its first part; says whether they are right. It
    /// blocks on the disk.
    fn begin(&self, piece: u64, pairs: &[u8]) -> Result<bool, StoreError> {
        let Some(Ok(tree)) = self.tree.get().map(|tree| tree.piece(piece, pairs)) else { return Ok(false) };
        let written = self.outboard.write_all_at(pairs, pairs_of(self.blob.size, piece).0);
        written
            .map_err(|error| self.store.write_failure(pairs.len() as u64, &self.outboard_path(), error))?;
        // Another source may have begun with it.
        self.coming().entry(piece).or_insert_with(|| Coming { tree: Arc::new(tree), here: 0 });
        Ok(true)
    }

    /// How many bytes are still to be taken from the disk for it.
    pub(super) fn bytes_to_reserve(&self) -> Result<u64, StoreError> {
        let metadata = self.data.metadata().map_err(failure("reading", &self.data_path()))?;
        Ok(self.blob.size.saturating_sub(metadata.len()))
    }

    /// Takes the room for the whole blob before its first byte, where the file system can.
    fn reserve(&self) -> Result<(), StoreError> {
        self.store.reserve(&self.data, &self.data_path(), self.blob.size)
    }

    /// Writes a part of a piece, whole groups of it, if it verifies, and says whether it does. The first
    /// brings the pairs within the piece. The piece is there with its last part: those before it must have
    /// been written. It blocks on the disk.
    pub(crate) fn write_part(
        &self,
        piece: u64,
        offset: usize,
        pairs: &[u8],
        bytes: &[u8],
    ) -> Result<bool, StoreError> {
        if self.has(piece) {
            return Ok(true);
        }
        if offset == 0 && !self.begin(piece, pairs)? {
            return Ok(false);
        }
        let tree = self.coming().get(&piece).map(|coming| Arc::clone(&coming.tree));
        if !tree.is_some_and(|tree| tree.verifies(offset, bytes)) {
            // Another source may have brought the rest of it just now.
            return Ok(self.has(piece));
        }
        let path = self.data_path();
        let written = self.data.write_all_at(bytes, piece * PIECE_SIZE + offset as u64);
        written.map_err(|error| self.store.write_failure(bytes.len() as u64, &path, error))?;
        if offset + bytes.len() == piece_size(self.blob.size, piece) {
            self.mark(piece)?;
        } else if let Some(coming) = self.coming().get_mut(&piece) {
            coming.here = coming.here.max(offset + bytes.len());
            self.grown.send_replace(());
        }
        Ok(true)
    }

    fn mark(&self, piece: u64) -> Result<(), StoreError> {
        let mut pieces = self.lock();
        pieces.insert(piece);
        self.grown.send_replace(());
        let byte = piece / 8;
        let written = self.marks.write_all_at(&[pieces.bits()[byte as usize]], byte);
        let path = || self.store.partial_path(self.blob.hash, "pieces");
        written.map_err(|error| self.store.write_failure(1, &path(), error))?;
        drop(pieces);
        self.coming().remove(&piece);
        Ok(())
    }

    /// The pieces that others may ask for: those that are there, and those of which a part is.
    pub(super) fn offered(&self) -> Pieces {
        let coming = self.coming();
        let mut offered = self.pieces();
        coming.iter().filter(|(_, coming)| coming.here > 0).for_each(|(piece, _)| offered.insert(*piece));
        offered
    }

    /// How many bytes of a piece are there and verified, from its beginning.
    pub(super) fn here_of(&self, piece: u64) -> usize {
        let coming = self.coming().get(&piece).map_or(0, |coming| coming.here);
        if self.has(piece) { piece_size(self.blob.size, piece) } else { coming }
    }

    /// Changes whenever there are more parts of pieces.
    pub(crate) fn growth(&self) -> watch::Receiver<()> {
        self.grown.subscribe()
    }

    /// Whether a piece is there.
    pub(super) fn has(&self, piece: u64) -> bool {
        self.lock().contains(piece)
    }

    /// Where its pieces lie.
    pub(super) fn data(&self) -> &fs::File {
        &self.data
    }

    /// The outboard as far as it came: the upper pairs, and those of the pieces that are there.
    pub(super) fn outboard(&self) -> &fs::File {
        &self.outboard
    }

    /// Makes it a whole blob; every piece must be there.
    pub(crate) async fn finish(&self) -> Result<BlobRef, StoreError> {
        debug_assert!(self.pieces().is_full());
        let (store, blob) = (self.store.clone(), self.blob);
        let data = self.data.try_clone().map_err(failure("opening", &self.data_path()))?;
        blocking(move || {
            let path = store.partial_path(blob.hash, "data");
            data.set_len(blob.size).map_err(failure("writing", &path))?;
            data.sync_all().map_err(failure("writing", &path))?;
            let whole = store.blob_path(blob.hash);
            store.make_parent(&whole)?;
            let outboard = store.partial_path(blob.hash, "outboard");
            if outboard_size(blob.size) > 0 {
                fs::File::open(&outboard)
                    .and_then(|file| file.sync_all())
                    .and_then(|()| fs::rename(&outboard, store.outboard_path(blob.hash)))
                    .map_err(failure("moving", &outboard))?;
            } else {
                remove_file(&outboard)?;
            }
            fs::rename(&path, &whole).map_err(failure("moving", &path))?;
            // Not before: a partial blob that nobody may write to could not be taken up after a crash.
            data.set_permissions(fs::Permissions::from_mode(0o444)).map_err(failure("writing", &whole))?;
            sync_folder(&whole)?;
            store.add_whole(blob);
            remove_file(&store.partial_path(blob.hash, "pieces"))
        })
        .await
        .map(|()| self.blob)
    }

    fn read_bytes(&self, piece: u64) -> io::Result<PieceBuffer> {
        let mut bytes = PieceBuffer::new(piece_size(self.blob.size, piece));
        self.data.read_exact_at(&mut bytes, piece * PIECE_SIZE)?;
        Ok(bytes)
    }

    fn data_path(&self) -> PathBuf {
        self.store.partial_path(self.blob.hash, "data")
    }

    fn outboard_path(&self) -> PathBuf {
        self.store.partial_path(self.blob.hash, "outboard")
    }

    fn coming(&self) -> MutexGuard<'_, BTreeMap<u64, Coming>> {
        self.coming.lock().expect("nothing panics while it holds the coming pieces")
    }

    fn lock(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().expect("nothing panics while it holds the pieces")
    }
}

/// Who was killed while it made a whole blob of a partial one may have moved the outboard and not the data.
fn take_back_outboard(store: &BlobStore, blob: BlobRef) -> Result<(), StoreError> {
    let (partial, moved) = (store.partial_path(blob.hash, "outboard"), store.outboard_path(blob.hash));
    let is_between = store.partial_path(blob.hash, "data").exists() && !partial.exists() && moved.exists();
    if is_between { fs::rename(&moved, &partial).map_err(failure("moving", &moved)) } else { Ok(()) }
}
