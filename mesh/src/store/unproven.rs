//! A file that only its SHA-256 names, while it is put together of pieces from anywhere.
//!
//! Its pieces prove nothing by themselves: they are kept with the name of who gave them, and served to
//! others who put the same file together. Beside that its SHA-256 and its hash tree are computed; only when
//! the whole is proven does it become a blob, under both names. What a piece was when it was written is
//! kept on the disk, so that a crash costs the pieces that were being written and no others. Not here: whom
//! to ask, and what to do with whoever lied.

mod follower;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use protocol::{Alias, BlobRef, FileRef, PIECE_SIZE, PeerId, Sha256};
use tokio::sync::watch;

use self::follower::Follower;
use super::draft::sync_folder;
use super::{BlobHold, BlobStore, Pieces, StoreError, blocking, failure, remove_file};
use crate::tree::{Assembly, MAX_BLOB_SIZE, PieceLeaves, piece_size};

/// What is kept of a piece on the disk: what it was when it was written.
pub(super) const MARK: usize = 32;

/// Who gave a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Giver {
    /// A URL of the file.
    Origin,
    /// A peer, which has it from wherever.
    Peer(PeerId),
    /// Somebody, before this process began.
    Unknown,
}

/// What all pieces together are.
#[derive(Debug)]
pub struct Proof {
    /// The blob that they are.
    pub blob: BlobRef,
    /// Their SHA-256, if it was computed.
    pub sha256: Option<Sha256>,
    outboard: Vec<u8>,
}

/// What is there of the file.
#[derive(Debug)]
pub struct UnprovenFile {
    file: FileRef,
    store: BlobStore,
    _hold: BlobHold,
    _filling: Filling,
    data: fs::File,
    marks: fs::File,
    state: Mutex<State>,
    follower: Follower,
    /// How often pieces were taken back.
    taken_back: Arc<AtomicU64>,
    /// Changes with every piece that comes.
    grown: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    pieces: Pieces,
    givers: BTreeMap<u64, Giver>,
    assembly: Assembly,
    /// What was taken back because its giver is not trusted: who gave it, and what it was.
    suspects: BTreeMap<u64, (Giver, [u8; MARK])>,
    /// Peers that gave something else than the origin did.
    liars: Vec<(PeerId, u64)>,
}

/// Nobody takes the bytes of the file to another name as long as this lives.
#[derive(Debug)]
struct Filling {
    store: BlobStore,
    sha256: Sha256,
}

impl Filling {
    fn new(store: &BlobStore, sha256: Sha256) -> Self {
        store.index().begin_filling(sha256);
        Self { store: store.clone(), sha256 }
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.store.index().end_filling(self.sha256);
    }
}

impl BlobStore {
    /// What there is of a file that only its SHA-256 names, ready to take what is missing.
    pub async fn unproven(&self, file: FileRef) -> Result<Arc<UnprovenFile>, StoreError> {
        let store = self.clone();
        blocking(move || {
            if file.size > MAX_BLOB_SIZE {
                return Err(StoreError::TooLarge { limit: MAX_BLOB_SIZE });
            }
            let known = store.index().unproven.get(&file.sha256).and_then(Weak::upgrade);
            if let Some(unproven) = known.filter(|unproven| unproven.file == file) {
                return Ok(unproven);
            }
            let unproven = Arc::new(UnprovenFile::open(&store, file)?);
            let mut index = store.index();
            index.unproven.retain(|_, unproven| unproven.strong_count() > 0);
            index.unproven.insert(file.sha256, Arc::downgrade(&unproven));
            store.inner.begun.send_replace(());
            Ok(unproven)
        })
        .await
    }
}

impl UnprovenFile {
    fn open(store: &BlobStore, file: FileRef) -> Result<Self, StoreError> {
        let open = |part| {
            let path = store.partial_path(file.sha256, part);
            let mut options = fs::File::options();
            let options = options.read(true).write(true).create(true).truncate(false);
            options.open(&path).map_err(|error| store.write_failure(file.size, &path, error))
        };
        let count = file.size.div_ceil(PIECE_SIZE);
        let state = State {
            pieces: Pieces::none(count),
            givers: BTreeMap::new(),
            assembly: Assembly::new(file.size),
            suspects: BTreeMap::new(),
            liars: Vec::new(),
        };
        let unproven = Self {
            file,
            store: store.clone(),
            _hold: store.hold(file.sha256),
            _filling: Filling::new(store, file.sha256),
            data: open("data")?,
            marks: open("pieces")?,
            state: Mutex::new(state),
            follower: Follower::new(count),
            taken_back: Arc::default(),
            grown: watch::Sender::new(()),
        };
        store.reserve(&unproven.data, &store.partial_path(file.sha256, "data"), file.size)?;
        unproven.resume()?;
        Ok(unproven)
    }

    /// Takes up what an earlier process left, as far as it is still what it was.
    fn resume(&self) -> Result<(), StoreError> {
        let mut state = self.lock();
        let count = self.count();
        let path = self.store.partial_path(self.file.sha256, "pieces");
        // A file that is too short misses only pieces that were never there.
        let length = count * MARK as u64;
        let sized = self.marks.set_len(length);
        sized.map_err(|error| self.store.write_failure(length, &path, error))?;
        let mut marks = vec![0; count as usize * MARK];
        self.marks.read_exact_at(&mut marks, 0).map_err(failure("reading", &path))?;
        let (marks, _) = marks.as_chunks::<MARK>();
        let mut bytes = Vec::new();
        for (piece, mark) in (0..count).zip(marks).filter(|(_, mark)| **mark != [0; MARK]) {
            if self.read_into(piece, &mut bytes).is_err() {
                continue;
            }
            let leaves = PieceLeaves::of(self.file.size, piece, &bytes);
            if leaves.digest() == *mark {
                state.take(piece, Giver::Unknown, &leaves);
            }
        }
        Ok(())
    }

    /// The file that it becomes.
    pub fn file(&self) -> FileRef {
        self.file
    }

    /// The pieces that are there.
    pub fn pieces(&self) -> Pieces {
        self.lock().pieces.clone()
    }

    /// Changes whenever there is a further piece.
    pub fn grown(&self) -> watch::Receiver<()> {
        self.grown.subscribe()
    }

    /// How many bytes those are.
    pub fn bytes(&self) -> u64 {
        let state = self.lock();
        let last = self.count().saturating_sub(1);
        let lacking = PIECE_SIZE - piece_size(self.file.size, last) as u64;
        state.pieces.len() * PIECE_SIZE - if state.pieces.contains(last) { lacking } else { 0 }
    }

    /// Writes a piece, unless it has another length than it must. It blocks on the disk.
    pub fn write_piece(self: &Arc<Self>, piece: u64, bytes: &[u8], giver: Giver) -> Result<bool, StoreError> {
        if piece >= self.count() || bytes.len() != piece_size(self.file.size, piece) {
            return Ok(false);
        }
        let leaves = PieceLeaves::of(self.file.size, piece, bytes);
        if self.lock().pieces.contains(piece) {
            return Ok(true);
        }
        let path = self.store.partial_path(self.file.sha256, "data");
        let written = self.data.write_all_at(bytes, piece * PIECE_SIZE);
        written.map_err(|error| self.store.write_failure(bytes.len() as u64, &path, error))?;
        self.mark(piece, &leaves.digest())?;
        self.lock().take(piece, giver, &leaves);
        self.grown.send_replace(());
        self.follow();
        Ok(true)
    }

    /// Computes the SHA-256 beside, from what is there already and from what comes. Must be called where
    /// tokio runs.
    pub fn hash_beside(self: &Arc<Self>) {
        self.follower.enable();
        self.follow();
    }

    /// What all pieces together are; each of them must be there.
    pub async fn prove(self: &Arc<Self>) -> Result<Proof, StoreError> {
        debug_assert!(self.lock().pieces.is_full());
        let sha256 = self.follower.finish().await?;
        let file = Arc::clone(self);
        blocking(move || {
            let (blob, outboard) = file.lock().assembly.finish();
            Ok(Proof { blob, sha256, outboard })
        })
        .await
    }

    /// Makes it a whole blob that was proven to be the file, also by its SHA-256 where that was computed.
    pub async fn keep(self: &Arc<Self>, proof: Proof) -> Result<BlobRef, StoreError> {
        let file = Arc::clone(self);
        blocking(move || {
            let (store, Proof { blob, sha256, outboard }) = (&file.store, proof);
            let path = store.partial_path(file.file.sha256, "data");
            file.data.set_len(blob.size).map_err(failure("writing", &path))?;
            file.data.sync_all().map_err(failure("writing", &path))?;
            let whole = store.blob_path(blob.hash);
            store.make_parent(&whole)?;
            store.save_outboard(blob.hash, &outboard)?;
            match sha256 {
                Some(sha256) => store.add_alias(Alias { sha256, blob })?,
                // It is not computed only where a trusted publisher ties it to this blob.
                None => store.add_vouched(Alias { sha256: file.file.sha256, blob })?,
            }
            fs::rename(&path, &whole).map_err(failure("moving", &path))?;
            let permissions = fs::Permissions::from_mode(0o444);
            file.data.set_permissions(permissions).map_err(failure("writing", &whole))?;
            sync_folder(&whole)?;
            store.add_whole(blob);
            store.index().unproven.remove(&file.file.sha256);
            store.inner.begun.send_replace(());
            for part in ["pieces", "outboard"] {
                remove_file(&store.partial_path(file.file.sha256, part))?;
            }
            Ok(blob)
        })
        .await
    }

    /// Takes back every piece whose giver is none of those that are trusted, to be fetched again; what it
    /// was is compared with what comes then. Says how many there were.
    pub async fn distrust(
        self: &Arc<Self>,
        is_trusted: impl Fn(u64, Giver) -> bool + Send + 'static,
    ) -> Result<u64, StoreError> {
        let file = Arc::clone(self);
        blocking(move || {
            let mut state = file.lock();
            let given: Vec<_> = state.givers.iter().map(|(piece, giver)| (*piece, *giver)).collect();
            let mut count = 0;
            for (piece, giver) in given.into_iter().filter(|(piece, giver)| !is_trusted(*piece, *giver)) {
                if count == 0 {
                    file.taken_back.fetch_add(1, Ordering::SeqCst);
                }
                let mut digest = [0; MARK];
                let path = file.store.partial_path(file.file.sha256, "pieces");
                let read = file.marks.read_exact_at(&mut digest, piece * MARK as u64);
                read.map_err(failure("reading", &path))?;
                state.take_back(piece, giver, digest);
                file.mark(piece, &[0; MARK])?;
                count += 1;
            }
            // The follower asks for the state while it holds its own.
            drop(state);
            file.follower.reset();
            file.follow();
            Ok(count)
        })
        .await
    }

    /// The peers whose pieces were others than the ones that came in their place, each with one of those.
    pub fn liars(&self) -> Vec<(PeerId, u64)> {
        self.lock().liars.clone()
    }

    /// Deletes it.
    pub async fn discard(self: &Arc<Self>) -> Result<(), StoreError> {
        let file = Arc::clone(self);
        blocking(move || {
            let mut state = file.lock();
            (state.pieces, state.givers) = (Pieces::none(file.count()), BTreeMap::new());
            file.store.index().unproven.remove(&file.file.sha256);
            let parts =
                ["data", "pieces", "outboard"].map(|part| file.store.partial_path(file.file.sha256, part));
            parts.iter().try_for_each(|path| remove_file(path))
        })
        .await
    }

    /// Lets the SHA-256 follow, if it waits for a piece that is there now.
    fn follow(self: &Arc<Self>) {
        if self.follower.begins(|piece| self.has(piece)) {
            let file = Arc::clone(self);
            tokio::task::spawn_blocking(move || {
                let read = |piece, bytes: &mut Vec<u8>| {
                    let path = file.store.partial_path(file.file.sha256, "data");
                    file.read_into(piece, bytes).map_err(failure("reading", &path))
                };
                file.follower.run(|piece| file.has(piece), read);
            });
        }
    }

    /// Whether a piece is there.
    pub(super) fn has(&self, piece: u64) -> bool {
        self.lock().pieces.contains(piece)
    }

    /// Whether a piece is there and came from where the file is published, not from a peer.
    pub(super) fn is_from_origin(&self, piece: u64) -> bool {
        self.lock().givers.get(&piece) == Some(&Giver::Origin)
    }

    /// Where its pieces lie.
    pub(super) fn data(&self) -> &fs::File {
        &self.data
    }

    /// Counts how often pieces were taken back: before they are, while nobody can look at them.
    pub(super) fn taken_back(&self) -> &Arc<AtomicU64> {
        &self.taken_back
    }

    fn count(&self) -> u64 {
        self.file.size.div_ceil(PIECE_SIZE)
    }

    fn mark(&self, piece: u64, mark: &[u8; MARK]) -> Result<(), StoreError> {
        let written = self.marks.write_all_at(mark, piece * MARK as u64);
        let path = || self.store.partial_path(self.file.sha256, "pieces");
        written.map_err(|error| self.store.write_failure(MARK as u64, &path(), error))
    }

    fn read_into(&self, piece: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
        bytes.resize(piece_size(self.file.size, piece), 0);
        self.data.read_exact_at(bytes, piece * PIECE_SIZE)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the state")
    }
}

impl State {
    fn take(&mut self, piece: u64, giver: Giver, leaves: &PieceLeaves) {
        self.pieces.insert(piece);
        self.givers.insert(piece, giver);
        self.assembly.take(piece, leaves);
        if let Some((Giver::Peer(peer), before)) = self.suspects.remove(&piece)
            && before != leaves.digest()
            && !self.liars.iter().any(|(liar, _)| *liar == peer)
        {
            self.liars.push((peer, piece));
        }
    }

    fn take_back(&mut self, piece: u64, giver: Giver, digest: [u8; MARK]) {
        self.pieces.remove(piece);
        self.givers.remove(&piece);
        self.suspects.insert(piece, (giver, digest));
    }
}

#[cfg(test)]
mod tests;
