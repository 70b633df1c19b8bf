//! Why a server could not be had or handled, with the remedy.

use std::time::Duration;

use thiserror::Error;

/// A failure to run, reach or administer a test server.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// There is no socket of an engine.
    #[error(
        "the tests need Docker, and there is no engine's socket; `cargo xtask test` installs Docker's \
         engine on Debian, elsewhere install it by hand"
    )]
    NoDocker(#[source] std::io::Error),
    /// The engine does not answer.
    #[error(
        "the tests need Docker, and its engine does not answer; `cargo xtask test` starts it when run by \
         root, elsewhere start it by hand (docker says: {0})"
    )]
    NoEngine(String),
    /// The image has not been made yet.
    #[error("there is no image `{image}`; make it with `cargo xtask images`, or name another in {variable}")]
    NoImage {
        /// The image's name.
        image: String,
        /// The environment variable that names another.
        variable: &'static str,
    },
    /// The engine failed at what the `docker` command of this name does.
    #[error("`docker {command}` failed: {message}")]
    Docker {
        /// The command and its subject.
        command: String,
        /// What it said.
        message: String,
    },
    /// A server did not come to the state that was waited for.
    #[error("waited {waited:?} in vain for {what}; last seen: {last}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// For how long.
        waited: Duration,
        /// The last thing seen instead.
        last: String,
    },
    /// A server could not be asked.
    #[error("no answer from {url}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// The underlying failure.
        #[source]
        source: reqwest::Error,
    },
    /// A server did not answer in time, or broke off.
    #[error("no answer to {request}")]
    NoAnswer {
        /// What was asked, and where.
        request: String,
        /// The underlying failure.
        #[source]
        source: std::io::Error,
    },
    /// A server refused a request.
    #[error("{url} was refused: {message}")]
    Refused {
        /// What was asked.
        url: String,
        /// The server's reason.
        message: String,
    },
    /// A server's answer, or a setting, does not have the expected form.
    #[error("{0}")]
    Malformed(String),
}
