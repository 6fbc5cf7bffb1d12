//! A small document that a host on the internet answers with: read whole, and never more than its limit.
//!
//! Not here: what it says.

use reqwest::Url;
use reqwest::header::LINK;
use tokio::time::timeout;

use crate::origin::OriginReader;
use crate::origin::answer::Answer;
use crate::origin::error::{OriginError, host};
use crate::origin::request::{Opened, Wanted};

/// What a host answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Where it goes on, if the host says so.
    pub next: Option<String>,
}

impl OriginReader {
    /// Asks for a document of at most `limit` bytes, once. All of it has to come within the time that a connection
    /// may take and a server may be silent.
    pub async fn document(&self, url: &str, limit: usize) -> Result<Document, OriginError> {
        let url = Url::parse(url).map_err(|_| OriginError::NoUrl)?;
        let config = &self.inner.config;
        let waited = config.connect_timeout + config.silence;
        let read = timeout(waited, self.read_document(&url, limit)).await;
        read.unwrap_or_else(|_| Err(OriginError::Slow { host: host(&url), waited }))
    }

    async fn read_document(&self, url: &Url, limit: usize) -> Result<Document, OriginError> {
        let opened = self.open(url, &Wanted::default()).await.map_err(|refused| refused.error)?;
        let Opened { answer, mut response, connection: _connection, .. } = opened;
        let too_large = || OriginError::Large { host: host(url), limit };
        match answer {
            Answer::Whole { size: Some(size), .. } if size > limit as u64 => return Err(too_large()),
            Answer::Whole { .. } => {}
            Answer::Range { .. } => {
                return Err(OriginError::Range { host: host(url), sent: "a part that nobody asked for" });
            }
        }
        let next = response.headers().get(LINK).and_then(|link| next_in(link.to_str().ok()?));
        let mut bytes = Vec::new();
        let broken =
            |source: reqwest::Error| OriginError::Broken { host: host(url), source: source.without_url() };
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if chunk.len() > limit - bytes.len() {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Document { bytes, next })
    }
}

/// The address in `<https://…>; rel="next"`.
fn next_in(link: &str) -> Option<String> {
    let is_next = |part: &&str| part.split(';').skip(1).any(|word| word.trim() == r#"rel="next""#);
    let (address, _) = link.split(',').find(is_next)?.trim().strip_prefix('<')?.split_once('>')?;
    Some(address.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_goes_on_where_its_host_says_so() {
        let check = |link: &str, next: Option<&str>| assert_eq!(next_in(link).as_deref(), next, "{link}");
        check(r#"<https://a.org/x?cursor=b%2C>; rel="next""#, Some("https://a.org/x?cursor=b%2C"));
        check(r#"<https://a.org/1>; rel="prev", <https://a.org/3>; rel="next""#, Some("https://a.org/3"));
        check(r#"<https://a.org/1>; rel="prev""#, None);
        check("next", None);
    }
}
