//! One file on the internet: its URLs, which of them serve it, and where they lead.
//!
//! What one range taught about a URL is used by the next: a signed link to where the bytes lie, the version
//! of the file, and that a URL is of no use. Not here: a range that is being read.

use std::sync::{Arc, Mutex, MutexGuard};

use protocol::PIECE_SIZE;
use reqwest::Url;

use crate::origin::OriginReader;
use crate::origin::answer::Version;
use crate::origin::error::{OriginError, OriginFailed, host, shown};
use crate::origin::reading::Reading;
use crate::tree::MAX_BLOB_SIZE;

/// How often the file at a URL may change while it is read.
const MAX_CHANGES: u32 = 2;

/// A file that can be read at several URLs. A clone is another handle to the same file.
#[derive(Clone)]
pub struct Origin {
    inner: Arc<Inner>,
}

struct Inner {
    reader: OriginReader,
    size: u64,
    mirrors: Mutex<Vec<Mirror>>,
    /// Held by the one who reads the file from its beginning, where there are no ranges.
    from_beginning: Arc<tokio::sync::Mutex<()>>,
}

/// What is known of one URL.
struct Mirror {
    shown: String,
    url: Option<Url>,
    link: Option<Url>,
    version: Option<Version>,
    changes: u32,
    has_ranges: bool,
    failure: Option<Arc<OriginError>>,
}

/// A URL that is to be asked.
pub(super) struct Choice {
    pub(super) mirror: usize,
    pub(super) url: Url,
    /// Where it led before.
    pub(super) link: Option<Url>,
    pub(super) version: Option<Version>,
    pub(super) has_ranges: bool,
}

impl Origin {
    /// The file of `size` bytes at these URLs, the preferred first.
    pub fn new(reader: OriginReader, urls: &[String], size: u64) -> Self {
        let mirror = |text: &String| {
            let url = Url::parse(text).ok();
            let failure = url.is_none().then(|| Arc::new(OriginError::NoUrl));
            let shown = shown(text);
            Mirror { shown, url, link: None, version: None, changes: 0, has_ranges: true, failure }
        };
        let mirrors = Mutex::new(urls.iter().map(mirror).collect());
        let size = size.min(MAX_BLOB_SIZE);
        Self { inner: Arc::new(Inner { reader, size, mirrors, from_beginning: Arc::default() }) }
    }

    /// How many bytes it has.
    pub fn size(&self) -> u64 {
        self.inner.size
    }

    /// Reads these pieces of 1 MiB. Where no URL knows ranges, the file is read from its beginning to its
    /// end, and all of its pieces come.
    pub fn read(&self, pieces: std::ops::Range<u64>) -> Reading {
        let count = self.inner.size.div_ceil(PIECE_SIZE);
        Reading::new(self.clone(), pieces.start.min(count)..pieces.end.min(count))
    }

    /// Whether there is no URL at all.
    pub fn is_empty(&self) -> bool {
        self.mirrors().is_empty()
    }

    /// The host of the preferred URL.
    pub fn host(&self) -> String {
        let mirrors = self.mirrors();
        mirrors.iter().find_map(|mirror| mirror.url.as_ref().map(host)).unwrap_or_default()
    }

    /// Whether some URL that may still help knows ranges, as far as was seen.
    pub fn has_ranges(&self) -> bool {
        self.mirrors().iter().any(|mirror| mirror.failure.is_none() && mirror.has_ranges)
    }

    /// Whether some URL may still help.
    pub fn is_usable(&self) -> bool {
        self.mirrors().iter().any(|mirror| mirror.failure.is_none())
    }

    /// Gives up on a URL whose file, read whole, was another one.
    pub fn blame(&self, mirror: usize) {
        self.fail(mirror, OriginError::WrongSha256);
    }

    /// How a URL is shown.
    pub fn shown(&self, mirror: usize) -> String {
        self.mirrors().get(mirror).map(|mirror| mirror.shown.clone()).unwrap_or_default()
    }

    /// Each URL that does not help, and why.
    pub fn failures(&self) -> OriginFailed {
        let failed = |mirror: &Mirror| Some((mirror.shown.clone(), mirror.failure.clone()?));
        OriginFailed { failures: self.mirrors().iter().filter_map(failed).collect() }
    }

    pub(super) fn reader(&self) -> &OriginReader {
        &self.inner.reader
    }

    pub(super) fn turn_to_read_all(&self) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.inner.from_beginning)
    }

    /// The first URL that may help, one with ranges before one without.
    pub(super) fn choose(&self) -> Option<Choice> {
        let mirrors = self.mirrors();
        let usable = || mirrors.iter().enumerate().filter(|(_, mirror)| mirror.failure.is_none());
        let chosen = usable().find(|(_, mirror)| mirror.has_ranges).or_else(|| usable().next());
        chosen.and_then(|(index, mirror)| {
            Some(Choice {
                mirror: index,
                url: mirror.url.clone()?,
                link: mirror.link.clone(),
                version: mirror.version.clone(),
                has_ranges: mirror.has_ranges,
            })
        })
    }

    /// Takes note of where a URL leads.
    pub(super) fn led(&self, mirror: usize, link: Option<Url>) {
        self.change(mirror, |mirror| mirror.link = link);
    }

    /// Takes note that a URL knows no ranges.
    pub(super) fn lacks_ranges(&self, mirror: usize) {
        self.change(mirror, |mirror| mirror.has_ranges = false);
    }

    /// Compares the file's version with that of earlier ranges; says whether it is still the same.
    pub(super) fn is_same(&self, mirror: usize, version: Option<Version>) -> bool {
        let mut mirrors = self.mirrors();
        let Some(mirror) = mirrors.get_mut(mirror) else { return true };
        match (&mirror.version, version) {
            (Some(before), Some(now)) if *before != now => false,
            (None, Some(now)) => {
                mirror.version = Some(now);
                true
            }
            _ => true,
        }
    }

    /// The file at a URL is another one now: what came of it before is of no use, and it begins anew.
    pub(super) fn changed(&self, mirror: usize, host: &str) {
        self.change(mirror, |mirror| {
            (mirror.version, mirror.link) = (None, None);
            mirror.changes += 1;
            if mirror.changes > MAX_CHANGES {
                mirror.failure = Some(Arc::new(OriginError::Changing { host: host.to_owned() }));
            }
        });
    }

    /// Gives up on a URL; the first reason stays.
    pub(super) fn fail(&self, mirror: usize, error: OriginError) {
        self.change(mirror, |mirror| {
            mirror.failure.get_or_insert_with(|| Arc::new(error));
        });
    }

    fn change(&self, mirror: usize, change: impl FnOnce(&mut Mirror)) {
        if let Some(mirror) = self.mirrors().get_mut(mirror) {
            change(mirror);
        }
    }

    fn mirrors(&self) -> MutexGuard<'_, Vec<Mirror>> {
        self.inner.mirrors.lock().expect("nothing panics while it holds them")
    }
}
