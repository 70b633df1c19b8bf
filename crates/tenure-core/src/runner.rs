//! `run_while_leader`: a loop that campaigns, runs the work, and campaigns again.

use std::{future::Future, panic::AssertUnwindSafe, pin::pin, time::Duration};

use futures::FutureExt as _;
use tracing::{info, warn};

use crate::{
    BoxError, Elector, Error, LeadershipHandle, error_chain::chain, retry_delays::RetryDelays, timers::Timers,
};

/// Provided methods of every [`Elector`].
pub trait ElectorExt: Elector {
    /// Runs `work` once per term and campaigns again after each, until `shutdown` completes.
    ///
    /// # Behavior
    /// - Campaigns, and calls `work` with the new leadership. The work is cancelled through the leadership's
    ///   [`cancellation_token`](LeadershipHandle::cancellation_token) and dropped before the deadline, as under
    ///   [`run`](LeadershipHandle::run).
    /// - When the work returns, resigns, pauses and campaigns again. The pauses are jittered, and grow while the work
    ///   fails ([`Config::with_work_backoff`](crate::Config::with_work_backoff)).
    /// - When leadership is lost, campaigns again: at once after a long term, after such a pause when terms are short.
    /// - Work that panics counts as failed.
    /// - When `shutdown` completes, cancels the work, waits for it, resigns and returns. A candidate that still waits
    ///   withdraws, and its entry is gone before this method returns. All of that is bounded by the
    ///   [shutdown timeout](crate::Config::with_shutdown_timeout): work that has not stopped after four fifths of it, or at
    ///   the deadline, is dropped. If the store has not confirmed the resignation in the end, a warning is logged.
    ///
    /// # Errors
    /// Permanent errors: an illegal name, refused credentials, a closed elector. Failures of the work and outages of the store
    /// are logged and retried.
    ///
    /// # Cancellation safety
    /// Dropping the future drops the work and resigns in the background.
    fn run_while_leader<S, F, W>(
        &self,
        election: &str,
        shutdown: S,
        work: F,
    ) -> impl Future<Output = Result<(), Error>> + Send
    where
        S: Future<Output = ()> + Send,
        F: FnMut(LeadershipHandle) -> W + Send,
        W: Future<Output = Result<(), BoxError>> + Send;
}

impl<E: Elector + ?Sized> ElectorExt for E {
    async fn run_while_leader<S, F, W>(&self, election: &str, shutdown: S, mut work: F) -> Result<(), Error>
    where
        S: Future<Output = ()> + Send,
        F: FnMut(LeadershipHandle) -> W + Send,
        W: Future<Output = Result<(), BoxError>> + Send,
    {
        let mut shutdown = pin!(shutdown);
        let timers = Timers::of(self);
        let mut retry = RetryDelays::new(self.work_backoff());
        loop {
            let cancel = Box::pin(shutdown.as_mut());
            let Some(leadership) = self.campaign_until(election, cancel).await? else { return Ok(()) };
            let token = leadership.fencing_token();
            let since = timers.now();
            let mut shutdown_since = None;
            let outcome = {
                // `work` is called inside the future, because it may panic before it returns one.
                let work = AssertUnwindSafe(async { work(leadership.handle()).await }).catch_unwind();
                let mut running = pin!(leadership.run(work));
                loop {
                    let stop_timeout = async {
                        match shutdown_since {
                            Some(since) => {
                                let limit = self.shutdown_timeout() * 4 / 5;
                                timers.sleep(limit.saturating_sub(timers.since(since))).await
                            }
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        biased;
                        () = &mut shutdown, if shutdown_since.is_none() => {
                            shutdown_since = Some(timers.now());
                            leadership.request_resign();
                        }
                        outcome = &mut running => break Some(outcome),
                        () = stop_timeout => {
                            warn!(election, token = token.get(), "work has not stopped in time for the shutdown; dropping it");
                            break None;
                        }
                    }
                }
            };
            let lost = leadership.loss().filter(|_| shutdown_since.is_none());
            let waited = shutdown_since.map_or(Duration::ZERO, |since| timers.since(since));
            let left = leadership.resign_within(self.shutdown_timeout().saturating_sub(waited)).await;
            if shutdown_since.is_some() {
                if !left.confirmed {
                    warn!(
                        election,
                        token = token.get(),
                        expires_in = %left.rounded_expires_in(),
                        "the store has not confirmed the resignation; the entry is removed once the store answers, or expires with its session"
                    );
                }
                return Ok(());
            }
            let pause = match (outcome, lost) {
                (_, Some(reason)) => {
                    info!(election, token = token.get(), %reason, "leadership lost; campaigning again");
                    // A short term is followed by a pause, because its cause may end the next terms as soon.
                    if timers.since(since) >= self.work_backoff().max {
                        retry.reset();
                        Duration::ZERO
                    } else {
                        retry.next_delay()
                    }
                }
                (Some(Ok(failed @ (Ok(Err(_)) | Err(_)))), None) => {
                    let pause = retry.next_delay();
                    let error = match &failed {
                        Ok(Err(error)) => chain(&**error),
                        _ => "it panicked".to_owned(),
                    };
                    warn!(election, token = token.get(), error, pause = %humantime::format_duration(pause),
                        "work failed; leadership resigned");
                    pause
                }
                _ => {
                    retry.reset();
                    retry.next_delay()
                }
            };
            tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                () = timers.sleep(pause) => {}
            }
        }
    }
}
