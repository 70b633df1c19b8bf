//! Why a server could not be started, reached or administered.

use std::time::Duration;

use thiserror::Error;

/// A failure to run, reach or administer a test server.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// The socket of the Docker engine does not exist.
    #[error(
        "the tests need Docker, and the engine's socket does not exist; `cargo xtask test` installs Docker \
         on Debian, elsewhere install it by hand"
    )]
    NoDocker(#[source] std::io::Error),
    /// The Docker engine does not answer.
    #[error(
        "the tests need Docker, and the engine does not answer ({0}); `cargo xtask test` starts it when run \
         by root, elsewhere start it by hand"
    )]
    NoEngine(String),
    /// The image has not been built.
    #[error(
        "the image `{image}` does not exist; build it with `cargo xtask images`, or name another in {variable}"
    )]
    NoImage {
        /// The image's name.
        image: String,
        /// The environment variable that names another image.
        variable: &'static str,
    },
    /// The engine failed at what this `docker` command does.
    #[error("`docker {command}` failed: {message}")]
    Docker {
        /// The command and its subject.
        command: String,
        /// The engine's error message.
        message: String,
    },
    /// A server did not reach the expected state in time.
    #[error("timed out after {waited:?} waiting for {what}: {last}")]
    TimedOut {
        /// The expected state.
        what: String,
        /// How long it was waited for.
        waited: Duration,
        /// The last state observed instead.
        last: String,
    },
    /// An HTTP request to a server failed.
    #[error("no answer from {url}")]
    Unreachable {
        /// The URL of the request.
        url: String,
        /// The underlying failure.
        #[source]
        source: reqwest::Error,
    },
    /// A server did not answer in time, or closed the connection.
    #[error("no answer to {request}")]
    NoAnswer {
        /// The request and the endpoint.
        request: String,
        /// The underlying failure.
        #[source]
        source: std::io::Error,
    },
    /// A server refused a request.
    #[error("{request} was refused: {message}")]
    Refused {
        /// The request.
        request: String,
        /// The server's reason.
        message: String,
    },
    /// A state or an answer that the caller did not expect.
    #[error("{0}")]
    Unexpected(String),
}

/// The error's message, followed by those of its sources.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |source| source.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}
