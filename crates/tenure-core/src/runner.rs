//! `run_while_leader`: one loop that campaigns, works, and campaigns again.

use std::{future::Future, panic::AssertUnwindSafe, pin::pin, time::Duration};

use futures::FutureExt as _;
use tracing::{info, warn};

use crate::{BoxError, Elector, Error, LeadershipHandle, engine::rules::retry_delays::RetryDelays};

/// What every [`Elector`] can do on top of its trait; a backend has nothing to add.
pub trait ElectorExt: Elector {
    /// Runs `work` once per term, campaigning again for ever, until `shutdown`.
    ///
    /// # Behavior
    /// - Campaigns, and calls `work` with the new leadership. The work is told to stop through
    ///   the leadership's [`cancellation_token`](LeadershipHandle::cancellation_token) and
    ///   dropped before the deadline, as under [`run`](LeadershipHandle::run).
    /// - When the work returns, resigns, pauses and campaigns again. The pauses are
    ///   jittered, and grow while the work fails ([`Config::with_work_backoff`](crate::Config::with_work_backoff)).
    /// - When leadership is lost, campaigns again: at once after a term that lasted, after such a
    ///   pause when terms are short.
    /// - Work that panics has failed.
    /// - When `shutdown` completes, tells the work to stop, waits for it, resigns and returns; a candidate that waits withdraws,
    ///   and its entry is gone before this returns. All of that within the
    ///   [shutdown timeout](crate::Config::with_shutdown_timeout): work that has not stopped when four fifths of it are over, or
    ///   at the deadline, is dropped. What the store has not confirmed in the end is logged.
    ///
    /// # Errors
    /// What cannot get better: an illegal name, refused credentials, a closed elector. Failures
    /// of the work and of the store are logged, and tried again.
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
        let mut retry = RetryDelays::new(self.work_backoff());
        loop {
            let given_up = Box::pin(shutdown.as_mut());
            let Some(leadership) = self.campaign_until(election, given_up).await? else { return Ok(()) };
            let token = leadership.fencing_token();
            let since = tokio::time::Instant::now();
            let mut stopping = None;
            let outcome = {
                // The work is called inside, too: it may panic before it returns a future.
                let work = AssertUnwindSafe(async { work(leadership.handle()).await }).catch_unwind();
                let mut running = pin!(leadership.run(work));
                loop {
                    let patience = async {
                        match stopping {
                            Some(since) => {
                                tokio::time::sleep_until(since + self.shutdown_timeout() * 4 / 5).await
                            }
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        biased;
                        () = &mut shutdown, if stopping.is_none() => {
                            stopping = Some(tokio::time::Instant::now());
                            leadership.begin_resign();
                        }
                        outcome = &mut running => break Some(outcome),
                        () = patience => {
                            warn!(election, token = token.get(), "work has not stopped in time for the shutdown; dropping it");
                            break None;
                        }
                    }
                }
            };
            let lost = leadership.loss().filter(|_| stopping.is_none());
            let rest = stopping.map(|since| self.shutdown_timeout().saturating_sub(since.elapsed()));
            let resigned = match rest {
                Some(rest) => tokio::time::timeout(rest, leadership.resign()).await.ok(),
                None => Some(leadership.resign().await),
            };
            if stopping.is_some() {
                // Another error says again that leadership was lost.
                if matches!(resigned, None | Some(Err(Error::NotConfirmed { .. } | Error::TaskEnded(_)))) {
                    warn!(
                        election,
                        token = token.get(),
                        "the store has not confirmed the resignation; the entry goes once the store answers, or with its session"
                    );
                }
                return Ok(());
            }
            let pause = match (outcome, lost) {
                (_, Some(reason)) => {
                    info!(election, token = token.get(), %reason, "leadership lost; campaigning again");
                    // Not at once when terms are short: whatever ends them would end them for ever.
                    if since.elapsed() >= self.work_backoff().max {
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
                        _ => "it has panicked".to_owned(),
                    };
                    warn!(election, token = token.get(), error, pause = %humantime::format_duration(pause),
                        "work failed; leadership handed over");
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
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// An error and what caused it, on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
