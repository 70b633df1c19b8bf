//! The findings of [`Elector::diagnose`](crate::Elector::diagnose): the state of a store, its machine and the settings.

use std::fmt;

use serde::Serialize;

use crate::printable::printable;

/// The largest subject or text of a diagnosis, in bytes. Longer texts of a store are truncated.
const MAX_TEXT_BYTES: usize = 2048;

/// One finding of [`Elector::diagnose`](crate::Elector::diagnose): what was checked, its state, and advice.
///
/// Each text has one line and a bounded length, whatever the store answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Diagnosis {
    /// What was checked: a member, the session, the clock.
    pub subject: String,
    /// Its state.
    pub level: Level,
    /// Its state in words.
    pub text: String,
    /// What to do, if something is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// The severity of a [`Diagnosis`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Level {
    /// Nothing is wrong.
    Good,
    /// Elections work, but slower, or not under every fault.
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
    /// A finding without a defect.
    pub fn good(subject: impl Into<String>, text: impl Into<String>) -> Self {
        let [subject, text] = [subject.into(), text.into()].map(|text| printable(&text, MAX_TEXT_BYTES));
        Self { subject, level: Level::Good, text, advice: None }
    }

    /// A finding that could be improved, and advice.
    pub fn warning(subject: impl Into<String>, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Warning, advice: Some(advice.into()), ..Self::good(subject, text) }
    }

    /// A finding that has to be fixed, and advice.
    pub fn problem(subject: impl Into<String>, text: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Problem, advice: Some(advice.into()), ..Self::good(subject, text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_a_store_are_escaped() {
        let diagnosis = Diagnosis::warning("member \u{1b}]0;x\u{7}", "etcd 3.5\n\u{202e}", "look");
        assert_eq!(diagnosis.subject, "member \\u{1b}]0;x\\u{7}");
        assert_eq!(diagnosis.text, "etcd 3.5\\n\\u{202e}");
    }

    #[test]
    fn levels_are_ordered_by_severity() {
        let diagnoses = [
            Diagnosis::warning("a", "slow", "look"),
            Diagnosis::problem("b", "down", "start it"),
            Diagnosis::good("c", "up"),
        ];
        assert_eq!(diagnoses.iter().map(|diagnosis| diagnosis.level).max(), Some(Level::Problem));
    }
}
