//! Prints an error together with its causes, each text once.

use std::error::Error;

/// The text of `error`, followed by the texts of its sources.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    with_causes(error.to_string(), error.source())
}

/// `message`, followed by the text of `cause` and of its sources, separated by `: `. Texts that the message already contains are
/// skipped: many errors include the text of their source.
pub(crate) fn with_causes(mut message: String, mut cause: Option<&(dyn Error + 'static)>) -> String {
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = error.source();
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

    #[test]
    fn each_text_is_printed_once() {
        let error = Plain(Embedding(std::io::Error::other("no route")));
        assert_eq!(chain(&error), "the job failed: the database failed: no route");
    }
}
