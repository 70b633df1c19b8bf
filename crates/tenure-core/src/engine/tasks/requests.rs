//! The requests of candidates: futures that the elector's task polls, and their outcomes.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use tracing::{debug, error, warn};

use super::{
    events::CandidateNumber,
    session::{RegisteredEntry, Session},
    term::Term,
};
use crate::{
    LossReason,
    engine::{
        rules::{candidate_state::Event, pending_withdrawals::first_retry_delay},
        runtime::{
            callbacks::catch_panic,
            retry::{Retry, with_timeout},
        },
    },
    failpoints::{SafetyRule, is_disabled},
    spi::{BackendError, BackendErrorKind, Entered, Entry, EntryRequest, QueuePosition, Won},
    sync::sleep,
};

/// What a request of a candidate has come to.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) event: Event,
    /// The entry that was created.
    pub(super) entry: Option<Entry>,
    /// The election was won with the entry.
    pub(super) won: Option<Won>,
    /// Why the store refuses the request.
    pub(super) error: Option<BackendError>,
    /// Whether the outcome is known, so that the store executes nothing later that the candidate does not know of.
    pub(super) is_settled: bool,
}

impl From<Event> for Outcome {
    fn from(event: Event) -> Self {
        Self { event, entry: None, won: None, error: None, is_settled: false }
    }
}

impl From<Won> for Outcome {
    fn from(won: Won) -> Self {
        Self { entry: Some(won.entry.clone()), won: Some(won), is_settled: true, ..Event::Elected.into() }
    }
}

/// A request in flight. A panic of the backend is an outcome, and a panic in its drop is caught.
pub(super) struct Request {
    candidate: CandidateNumber,
    future: Option<BoxFuture<'static, Outcome>>,
}

impl Request {
    pub(super) fn new(
        candidate: CandidateNumber,
        future: impl Future<Output = Outcome> + Send + 'static,
    ) -> Self {
        Self { candidate, future: Some(Box::pin(future)) }
    }
}

impl Future for Request {
    type Output = (CandidateNumber, Outcome);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(future) = &mut self.future else { return Poll::Pending };
        let polled = catch_panic(|| future.as_mut().poll(context));
        polled.unwrap_or_else(|| Poll::Ready(Event::Panicked.into())).map(|outcome| (self.candidate, outcome))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        catch_panic(|| drop(self.future.take()));
    }
}

/// Sends a request to enter, once.
pub(super) async fn enter(
    session: Arc<Session>,
    request: Arc<EntryRequest>,
    waits_for_turn: bool,
) -> Outcome {
    let limit = session.shared.config.request_timeout;
    let entered = match with_timeout("entering", limit, session.backend_session.enter(&request)).await {
        Ok(entered) => entered,
        Err(error) => return failed(&session, &request, error, "entering again"),
    };
    session.shared.status.answered();
    let event = if waits_for_turn { Event::Entered } else { Event::OtherLeads };
    match entered {
        Entered::Leads(won) => won.into(),
        Entered::Queued { entry } => Outcome { is_settled: entry.is_some(), entry, ..event.into() },
        Entered::HeldBy(leader) => {
            debug!(election = %request.election, leader = %leader.id, "another candidate leads");
            Outcome { is_settled: true, ..event.into() }
        }
    }
}

/// Retires a position, of which the backend may keep a clone.
struct RetireOnDrop<'a>(&'a QueuePosition);

impl Drop for RetireOnDrop<'_> {
    fn drop(&mut self) {
        self.0.retire();
    }
}

/// Waits until the candidate leads.
pub(super) async fn wait_turn(
    session: Arc<Session>,
    request: Arc<EntryRequest>,
    entry: Option<Arc<RegisteredEntry>>,
) -> Outcome {
    if entry.is_none() && session.owner.is_some() && session.shared.status.is_retrying() {
        // While a candidate waits, nothing else is sent under a session of one election that shows that the outage is over.
        match enter(Arc::clone(&session), Arc::clone(&request), true).await {
            Outcome { event: Event::Entered, entry: None, .. } => {}
            // The next wait is for this entry.
            entered @ Outcome { event: Event::Entered, .. } => {
                return Outcome { event: Event::Failed, ..entered };
            }
            outcome => return outcome,
        }
    }
    let position = session.queue_position();
    let _retired = RetireOnDrop(&position);
    let entry = entry.as_ref().map(|registered| &registered.entry);
    match session.backend_session.wait_turn(&request, entry, &position).await {
        Ok(won) => {
            session.shared.status.answered();
            won.into()
        }
        Err(error) if error.kind() == BackendErrorKind::EntryGone => Event::EntryGone.into(),
        Err(error) => failed(&session, &request, error, "waiting again"),
    }
}

/// `message` is logged when the request may be repeated.
fn failed(session: &Session, request: &EntryRequest, error: BackendError, message: &str) -> Outcome {
    if error.kind() == BackendErrorKind::SessionGone {
        session.end(LossReason::SessionExpired);
        return Event::SessionEnded.into();
    }
    session.shared.status.failed(&error);
    let is_settled = !error.is_retryable();
    if error.is_permanent() {
        warn!(election = %request.election, %error, "the store refuses the candidate");
        return Outcome { error: Some(error), is_settled, ..Event::Refused.into() };
    }
    debug!(election = %request.election, %error, "{message}");
    Outcome { is_settled, ..Event::Failed.into() }
}

/// Pauses before the next attempt.
pub(super) async fn pause(delay: Duration) -> Outcome {
    sleep(delay).await;
    Event::RetryDue.into()
}

/// Waits until the work of a term has stopped.
pub(super) async fn await_work(term: Arc<Term>) -> Outcome {
    term.wait_work_stopped().await;
    Event::WorkStopped.into()
}

/// Removes the entry of `request`. Retries until the store confirms that, or the session has ended, which removes the
/// entry too. `uncertain` says whether a request went unanswered, so that the store may still execute it.
pub(super) async fn remove(
    session: Arc<Session>,
    request: Arc<EntryRequest>,
    entry: Option<Arc<RegisteredEntry>>,
    uncertain: bool,
) -> Outcome {
    let shared = &session.shared;
    let mut retry = Retry::new(shared.config.retry);
    let entry = entry.as_ref().map(|registered| &registered.entry);
    loop {
        let leaving = session.backend_session.leave(&request, entry);
        match with_timeout("leaving", shared.config.request_timeout, leaving).await {
            Ok(()) => {
                // Without an entry a session that serves one election may have nothing to ask the store for.
                if session.owner.is_none() || entry.is_some() {
                    shared.status.answered();
                }
                break;
            }
            Err(error) if error.kind() == BackendErrorKind::SessionGone => {
                session.end(LossReason::SessionExpired);
                return Event::SessionEnded.into();
            }
            Err(error) if error.is_permanent() => {
                shared.status.failed(&error);
                error!(election = %request.election, %error, "the store refuses to remove the entry; its session ends");
                session.end(LossReason::SessionGivenUp);
                return Event::SessionEnded.into();
            }
            Err(error) => {
                shared.status.failed(&error);
                debug!(election = %request.election, %error, "the entry is not removed yet; trying again");
            }
        }
        retry.pause().await;
    }
    if uncertain && !is_disabled(SafetyRule::WithdrawUncertainEntries) {
        let delay = first_retry_delay(session.backend_session.granted_ttl());
        session.pending_withdrawals().add(EntryRequest::clone(&request), shared.clock.now(), delay);
    }
    Event::Removed.into()
}
