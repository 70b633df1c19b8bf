//! What an operator is told about a store, its machine and the settings.

use std::fmt;

use serde::Serialize;

use crate::printable::printable;

/// The most that a diagnosis repeats of what a store said of itself.
const MOST_SAID: usize = 2048;

/// One thing that was looked at, how it is, and what to do about it; see [`Elector::diagnose`](crate::Elector::diagnose).
///
/// Its texts are on one line and of bounded length, whatever the store said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Diagnosis {
    /// What was looked at: a member, the session, the clock.
    pub subject: String,
    /// How it is.
    pub level: Level,
    /// The same in words.
    pub text: String,
    /// What to do, where something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// How something is that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Level {
    /// As it should be.
    Good,
    /// Elections work, but not as well, or not under every fault.
    Warning,
    /// Elections do not work, or are not safe.
    Problem,
}

impl Level {
    /// A stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Diagnosis {
    /// Something that is as it should be.
    pub fn good(subject: impl Into<String>, text: impl Into<String>) -> Self {
        let [subject, text] = [subject.into(), text.into()].map(|text| printable(&text, MOST_SAID));
        Self { subject, level: Level::Good, text, advice: None }
    }

    /// Something that could be better, and what to do.
    pub fn warning(subject: impl Into<String>, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Warning, advice: Some(advice.into()), ..Self::good(subject, text) }
    }

    /// Something that has to be mended, and how.
    pub fn problem(subject: impl Into<String>, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Problem, advice: Some(advice.into()), ..Self::good(subject, text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_store_says_of_itself_is_printed_as_text() {
        let diagnosis = Diagnosis::warning("member \u{1b}]0;x\u{7}", "etcd 3.5\n\u{202e}", "look");
        assert_eq!(diagnosis.subject, "member \\u{1b}]0;x\\u{7}");
        assert_eq!(diagnosis.text, "etcd 3.5\\n\\u{202e}");
    }

    #[test]
    fn the_worst_is_the_greatest() {
        let diagnoses = [
            Diagnosis::warning("a", "slow", "look"),
            Diagnosis::problem("b", "down", "start it"),
            Diagnosis::good("c", "up"),
        ];
        assert_eq!(diagnoses.iter().map(|diagnosis| diagnosis.level).max(), Some(Level::Problem));
    }
}
