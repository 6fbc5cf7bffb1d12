//! One question for a range while its answer is waited for: it goes on however often the waiting is given up.
//!
//! A link to where the bytes lie is used as long as it is good; one that ran out is asked for anew from
//! the URL, once. Not here: what becomes of the answer.

use std::future::Future;
use std::pin::Pin;

use reqwest::Url;
use tracing::debug;

use crate::origin::OriginReader;
use crate::origin::answer::Version;
use crate::origin::error::OriginError;
use crate::origin::mirrors::Choice;
use crate::origin::request::{Opened, Refused, Wanted};

/// What is asked of one URL.
pub(super) struct Question {
    pub(super) mirror: usize,
    /// What the file was before, as far as was seen.
    pub(super) version: Option<Version>,
    asking: Pin<Box<dyn Future<Output = Reply> + Send + Sync>>,
}

/// What came of it.
pub(super) struct Reply {
    pub(super) result: Result<Opened, OriginError>,
    /// Where the bytes lie, if the URL leads elsewhere; `None` where that is what was known before.
    pub(super) link: Option<Option<Url>>,
}

impl Question {
    /// Asks for these bytes, or for the file from its beginning.
    pub(super) fn new(
        reader: OriginReader,
        choice: Choice,
        bytes: Option<(u64, Option<u64>)>,
        size: u64,
    ) -> Self {
        let Choice { mirror, url, link, version, .. } = choice;
        let wanted = Wanted { bytes, version: version.clone(), size: Some(size) };
        Self { mirror, version, asking: Box::pin(ask(reader, url, link, wanted)) }
    }

    /// The answer. It may be cancelled and called again until it came.
    pub(super) async fn reply(&mut self) -> Reply {
        self.asking.as_mut().await
    }
}

async fn ask(reader: OriginReader, url: Url, link: Option<Url>, wanted: Wanted) -> Reply {
    if let Some(link) = &link {
        match reader.open(link, &wanted).await {
            Ok(opened) => {
                let link = opened.redirected.clone().map(Some);
                return Reply { result: Ok(opened), link };
            }
            Err(Refused { error, .. }) if may_have_run_out(&error) => {
                debug!("link has run out, asked for anew");
            }
            Err(Refused { error, .. }) => return Reply { result: Err(error), link: None },
        }
    }
    let mut opened = reader.open(&url, &wanted).await;
    let has_run_out = |refused: &Refused| refused.was_redirected && may_have_run_out(&refused.error);
    if link.is_none() && opened.as_ref().is_err_and(has_run_out) {
        opened = reader.open(&url, &wanted).await;
    }
    let link = opened.as_ref().map_or(None, |opened| opened.redirected.clone());
    Reply { result: opened.map_err(|refused| refused.error), link: Some(link) }
}

/// Whether a signed link is refused like this when its time is over.
fn may_have_run_out(error: &OriginError) -> bool {
    match error {
        OriginError::Denied { status, .. }
        | OriginError::NotFound { status, .. }
        | OriginError::Status { status, .. } => [400, 401, 403, 410].contains(status),
        _ => false,
    }
}
