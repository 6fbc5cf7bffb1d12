//! A copy of a file that is made piece by piece while the file still comes, so that little is left once it is whole.
//!
//! Pieces may be taken back meanwhile, or turn out to be another file's. So a copy knows which file it is of, and
//! where that is not what became whole, all of it is copied again. Not here: how a copy gets its name.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use protocol::{BlobHash, BlobName, PIECE_SIZE};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use super::export::{UnnamedCopy, copy_failure, copy_to};
use super::{BlobStore, Pieces, StoreError, blocking};
use crate::tree::piece_size;

/// How often it is looked what came.
const LOOK: Duration = Duration::from_millis(100);

/// A copy on its way; dropped, it is made no more.
pub(crate) struct ExportBeside {
    store: BlobStore,
    destination: PathBuf,
    blob: Arc<OnceLock<BlobHash>>,
    copying: JoinHandle<Option<Copy>>,
    stop: CancellationToken,
    _guard: DropGuard,
}

impl BlobStore {
    /// Begins with a copy of what is about to be fetched.
    pub(crate) fn export_beside(&self, name: BlobName, destination: &Path) -> ExportBeside {
        let (store, destination, stop) = (self.clone(), destination.to_owned(), CancellationToken::new());
        let blob = Arc::default();
        let maker = Maker {
            store: store.clone(),
            name,
            blob: Arc::clone(&blob),
            destination: destination.clone(),
            stop: stop.clone(),
        };
        let home = Handle::current();
        // It sleeps most of the time, on a thread that may.
        let copying = spawn_blocking(move || {
            maker.run(&home).unwrap_or_else(|error| {
                // It is tried again once all is here, and said then.
                debug!(%error, "no copy is made while the file comes");
                None
            })
        });
        ExportBeside { store, destination, blob, copying, _guard: stop.clone().drop_guard(), stop }
    }
}

impl ExportBeside {
    /// Takes note of the blob that is said to be what was named. Where it is not, all is copied at the end.
    pub(crate) fn comes_as(&self, blob: BlobHash) {
        // Only the first one is looked for: others come where that is not it.
        let _ = self.blob.set(blob);
    }

    /// Makes it a copy of this blob, which is whole now.
    pub(crate) async fn finish(self, hash: BlobHash) -> Result<(), StoreError> {
        self.stop.cancel();
        let copy = self.copying.await.map_err(|_| StoreError::Abandoned)?;
        let (store, destination) = (self.store, self.destination);
        blocking(move || {
            let (file, blob) = store.use_whole(hash)?.ok_or(StoreError::Missing(hash))?;
            match copy.filter(|copy| copy.is_of(&file)) {
                Some(copy) => copy.complete(&file, &destination),
                None => copy_to(&file, blob.size, &destination),
            }
        })
        .await
    }
}

struct Maker {
    store: BlobStore,
    name: BlobName,
    blob: Arc<OnceLock<BlobHash>>,
    destination: PathBuf,
    stop: CancellationToken,
}

impl Maker {
    /// Copies what comes until it is told to stop.
    fn run(self, home: &Handle) -> io::Result<Option<Copy>> {
        let mut copy = None;
        while !self.stop.is_cancelled() {
            if let Some(coming) = self.coming()?.filter(|coming| !coming.pieces.is_empty()) {
                copy = self.go_on(copy.take(), &coming)?;
                if copy.is_none() {
                    break;
                }
            }
            home.block_on(self.stop.run_until_cancelled(sleep(LOOK)));
        }
        Ok(copy)
    }

    /// Goes on with a copy, or begins one; `None` where it is better made at the end.
    fn go_on(&self, copy: Option<Copy>, coming: &Coming) -> io::Result<Option<Copy>> {
        // The room of one that is given up is free before another takes it.
        let going_on = copy.filter(|copy| copy.goes_on_with(coming));
        let begun = match going_on {
            Some(copy) => Some(copy),
            None => Copy::begin(coming, &self.destination)?,
        };
        let Some(mut copy) = begun else { return Ok(None) };
        copy.go_on(coming, &self.stop)?;
        Ok(Some(copy))
    }

    /// What is here now of a file or blob that comes.
    fn coming(&self) -> io::Result<Option<Coming>> {
        let index = self.store.index();
        let (file, blob) = match self.name {
            BlobName::Blake3(hash) => (None, Some(hash)),
            BlobName::Sha256(sha256) => {
                let file = index.unproven.get(&sha256).and_then(Weak::upgrade);
                let said = index.said.get(&sha256).map(|blob| blob.hash);
                (file, said.or(self.blob.get().copied()))
            }
        };
        let partial = blob.and_then(|hash| index.partial.get(&hash)).and_then(Weak::upgrade);
        drop(index);
        let (data, size, pieces, taken_back) = match (file, partial) {
            (Some(file), _) => {
                let taken_back = TakenBack::now(file.taken_back());
                (file.data().try_clone()?, file.file().size, file.pieces(), Some(taken_back))
            }
            // What is verified is not taken back.
            (None, Some(partial)) => {
                (partial.data().try_clone()?, partial.blob().size, partial.pieces(), None)
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(Coming { inode: inode(&data)?, data, size, pieces, taken_back }))
    }
}

/// What is here of a file that comes. Whoever fills it is not held up by this.
struct Coming {
    data: fs::File,
    inode: (u64, u64),
    size: u64,
    pieces: Pieces,
    taken_back: Option<TakenBack>,
}

/// How often pieces of a file were taken back, and how often they had been before its pieces were looked at.
#[derive(Clone)]
struct TakenBack {
    count: Arc<AtomicU64>,
    before: u64,
}

impl TakenBack {
    fn now(count: &Arc<AtomicU64>) -> Self {
        Self { count: Arc::clone(count), before: count.load(Ordering::SeqCst) }
    }

    fn none_since(&self) -> bool {
        self.count.load(Ordering::SeqCst) == self.before
    }
}

/// What is copied already, and of which file.
struct Copy {
    draft: UnnamedCopy,
    inode: (u64, u64),
    size: u64,
    pieces: Pieces,
    taken_back: Option<TakenBack>,
}

impl Copy {
    /// Nothing of it yet; `None` where it is better made at the end: it would take no room and no time there, or
    /// room that what comes may need.
    fn begin(coming: &Coming, destination: &Path) -> io::Result<Option<Self>> {
        let Some(draft) = UnnamedCopy::begin_early(&coming.data, coming.size, destination)? else {
            return Ok(None);
        };
        let (inode, size, taken_back) = (coming.inode, coming.size, coming.taken_back.clone());
        Ok(Some(Self { draft, inode, size, pieces: Pieces::none(coming.pieces.count()), taken_back }))
    }

    /// Whether what is copied is of this file, and nothing of that was taken back.
    fn goes_on_with(&self, coming: &Coming) -> bool {
        self.inode == coming.inode
            && self.taken_back.is_some() == coming.taken_back.is_some()
            && self.taken_back.as_ref().is_none_or(TakenBack::none_since)
    }

    /// The same for one that is whole now.
    fn is_of(&self, whole: &fs::File) -> bool {
        inode(whole).is_ok_and(|inode| inode == self.inode)
            && self.taken_back.as_ref().is_none_or(TakenBack::none_since)
    }

    /// Copies what came since.
    fn go_on(&mut self, coming: &Coming, stop: &CancellationToken) -> io::Result<()> {
        let mut bytes = Vec::new();
        for piece in self.pieces.missing_from(&coming.pieces, u64::MAX).into_iter().flatten() {
            if stop.is_cancelled() {
                break;
            }
            self.copy(piece, &coming.data, &mut bytes)?;
        }
        Ok(())
    }

    fn complete(mut self, whole: &fs::File, destination: &Path) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        let lacking = self.pieces.missing_from(&Pieces::all(self.pieces.count()), u64::MAX);
        let copied = lacking.into_iter().flatten().try_for_each(|piece| self.copy(piece, whole, &mut bytes));
        copied.map_err(|error| copy_failure(self.size, destination, error))?;
        self.draft.finish(self.size, destination)
    }

    fn copy(&mut self, piece: u64, from: &fs::File, bytes: &mut Vec<u8>) -> io::Result<()> {
        bytes.resize(piece_size(self.size, piece), 0);
        from.read_exact_at(bytes, piece * PIECE_SIZE)?;
        self.draft.file().write_all_at(bytes, piece * PIECE_SIZE)?;
        self.pieces.insert(piece);
        Ok(())
    }
}

/// Which file it is, whatever its name.
fn inode(file: &fs::File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use protocol::{FileRef, PeerId, Sha256};
    use sha2::Digest;
    use tokio::time::timeout;

    use super::*;
    use crate::store::{Giver, UnprovenFile};

    struct Made {
        folder: tempfile::TempDir,
        store: BlobStore,
        bytes: Vec<u8>,
        file: FileRef,
    }

    async fn made() -> Made {
        // A file system that copies at no cost makes nothing beside.
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let store = BlobStore::open(folder.path().join("store")).await.expect("a store");
        let bytes: Vec<u8> = (0..3 * PIECE_SIZE + 5).map(|index| (index * 31 % 251) as u8).collect();
        let sha256 = Sha256(sha2::Sha256::digest(&bytes).into());
        let file = FileRef { sha256, size: bytes.len() as u64 };
        Made { folder, store, bytes, file }
    }

    impl Made {
        fn piece(&self, piece: u64) -> &[u8] {
            let from = (piece * PIECE_SIZE) as usize;
            &self.bytes[from..self.bytes.len().min(from + PIECE_SIZE as usize)]
        }

        fn destination(&self) -> PathBuf {
            self.folder.path().join("copy")
        }

        /// The rest comes, and then the copy is there as a whole, and not before it is asked for.
        async fn finishes(&self, unproven: &Arc<UnprovenFile>, rest: &[u64], copy: ExportBeside) {
            for piece in rest {
                let written = unproven.write_piece(*piece, self.piece(*piece), Giver::Origin);
                assert!(written.expect("there is room"));
            }
            let proof = unproven.prove().await.expect("all pieces are there");
            let blob = unproven.keep(proof).await.expect("there is room");
            assert!(!self.destination().exists(), "it was not asked for yet");
            copy.finish(blob.hash).await.expect("there is room");
            assert!(fs::read(self.destination()).expect("it is there") == self.bytes, "other bytes");
        }

        /// Waits until so many bytes lie in what is being copied.
        async fn copied(&self, end: u64) {
            let is_copied = |entry: fs::DirEntry| {
                let mut last = [0];
                let name = entry.file_name().to_string_lossy().starts_with(super::super::export::UNFINISHED);
                let read =
                    fs::File::open(entry.path()).and_then(|file| file.read_exact_at(&mut last, end - 1));
                name && read.is_ok() && last[0] == self.bytes[end as usize - 1]
            };
            until(|| fs::read_dir(self.folder.path()).expect("own folder").flatten().any(is_copied)).await;
        }
    }

    async fn until(is_so: impl Fn() -> bool) {
        let looking = async {
            while !is_so() {
                sleep(LOOK / 10).await;
            }
        };
        timeout(Duration::from_secs(30), looking).await.expect("it comes about");
    }

    #[tokio::test]
    async fn what_comes_is_copied_before_it_is_whole_and_the_rest_then() {
        let made = made().await;
        let copy = made.store.export_beside(made.file.sha256.into(), &made.destination());
        let unproven = made.store.unproven(made.file).await.expect("there is room");
        unproven.hash_beside();
        for piece in [2, 0] {
            assert!(unproven.write_piece(piece, made.piece(piece), Giver::Origin).expect("there is room"));
        }
        made.copied(3 * PIECE_SIZE).await;
        made.finishes(&unproven, &[1, 3], copy).await;
    }

    #[tokio::test]
    async fn what_was_copied_and_taken_back_is_copied_again() {
        let made = made().await;
        let copy = made.store.export_beside(made.file.sha256.into(), &made.destination());
        let unproven = made.store.unproven(made.file).await.expect("there is room");
        unproven.hash_beside();
        // The last byte is right, and the first is not.
        let mut wrong = made.piece(0).to_vec();
        wrong[0] ^= 1;
        let liar = Giver::Peer(PeerId([9; 32]));
        assert!(unproven.write_piece(0, &wrong, liar).expect("there is room"));
        made.copied(PIECE_SIZE).await;
        unproven.distrust(|_, _| false).await.expect("own folder");
        made.finishes(&unproven, &[0, 1, 2, 3], copy).await;
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_copy_that_nobody_waits_for() {
        let made = made().await;
        let copy = made.store.export_beside(made.file.sha256.into(), &made.destination());
        let unproven = made.store.unproven(made.file).await.expect("there is room");
        assert!(unproven.write_piece(0, made.piece(0), Giver::Origin).expect("there is room"));
        made.copied(PIECE_SIZE).await;
        drop(copy);
        until(|| fs::read_dir(made.folder.path()).expect("own folder").count() == 1).await;
    }
}
