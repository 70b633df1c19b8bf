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
    registered_entry::{CandidateNumber, RegisteredEntry},
    session::Session,
    session_opening::OpenError,
};
use crate::{
    FencingToken, LossReason,
    engine::{
        rules::pending_withdrawals::first_retry_delay,
        runtime::{
            callbacks::catch_panic,
            retry::{Retry, with_timeout},
        },
    },
    failpoints::{SafetyRule, is_disabled},
    spi::{BackendError, BackendErrorKind, Entered, EntryRequest},
    sync::sleep,
};

/// The outcome of a request of a candidate.
#[derive(Debug)]
pub(super) enum Response {
    Entered(Entered),
    /// The entry leads.
    Elected(FencingToken),
    EntryGone,
    Removed,
    /// The request may be repeated.
    Failed {
        /// Whether the store may still execute it.
        uncertain: bool,
    },
    Refused(BackendError),
    SessionEnded,
    /// The pause is over.
    RetryDue,
    WorkStopped,
    Panicked,
}

/// The outcome of a future that the elector's task polls.
#[derive(Debug)]
pub(super) enum Outcome {
    Candidate(CandidateNumber, Response),
    /// `None` when the elector is being closed, or the backend has panicked.
    Opening(Option<Result<Arc<Session>, OpenError>>),
    /// It is time to open a session again.
    OpeningDue,
}

impl Outcome {
    fn panicked(candidate: Option<CandidateNumber>) -> Self {
        candidate.map_or(Self::Opening(None), |number| Self::Candidate(number, Response::Panicked))
    }
}

/// A request in flight. A panic of the backend is an outcome, and a panic in its drop is caught.
pub(super) struct Request {
    /// `None`: the request that opens a session.
    candidate: Option<CandidateNumber>,
    future: Option<BoxFuture<'static, Outcome>>,
}

impl Request {
    pub(super) fn new(
        candidate: Option<CandidateNumber>,
        future: impl Future<Output = Outcome> + Send + 'static,
    ) -> Self {
        Self { candidate, future: Some(Box::pin(future)) }
    }
}

impl Future for Request {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let Some(future) = &mut self.future else { return Poll::Pending };
        catch_panic(|| future.as_mut().poll(context))
            .unwrap_or_else(|| Poll::Ready(Outcome::panicked(self.candidate)))
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        catch_panic(|| drop(self.future.take()));
    }
}

/// Sends a request to enter, once.
pub(super) async fn enter(session: Arc<Session>, request: Arc<EntryRequest>) -> Response {
    let limit = session.shared.config.request_timeout;
    match with_timeout("entering", limit, session.backend_session.enter(&request)).await {
        Ok(entered) => {
            session.shared.status.answered();
            Response::Entered(entered)
        }
        Err(error) => {
            let uncertain = error.is_retryable();
            failed(&session, &request, error, uncertain, "entering again")
        }
    }
}

/// Waits until the entry leads.
pub(super) async fn wait_turn(
    session: Arc<Session>,
    request: Arc<EntryRequest>,
    entry: Arc<RegisteredEntry>,
) -> Response {
    match session.backend_session.wait_turn(&entry.entry).await {
        Ok(token) => {
            session.shared.status.answered();
            Response::Elected(token)
        }
        Err(error) if error.kind() == BackendErrorKind::EntryGone => Response::EntryGone,
        Err(error) => failed(&session, &request, error, false, "waiting again"),
    }
}

/// `message` is logged when the request may be repeated.
fn failed(
    session: &Session,
    request: &EntryRequest,
    error: BackendError,
    uncertain: bool,
    message: &'static str,
) -> Response {
    if error.kind() == BackendErrorKind::SessionGone {
        session.end(LossReason::SessionExpired);
        return Response::SessionEnded;
    }
    session.shared.status.failed(&error);
    if error.is_permanent() {
        warn!(election = %request.election, %error, "the store refuses the candidate");
        return Response::Refused(error);
    }
    debug!(election = %request.election, %error, "{message}");
    Response::Failed { uncertain }
}

/// Pauses before the next attempt.
pub(super) async fn pause(delay: Duration) -> Response {
    sleep(delay).await;
    Response::RetryDue
}

/// Removes the entry of `request`. Retries until the store confirms that, or the session has ended, which removes the
/// entry too. `uncertain` says whether a request to enter went unanswered, so that the store may still execute it.
pub(super) async fn remove(
    session: Arc<Session>,
    request: Arc<EntryRequest>,
    entry: Option<Arc<RegisteredEntry>>,
    uncertain: bool,
) -> Response {
    let shared = &session.shared;
    let mut retry = Retry::new(shared.config.retry);
    let entry = entry.as_ref().map(|registered| &registered.entry);
    loop {
        let leaving = session.backend_session.leave(&request, entry);
        match with_timeout("leaving", shared.config.request_timeout, leaving).await {
            Ok(()) => break shared.status.answered(),
            Err(error) if error.kind() == BackendErrorKind::SessionGone => {
                session.end(LossReason::SessionExpired);
                return Response::SessionEnded;
            }
            Err(error) if error.is_permanent() => {
                shared.status.failed(&error);
                error!(election = %request.election, %error, "the store refuses to remove the entry; its session ends");
                session.end(LossReason::SessionGivenUp);
                return Response::SessionEnded;
            }
            Err(error) => {
                shared.status.failed(&error);
                warn!(election = %request.election, %error, "the entry is not removed yet; trying again");
            }
        }
        retry.pause().await;
    }
    if uncertain && !is_disabled(SafetyRule::WithdrawUncertainEntries) {
        let delay = first_retry_delay(session.backend_session.granted_ttl());
        session.pending_withdrawals().add(EntryRequest::clone(&request), shared.clock.now(), delay);
    }
    Response::Removed
}
