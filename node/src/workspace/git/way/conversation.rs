//! How libgit2 comes to take a way, and what it says and hears on it.
//!
//! Not here: how a question goes out and an answer comes in.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::sync::{Arc, Once};

use bytes::{Buf, Bytes};
use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream, Transport, register};
use reqwest::Response;

use super::Way;
use crate::workspace::git::GitError;

/// How many bytes a server may take to say what branches and tags it has, which is in memory as a whole.
const MAX_LIST: u64 = 64 << 20;

thread_local! {
    /// What libgit2 is to take on this thread: it makes its ways from an address alone.
    static LENT: RefCell<Option<Arc<Way>>> = const { RefCell::new(None) };
}

impl Way {
    /// Does what fetches over http and https, with this as its way.
    pub(in crate::workspace::git) fn lend<T>(self: &Arc<Self>, fetch: impl FnOnce() -> T) -> T {
        replace_ways();
        LENT.set(Some(Arc::clone(self)));
        let fetched = fetch();
        LENT.take();
        fetched
    }
}

/// Has libgit2 take the way that is lent instead of its own.
fn replace_ways() {
    static REPLACED: Once = Once::new();
    REPLACED.call_once(|| {
        for scheme in ["http", "https"] {
            #[expect(unsafe_code, reason = "libgit2 has no other way to say it")]
            // SAFETY: the list that this changes is read where a connection is made, which this process does after
            // this call alone, and written nowhere else.
            let replaced = unsafe {
                register(scheme, |remote| {
                    let way = LENT.with_borrow(Option::clone);
                    let way = way.ok_or_else(|| git2::Error::from_str("no way is lent to this thread"))?;
                    Transport::smart(remote, true, Lent(way))
                })
            };
            debug_assert!(replaced.is_ok(), "{replaced:?}");
        }
    });
}

/// A way in libgit2's hands.
struct Lent(Arc<Way>);

impl SmartSubtransport for Lent {
    fn action(&self, _url: &str, service: Service) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        let (question, most) = match service {
            Service::UploadPackLs => (None, self.0.most.min(MAX_LIST)),
            Service::UploadPack => (Some(Vec::new()), self.0.most),
            _ => return Err(git2::Error::from_str("nothing is pushed")),
        };
        let way = Arc::clone(&self.0);
        Ok(Box::new(Conversation { way, question, most, answer: None, piece: Bytes::new() }))
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// One question of libgit2's and its answer.
struct Conversation {
    way: Arc<Way>,
    /// What is asked for; `None` for what the upstream has at all.
    question: Option<Vec<u8>>,
    /// How many bytes are taken.
    most: u64,
    answer: Option<Response>,
    /// What of the answer came and was not read yet.
    piece: Bytes,
}

impl Conversation {
    /// Has some of the answer to be read, unless it is at its end.
    fn fill(&mut self) -> Result<(), GitError> {
        let answer = match &mut self.answer {
            Some(answer) => answer,
            none => none.insert(self.way.ask(self.question.take())?),
        };
        while self.piece.is_empty() {
            match self.way.next(answer, self.most)? {
                Some(piece) => self.piece = piece,
                None => break,
            }
        }
        Ok(())
    }
}

impl Read for Conversation {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.fill().map_err(|fault| self.way.end(fault))?;
        let count = self.piece.len().min(into.len());
        self.piece.copy_to_slice(&mut into[..count]);
        Ok(count)
    }
}

impl Write for Conversation {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.question {
            Some(question) => question.write(bytes),
            None => Err(io::Error::other("it was asked already")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
