//! What a ComfyUI process says: a file for people, and its last lines for errors.
//!
//! Not here: reading its pipes, and what the lines tell.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use protocol::RunId;
use tracing::debug;

use super::imports::{FailedImport, failed_imports};

/// How many lines are kept in memory: those of a start with many custom nodes, with a traceback or two.
const LINES: usize = 2_000;
/// How many lines an error shows.
const TAIL: usize = 20;
/// The most bytes of the file. Then it becomes the one before, and another one begins.
const MAX_FILE: u64 = 16 << 20;

/// The lines of one process. A clone is another handle to the same.
#[derive(Clone, Debug)]
pub(super) struct ProcessLog(Arc<Mutex<Written>>);

#[derive(Debug)]
struct Written {
    path: PathBuf,
    file: File,
    bytes: u64,
    lines: VecDeque<String>,
    /// How many there were.
    said: u64,
    run: Option<RunId>,
    /// How many of the last lines are the run's.
    of_run: usize,
}

impl ProcessLog {
    /// A log in this file. What it held is beside it from then on, as that of the process before: `slot-0.1.log`.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let file = begin(path)?;
        Ok(Self(Arc::new(Mutex::new(Written {
            path: path.to_owned(),
            file,
            bytes: 0,
            lines: VecDeque::new(),
            said: 0,
            run: None,
            of_run: 0,
        }))))
    }

    /// Names the run that further lines belong to.
    pub(super) fn set_run(&self, run: Option<RunId>) {
        let mut written = self.written();
        (written.run, written.of_run) = (run, 0);
    }

    /// Takes in one line.
    pub(super) fn line(&self, line: &str) {
        let line: String = line.chars().filter(|c| !c.is_control() || *c == '\t').collect();
        let mut written = self.written();
        let run = written.run.map(|run| run.to_string()).unwrap_or_default();
        debug!(run, line, "comfyui says");
        let written_line = if run.is_empty() { format!("{line}\n") } else { format!("[{run}] {line}\n") };
        if written.bytes + written_line.len() as u64 > MAX_FILE
            && let Ok(file) = begin(&written.path)
        {
            (written.file, written.bytes) = (file, 0);
        }
        written.bytes += written_line.len() as u64;
        // A full disk costs the line and not the run.
        let _ = written.file.write_all(written_line.as_bytes());
        if written.lines.len() == LINES {
            written.lines.pop_front();
        }
        written.lines.push_back(line);
        written.said += 1;
        written.of_run = (written.of_run + 1).min(LINES);
    }

    /// The lines of the run that was named last.
    pub(super) fn of_run(&self) -> Vec<String> {
        let written = self.written();
        written.lines.range(written.lines.len() - written.of_run..).cloned().collect()
    }

    /// How many lines there were.
    pub(super) fn lines_said(&self) -> u64 {
        self.written().said
    }

    /// All lines that are kept.
    pub(super) fn all(&self) -> Vec<String> {
        self.written().lines.iter().cloned().collect()
    }

    /// The last lines, for an error.
    pub(super) fn tail(&self) -> String {
        let written = self.written();
        let from = written.lines.len().saturating_sub(TAIL);
        written.lines.range(from..).cloned().collect::<Vec<_>>().join("\n")
    }

    /// What it says of custom nodes that did not import.
    pub(super) fn failed_imports(&self) -> Vec<FailedImport> {
        failed_imports(self.written().lines.make_contiguous())
    }

    fn written(&self) -> std::sync::MutexGuard<'_, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An empty file, with what was in its place beside it.
fn begin(path: &Path) -> io::Result<File> {
    match std::fs::rename(path, path.with_extension("1.log")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_with_the_run_that_they_belong_to() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = ProcessLog::create(&folder.path().join("comfyui.log")).expect("a log");
        log.line("up");
        let run = RunId(uuid::Uuid::from_u128(7));
        log.set_run(Some(run));
        log.line("got\u{1b} prompt");
        let text = std::fs::read_to_string(folder.path().join("comfyui.log")).expect("a file");
        assert_eq!(text, format!("up\n[{run}] got prompt\n"));
        assert_eq!((log.tail().as_str(), log.of_run()), ("up\ngot prompt", vec!["got prompt".to_owned()]));
    }

    #[test]
    fn what_was_said_before_is_kept_beside_and_a_long_log_goes_on_in_another_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("slot-0.log");
        let before = || std::fs::read_to_string(folder.path().join("slot-0.1.log")).expect("a file");
        ProcessLog::create(&path).expect("a log").line("why it died");
        let log = ProcessLog::create(&path).expect("a log");
        assert_eq!(before(), "why it died\n");
        let long = "x".repeat(1 << 20);
        (0..16).for_each(|_| log.line(&long));
        log.line("the last");
        assert!(before().starts_with(&long));
        assert!(std::fs::read_to_string(&path).expect("a file").ends_with("the last\n"));
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 2);
    }
}
