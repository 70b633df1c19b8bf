//! Hedged calls: starts another attempt when an answer is late.
//!
//! A frozen member neither answers nor closes its connections, and a follower that forwards to a frozen leader holds
//! a request for seven seconds, although another one, sent a second later, is answered at once (hazard E3). So a call
//! does not wait for a late answer alone: a new attempt starts beside it, and the first decisive outcome counts.

use std::{
    pin::{Pin, pin},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use tenure_core::spi::{BackendError, BackendErrorKind};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout_at},
};

/// The outcome of a hedged call that succeeded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HedgedResponse<T> {
    pub(crate) value: T,
    /// Which attempt was answered, from zero.
    pub(crate) attempt: usize,
    /// How many attempts were started. Those that were not answered may still reach the store.
    pub(crate) attempts: usize,
}

/// The limits of a hedged call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HedgeLimits {
    /// How long to wait for an answer before another attempt starts.
    pub(crate) hedge_delay: Duration,
    /// How long one attempt may take.
    pub(crate) attempt_timeout: Duration,
    /// How long the whole call may take.
    pub(crate) call_timeout: Duration,
    /// How many attempts may follow each other without a delay: one per member.
    pub(crate) round: usize,
}

/// A timeout that starts a timer only once the call is late.
///
/// Nearly all calls are answered in time, and a timer that is set and cancelled costs a noticeable part of a request.
#[derive(Debug, Default)]
pub(crate) struct LazyTimeout {
    is_armed: AtomicBool,
    armed: Notify,
}

impl LazyTimeout {
    pub(crate) fn arm(&self) {
        self.is_armed.store(true, Relaxed);
        self.armed.notify_waiters();
    }

    /// Returns at `deadline`, or when the timeout is armed if that is later.
    pub(crate) async fn expired(&self, deadline: Instant) {
        let mut armed = pin!(self.armed.notified());
        armed.as_mut().enable();
        // Relaxed suffices: one task both sets and reads the flag.
        if !self.is_armed.load(Relaxed) {
            armed.await;
        }
        sleep_until(deadline).await;
    }
}

/// Starts attempts, numbered from zero, until one is decisive or the call times out.
///
/// An attempt is decisive when it succeeds, or fails with an error other than
/// [`Unavailable`](BackendErrorKind::Unavailable). The next attempt starts `hedge_delay` after the last one, or
/// immediately when one has failed and not every member was tried yet. The call fails when no attempt is in flight
/// and every member has failed. At most two attempts per member, and one more, are in flight at a time: more would
/// only compete with each other when the store is overloaded.
///
/// # Cancellation safety
/// Dropping the future drops all attempts.
pub(crate) async fn hedged<T, F, Fut>(
    limits: HedgeLimits,
    timeout: &LazyTimeout,
    mut start: F,
) -> Result<HedgedResponse<T>, BackendError>
where
    F: FnMut(usize) -> Fut,
    Fut: Future<Output = Result<T, BackendError>>,
{
    let begun = Instant::now();
    let mut first = Box::pin(start(0));
    let early = tokio::select! {
        biased;
        ended = &mut first => Some(ended),
        () = sleep_until(begun + limits.hedge_delay.min(limits.attempt_timeout).min(limits.call_timeout)) => None,
    };
    let mut last_error = match early {
        Some(Ok(value)) => return Ok(HedgedResponse { value, attempt: 0, attempts: 1 }),
        Some(Err(error)) if error.kind() != BackendErrorKind::Unavailable || limits.round <= 1 => {
            return Err(error);
        }
        Some(Err(error)) => Some(error),
        None => None,
    };
    timeout.arm();
    // Boxed, because this memory is hardly ever needed.
    let call = Box::pin(async {
        let number = async |attempt: usize, future: Pin<Box<Fut>>| (attempt, future.await);
        let mut running = FuturesUnordered::new();
        let mut attempts = 1;
        let mut next = begun + limits.hedge_delay;
        if last_error.is_none() {
            running.push(number(0, first));
        } else {
            next = Instant::now();
        }
        loop {
            let ended = tokio::select! {
                biased;
                Some(ended) = running.next() => Some(ended),
                () = sleep_until(next) => None,
            };
            match ended {
                Some((attempt, Ok(value))) => return Ok(HedgedResponse { value, attempt, attempts }),
                Some((_, Err(error))) if error.kind() != BackendErrorKind::Unavailable => return Err(error),
                Some((_, Err(error))) => {
                    last_error = Some(error.clone());
                    if attempts >= limits.round {
                        if running.is_empty() {
                            return Err(error);
                        }
                        continue;
                    }
                }
                None if running.len() > 2 * limits.round => {
                    next += limits.hedge_delay;
                    continue;
                }
                None => {}
            }
            running.push(number(attempts, Box::pin(start(attempts))));
            attempts += 1;
            next = Instant::now() + limits.hedge_delay;
        }
    });
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
        attempt_timeout: Duration::from_secs(2),
        call_timeout: Duration::from_secs(5),
        round: 3,
    };

    async fn hedged<T, F, Fut>(limits: HedgeLimits, start: F) -> Result<HedgedResponse<T>, BackendError>
    where
        F: FnMut(usize) -> Fut,
        Fut: Future<Output = Result<T, BackendError>>,
    {
        super::hedged(limits, &LazyTimeout::default(), start).await
    }

    fn unavailable(text: &str) -> BackendError {
        BackendError::new(BackendErrorKind::Unavailable, text)
    }

    #[tokio::test(start_paused = true)]
    async fn a_prompt_answer_needs_one_attempt() {
        let response = hedged(LIMITS, |n| async move { Ok(n) }).await.unwrap();
        assert_eq!(response, HedgedResponse { value: 0, attempt: 0, attempts: 1 });
    }

    /// E3: a member that does not answer costs one hedge delay, not its timeout.
    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_overtaken() {
        let begun = Instant::now();
        let response = hedged(LIMITS, |n| async move {
            if n == 0 {
                pending::<()>().await
            }
            sleep(Duration::from_millis(10)).await;
            Ok(n)
        });
        assert_eq!(response.await.unwrap(), HedgedResponse { value: 1, attempt: 1, attempts: 2 });
        assert_eq!(begun.elapsed(), Duration::from_millis(310));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_attempt_may_still_win() {
        let response = hedged(LIMITS, |n| async move {
            sleep(Duration::from_millis(if n == 0 { 400 } else { 1000 })).await;
            Ok(n)
        });
        assert_eq!(response.await.unwrap().attempt, 0);
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
        assert_eq!(response.await.unwrap().attempt, 5);
    }

    /// E6: a dead member costs nothing.
    #[tokio::test(start_paused = true)]
    async fn a_failed_attempt_is_followed_at_once() {
        let begun = Instant::now();
        let response =
            hedged(LIMITS, |n| async move { if n < 2 { Err(unavailable("refused")) } else { Ok(n) } });
        assert_eq!(response.await.unwrap().attempt, 2);
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
