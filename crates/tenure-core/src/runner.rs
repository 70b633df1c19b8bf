//! `run_while_leader`: one loop that campaigns, works, and campaigns again.

use std::{future::Future, pin::pin, time::Duration};

use tracing::{info, warn};

use crate::{BoxError, Elector, Error, LeadershipHandle, engine::retry::Retry};

/// What every [`Elector`] can do on top of its trait; a backend has nothing to add.
pub trait ElectorExt: Elector {
    /// Runs `work` once per term, campaigning again for ever, until `shutdown`.
    ///
    /// # Behavior
    /// - Campaigns, and calls `work` with the new leadership. The work is told to stop through
    ///   the leadership's [`cancellation_token`](LeadershipHandle::cancellation_token) and
    ///   dropped before the deadline, as under [`run`](LeadershipHandle::run).
    /// - When the work returns, resigns, pauses and campaigns again. The pauses are
    ///   jittered, and grow while the work fails ([`Config::with_after_work`](crate::Config::with_after_work)).
    /// - When leadership is lost, campaigns again: at once after a term that lasted, after such a
    ///   pause when terms are short.
    /// - When `shutdown` completes, tells the work to stop, waits for it, at most until the
    ///   deadline, resigns and returns.
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
        let mut retry = Retry::new(self.work_backoff());
        loop {
            let leadership = tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                leadership = self.campaign(election) => leadership?,
            };
            let token = leadership.fencing_token();
            let since = tokio::time::Instant::now();
            let mut stopping = false;
            let outcome = {
                let mut running = pin!(leadership.run(async { work(leadership.handle()).await }));
                loop {
                    tokio::select! {
                        biased;
                        () = &mut shutdown, if !stopping => {
                            stopping = true;
                            leadership.begin_resign();
                        }
                        outcome = &mut running => break outcome,
                    }
                }
            };
            let lost = leadership.loss().filter(|_| !stopping);
            // An error here says again that leadership was lost.
            let _ = leadership.resign().await;
            if stopping {
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
                        retry.next_wait()
                    }
                }
                (Ok(Err(error)), None) => {
                    let pause = retry.next_wait();
                    let error = chain(&*error);
                    warn!(election, token = token.get(), error, pause = %humantime::format_duration(pause),
                        "work failed; leadership handed over");
                    pause
                }
                _ => {
                    retry.reset();
                    retry.next_wait()
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
