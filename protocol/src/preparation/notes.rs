//! What people should know of a workspace that works all the same, in words: few, and short.
//!
//! Not here: who finds it out.

use std::fmt;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::transfer::shorten;

/// The most notes on one workspace.
pub const MAX_NOTES: usize = 32;
/// The longest note, in bytes.
pub const MAX_NOTE: usize = 512;

/// At most [`MAX_NOTES`], each of at most [`MAX_NOTE`] bytes: whatever has more is not read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Notes(Vec<String>);

impl Notes {
    /// These, cut to what a report takes; how many were too many is the last.
    pub fn new(notes: impl IntoIterator<Item = String>) -> Self {
        let mut notes: Vec<String> = notes.into_iter().collect();
        let more = notes.len().saturating_sub(MAX_NOTES);
        if more > 0 {
            notes.truncate(MAX_NOTES - 1);
            notes.push(format!("and {} more", more + 1));
        }
        notes.iter_mut().for_each(|note| shorten(note, MAX_NOTE));
        Self(notes)
    }

    /// Whether there is nothing to know.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

impl<'de> Deserialize<'de> for Notes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Notes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX_NOTES} notes of at most {MAX_NOTE} bytes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut read: A) -> Result<Notes, A::Error> {
        let mut notes = Vec::new();
        // Who says that more will come is not read at all.
        let mut is_much = read.size_hint().is_some_and(|count| count > MAX_NOTES);
        while !is_much && let Some(note) = read.next_element::<String>()? {
            is_much = notes.len() >= MAX_NOTES || note.len() > MAX_NOTE;
            notes.push(note);
        }
        if is_much { Err(A::Error::invalid_length(notes.len(), &self)) } else { Ok(Notes(notes)) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn notes_are_cut_as_they_are_made_and_more_is_not_read() {
        let many = Notes::new((0..40).map(|number| format!("{number}{}", "ü".repeat(MAX_NOTE))));
        assert_eq!(many.iter().count(), MAX_NOTES);
        assert_eq!(many.iter().last(), Some("and 9 more"));
        assert!(many.iter().all(|note| note.len() <= MAX_NOTE));
        assert_eq!(from_value::<Notes>(json!(many)).expect("as they were made"), many);

        let read = |notes: Vec<String>| from_value::<Notes>(json!(notes)).is_ok();
        assert!(read(vec!["x".repeat(MAX_NOTE); MAX_NOTES]));
        assert!(!read(vec![String::new(); MAX_NOTES + 1]) && !read(vec!["x".repeat(MAX_NOTE + 1)]));
    }
}
