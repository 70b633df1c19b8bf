//! Asking again elsewhere when an answer is late.
//!
//! A frozen member neither answers nor closes its connections, and a follower that
//! forwards to a frozen leader holds a request for seven seconds although another,
//! sent a second later, is answered at once (hazard E3). So a late answer is not
//! waited for alone: a fresh attempt starts beside it, and the first useful answer counts.

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

/// What came of a hedged call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Won<T> {
    pub(crate) value: T,
    /// Which attempt answered, from zero.
    pub(crate) attempt: usize,
    /// How many attempts were made. Those that did not answer may still reach the store.
    pub(crate) attempts: usize,
}

/// The times that bound a hedged call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// After how long without an answer another attempt starts.
    pub(crate) hedge: Duration,
    /// How long an attempt may take.
    pub(crate) attempt: Duration,
    /// How long the whole call may take.
    pub(crate) call: Duration,
    /// How many attempts may follow each other without a pause: one for each member.
    pub(crate) round: usize,
}

/// Whether an answer is late, so that attempts look at the time.
///
/// Nearly all are answered in time, and a timer that is set and taken back costs as much as some part of a request.
#[derive(Debug, Default)]
pub(crate) struct Late {
    is_late: AtomicBool,
    told: Notify,
}

impl Late {
    pub(crate) fn set(&self) {
        self.is_late.store(true, Relaxed);
        self.told.notify_waiters();
    }

    /// Returns at `time`, or once an answer is late after that.
    pub(crate) async fn and_past(&self, time: Instant) {
        let mut told = pin!(self.told.notified());
        told.as_mut().enable();
        // Set and looked at by one task.
        if !self.is_late.load(Relaxed) {
            told.await;
        }
        sleep_until(time).await;
    }
}

/// Makes attempts, numbered from zero, until one is decisive or time is up.
///
/// An attempt is decisive when it succeeds or fails with anything but
/// [`Unavailable`](BackendErrorKind::Unavailable). The next attempt starts when
/// `hedge` has passed since the last one did, or at once when one has failed and
/// not every member was tried yet. The call fails when nothing is under way and
/// every member has failed. At most two attempts a member, and one more, are under way at a time:
/// more would only be in each other's way when the store is late because it has much to do.
///
/// # Cancellation safety
/// Dropping the future drops all attempts.
pub(crate) async fn hedged<T, F, Fut>(pace: Pace, late: &Late, mut start: F) -> Result<Won<T>, BackendError>
where
    F: FnMut(usize) -> Fut,
    Fut: Future<Output = Result<T, BackendError>>,
{
    let begun = Instant::now();
    let mut first = Box::pin(start(0));
    let early = tokio::select! {
        biased;
        ended = &mut first => Some(ended),
        () = sleep_until(begun + pace.hedge.min(pace.attempt).min(pace.call)) => None,
    };
    let mut last_error = match early {
        Some(Ok(value)) => return Ok(Won { value, attempt: 0, attempts: 1 }),
        Some(Err(error)) if error.kind() != BackendErrorKind::Unavailable || pace.round <= 1 => {
            return Err(error);
        }
        Some(Err(error)) => Some(error),
        None => None,
    };
    late.set();
    // Boxed: it takes room that is hardly ever needed.
    let call = Box::pin(async {
        let number = async |attempt: usize, future: Pin<Box<Fut>>| (attempt, future.await);
        let mut running = FuturesUnordered::new();
        let mut attempts = 1;
        let mut next = begun + pace.hedge;
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
                Some((attempt, Ok(value))) => return Ok(Won { value, attempt, attempts }),
                Some((_, Err(error))) if error.kind() != BackendErrorKind::Unavailable => return Err(error),
                Some((_, Err(error))) => {
                    last_error = Some(error.clone());
                    if attempts >= pace.round {
                        if running.is_empty() {
                            return Err(error);
                        }
                        continue;
                    }
                }
                None if running.len() > 2 * pace.round => {
                    next += pace.hedge;
                    continue;
                }
                None => {}
            }
            running.push(number(attempts, Box::pin(start(attempts))));
            attempts += 1;
            next = Instant::now() + pace.hedge;
        }
    });
    match timeout_at(begun + pace.call, call).await {
        Ok(outcome) => outcome,
        Err(_) => Err(last_error.unwrap_or_else(|| {
            BackendError::new(
                BackendErrorKind::Unavailable,
                format!("no etcd member answered within {:?}", pace.call),
            )
        })),
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, future::pending};

    use tokio::time::sleep;

    use super::*;

    const PACE: Pace = Pace {
        hedge: Duration::from_millis(300),
        attempt: Duration::from_secs(2),
        call: Duration::from_secs(5),
        round: 3,
    };

    async fn hedged<T, F, Fut>(pace: Pace, start: F) -> Result<Won<T>, BackendError>
    where
        F: FnMut(usize) -> Fut,
        Fut: Future<Output = Result<T, BackendError>>,
    {
        super::hedged(pace, &Late::default(), start).await
    }

    fn unavailable(text: &str) -> BackendError {
        BackendError::new(BackendErrorKind::Unavailable, text)
    }

    #[tokio::test(start_paused = true)]
    async fn a_prompt_answer_needs_one_attempt() {
        let won = hedged(PACE, |n| async move { Ok(n) }).await.unwrap();
        assert_eq!(won, Won { value: 0, attempt: 0, attempts: 1 });
    }

    /// E3: a member that does not answer costs one hedge delay, not its timeout.
    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_overtaken() {
        let begun = Instant::now();
        let won = hedged(PACE, |n| async move {
            if n == 0 {
                pending::<()>().await
            }
            sleep(Duration::from_millis(10)).await;
            Ok(n)
        });
        assert_eq!(won.await.unwrap(), Won { value: 1, attempt: 1, attempts: 2 });
        assert_eq!(begun.elapsed(), Duration::from_millis(310));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_attempt_may_still_win() {
        let won = hedged(PACE, |n| async move {
            sleep(Duration::from_millis(if n == 0 { 400 } else { 1000 })).await;
            Ok(n)
        });
        assert_eq!(won.await.unwrap().attempt, 0);
    }

    /// E3: attempts sent before etcd has a leader again are stuck; later ones are not.
    #[tokio::test(start_paused = true)]
    async fn fresh_attempts_go_on_while_older_ones_are_stuck() {
        let begun = Instant::now();
        let won = hedged(PACE, |n| async move {
            if begun.elapsed() < Duration::from_millis(1500) {
                pending::<()>().await
            }
            Ok(n)
        });
        assert_eq!(won.await.unwrap().attempt, 5);
    }

    /// E6: a dead member costs nothing.
    #[tokio::test(start_paused = true)]
    async fn a_failed_attempt_is_followed_at_once() {
        let begun = Instant::now();
        let won = hedged(PACE, |n| async move { if n < 2 { Err(unavailable("refused")) } else { Ok(n) } });
        assert_eq!(won.await.unwrap().attempt, 2);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_call_fails_once_every_member_has() {
        let tried = RefCell::new(0);
        let error = hedged(PACE, |n| {
            *tried.borrow_mut() += 1;
            async move { Err::<(), _>(unavailable(&n.to_string())) }
        });
        assert_eq!(error.await.unwrap_err().to_string(), "2");
        assert_eq!(*tried.borrow(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_decisive_failure_is_believed() {
        let error = hedged(PACE, |n| async move {
            if n == 0 {
                pending::<()>().await
            }
            Err::<(), _>(BackendError::new(BackendErrorKind::SessionGone, "gone"))
        });
        assert_eq!(error.await.unwrap_err().kind(), BackendErrorKind::SessionGone);
    }

    /// E7: nothing hangs for ever.
    #[tokio::test(start_paused = true)]
    async fn the_call_is_bounded() {
        let begun = Instant::now();
        let error = hedged(PACE, |_| pending::<Result<(), _>>()).await.unwrap_err();
        assert_eq!(error.kind(), BackendErrorKind::Unavailable);
        assert_eq!(begun.elapsed(), PACE.call);
    }
}
