//! A file on the internet of which nothing is known but where it is: written to a file here, and never more than a limit.
//!
//! Not here: whether it is the right one, which nobody could know.

use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

use reqwest::Url;
use tokio::time::timeout;

use crate::origin::OriginReader;
use crate::origin::answer::Answer;
use crate::origin::error::{OriginError, host};
use crate::origin::request::{Opened, Wanted};

/// Why a file was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// It did not come.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// It cannot be written.
    #[error("what came from `{host}` cannot be written")]
    Write {
        /// The host.
        host: String,
        /// Why.
        source: io::Error,
    },
}

impl OriginReader {
    /// Writes the file at a URL, of at most `limit` bytes, which has to come `within` so long; asks once.
    pub async fn save(
        &self,
        url: &str,
        limit: usize,
        within: Duration,
        file: &mut File,
    ) -> Result<(), SaveError> {
        let url = Url::parse(url).map_err(|_| OriginError::NoUrl)?;
        let saved = timeout(within, self.save_whole(&url, limit, file)).await;
        saved.unwrap_or_else(|_| Err(OriginError::Slow { host: host(&url), waited: within }.into()))
    }

    async fn save_whole(&self, url: &Url, limit: usize, file: &mut File) -> Result<(), SaveError> {
        let opened = self.open(url, &Wanted::default()).await.map_err(|refused| refused.error)?;
        let Opened { answer, mut response, connection: _connection, .. } = opened;
        let host = host(url);
        let size = match answer {
            Answer::Whole { size, .. } => size,
            Answer::Range { .. } => {
                return Err(OriginError::Range { host, sent: "a part that nobody asked for" }.into());
            }
        };
        if size.is_some_and(|size| size > limit as u64) {
            return Err(OriginError::Large { host, limit }.into());
        }
        let waited = self.inner.config.silence;
        let mut left = limit;
        loop {
            let chunk = timeout(waited, response.chunk()).await;
            let chunk = chunk.map_err(|_| OriginError::Silent { host: host.clone(), waited })?;
            let chunk = chunk.map_err(|source| {
                let (host, source) = (host.clone(), source.without_url());
                OriginError::Broken { host, source }
            })?;
            let Some(chunk) = chunk else { return Ok(()) };
            left = left.checked_sub(chunk.len()).ok_or(OriginError::Large { host: host.clone(), limit })?;
            file.write_all(&chunk).map_err(|source| SaveError::Write { host: host.clone(), source })?;
        }
    }
}
