//! For how long a connection has had unanswered requests.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// The requests of one connection that are waited for, and since when none of them has been answered.
///
/// A request that was dropped counts until another one is answered: the server has it, and answers in order.
#[derive(Debug)]
pub(crate) struct Unanswered(watch::Sender<State>);

#[derive(Debug, Default)]
struct State {
    waiting: usize,
    since: Option<Instant>,
}

impl Unanswered {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::default())
    }

    /// Records that a request is sent now. Dropping what this returns means that it is not waited for any more.
    pub(crate) fn sent(&self) -> PendingAnswer<'_> {
        self.0.send_if_modified(|state| {
            state.waiting += 1;
            let is_first = state.since.is_none();
            state.since.get_or_insert_with(Instant::now);
            is_first
        });
        PendingAnswer(self)
    }

    /// Waits until requests have been sent and none was answered for `limit`.
    pub(crate) async fn for_longer_than(&self, limit: Duration) {
        let mut state = self.0.subscribe();
        loop {
            let since = state.borrow_and_update().since;
            let Some(since) = since else {
                let _ = state.changed().await;
                continue;
            };
            if timeout_at(since + limit, state.changed()).await.is_err() {
                return;
            }
        }
    }
}

/// A request that is waited for.
pub(crate) struct PendingAnswer<'a>(&'a Unanswered);

impl PendingAnswer<'_> {
    /// Records that it was answered.
    pub(crate) fn answered(self) {
        self.0.0.send_modify(|state| state.since = (state.waiting > 1).then(Instant::now));
    }
}

impl Drop for PendingAnswer<'_> {
    fn drop(&mut self) {
        self.0.0.send_if_modified(|state| {
            state.waiting -= 1;
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::time::advance;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    /// Hazard Z21: only requests without any answer count, also if nobody waits for them any more.
    #[tokio::test(start_paused = true)]
    async fn a_dropped_request_counts_until_another_is_answered() {
        let unanswered = Unanswered::new();
        let is_overdue = || unanswered.for_longer_than(LIMIT).now_or_never().is_some();
        drop(unanswered.sent());
        assert!(!is_overdue());
        advance(LIMIT).await;
        assert!(is_overdue());
        unanswered.sent().answered();
        advance(LIMIT).await;
        assert!(!is_overdue(), "nothing was sent since");
    }

    /// Hazard Z21: an answer shows that the connection works; the others are waited for as long again.
    #[tokio::test(start_paused = true)]
    async fn an_answer_begins_the_time_anew() {
        let unanswered = Unanswered::new();
        let is_overdue = || unanswered.for_longer_than(LIMIT).now_or_never().is_some();
        let (first, _second) = (unanswered.sent(), unanswered.sent());
        advance(LIMIT / 2).await;
        first.answered();
        advance(LIMIT / 2).await;
        assert!(!is_overdue());
        advance(LIMIT / 2).await;
        assert!(is_overdue());
    }
}
