//! How a ticket is one word to paste: canonical JSON and a checksum in lower-case base32 behind a prefix.
//!
//! The checksum finds a word that was cut or mistyped; it keeps no secret. Not here: what tickets say.

use data_encoding::{Encoding, Specification};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest ticket that is read, in characters.
pub const MAX_TICKET: usize = 8192;
const CHECKSUM: usize = 4;

/// A text that is no ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseTicketError {
    /// It does not begin as one of this kind.
    #[error("this is no ticket: one begins with `{0}`")]
    NoTicket(&'static str),
    /// It is longer than any ticket.
    #[error("this is no ticket: it has more than {MAX_TICKET} characters")]
    TooLong,
    /// Letters are missing or wrong.
    #[error("the ticket is damaged: letters are missing or wrong; copy it again as a whole")]
    Damaged,
    /// Another release wrote it.
    #[error("the ticket was made by another release of comfy-farm")]
    Unknown,
}

/// The word for this ticket.
pub(crate) fn write<T: Serialize>(prefix: &str, ticket: &T) -> String {
    let mut bytes = serde_json_canonicalizer::to_vec(ticket).expect("a ticket has only text keys");
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(&checksum.as_bytes()[..CHECKSUM]);
    format!("{prefix}{}", base32().encode(&bytes))
}

/// The ticket in this word, around which there may be white space.
pub(crate) fn read<T: DeserializeOwned>(prefix: &'static str, text: &str) -> Result<T, ParseTicketError> {
    let text = text.trim();
    if text.len() > MAX_TICKET {
        return Err(ParseTicketError::TooLong);
    }
    let word = text.strip_prefix(prefix).ok_or(ParseTicketError::NoTicket(prefix))?;
    let bytes = base32().decode(word.as_bytes()).map_err(|_| ParseTicketError::Damaged)?;
    let body_length = bytes.len().checked_sub(CHECKSUM).ok_or(ParseTicketError::Damaged)?;
    let (body, checksum) = bytes.split_at(body_length);
    if blake3::hash(body).as_bytes()[..CHECKSUM] != *checksum {
        return Err(ParseTicketError::Damaged);
    }
    serde_json::from_slice(body).map_err(|_| ParseTicketError::Unknown)
}

/// RFC 4648 base32 in lower case, without padding.
fn base32() -> Encoding {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().expect("32 different symbols are a base32")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_altered_letter_is_noticed() {
        let text = write("farm1", &["a ticket", "of some length"]);
        assert_eq!(
            read("farm1", &format!(" {text}\n")),
            Ok(["a ticket", "of some length"].map(str::to_owned))
        );
        for position in "farm1".len()..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[position] = if altered[position] == b'a' { b'b' } else { b'a' };
            let altered = String::from_utf8(altered).expect("ASCII");
            assert_eq!(
                read::<[String; 2]>("farm1", &altered),
                Err(ParseTicketError::Damaged),
                "at {position}"
            );
        }
    }

    #[test]
    fn other_words_are_told_apart() {
        let check = |text: &str, expected| assert_eq!(read::<[String; 1]>("blob1", text), Err(expected));
        let text = write("blob1", &["a ticket"]);
        check(&text[..text.len() - 3], ParseTicketError::Damaged);
        check("hello", ParseTicketError::NoTicket("blob1"));
        check(&write("farm1", &["a ticket"]), ParseTicketError::NoTicket("blob1"));
        check(&write("blob1", &"another shape"), ParseTicketError::Unknown);
        check(&"blob1".repeat(MAX_TICKET), ParseTicketError::TooLong);
    }
}
