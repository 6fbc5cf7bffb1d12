//! Whose turn it is to send the upper pairs of the outboard: one source, another only where that one takes
//! long.
//!
//! Not here: how it is sent and verified.

use std::time::Duration;

use crate::fetch::schedule::SourceId;

/// A source that takes longer is not waited for.
const PATIENCE: Duration = Duration::from_millis(750);

/// Who was asked for the outboard last, and when.
#[derive(Debug, Default)]
pub(super) struct OutboardTurn(Option<(SourceId, Duration)>);

impl OutboardTurn {
    /// Takes the turn, if it is free.
    pub(super) fn take(&mut self, id: SourceId, now: Duration) -> bool {
        let is_free = self.0.is_none_or(|(_, since)| now.saturating_sub(since) > PATIENCE);
        if is_free {
            self.0 = Some((id, now));
        }
        is_free
    }

    /// Gives the turn back, if this source has it.
    pub(super) fn give_back(&mut self, id: SourceId) {
        self.0.take_if(|(taker, _)| *taker == id);
    }

    /// Whether anybody was asked.
    pub(super) fn is_taken(&self) -> bool {
        self.0.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_source_is_asked_where_the_first_takes_long_or_leaves() {
        let mut turn = OutboardTurn::default();
        let at = Duration::from_millis;
        assert!(turn.take(SourceId(1), at(0)));
        assert!(!turn.take(SourceId(2), at(500)));
        assert!(turn.take(SourceId(2), at(800)));
        turn.give_back(SourceId(1));
        assert!(!turn.take(SourceId(3), at(900)), "the second still has it");
        turn.give_back(SourceId(2));
        assert!(turn.take(SourceId(3), at(900)));
    }
}
