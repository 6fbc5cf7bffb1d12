//! The mesh page, built by `build.rs` and embedded in the binary.
//!
//! Not here: how it is served (the API does that) and the page itself, whose sources are in `web/src`.

use std::borrow::Cow;

use rust_embed::RustEmbed;

/// Vite puts a hash of their content in the names of these files, so they never change.
const HASHED: &str = "assets/";

/// One file of the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asset {
    /// Its content.
    pub bytes: Cow<'static, [u8]>,
    /// Its media type, with a charset where it is text.
    pub media_type: String,
    /// Whether its content is part of its name, so that a browser may keep it for good.
    pub immutable: bool,
}

/// The file of the page at this path, such as `index.html` or `/assets/index-3f2a.js`; `None` when the
/// page has no such file. What to answer then is the caller's choice.
pub fn asset(path: &str) -> Option<Asset> {
    let path = path.trim_start_matches('/');
    let file = Page::get(path)?;
    Some(Asset { bytes: file.data, media_type: media_type(path), immutable: path.starts_with(HASHED) })
}

#[derive(RustEmbed)]
#[folder = "$OUT_DIR/dist"]
struct Page;

fn media_type(path: &str) -> String {
    let guess = mime_guess::from_path(path).first_or_octet_stream();
    match guess.type_() {
        mime_guess::mime::TEXT => format!("{guess}; charset=utf-8"),
        _ => guess.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_found_with_and_without_a_leading_slash() {
        let page = asset("/index.html").unwrap();
        assert_eq!(asset("index.html"), Some(page.clone()));
        assert_eq!(page.media_type, "text/html; charset=utf-8");
        assert!(!page.immutable, "the entry must be asked for again after an upgrade");
        assert!(String::from_utf8_lossy(&page.bytes).to_lowercase().contains("<!doctype html>"));
    }

    #[test]
    fn an_unknown_path_has_no_asset() {
        assert_eq!(asset("assets/no-such-file.js"), None);
        assert_eq!(asset("../Cargo.toml"), None);
        assert_eq!(asset(""), None);
    }

    #[test]
    fn what_the_page_asks_for_is_embedded_and_kept_by_the_browser() {
        let page = asset("index.html").unwrap();
        let page = String::from_utf8_lossy(&page.bytes).into_owned();
        for reference in page.split('"').filter(|text| text.starts_with("/assets/")) {
            let asset = asset(reference).unwrap_or_else(|| panic!("`{reference}` is not embedded"));
            assert!(asset.immutable);
        }
    }
}
