//! What is escaped where text becomes part of an address.
//!
//! Not here: what an address is; that is `lockfile`'s.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};

/// What is escaped in one part of a path: all but unreserved letters (RFC 3986).
pub const URL_PART: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The same in a path of several.
pub const URL_PATH: AsciiSet = URL_PART.remove(b'/');
