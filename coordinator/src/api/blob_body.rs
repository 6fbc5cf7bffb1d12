//! A blob as the body of an answer: ranges, revalidation, and headers that let no browser guess.
//!
//! Bytes come verified from the store; a blob's name is its entity tag. Not here: who may read which.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mesh::store::BlobStore;
use protocol::BlobHash;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use crate::api::error::ApiError;

/// How a blob is to be shown.
#[derive(Debug)]
pub(crate) struct Presentation<'a> {
    /// Its media type.
    pub(crate) media_type: &'a str,
    /// The name to save it under, if it has one.
    pub(crate) file_name: Option<&'a str>,
}

/// Answers with a blob, or the range of it that the request asks for.
pub(crate) async fn respond(
    store: &BlobStore,
    hash: BlobHash,
    presentation: Presentation<'_>,
    request: &HeaderMap,
) -> Result<Response, ApiError> {
    let Some((mut file, blob)) = store.open_blob(hash).await? else {
        return Err(ApiError::NotFound(format!("the coordinator's store has no blob `{hash}`")));
    };
    let tag = format!("\"{hash}\"");
    let mut response = if matches(request, header::IF_NONE_MATCH, &tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let fresh = !request.contains_key(header::IF_RANGE) || matches(request, header::IF_RANGE, &tag);
        let asked = request.get(header::RANGE).filter(|_| fresh).and_then(|range| range.to_str().ok());
        let range = match asked {
            Some(range) => parse_range(range, blob.size)
                .map_err(|Unsatisfiable| ApiError::RangeNotSatisfiable { size: blob.size })?,
            None => None,
        };
        let (first, length) = range.unwrap_or((0, blob.size));
        let io = |source| ApiError::Io { attempt: "reading a blob", source };
        file.seek(std::io::SeekFrom::Start(first)).await.map_err(io)?;
        let mut response =
            Response::new(Body::from_stream(ReaderStream::with_capacity(file.take(length), 64 << 10)));
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        if range.is_some() {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let shown = format!("bytes {first}-{}/{}", first + length - 1, blob.size);
            response.headers_mut().insert(header::CONTENT_RANGE, ascii(&shown));
        }
        response
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, ascii(&tag));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable"));
    let media_type = HeaderValue::try_from(presentation.media_type);
    let unknown = HeaderValue::from_static("application/octet-stream");
    headers.insert(header::CONTENT_TYPE, media_type.unwrap_or(unknown));
    if let Some(name) = presentation.file_name {
        headers.insert(header::CONTENT_DISPOSITION, ascii(&disposition(name, presentation.media_type)));
    }
    Ok(response)
}

fn matches(request: &HeaderMap, name: header::HeaderName, tag: &str) -> bool {
    let listed = request.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    listed
        .split(',')
        .any(|one| matches!(one.trim().trim_start_matches("W/"), one if one == tag || one == "*"))
}

/// A range that begins beyond the end.
#[derive(Debug, PartialEq)]
struct Unsatisfiable;

/// The first byte and the length of a single byte range. What is no byte range, or several, is none:
/// the whole is a right answer to it (RFC 9110, 14.2).
fn parse_range(range: &str, size: u64) -> Result<Option<(u64, u64)>, Unsatisfiable> {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Ok(None);
    };
    match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), _) if first >= size && (last.is_empty() || last.parse::<u64>().is_ok()) => {
            Err(Unsatisfiable)
        }
        (Ok(first), Ok(last)) if first <= last => Ok(Some((first, last.min(size - 1) - first + 1))),
        (Ok(first), Err(_)) if last.trim().is_empty() => Ok(Some((first, size - first))),
        (Err(_), Ok(0)) if first.trim().is_empty() => Err(Unsatisfiable),
        (Err(_), Ok(suffix)) if first.trim().is_empty() && size > 0 => {
            let length = suffix.min(size);
            Ok(Some((size - length, length)))
        }
        _ => Ok(None),
    }
}

/// A file name that is safe in a header (RFC 6266). Only pictures, sounds and plain text are shown in
/// place; everything else is saved.
fn disposition(name: &str, media_type: &str) -> String {
    let shown = ["image/png", "image/jpeg", "image/webp", "image/gif", "text/plain"].contains(&media_type)
        || media_type.starts_with("audio/")
        || media_type.starts_with("video/");
    let kind = if shown { "inline" } else { "attachment" };
    let safe = |letter: char| letter.is_ascii_alphanumeric() || "-._ ()".contains(letter);
    let plain: String = name.chars().map(|letter| if safe(letter) { letter } else { '_' }).collect();
    let mut disposition = format!("{kind}; filename=\"{plain}\"");
    if plain != name {
        disposition.push_str("; filename*=UTF-8''");
        for byte in name.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._".contains(&byte) {
                disposition.push(char::from(byte));
            } else {
                disposition.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    disposition
}

fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("only printable ASCII was put in")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        let check = |range: &str, expected| assert_eq!(parse_range(range, 10), expected, "{range}");
        check("bytes=0-3", Ok(Some((0, 4))));
        check("bytes=4-", Ok(Some((4, 6))));
        check("bytes=8-99", Ok(Some((8, 2))));
        check("bytes=-3", Ok(Some((7, 3))));
        check("bytes=-99", Ok(Some((0, 10))));
        check("bytes=10-", Err(Unsatisfiable));
        check("bytes=10-12", Err(Unsatisfiable));
        check("bytes=-0", Err(Unsatisfiable));
        check("bytes=3-1", Ok(None));
        check("bytes=0-1,4-5", Ok(None));
        check("lines=1-2", Ok(None));
        assert_eq!(parse_range("bytes=0-", 0), Err(Unsatisfiable));
        assert_eq!(parse_range("bytes=-5", 0), Ok(None));
    }

    #[test]
    fn file_name_in_a_header_is_made_safe() {
        assert_eq!(disposition("cat.png", "image/png"), "inline; filename=\"cat.png\"");
        let page = disposition("a\"b\r\n.html", "text/html");
        assert_eq!(page, "attachment; filename=\"a_b__.html\"; filename*=UTF-8''a%22b%0D%0A.html");
        assert!(disposition("été.svg", "image/svg+xml").starts_with("attachment; filename=\"_t_.svg\""));
    }
}
