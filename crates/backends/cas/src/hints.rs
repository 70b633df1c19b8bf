//! Waiting between two reads of a record.

use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _, stream::BoxStream};
use tokio::time::{Instant, sleep_until};

use crate::{shared::Shared, store::CasStore};

/// The shortest time between two reads because of hints.
const MIN_PAUSE: Duration = Duration::from_millis(20);
/// How many hints that have arrived meanwhile one read answers.
const MAX_COALESCED: usize = 256;
/// How much less often a record is polled while there are hints, unless it is polled for something else, too.
const POLLS_SAVED: u32 = 10;

/// Why a wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The record may have changed. A replica may lag behind the hint, so read fresh.
    Hint,
    /// It is time to poll.
    Poll,
}

/// Hints that a record has changed.
pub(crate) struct Hints<'a, S> {
    shared: &'a Shared<S>,
    key: String,
    stream: Option<BoxStream<'static, ()>>,
    /// How much less often the record is polled while there are hints.
    polls_saved: u32,
    /// A hint that has led to no read yet: the wait was dropped.
    is_hinted: bool,
    /// When a hint led to a read.
    last: Option<Instant>,
}

impl<'a, S: CasStore> Hints<'a, S> {
    pub(crate) fn new(shared: &'a Shared<S>, key: String) -> Self {
        Self { shared, key, stream: None, polls_saved: POLLS_SAVED, is_hinted: false, last: None }
    }

    /// Hints of one who polls also for what changes no election's record: a leader that dies.
    pub(crate) fn for_observer(shared: &'a Shared<S>, key: String) -> Self {
        Self { polls_saved: 1, ..Self::new(shared, key) }
    }

    /// Subscribes, unless it has. To be called before the record is read, so that no change is missed: the stream may have ended.
    pub(crate) fn subscribe(&mut self) {
        if self.stream.is_none() {
            self.stream = self.shared.client.store().changes(&self.key);
        }
    }

    /// Waits for a hint, or until it is time to poll.
    pub(crate) async fn wait(&mut self) -> Wake {
        let (began, jitter) = (Instant::now(), 0.5 + fastrand::f64());
        loop {
            // Polled more often once the stream has ended.
            let factor = if self.stream.is_some() { self.polls_saved } else { 1 };
            let poll_at = began + (self.shared.settings.poll_interval * factor).mul_f64(jitter);
            tokio::select! {
                biased;
                () = sleep_until(poll_at) => return Wake::Poll,
                more = self.next() => if more { return Wake::Hint },
            }
        }
    }

    /// Waits for a hint. False when the stream has ended, and pending for ever after that.
    pub(crate) async fn next(&mut self) -> bool {
        if !self.is_hinted {
            let Some(stream) = &mut self.stream else { return std::future::pending().await };
            if stream.next().await.is_none() {
                self.stream = None;
                return false;
            }
            self.is_hinted = true;
        }
        if let Some(last) = self.last {
            sleep_until(last + MIN_PAUSE).await;
        }
        for _ in 0..MAX_COALESCED {
            match self.stream.as_mut().and_then(|stream| stream.next().now_or_never()) {
                Some(Some(())) => {}
                Some(None) => self.stream = None,
                None => break,
            }
        }
        (self.is_hinted, self.last) = (false, Some(Instant::now()));
        true
    }
}
