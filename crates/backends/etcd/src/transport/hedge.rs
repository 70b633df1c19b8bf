//! Hedged calls: starts another attempt when an answer is late.
//!
//! A frozen member neither answers nor closes its connections, and a follower that forwards to a frozen leader holds
//! a request for seven seconds, although another one, sent a second later, is answered at once (hazard E3). So a call
//! does not wait for a late answer alone: a new attempt starts beside it, and the first decisive outcome counts.

use std::time::Duration;

use futures::{StreamExt, stream::FuturesUnordered};
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::time::{Instant, sleep_until, timeout_at};

/// The limits of a hedged call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HedgeLimits {
    /// How long to wait for an answer before another attempt starts.
    pub(crate) hedge_delay: Duration,
    /// How long the whole call may take.
    pub(crate) call_timeout: Duration,
    /// How many attempts may follow each other without a delay: one per member.
    pub(crate) round: usize,
}

/// How many attempts of a call may be in flight with this many members: more would only compete with each other when the
/// store is overloaded.
pub(crate) const fn max_in_flight(members: usize) -> usize {
    2 * members + 1
}

/// Starts attempts, numbered from zero, until one is decisive or the call times out. Returns the number of the attempt that
/// succeeded, and its value.
///
/// An attempt is decisive when it succeeds, or fails with an error other than
/// [`Unavailable`](BackendErrorKind::Unavailable). The next attempt starts `hedge_delay` after the last one, or
/// immediately when one has failed and not every member was tried yet. The call fails when no attempt is in flight
/// and every member has failed. At most [`max_in_flight`] attempts are in flight at a time.
///
/// # Cancellation safety
/// Dropping the future drops all attempts.
pub(crate) async fn hedged<T, F, Fut>(limits: HedgeLimits, mut start: F) -> Result<(usize, T), BackendError>
where
    F: FnMut(usize) -> Fut,
    Fut: Future<Output = Result<T, BackendError>>,
{
    let begun = Instant::now();
    let mut last_error = None;
    let call = async {
        let number = async |attempt: usize, outcome: Fut| (attempt, outcome.await);
        let mut running = FuturesUnordered::new();
        let mut attempts = 0;
        loop {
            running.push(number(attempts, start(attempts)));
            attempts += 1;
            let mut next = Instant::now() + limits.hedge_delay;
            // Until the next attempt is due.
            loop {
                let ended = tokio::select! {
                    biased;
                    Some(ended) = running.next() => Some(ended),
                    () = sleep_until(next) => None,
                };
                match ended {
                    Some((attempt, Ok(value))) => return Ok((attempt, value)),
                    Some((_, Err(error))) if error.kind() != BackendErrorKind::Unavailable => {
                        return Err(error);
                    }
                    Some((_, Err(error))) => {
                        if attempts >= limits.round && running.is_empty() {
                            return Err(error);
                        }
                        last_error = Some(error);
                        if attempts < limits.round {
                            break;
                        }
                    }
                    None if running.len() >= max_in_flight(limits.round) => next += limits.hedge_delay,
                    None => break,
                }
            }
        }
    };
    match timeout_at(begun + limits.call_timeout, call).await {
        Ok(outcome) => outcome,
        Err(_) => Err(last_error.unwrap_or_else(|| {
            BackendError::new(
                BackendErrorKind::Unavailable,
                format!("no etcd member answered within {:?}", limits.call_timeout),
            )
        })),
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, future::pending};

    use tokio::time::sleep;

    use super::*;

    const LIMITS: HedgeLimits = HedgeLimits {
        hedge_delay: Duration::from_millis(300),
        call_timeout: Duration::from_secs(5),
        round: 3,
    };

    fn unavailable(text: &str) -> BackendError {
        BackendError::new(BackendErrorKind::Unavailable, text)
    }

    #[tokio::test(start_paused = true)]
    async fn a_prompt_answer_needs_one_attempt() {
        let mut started = 0;
        let response = hedged(LIMITS, |n| {
            started += 1;
            async move { Ok(n) }
        });
        assert_eq!(response.await.unwrap(), (0, 0));
        assert_eq!(started, 1);
    }

    /// E3: a member that does not answer costs one hedge delay, not its timeout.
    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_overtaken() {
        let (begun, mut started) = (Instant::now(), 0);
        let response = hedged(LIMITS, |n| {
            started += 1;
            async move {
                if n == 0 {
                    pending::<()>().await
                }
                sleep(Duration::from_millis(10)).await;
                Ok(n)
            }
        });
        assert_eq!(response.await.unwrap(), (1, 1));
        assert_eq!(started, 2);
        assert_eq!(begun.elapsed(), Duration::from_millis(310));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_attempt_may_still_win() {
        let response = hedged(LIMITS, |n| async move {
            sleep(Duration::from_millis(if n == 0 { 400 } else { 1000 })).await;
            Ok(n)
        });
        assert_eq!(response.await.unwrap().0, 0);
    }

    /// E3: attempts sent before etcd has a leader again are stuck; later ones are not.
    #[tokio::test(start_paused = true)]
    async fn fresh_attempts_go_on_while_older_ones_are_stuck() {
        let begun = Instant::now();
        let response = hedged(LIMITS, |n| async move {
            if begun.elapsed() < Duration::from_millis(1500) {
                pending::<()>().await
            }
            Ok(n)
        });
        assert_eq!(response.await.unwrap().0, 5);
    }

    /// E6: a dead member costs nothing.
    #[tokio::test(start_paused = true)]
    async fn a_failed_attempt_is_followed_at_once() {
        let begun = Instant::now();
        let response =
            hedged(LIMITS, |n| async move { if n < 2 { Err(unavailable("refused")) } else { Ok(n) } });
        assert_eq!(response.await.unwrap().0, 2);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_call_fails_once_every_member_has() {
        let tried = RefCell::new(0);
        let error = hedged(LIMITS, |n| {
            *tried.borrow_mut() += 1;
            async move { Err::<(), _>(unavailable(&n.to_string())) }
        });
        assert_eq!(error.await.unwrap_err().to_string(), "2");
        assert_eq!(*tried.borrow(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_decisive_failure_is_believed() {
        let error = hedged(LIMITS, |n| async move {
            if n == 0 {
                pending::<()>().await
            }
            Err::<(), _>(BackendError::new(BackendErrorKind::SessionGone, "gone"))
        });
        assert_eq!(error.await.unwrap_err().kind(), BackendErrorKind::SessionGone);
    }

    /// E7: no call waits for ever.
    #[tokio::test(start_paused = true)]
    async fn the_call_is_bounded() {
        let begun = Instant::now();
        let error = hedged(LIMITS, |_| pending::<Result<(), _>>()).await.unwrap_err();
        assert_eq!(error.kind(), BackendErrorKind::Unavailable);
        assert_eq!(begun.elapsed(), LIMITS.call_timeout);
    }
}
