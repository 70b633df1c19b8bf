//! Prints an error together with its causes, each text once.

use std::error::Error;

/// The text of `error`, followed by the texts of its sources.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    with_causes(error.to_string(), error.source())
}

/// The number of causes that are printed. A foreign error type may return itself as its source.
const MAX_CAUSES: usize = 16;

/// `message`, followed by the text of `cause` and of its sources, separated by `: `. A text with which the message already ends is
/// skipped: many errors end with the text of their source.
pub(crate) fn with_causes(mut message: String, cause: Option<&(dyn Error + 'static)>) -> String {
    for error in std::iter::successors(cause, |&error| error.source()).take(MAX_CAUSES) {
        let text = error.to_string();
        if !message.ends_with(&text) {
            message = format!("{message}: {text}");
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use thiserror::Error;

    use super::*;

    #[derive(Debug, Error)]
    #[error("the job failed")]
    struct Plain(#[source] Embedding);

    #[derive(Debug, Error)]
    #[error("the database failed: {0}")]
    struct Embedding(#[source] std::io::Error);

    #[derive(Debug, Error)]
    #[error("the job failed at step 2 of 3")]
    struct Numbered(#[source] Short);

    #[derive(Debug, Error)]
    #[error("2")]
    struct Short;

    /// Returns itself as its source.
    #[derive(Debug)]
    struct Endless;

    impl std::fmt::Display for Endless {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("endless")
        }
    }

    impl Error for Endless {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(self)
        }
    }

    #[test]
    fn a_short_cause_is_not_lost_and_an_endless_chain_ends() {
        assert_eq!(chain(&Numbered(Short)), "the job failed at step 2 of 3: 2");
        assert_eq!(chain(&Endless), "endless");
    }

    #[test]
    fn each_text_is_printed_once() {
        let error = Plain(Embedding(std::io::Error::other("no route")));
        assert_eq!(chain(&error), "the job failed: the database failed: no route");
    }
}
