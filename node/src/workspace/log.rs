//! The log of one preparation: a file for people, and the last lines for the error that ends it.
//!
//! Not here: what is worth a line.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use protocol::LockfileHash;

/// How many lines an error shows.
const TAIL: usize = 40;
/// The longest line that is kept, in characters.
const LONGEST: usize = 2000;
/// The most bytes of the file.
const MAX_FILE: u64 = 16 << 20;

/// Where the steps of a preparation and the programs that they start write, line by line. A clone writes to the
/// same log.
#[derive(Clone, Debug, Default)]
pub struct PrepareLog(Arc<Mutex<Written>>);

#[derive(Debug, Default)]
struct Written {
    file: Option<File>,
    bytes: u64,
    tail: VecDeque<String>,
}

impl PrepareLog {
    /// A log in this file, in place of what it held.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = Some(File::create(path)?);
        Ok(Self(Arc::new(Mutex::new(Written { file, ..Written::default() }))))
    }

    /// Where the log of a lockfile's latest preparation is, below the folder of workspaces.
    pub fn latest(root: &Path, lockfile: LockfileHash) -> PathBuf {
        root.join("logs").join(format!("{lockfile}.log"))
    }

    /// Where the log of the last one is that failed.
    pub fn last_failed(root: &Path, lockfile: LockfileHash) -> PathBuf {
        root.join("logs").join(format!("{lockfile}.failed.log"))
    }

    /// Keeps the log of the latest one, which failed with this reason, from the next attempt; says where it is.
    pub fn keep_failed(root: &Path, lockfile: LockfileHash, reason: &str) -> io::Result<PathBuf> {
        let (latest, failed) = (Self::latest(root, lockfile), Self::last_failed(root, lockfile));
        let mut file = File::options().append(true).create(true).open(&latest)?;
        writeln!(file, "{reason}")?;
        std::fs::rename(latest, &failed)?;
        Ok(failed)
    }

    /// A log that is kept in memory alone, of which only the last lines are there.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// Writes one line. A full disk costs the line and not the preparation, which will notice by itself; so does a
    /// full file.
    pub fn line(&self, line: &str) {
        let line: String = line.chars().filter(|c| !c.is_control() || *c == '\t').take(LONGEST).collect();
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        written.bytes += line.len() as u64 + 1;
        let has_room = written.bytes <= MAX_FILE;
        if let Some(file) = written.file.as_mut().filter(|_| has_room) {
            let _ = writeln!(file, "{line}");
        }
        if written.tail.len() == TAIL {
            written.tail.pop_front();
        }
        written.tail.push_back(line);
    }

    /// The last lines.
    pub fn tail(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).tail.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_has_every_line_and_the_tail_the_last_ones() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.log");
        let log = PrepareLog::create(&path).expect("a log");
        (0..50).for_each(|number| log.line(&format!("line\u{1b} {number}")));
        let text = std::fs::read_to_string(path).expect("a file");
        assert_eq!(text.lines().count(), 50);
        assert_eq!(log.tail().len(), TAIL);
        assert_eq!(log.tail().last().map(String::as_str), Some("line 49"));
    }

    #[test]
    fn file_has_a_limit_and_the_tail_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.log");
        let log = PrepareLog::create(&path).expect("a log");
        let line = "x".repeat(LONGEST);
        (0..MAX_FILE / LONGEST as u64 + 10).for_each(|_| log.line(&line));
        log.line("the last one");
        let size = std::fs::metadata(path).expect("a file").len();
        assert!(size <= MAX_FILE && size > MAX_FILE - 2 * LONGEST as u64, "{size}");
        assert_eq!(log.tail().last().map(String::as_str), Some("the last one"));
    }

    #[test]
    fn log_of_a_failure_is_kept_from_the_next_attempt() {
        let folder = tempfile::tempdir().expect("a folder");
        let (root, lockfile) = (folder.path(), LockfileHash(protocol::BlobHash([1; 32])));
        std::fs::create_dir(root.join("logs")).expect("made");
        for attempt in ["first", "second"] {
            PrepareLog::create(&PrepareLog::latest(root, lockfile)).expect("a log").line(attempt);
            let kept = PrepareLog::keep_failed(root, lockfile, "the disk is full").expect("kept");
            PrepareLog::create(&PrepareLog::latest(root, lockfile)).expect("a log").line("next");
            assert_eq!(kept, PrepareLog::last_failed(root, lockfile));
            assert_eq!(
                std::fs::read_to_string(kept).expect("a log"),
                format!("{attempt}\nthe disk is full\n")
            );
        }
    }
}
