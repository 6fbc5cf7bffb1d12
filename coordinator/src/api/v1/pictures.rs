//! Whether the files that are given for pictures are pictures, by their first bytes.
//!
//! A wrong file is told to whoever submits, before a node fetches it. Not here: decoding; a picture
//! that is broken further on is found by the engine.

use protocol::{Argument, InputKind, Interface, Parameters};
use tokio::io::AsyncReadExt;

use crate::api::Api;
use crate::api::error::{ApiError, FieldProblem};

/// How many bytes tell a picture.
const HEAD: u64 = 16;

/// Refuses a call that gives something else for a picture.
pub(super) async fn check(api: &Api, interface: &Interface, given: &Parameters) -> Result<(), ApiError> {
    let mut errors = Vec::new();
    for input in interface.inputs.iter().filter(|input| matches!(input.kind, InputKind::Image)) {
        let Some(Argument::File { blob, file_name }) = given.get(&input.name) else { continue };
        let Some((file, _)) = api.coordinator.blobs().open_blob(blob.hash).await? else { continue };
        let mut head = Vec::new();
        let read = file.take(HEAD).read_to_end(&mut head).await;
        read.map_err(|source| ApiError::Io { attempt: "reading the start of a blob", source })?;
        if !is_picture(&head) {
            let message =
                format!("takes a picture (PNG, JPEG, WebP, GIF, BMP or TIFF), and `{file_name}` is none");
            errors.push(FieldProblem::new(&input.name, "file", message));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(ApiError::fields(errors)) }
}

fn is_picture(head: &[u8]) -> bool {
    const STARTS: [&[u8]; 7] =
        [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*"];
    let is_webp = head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WEBP");
    is_webp || STARTS.iter().any(|start| head.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_told_by_their_first_bytes() {
        for head in [
            &b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"[..],
            b"\xff\xd8\xff\xe0",
            b"RIFF\x10\0\0\0WEBPVP8 ",
            b"GIF89a",
            b"BM",
            b"II*\0",
            b"MM\0*",
        ] {
            assert!(is_picture(head), "{head:?}");
        }
        for head in [&b""[..], b"\x89PN", b"RIFF\x10\0\0\0WAVEfmt ", b"%PDF-1.7", b"<svg", b"PK\x03\x04"] {
            assert!(!is_picture(head), "{head:?}");
        }
    }
}
