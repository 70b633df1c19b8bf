//! Waiting, within bounds, until a server is as a test needs it.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::ContainerError;

/// How long a server may take to start, to elect a leader, or to come back.
const PATIENCE: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(25);

/// Asks `probe` again and again until it has an answer. Its errors are what was last
/// seen when time is up.
pub(super) async fn eventually<T, P, F>(what: &str, mut probe: P) -> Result<T, ContainerError>
where
    P: FnMut() -> F,
    F: Future<Output = Result<T, ContainerError>>,
{
    let start = Instant::now();
    loop {
        match probe().await {
            Ok(answer) => return Ok(answer),
            Err(last) if start.elapsed() > PATIENCE => {
                let (what, last) = (what.to_owned(), described(&last));
                return Err(ContainerError::TimedOut { what, waited: PATIENCE, last });
            }
            Err(_) => sleep(INTERVAL).await,
        }
    }
}

/// An error with everything that caused it.
pub(super) fn described(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
