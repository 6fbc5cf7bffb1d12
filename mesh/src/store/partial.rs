//! A blob whose hash is known and whose bytes arrive in pieces, each verified before it counts.
//!
//! It survives a restart: the outboard and the pieces on the disk are verified again when it is opened,
//! so a crash in the middle of a write costs that piece and nothing else. Not here: whom to ask.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use protocol::{BlobRef, PIECE_SIZE};
use tokio::sync::watch;

use super::cached::is_in_memory;
use super::draft::sync_folder;
use super::piece_buffer::PieceBuffer;
use super::{BlobHold, BlobStore, Pieces, StoreError, blocking, failure, remove_file};
use crate::tree::{OutboardVerifier, Tree, outboard_size, piece_size};

/// What is there of a blob that is not whole yet.
#[derive(Debug)]
pub struct PartialBlob {
    blob: BlobRef,
    store: BlobStore,
    _hold: BlobHold,
    data: fs::File,
    marks: fs::File,
    /// Set once the outboard is there.
    tree: OnceLock<Tree>,
    /// Held by whoever writes the outboard; that may take a while, and the pieces are looked at meanwhile.
    adding: Mutex<()>,
    pieces: Mutex<Pieces>,
    /// Changes with every piece.
    grown: watch::Sender<()>,
}

impl PartialBlob {
    pub(super) fn open(store: &BlobStore, blob: BlobRef) -> Result<Self, StoreError> {
        let open = |path: PathBuf| {
            let mut options = fs::File::options();
            options
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(failure("opening", &path))
        };
        let partial = Self {
            blob,
            store: store.clone(),
            _hold: store.hold(blob.hash),
            data: open(store.partial_path(blob.hash, "data"))?,
            marks: open(store.partial_path(blob.hash, "pieces"))?,
            tree: OnceLock::new(),
            adding: Mutex::default(),
            pieces: Mutex::new(Pieces::none(blob.pieces())),
            grown: watch::Sender::new(()),
        };
        partial.resume()?;
        Ok(partial)
    }

    /// Takes up what an earlier process left, as far as it verifies.
    fn resume(&self) -> Result<(), StoreError> {
        let mut verifier = OutboardVerifier::new(self.blob);
        let expected = outboard_size(self.blob.size);
        if expected > 0 {
            let path = self.store.partial_path(self.blob.hash, "outboard");
            match fs::metadata(&path) {
                Ok(metadata) if metadata.len() == expected => {}
                _ => return Ok(()),
            }
            let outboard = fs::read(&path).map_err(failure("reading", &path))?;
            if verifier.update(&outboard).is_err() {
                return remove_file(&path);
            }
        }
        let Ok(tree) = verifier.finish() else { return Ok(()) };
        self.reserve()?;
        // It is opened just now, so nobody came first.
        let _ = self.tree.set(tree);
        let path = self.store.partial_path(self.blob.hash, "pieces");
        // A file that is too short misses only marks that were never set.
        let length = self.blob.pieces().div_ceil(8);
        self.marks.set_len(length).map_err(failure("writing", &path))?;
        let mut marked = vec![0; length as usize];
        self.marks.read_exact_at(&mut marked, 0).map_err(failure("reading", &path))?;
        let Some(marked) = Pieces::from_bits(self.blob.pieces(), marked) else { return Ok(()) };
        for piece in (0..self.blob.pieces()).filter(|piece| marked.contains(*piece)) {
            let tree = self.tree.get().expect("it was taken above");
            if self.read_bytes(piece).is_ok_and(|bytes| tree.verifies(piece, &bytes)) {
                self.lock().insert(piece);
            }
        }
        Ok(())
    }

    /// The blob that it becomes.
    pub fn blob(&self) -> BlobRef {
        self.blob
    }

    /// Whether the outboard is still to come: before it, no piece can be verified.
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

    /// Keeps the outboard that `tree` was verified with. It blocks on the disk.
    pub(crate) fn add_outboard(&self, tree: Tree, outboard: &[u8]) -> Result<(), StoreError> {
        debug_assert_eq!(tree.blob(), self.blob);
        self.reserve()?;
        let _adding = self.adding.lock().expect("nothing panics while it writes the outboard");
        // Whoever comes second verified the same tree, and must not cut it short while it is served.
        if self.needs_outboard() {
            let path = self.store.partial_path(self.blob.hash, "outboard");
            if !outboard.is_empty() {
                fs::write(&path, outboard).map_err(failure("writing", &path))?;
            }
            let _ = self.tree.set(tree);
        }
        Ok(())
    }

    /// How many bytes are still to be taken from the disk for it.
    pub(super) fn bytes_to_reserve(&self) -> Result<u64, StoreError> {
        let metadata = self.data.metadata().map_err(failure("reading", &self.data_path()))?;
        Ok(self.blob.size.saturating_sub(metadata.len()))
    }

    /// Takes the room for the whole blob before its first byte, where the file system can.
    fn reserve(&self) -> Result<(), StoreError> {
        let wanted = self.bytes_to_reserve()?;
        if wanted == 0 {
            return Ok(());
        }
        let _room = self.store.make_room(wanted)?;
        let reserved = match self.allocate() {
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::EINVAL) => self.data.set_len(self.blob.size),
            Err(errno) => Err(errno.into()),
        };
        reserved.map_err(|error| self.store.write_failure(wanted, &self.data_path(), error))
    }

    fn allocate(&self) -> Result<(), Errno> {
        // There every page would be touched now and again when it is written: half a second for a GiB.
        if is_in_memory(&self.data) {
            return Ok(());
        }
        fallocate(&self.data, FallocateFlags::empty(), 0, self.blob.size as i64)
    }

    /// Writes a part of a piece, whole groups of it, if it verifies, and says whether it does. The piece is
    /// there with its last part: those before it must have been written. It blocks on the disk.
    pub(crate) fn write_part(&self, piece: u64, offset: usize, bytes: &[u8]) -> Result<bool, StoreError> {
        if !self.tree.get().is_some_and(|tree| tree.verifies_part(piece, offset, bytes)) {
            return Ok(false);
        }
        let path = self.data_path();
        let written = self.data.write_all_at(bytes, piece * PIECE_SIZE + offset as u64);
        written.map_err(|error| self.store.write_failure(bytes.len() as u64, &path, error))?;
        if offset + bytes.len() == piece_size(self.blob.size, piece) {
            self.mark(piece)?;
        }
        Ok(true)
    }

    fn mark(&self, piece: u64) -> Result<(), StoreError> {
        let mut pieces = self.lock();
        pieces.insert(piece);
        self.grown.send_replace(());
        let byte = piece / 8;
        self.marks
            .write_all_at(&[pieces.bits()[byte as usize]], byte)
            .map_err(failure("writing", &self.store.partial_path(self.blob.hash, "pieces")))
    }

    /// Changes whenever there are more pieces.
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

    /// The file with the outboard, also once the blob is whole: whoever is served may ask that late. It
    /// blocks on the disk.
    pub(crate) fn open_outboard(&self) -> io::Result<fs::File> {
        // It is moved and never copied, so it lies in one place or in the other.
        match fs::File::open(self.store.partial_path(self.blob.hash, "outboard")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::File::open(self.store.outboard_path(self.blob.hash))
            }
            opened => opened,
        }
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
            if outboard_size(blob.size) > 0 {
                let outboard = store.partial_path(blob.hash, "outboard");
                fs::File::open(&outboard)
                    .and_then(|file| file.sync_all())
                    .and_then(|()| fs::rename(&outboard, store.outboard_path(blob.hash)))
                    .map_err(failure("moving", &outboard))?;
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

    fn lock(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().expect("nothing panics while it holds the pieces")
    }
}
