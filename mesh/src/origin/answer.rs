//! What a server's answer to a question for a range means, before a byte of its body is taken.
//!
//! Pure: a status and headers in, a verdict out. Not here: where a redirect leads; that is `request`.

use std::ops::Range;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED, RETRY_AFTER,
};

use crate::origin::error::{Advice, OriginError};

/// What follows the headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// These bytes of a file of `size`; the range may end before the one that was asked for.
    Range { bytes: Range<u64>, size: u64, version: Option<Version> },
    /// The file from its beginning: the server knows no ranges, or has another file by now.
    Whole { size: Option<u64>, version: Option<Version> },
}

/// By what a server tells one state of a file from the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version(pub(super) String);

impl Version {
    /// The strong entity tag, or the time of the last change where there is none.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let tag = text(headers, ETAG).filter(|tag| !tag.starts_with("W/"));
        tag.or_else(|| text(headers, LAST_MODIFIED)).map(|text| Self(text.to_owned()))
    }
}

/// The verdict on an answer to a question for the bytes from `start` on, of a file of `size` where that is
/// known. `advice` is for a host that denies it.
pub(super) fn judge(
    host: &str,
    (status, headers): (StatusCode, &HeaderMap),
    start: u64,
    size: Option<u64>,
    advice: Advice,
) -> Result<Answer, OriginError> {
    let host = || host.to_owned();
    let odd = |sent| OriginError::Range { host: host(), sent };
    let other_size = |found| match size {
        Some(expected) if expected != found => Err(OriginError::Size { host: host(), expected, found }),
        _ => Ok(()),
    };
    let number = status.as_u16();
    match number {
        206 => {
            if text(headers, CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
                return Err(odd("it in another encoding"));
            }
            let range = text(headers, CONTENT_RANGE).and_then(content_range);
            let Some((bytes, total)) = range else { return Err(odd("several, or did not say which")) };
            other_size(total)?;
            if bytes.start != start {
                return Err(odd("another one"));
            }
            Ok(Answer::Range { bytes, size: total, version: Version::of(headers) })
        }
        200 => {
            if text(headers, CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
                return Err(odd("it in another encoding"));
            }
            let found = text(headers, CONTENT_LENGTH).and_then(|length| length.parse().ok());
            found.map_or(Ok(()), other_size)?;
            Ok(Answer::Whole { size: found, version: Version::of(headers) })
        }
        416 => {
            let total =
                text(headers, CONTENT_RANGE).and_then(|text| text.strip_prefix("bytes */")?.parse().ok());
            total.map_or(Ok(()), other_size)?;
            Err(OriginError::Status { host: host(), status: number })
        }
        401 | 403 => Err(OriginError::Denied { host: host(), status: number, advice }),
        404 | 410 => Err(OriginError::NotFound { host: host(), status: number }),
        408 | 425 | 429 | 500..=599 => {
            let wait = text(headers, RETRY_AFTER).and_then(|text| text.trim().parse().ok());
            Err(OriginError::Busy { host: host(), status: number, wait: wait.map(Duration::from_secs) })
        }
        _ => Err(OriginError::Status { host: host(), status: number }),
    }
}

/// The range and the size in `bytes 0-99/1000`.
fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size) = (first.parse().ok()?, last.parse::<u64>().ok()?, size.parse().ok()?);
    (first <= last && last < size).then(|| (first..last + 1, size))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, headers: &[(&str, &str)]) -> Result<Answer, String> {
        let headers = headers.iter().map(|(name, value)| {
            let name: HeaderName = name.parse().expect("a header's name");
            (name, value.parse().expect("a header's value"))
        });
        let headers: HeaderMap = headers.collect();
        let status = StatusCode::from_u16(status).expect("a status");
        let judged = judge("host", (status, &headers), 10, Some(100), Advice::NoToken);
        judged.map_err(|error| error.to_string())
    }

    #[test]
    fn range_must_begin_where_it_was_asked_for_in_a_file_of_the_known_size() {
        let range = |text| judged(206, &[("content-range", text), ("etag", "\"a\"")]);
        let version = Some(Version("\"a\"".to_owned()));
        let good = |bytes| Ok(Answer::Range { bytes, size: 100, version: version.clone() });
        assert_eq!(range("bytes 10-99/100"), good(10..100));
        assert_eq!(range("bytes 10-19/100"), good(10..20));
        let wrong = [
            "bytes 10-99/101",
            "bytes 9-99/100",
            "bytes 10-100/100",
            "bytes 10-9/100",
            "bytes 10-99/*",
            "bytes */100",
            "items 10-99/100",
            "bytes 10-18446744073709551615/18446744073709551615",
        ];
        for text in wrong {
            assert!(range(text).is_err(), "{text}");
        }
        assert!(judged(206, &[]).is_err(), "several ranges name none in the head");
        let encoded = judged(206, &[("content-range", "bytes 10-99/100"), ("content-encoding", "gzip")]);
        assert!(encoded.is_err());
    }

    #[test]
    fn whole_file_must_have_the_known_size_where_it_says_one() {
        let whole = |size| Ok(Answer::Whole { size, version: None });
        assert_eq!(judged(200, &[("content-length", "100"), ("etag", "W/\"a\"")]), whole(Some(100)));
        assert_eq!(judged(200, &[]), whole(None));
        assert!(judged(200, &[("content-length", "99")]).is_err());
        let past_the_end = judged(416, &[("content-range", "bytes */9")]).expect_err("it is shorter");
        assert!(past_the_end.contains("file of 9 bytes"), "{past_the_end}");
    }

    #[test]
    fn busy_server_says_how_long_and_others_say_why_not() {
        let wait = judged(503, &[("retry-after", "7")]).expect_err("it is busy");
        assert!(wait.contains("asks to wait 7 s"), "{wait}");
        for (status, word) in
            [(429, "busy"), (401, "no token"), (410, "not there"), (302, "no use"), (204, "no use")]
        {
            let error = judged(status, &[]).expect_err("it is no answer");
            assert!(error.contains(word), "{status}: {error}");
        }
    }
}
