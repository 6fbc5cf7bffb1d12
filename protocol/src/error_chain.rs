//! Errors as one line of text, for whoever sees nothing else of them: a peer, a caller, a journal.
//!
//! Not here: what a process prints or logs of its own; those take an error as it is.

use std::error::Error;

/// An error and its causes, from the outermost inwards, in one line.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the blob cannot be kept")]
    struct Unkept(#[source] io::Error);

    #[test]
    fn causes_follow_what_they_caused() {
        let error = Unkept(io::Error::other("the disk is full"));
        assert_eq!(error_chain(&error), "the blob cannot be kept: the disk is full");
    }
}
