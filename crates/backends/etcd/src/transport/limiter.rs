//! Bounds the number of bulk calls in flight, by additive increase and multiplicative decrease.
//!
//! An overloaded store answers late, callers then ask again, and the load grows. Many processes without a limit keep
//! a store in that state, in which almost nothing is answered in time. So each process lowers its limit while answers
//! are late, and raises it again while they are not.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

/// The highest limit. More calls would only wait in etcd's queue, where they would look late.
const MAX_LIMIT: usize = 256;
/// The lowest limit, however late the answers are: one call may be stuck in a frozen member.
const MIN_LIMIT: usize = 8;
/// The least time between two decreases, so that calls which are late together count once.
const DECREASE_INTERVAL: Duration = Duration::from_millis(500);

/// Limits the calls in flight. The limit falls while answers are late.
pub(crate) struct Limiter {
    /// One permit for each call that may start.
    permits: Semaphore,
    state: Mutex<LimiterState>,
}

struct LimiterState {
    /// How many calls may be in flight.
    limit: usize,
    /// How many permits exist. Exceeds `limit` until enough permits were returned.
    issued: usize,
    /// How many answers were in time since the last increase.
    prompt_answers: usize,
    last_decrease: Option<Instant>,
}

/// The right to have one call in flight.
pub(crate) struct LimiterPermit<'a> {
    limiter: &'a Limiter,
    permit: Option<SemaphorePermit<'a>>,
}

impl Limiter {
    pub(crate) fn new() -> Self {
        let state =
            LimiterState { limit: MAX_LIMIT, issued: MAX_LIMIT, prompt_answers: 0, last_decrease: None };
        Self { permits: Semaphore::new(MAX_LIMIT), state: Mutex::new(state) }
    }

    /// Waits for a permit.
    pub(crate) async fn acquire(&self) -> LimiterPermit<'_> {
        LimiterPermit { limiter: self, permit: self.permits.acquire().await.ok() }
    }

    fn state(&self) -> MutexGuard<'_, LimiterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises the limit by one after as many prompt answers as an eighth of the limit.
    fn increase(&self) {
        let mut state = self.state();
        state.prompt_answers += 1;
        if state.limit == MAX_LIMIT || state.prompt_answers <= state.limit / 8 {
            return;
        }
        state.prompt_answers = 0;
        state.limit += 1;
        if state.issued < state.limit {
            state.issued += 1;
            self.permits.add_permits(1);
        }
    }

    /// Halves the limit, at most once per [`DECREASE_INTERVAL`].
    fn decrease(&self) {
        let mut state = self.state();
        let now = Instant::now();
        if state.last_decrease.is_some_and(|before| now - before < DECREASE_INTERVAL) {
            return;
        }
        state.last_decrease = Some(now);
        state.prompt_answers = 0;
        state.limit = (state.limit / 2).max(MIN_LIMIT);
        // Permits in use are removed when they are returned.
        let excess = state.issued.saturating_sub(state.limit);
        state.issued -= self.permits.forget_permits(excess);
    }
}

impl LimiterPermit<'_> {
    /// Reports whether the call was answered in time. A permit that is dropped reports nothing.
    pub(crate) fn report(self, in_time: bool) {
        match in_time {
            true => self.limiter.increase(),
            false => self.limiter.decrease(),
        }
    }
}

impl Drop for LimiterPermit<'_> {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        let mut state = self.limiter.state();
        if state.issued > state.limit {
            state.issued -= 1;
            permit.forget();
        } else {
            drop(permit);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::{task::unconstrained, time::advance};

    use super::*;

    fn acquire(limiter: &Limiter) -> Option<LimiterPermit<'_>> {
        unconstrained(limiter.acquire()).now_or_never()
    }

    fn available(limiter: &Limiter) -> usize {
        limiter.permits.available_permits()
    }

    #[tokio::test(start_paused = true)]
    async fn late_answers_lower_the_limit_and_prompt_ones_raise_it() {
        let limiter = Limiter::new();
        let mut in_flight: Vec<_> = (0..MAX_LIMIT).map(|_| acquire(&limiter).unwrap()).collect();
        assert!(acquire(&limiter).is_none());
        // Several late answers at the same time count once.
        in_flight.drain(..3).for_each(|permit| permit.report(false));
        assert_eq!(available(&limiter), 0);
        drop(in_flight);
        assert_eq!(available(&limiter), MAX_LIMIT / 2);
        for _ in 0..20 {
            advance(DECREASE_INTERVAL).await;
            acquire(&limiter).unwrap().report(false);
        }
        assert_eq!(available(&limiter), MIN_LIMIT);
        let mut prompt_answers = 0;
        while available(&limiter) < MAX_LIMIT {
            acquire(&limiter).unwrap().report(true);
            prompt_answers += 1;
        }
        assert!((MAX_LIMIT..20 * MAX_LIMIT).contains(&prompt_answers), "{prompt_answers}");
        acquire(&limiter).unwrap().report(true);
        assert_eq!(available(&limiter), MAX_LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_call_returns_its_permit() {
        let limiter = Limiter::new();
        let in_flight: Vec<_> = (0..MAX_LIMIT).map(|_| acquire(&limiter).unwrap()).collect();
        assert!(acquire(&limiter).is_none());
        drop(in_flight);
        assert_eq!(available(&limiter), MAX_LIMIT);
    }
}
