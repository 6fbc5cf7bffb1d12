//! The log of one preparation: a file for people, and the last lines for the error that ends it.
//!
//! Not here: what is worth a line.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// How many lines an error shows.
const TAIL: usize = 40;
/// The longest line that is kept, in characters.
const LONGEST: usize = 2000;

/// Where the steps of a preparation and the programs that they start write, line by line. A clone writes to the
/// same log.
#[derive(Clone, Debug, Default)]
pub struct PrepareLog(Arc<Mutex<Written>>);

#[derive(Debug, Default)]
struct Written {
    file: Option<File>,
    tail: VecDeque<String>,
}

impl PrepareLog {
    /// A log in this file, in place of what it held.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = Some(File::create(path)?);
        Ok(Self(Arc::new(Mutex::new(Written { file, tail: VecDeque::new() }))))
    }

    /// A log that is kept in memory alone, of which only the last lines are there.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// Writes one line. A full disk costs the line and not the preparation, which will notice by itself.
    pub fn line(&self, line: &str) {
        let line: String = line.chars().filter(|c| !c.is_control() || *c == '\t').take(LONGEST).collect();
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &mut written.file {
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
}
