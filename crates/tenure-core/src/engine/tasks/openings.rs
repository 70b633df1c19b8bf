//! The requests that open sessions.

use std::{
    collections::BTreeMap,
    future::{Future, pending},
    panic::AssertUnwindSafe,
    sync::Arc,
    thread,
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};

use super::{
    events::CandidateNumber,
    session::Session,
    session_opening::{self, OpenError, SessionRequest},
};
use crate::{
    engine::{elector_context::ElectorContext, runtime::callbacks::catch_panic},
    retry_delays::RetryDelays,
    sync::sleep,
};

/// The candidate that a session is opened for, if a session serves one election; otherwise `None`, for all candidates.
pub(super) type Owner = Option<CandidateNumber>;

/// What a request that opens a session has come to.
pub(super) enum Opening {
    /// The pause before it is over.
    PauseOver,
    Done(Result<Arc<Session>, OpenError>),
    /// The elector is closed or dropped.
    Closing,
}

/// The sessions that are being opened, at most one for each owner.
pub(super) struct Openings {
    shared: Arc<ElectorContext>,
    in_flight: FuturesUnordered<BoxFuture<'static, (Owner, thread::Result<Opening>)>>,
    /// The pauses between the attempts, of each owner that has a request in flight or pauses.
    retries: BTreeMap<Owner, RetryDelays>,
}

impl Openings {
    pub(super) fn new(shared: &Arc<ElectorContext>) -> Self {
        Self { shared: Arc::clone(shared), in_flight: FuturesUnordered::new(), retries: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.retries.is_empty()
    }

    pub(super) fn is_running(&self, owner: Owner) -> bool {
        self.retries.contains_key(&owner)
    }

    pub(super) fn owners(&self) -> impl Iterator<Item = Owner> {
        self.retries.keys().copied()
    }

    /// Sends a request. `retry` has the pauses of earlier attempts, if there were any.
    pub(super) fn open(&mut self, request: SessionRequest, retry: Option<RetryDelays>) {
        let owner = request.owner;
        self.retries.insert(owner, retry.unwrap_or_else(|| RetryDelays::new(self.shared.config.retry)));
        let opening = session_opening::open(Arc::clone(&self.shared), request);
        self.push(owner, opening.map(|outcome| outcome.map_or(Opening::Closing, Opening::Done)));
    }

    /// Pauses before another request is sent.
    pub(super) fn pause(&mut self, owner: Owner, mut retry: RetryDelays) {
        let (shared, pause) = (Arc::clone(&self.shared), retry.next_delay());
        self.retries.insert(owner, retry);
        self.push(owner, async move {
            tokio::select! {
                biased;
                () = shared.closing.cancelled() => Opening::Closing,
                () = shared.elector_dropped.cancelled() => Opening::Closing,
                () = sleep(pause) => Opening::PauseOver,
            }
        });
    }

    fn push(&mut self, owner: Owner, opening: impl Future<Output = Opening> + Send + 'static) {
        let opening = AssertUnwindSafe(opening).catch_unwind().map(move |outcome| (owner, outcome));
        self.in_flight.push(opening.boxed());
    }

    /// What the next request or pause has come to. Pending for ever while there is none.
    pub(super) async fn next(&mut self) -> (Owner, thread::Result<Opening>) {
        match self.in_flight.next().await {
            Some(outcome) => outcome,
            None => pending().await,
        }
    }

    /// Records that the request or pause of this owner is over. Returns the pauses for a further attempt.
    pub(super) fn finished(&mut self, owner: Owner) -> Option<RetryDelays> {
        self.retries.remove(&owner)
    }

    /// Drops all requests. One that panics does not keep the others.
    pub(super) fn drop_all(&mut self) {
        let in_flight = std::mem::take(&mut self.in_flight);
        in_flight.into_iter().for_each(|opening| {
            catch_panic(|| drop(opening));
        });
    }
}
