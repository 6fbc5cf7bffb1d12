//! Ends of runs that no coordinator has recorded yet, kept with their outputs across restarts.
//!
//! Each is one JSON file, written before the coordinator hears of it. Not here: sending them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use mesh::store::{BlobHold, BlobStore, StoreError};
use protocol::message::{Outcome, RunEnded};
use protocol::{BlobHash, OutputFile, RunId};
use tracing::warn;

/// An end that could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// A file of the folder cannot be read or written.
    #[error("`{}` cannot be read or written", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An output could not be stored.
    #[error("an output could not be stored")]
    Store(#[from] StoreError),
}

/// The ends that wait for their acknowledgement.
pub struct Ends {
    folder: PathBuf,
    blobs: BlobStore,
    /// Held while outputs are stored or removed, so that none is removed that another run just made too.
    outputs: tokio::sync::Mutex<()>,
    kept: Mutex<BTreeMap<RunId, Kept>>,
}

/// An end that waits, with its outputs, which are not evicted meanwhile.
struct Kept {
    ended: RunEnded,
    _outputs: Vec<BlobHold>,
}

impl Kept {
    fn new(ended: RunEnded, blobs: &BlobStore) -> Self {
        let held = outputs(&ended).map(|hash| blobs.hold(hash)).collect();
        Self { ended, _outputs: held }
    }
}

/// A file that a run made, before it is a blob.
#[derive(Debug, Clone)]
pub struct NewOutput {
    /// The output's name in the workflow's interface.
    pub output: String,
    /// Its place among the files of that output.
    pub index: u32,
    /// A file name for people.
    pub file_name: String,
    /// Its media type.
    pub media_type: String,
    /// Where it lies.
    pub path: PathBuf,
}

impl Ends {
    /// Reads what an earlier process left. An end whose outputs are gone is none: its run is done again.
    pub async fn open(folder: &Path, blobs: BlobStore) -> Result<Self, KeepError> {
        let error = |source| KeepError::File { path: folder.to_owned(), source };
        tokio::fs::create_dir_all(folder).await.map_err(error)?;
        let mut kept = BTreeMap::new();
        let mut entries = tokio::fs::read_dir(folder).await.map_err(error)?;
        while let Some(entry) = entries.next_entry().await.map_err(error)? {
            let path = entry.path();
            let error = |source| KeepError::File { path: path.clone(), source };
            // A file that a crash cut short was never told to anybody.
            let is_whole = path.extension().is_some_and(|extension| extension == "json");
            let bytes = if is_whole { tokio::fs::read(&path).await.map_err(error)? } else { Vec::new() };
            match serde_json::from_slice::<RunEnded>(&bytes) {
                Ok(ended) if are_here(&ended, &blobs).await? => {
                    kept.insert(ended.lease.run, Kept::new(ended, &blobs));
                }
                _ => {
                    warn!(file = %path.display(), "end of a run cannot be presented any more");
                    tokio::fs::remove_file(&path).await.map_err(error)?;
                }
            }
        }
        let outputs = tokio::sync::Mutex::default();
        Ok(Self { folder: folder.to_owned(), blobs, outputs, kept: Mutex::new(kept) })
    }

    /// Stores the outputs of a run and keeps its end; from then on it survives this process.
    pub async fn keep_success(
        &self,
        mut ended: RunEnded,
        outputs: Vec<NewOutput>,
    ) -> Result<RunEnded, KeepError> {
        let _outputs = self.outputs.lock().await;
        let mut files = Vec::with_capacity(outputs.len());
        for NewOutput { output, index, file_name, media_type, path } in outputs {
            let blob = self.blobs.import_file(&path).await?;
            files.push(OutputFile { output, index, file_name, media_type, blob });
        }
        ended.outcome = Outcome::Succeeded(files);
        let kept = Kept::new(ended.clone(), &self.blobs);
        self.write(&ended).await?;
        self.lock().insert(ended.lease.run, kept);
        Ok(ended)
    }

    /// Keeps the end of a run that made nothing.
    pub async fn keep_failure(&self, ended: RunEnded) -> Result<(), KeepError> {
        self.write(&ended).await?;
        self.lock().insert(ended.lease.run, Kept::new(ended, &self.blobs));
        Ok(())
    }

    /// All that wait for their acknowledgement, the latest run last.
    pub fn kept(&self) -> Vec<RunEnded> {
        self.lock().values().map(|kept| kept.ended.clone()).collect()
    }

    /// Forgets an end that is recorded, and its outputs unless another end has them too.
    pub async fn forget(&self, run: RunId) -> Result<(), KeepError> {
        let _outputs = self.outputs.lock().await;
        let Some(Kept { ended, .. }) = self.lock().remove(&run) else { return Ok(()) };
        let path = self.path(run);
        tokio::fs::remove_file(&path).await.map_err(|source| KeepError::File { path, source })?;
        let still_kept: Vec<BlobHash> = self.lock().values().flat_map(|kept| outputs(&kept.ended)).collect();
        for hash in outputs(&ended).filter(|hash| !still_kept.contains(hash)) {
            self.blobs.remove(hash).await?;
        }
        Ok(())
    }

    async fn write(&self, ended: &RunEnded) -> Result<(), KeepError> {
        let path = self.path(ended.lease.run);
        let temporary = path.with_extension("new");
        let bytes = serde_json::to_vec(ended).expect("an end has only text keys");
        let written = async {
            tokio::fs::write(&temporary, bytes).await?;
            tokio::fs::File::open(&temporary).await?.sync_all().await?;
            tokio::fs::rename(&temporary, &path).await
        };
        written.await.map_err(|source| KeepError::File { path: path.clone(), source })
    }

    fn path(&self, run: RunId) -> PathBuf {
        self.folder.join(format!("{run}.json"))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RunId, Kept>> {
        self.kept.lock().expect("nothing panics while it holds the ends")
    }
}

async fn are_here(ended: &RunEnded, blobs: &BlobStore) -> Result<bool, StoreError> {
    for hash in outputs(ended) {
        if blobs.check(hash).await?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

fn outputs(ended: &RunEnded) -> impl Iterator<Item = BlobHash> {
    let files = match &ended.outcome {
        Outcome::Succeeded(files) => files.as_slice(),
        Outcome::Failed(_) => &[],
    };
    files.iter().map(|file| file.blob.hash)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use protocol::{JobId, Lease, LeaseId};

    use super::*;

    fn success(counter: u64) -> RunEnded {
        let id = LeaseId { epoch: 1, counter };
        let run = RunId(uuid::Uuid::from_u128(counter.into()));
        let lease = Lease { id, job: JobId(uuid::Uuid::from_u128(1)), run };
        RunEnded { lease, outcome: Outcome::Succeeded(vec![]), fetched: vec![], executed: Duration::ZERO }
    }

    fn picture(path: &Path) -> Vec<NewOutput> {
        let (output, file_name) = ("image".to_owned(), "a.png".to_owned());
        let media_type = "image/png".to_owned();
        vec![NewOutput { output, index: 0, file_name, media_type, path: path.to_owned() }]
    }

    #[tokio::test]
    async fn end_survives_a_restart_until_it_is_recorded() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let blobs = BlobStore::open(&folder.path().join("blobs")).await.expect("opens");
        let file = folder.path().join("made.png");
        std::fs::write(&file, b"pixels").expect("writes");
        let (first, second) = (success(1), success(2));

        let ends = Ends::open(&folder.path().join("ends"), blobs.clone()).await.expect("opens");
        let kept = ends.keep_success(first.clone(), picture(&file)).await.expect("keeps");
        ends.keep_success(second.clone(), picture(&file)).await.expect("keeps");
        let blob = outputs(&kept).next().expect("one output");
        std::fs::write(folder.path().join("ends/cut-short.json"), b"{").expect("writes");
        let whole = serde_json::to_vec(&success(3)).expect("only text keys");
        std::fs::write(folder.path().join("ends/never-named.new"), whole).expect("writes");

        let ends = Ends::open(&folder.path().join("ends"), blobs.clone()).await.expect("opens again");
        assert_eq!(ends.kept().len(), 2);
        ends.forget(first.lease.run).await.expect("forgets");
        assert!(blobs.contains(blob), "the second end has the same output");
        ends.forget(second.lease.run).await.expect("forgets");
        assert!(!blobs.contains(blob));
        assert_eq!(std::fs::read_dir(folder.path().join("ends")).expect("reads").count(), 0);
    }

    #[tokio::test]
    async fn end_whose_output_is_gone_is_not_presented() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let blobs = BlobStore::open(&folder.path().join("blobs")).await.expect("opens");
        let file = folder.path().join("made.png");
        std::fs::write(&file, b"pixels").expect("writes");
        let ends = Ends::open(&folder.path().join("ends"), blobs.clone()).await.expect("opens");
        let kept = ends.keep_success(success(1), picture(&file)).await.expect("keeps");
        blobs.remove(outputs(&kept).next().expect("one output")).await.expect("removes");
        let ends = Ends::open(&folder.path().join("ends"), blobs).await.expect("opens again");
        assert_eq!(ends.kept(), []);
    }
}
