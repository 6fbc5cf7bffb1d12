//! An HTTP server with one file, which gives ranges of it and counts what it sent to whom.
//!
//! It runs in this process and listens in a node of a lab. Not here: how fast it is; that node's link says so.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;

use crate::lab::Lab;

/// How much is sent at a time.
const PART: usize = 64 << 10;
/// What the system may hold of an answer: what it holds counts as sent, also where it never arrives.
const HELD_BY_SYSTEM: usize = 256 << 10;

/// The server; it goes with this process.
pub(crate) struct Origin {
    /// Where the file is.
    pub(crate) url: String,
    sent: Arc<Sent>,
}

/// The bytes of the file that went to each address.
type Sent = Mutex<BTreeMap<IpAddr, u64>>;

impl Origin {
    /// Serves a file in a node of the lab.
    pub(crate) fn start(lab: &Lab, node: usize, file: &Path) -> Result<Self> {
        let (namespace, address) = (lab.namespace(node), lab.address(node));
        let shelf = Arc::new(Shelf { file: File::open(file)?, sent: Arc::default() });
        let sent = Arc::clone(&shelf.sent);
        let listening = thread::spawn(move || -> Result<TcpListener> {
            // For this thread alone, which ends with it; the socket stays there.
            setns(File::open(&namespace)?, CloneFlags::CLONE_NEWNET)?;
            Ok(TcpListener::bind(address)?)
        });
        let listener = listening.join().ok().context("the thread that listens panicked")??;
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shelf = Arc::clone(&shelf);
                // A reader that goes away ends its connection, and nothing else.
                thread::spawn(move || drop(shelf.answer(&stream)));
            }
        });
        Ok(Self { url: format!("http://{address}/model.safetensors"), sent })
    }

    /// How much it sent to whom.
    pub(crate) fn sent(&self) -> BTreeMap<IpAddr, u64> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Shelf {
    file: File,
    sent: Arc<Sent>,
}

impl Shelf {
    /// Answers one request after another.
    fn answer(&self, stream: &TcpStream) -> io::Result<()> {
        setsockopt(stream, SndBuf, &HELD_BY_SYSTEM)?;
        let (mut reader, from) = (BufReader::new(stream), stream.peer_addr()?);
        let size = self.file.metadata()?.len();
        loop {
            let mut wanted = None;
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line)? == 0 {
                    return Ok(());
                }
                let line = line.trim_end().to_ascii_lowercase();
                if line.is_empty() {
                    break;
                }
                wanted = wanted.or_else(|| range(line.strip_prefix("range: bytes=")?, size));
            }
            self.send(stream, from, wanted, size)?;
        }
    }

    fn send(
        &self,
        mut stream: &TcpStream,
        to: SocketAddr,
        wanted: Option<Range<u64>>,
        size: u64,
    ) -> io::Result<()> {
        let status = if wanted.is_some() { "206 Partial Content" } else { "200 OK" };
        let mut left = wanted.unwrap_or(0..size);
        let head = format!(
            "HTTP/1.1 {status}\r\netag: \"1\"\r\naccept-ranges: bytes\r\ncontent-length: {}\r\n\
             content-range: bytes {}-{}/{size}\r\n\r\n",
            left.end - left.start,
            left.start,
            left.end - 1,
        );
        stream.write_all(head.as_bytes())?;
        let mut part = vec![0; PART];
        while left.start < left.end {
            let length = (left.end - left.start).min(PART as u64);
            let part = &mut part[..length as usize];
            self.file.read_exact_at(part, left.start)?;
            stream.write_all(part)?;
            left.start += length;
            *self.sent.lock().unwrap_or_else(PoisonError::into_inner).entry(to.ip()).or_default() += length;
        }
        Ok(())
    }
}

/// A range as a request names it, of a file of this size.
fn range(text: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = text.split_once('-')?;
    let end = last.parse::<u64>().map_or(size, |last| last.saturating_add(1));
    let range = first.parse().ok()?..end.min(size);
    (!range.is_empty()).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_ends_where_the_file_does() {
        assert_eq!(range("0-9", 100), Some(0..10));
        assert_eq!(range("90-", 100), Some(90..100));
        assert_eq!(range("90-200", 100), Some(90..100));
        assert_eq!(range("100-200", 100), None);
        assert_eq!(range("all", 100), None);
    }
}
