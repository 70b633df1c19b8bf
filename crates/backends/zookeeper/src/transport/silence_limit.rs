//! For how long a session's server may be silent.

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;

use super::lock;

/// For how long a longer limit is kept.
const RAISED_FOR: Duration = Duration::from_secs(3600);

/// For how long a server may be silent before the session moves to another one: a tenth of the TTL. Twice as long after each
/// move that did not help, up to three fifths of the TTL, after which the client library breaks the connection.
///
/// A large answer counts as silence until it has arrived as a whole. If it always takes longer than that, the session
/// would move for ever, and never receive it.
#[derive(Debug)]
pub(crate) struct SilenceLimit {
    ttl: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    doublings: u32,
    raised_at: Option<Instant>,
    moved_at: Option<Instant>,
}

impl SilenceLimit {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self { ttl, state: Mutex::default() }
    }

    pub(crate) fn current(&self) -> Duration {
        let mut state = lock(&self.state);
        if state.raised_at.is_some_and(|at| at.elapsed() >= RAISED_FOR) {
            *state = State::default();
        }
        (self.ttl / 10 * 2_u32.pow(state.doublings)).min(self.ttl * 3 / 5)
    }

    /// Records that the session moves since its server was silent. If it has moved for that reason within the TTL before, that
    /// did not help.
    pub(crate) fn record_move(&self) {
        let mut state = lock(&self.state);
        let now = Instant::now();
        if state.moved_at.replace(now).is_some_and(|before| now - before < self.ttl) {
            state.doublings = (state.doublings + 1).min(3);
            state.raised_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    /// Hazard Z21: moves that do not help become rare; others change nothing.
    #[tokio::test(start_paused = true)]
    async fn the_limit_grows_while_moving_does_not_help() {
        let limit = SilenceLimit::new(TTL);
        for _ in 0..5 {
            limit.record_move();
            advance(TTL).await;
        }
        assert_eq!(limit.current(), TTL / 10);
        for expected in [1, 2, 4, 6, 6].map(|tenths| TTL / 10 * tenths) {
            assert_eq!(limit.current(), expected);
            advance(expected).await;
            limit.record_move();
            if expected == TTL / 10 {
                limit.record_move();
            }
        }
        advance(RAISED_FOR - Duration::from_secs(1)).await;
        assert_eq!(limit.current(), TTL * 3 / 5);
        advance(Duration::from_secs(1)).await;
        assert_eq!(limit.current(), TTL / 10);
    }
}
