//! What is printed about terms, when there are many of them.

use std::time::Duration;

use tokio::time::Instant;

/// All lines of this many terms are printed.
const TERMS_IN_FULL: u64 = 3;
/// Later, one line in this time is printed.
const INTERVAL: Duration = Duration::from_secs(10);

/// Limits the lines about terms, so that `--restart` does not fill a log.
#[derive(Debug, Default)]
pub(super) struct Reports {
    terms: u64,
    last: Option<Instant>,
}

impl Reports {
    /// Counts a term.
    pub(super) fn begin_term(&mut self) {
        self.terms += 1;
    }

    /// Whether a line may be printed now. It counts as printed.
    pub(super) fn may_print(&mut self) -> bool {
        let is_due = self.last.is_none_or(|last| last.elapsed() >= INTERVAL);
        if self.terms > TERMS_IN_FULL && !is_due {
            return false;
        }
        self.last = Some(Instant::now());
        true
    }

    /// The number of the term, once not all of them are printed.
    pub(super) fn number(&self) -> String {
        if self.terms > TERMS_IN_FULL { format!(" (term {})", self.terms) } else { String::new() }
    }
}
