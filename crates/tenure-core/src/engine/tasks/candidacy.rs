//! One candidate under one session, from entering to leading or leaving. It runs in one task, so that all
//! requests for an entry are sent in one order, and dropping a future anywhere leaves no entry behind.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};

use super::{
    candidate_value::{CandidateEntry, CandidateValue},
    elections::Elections,
    events::{CandidatePermit, Event, HeldTerm},
    pending_entry::PendingEntry,
    registered_entry::RegisteredEntry,
    session::Session,
    term::Term,
};
use crate::{
    BootInstant, CandidateId, ElectionName, Error, FencingToken, Leadership, LossReason,
    engine::runtime::retry::{Retry, with_timeout},
    random,
    spi::{BackendError, BackendErrorKind, Entered, EntryRequest},
    telemetry,
};

/// What a campaign asks for under one session.
#[derive(Debug)]
pub(crate) struct Candidacy {
    pub(crate) elections: Arc<Elections>,
    pub(crate) election: ElectionName,
    pub(crate) candidate: CandidateId,
    /// The value with which the campaign began.
    pub(crate) value: CandidateValue,
    /// The grace period of the leadership, where it is longer than the elector's.
    pub(crate) grace_period: Duration,
    /// When the campaign was called.
    pub(crate) started_at: BootInstant,
    /// Whether to wait while another candidate leads.
    pub(crate) wait_for_turn: bool,
    /// The permit of this elector's candidate in the election; given back when the entry is gone.
    pub(crate) permit: CandidatePermit,
}

/// The caller of a campaign.
#[derive(Debug)]
pub(crate) struct Caller {
    answer: oneshot::Sender<Result<Option<Leadership>, Error>>,
    given_up: CancellationToken,
}

impl Caller {
    /// The caller as the campaign's task sees it, the receiver of its result, and a guard that makes the
    /// candidacy withdraw when it is dropped.
    pub(crate) fn new() -> (Self, oneshot::Receiver<Result<Option<Leadership>, Error>>, DropGuard) {
        let (answer, receiver) = oneshot::channel();
        let given_up = CancellationToken::new();
        (Self { answer, given_up: given_up.clone() }, receiver, given_up.drop_guard())
    }

    /// Whether the caller has given up.
    pub(crate) fn has_given_up(&self) -> bool {
        self.given_up.is_cancelled()
    }

    /// Waits until the caller has given up.
    pub(crate) async fn wait_given_up(&self) {
        self.given_up.cancelled().await;
    }

    /// Sends the result. Without a caller, a leadership is dropped, and so resigned.
    pub(crate) fn send(self, answer: Result<Option<Leadership>, Error>) {
        let _ = self.answer.send(answer);
    }
}

/// The outcome of a candidacy.
#[derive(Debug)]
pub(crate) enum CandidacyOutcome {
    /// The caller has received the result.
    Answered,
    /// The caller has given up.
    Withdrawn {
        caller: Caller,
        /// Whether the store has confirmed that no entry is left. Otherwise the end of the session confirms it.
        confirmed: bool,
    },
    /// The session has ended: another one is needed.
    SessionEnded { permit: CandidatePermit, caller: Caller },
}

/// Why a candidacy ends without leadership.
enum NotElectedReason {
    SessionEnded,
    CallerGaveUp,
    /// Another candidate leads, and the campaign does not wait.
    OtherLeads,
    Failed(BackendError),
}

/// A candidacy in progress.
struct CandidacyRun<'a> {
    session: &'a Arc<Session>,
    candidacy: Candidacy,
    caller: Caller,
    entry: PendingEntry,
    /// The number of the value in the entry's request.
    value_number: u64,
    /// The entry, once it exists in the store.
    waiting: Option<Arc<CandidateEntry>>,
}

/// Enters, waits, and sends the result to the caller. A term that begins is handed to the task of the
/// [active terms](super::active_terms).
pub(crate) async fn run(session: Arc<Session>, candidacy: Candidacy, caller: Caller) -> CandidacyOutcome {
    let guard = EndSessionOnAbort(&session);
    let outcome = run_inner(&session, candidacy, caller).await;
    std::mem::forget(guard);
    outcome
}

async fn run_inner(session: &Arc<Session>, candidacy: Candidacy, caller: Caller) -> CandidacyOutcome {
    let _tracker_token = session.entry_tracker.token();
    let (request, value_number) = new_request(&candidacy);
    let entry = PendingEntry::new(request);
    let mut run = CandidacyRun { session, candidacy, caller, entry, value_number, waiting: None };
    match run.until_elected().await {
        Ok((token, registered)) => {
            let CandidacyRun { candidacy, caller, entry, waiting: _waiting, .. } = run;
            let term = Term::new(session, entry.request, token, registered);
            if candidacy.grace_period > session.window.grace_period() {
                term.raise_grace_period(candidacy.grace_period);
            }
            candidacy.elections.set_term(&term);
            let waited = session.shared.clock.now().since(candidacy.started_at);
            telemetry::leadership_won(term.election(), token, waited);
            let held = HeldTerm::new(Arc::clone(&term), entry.uncertain, candidacy.permit);
            // If the campaign's future was dropped meanwhile, this drops the guard, which resigns.
            caller.send(Ok(Some(Leadership::new(term))));
            session.events.send(Event::Elected(held));
            CandidacyOutcome::Answered
        }
        Err(reason) => {
            let confirmed = Box::pin(run.entry.withdraw(session)).await;
            // Given back before the caller receives the result: it may campaign again at once.
            let permit =
                run.candidacy.permit.take().filter(|_| matches!(reason, NotElectedReason::SessionEnded));
            let answer = match reason {
                NotElectedReason::SessionEnded => {
                    return CandidacyOutcome::SessionEnded { permit, caller: run.caller };
                }
                NotElectedReason::CallerGaveUp => {
                    return CandidacyOutcome::Withdrawn { caller: run.caller, confirmed };
                }
                NotElectedReason::OtherLeads => Ok(None),
                NotElectedReason::Failed(error) => Err(error.into()),
            };
            run.caller.send(answer);
            CandidacyOutcome::Answered
        }
    }
}

/// Ends the session when the task of a candidacy is aborted (a panic in a backend, a runtime
/// that is shut down): no task would watch the entry or remove it any more.
struct EndSessionOnAbort<'a>(&'a Session);

impl Drop for EndSessionOnAbort<'_> {
    fn drop(&mut self) {
        self.0.end(LossReason::SessionGivenUp);
    }
}

/// A new request, and the number of its value. Its nonce is never used again, so that two entries are never confused.
fn new_request(candidacy: &Candidacy) -> (Arc<EntryRequest>, u64) {
    let CandidateValue { value, number } =
        candidacy.elections.latest_value(&candidacy.election, &candidacy.value);
    let request = EntryRequest {
        election: candidacy.election.clone(),
        candidate: candidacy.candidate.clone(),
        value,
        nonce: random::number(),
    };
    (Arc::new(request), number)
}

impl CandidacyRun<'_> {
    /// Enters and waits until the entry leads. Enters again with a new entry when its own was deleted.
    async fn until_elected(&mut self) -> Result<(FencingToken, Arc<RegisteredEntry>), NotElectedReason> {
        let mut retry = Retry::new(self.session.shared.config.retry);
        loop {
            // Boxed: the memory of a request is not held while the candidate waits, which may take hours.
            let Entered { entry, leads } = Box::pin(self.enter()).await?;
            let registered = self.session.register(entry);
            self.entry.registered = Some(Arc::clone(&registered));
            self.record_entry(&registered);
            let token = match leads {
                Some(token) => Some(token),
                None if !self.candidacy.wait_for_turn => return Err(NotElectedReason::OtherLeads),
                None => self.wait_turn(&registered).await?,
            };
            if let Some(token) = token {
                // A session without a recent heartbeat may have won in vain.
                let session = self.session;
                session
                    .enforce_window(session.window.grace_period().max(self.candidacy.grace_period))
                    .map_err(|_| NotElectedReason::SessionEnded)?;
                let token = self.token_of_term(token);
                return Ok((token, registered));
            }
            warn!(election = %self.candidacy.election, candidate = %self.candidacy.candidate,
                "the entry of a waiting candidate is gone; entering again");
            // The entry is gone, or is removed here: a candidate never has two entries.
            Box::pin(self.entry.withdraw(self.session)).await;
            (self.entry.request, self.value_number) = new_request(&self.candidacy);
            Box::pin(self.pause(&mut retry)).await?;
        }
    }

    /// Records the entry for those who change its value. Stores a value that was set while the entry was being created.
    fn record_entry(&mut self, registered: &Arc<RegisteredEntry>) {
        let entry = Arc::new(CandidateEntry {
            session: Arc::clone(self.session),
            request: Arc::clone(&self.entry.request),
            registered: Arc::clone(registered),
        });
        if self.candidacy.elections.set_waiting(&entry, self.value_number) {
            entry.store_value();
        }
        self.waiting = Some(entry);
    }

    async fn enter(&mut self) -> Result<Entered, NotElectedReason> {
        let session = self.session;
        let shared = &session.shared;
        let mut retry = Retry::new(shared.config.retry);
        loop {
            if self.caller.has_given_up() {
                return Err(NotElectedReason::CallerGaveUp);
            }
            let limit = shared.config.request_timeout;
            // A withdrawal waits for the response: an entry that is known needs no repeated withdrawal.
            let answer = tokio::select! {
                biased;
                () = session.ended_token.cancelled() => return Err(NotElectedReason::SessionEnded),
                answer = with_timeout("entering", limit, session.backend_session.enter(&self.entry.request)) => answer,
            };
            match answer {
                Ok(entered) => {
                    shared.status.answered();
                    return Ok(entered);
                }
                Err(error) => {
                    self.entry.uncertain |= error.is_retryable();
                    self.handle_error(error, "entering again")?;
                }
            }
            Box::pin(self.pause(&mut retry)).await?;
        }
    }

    /// The token once the entry leads; `None` when the entry is gone.
    async fn wait_turn(
        &mut self,
        registered: &RegisteredEntry,
    ) -> Result<Option<FencingToken>, NotElectedReason> {
        let session = self.session;
        let mut retry = Retry::new(session.shared.config.retry);
        loop {
            let answer = tokio::select! {
                biased;
                () = session.ended_token.cancelled() => return Err(NotElectedReason::SessionEnded),
                () = self.caller.wait_given_up() => return Err(NotElectedReason::CallerGaveUp),
                () = registered.missing.wait() => return Ok(None),
                answer = session.backend_session.wait_turn(&registered.entry) => answer,
            };
            match answer {
                Ok(token) => {
                    session.shared.status.answered();
                    return Ok(Some(token));
                }
                Err(error) if error.kind() == BackendErrorKind::EntryGone => return Ok(None),
                Err(error) => self.handle_error(error, "waiting again")?,
            }
            Box::pin(self.pause(&mut retry)).await?;
        }
    }

    /// `Ok` when the request may be repeated after `error`. `message` is logged then.
    fn handle_error(&self, error: BackendError, message: &'static str) -> Result<(), NotElectedReason> {
        match error.kind() {
            BackendErrorKind::SessionGone => {
                self.session.end(LossReason::SessionExpired);
                Err(NotElectedReason::SessionEnded)
            }
            _ if error.is_permanent() => {
                self.session.shared.status.failed(&error);
                warn!(election = %self.candidacy.election, %error, "the store refuses the candidate");
                Err(NotElectedReason::Failed(error))
            }
            _ => {
                self.session.shared.status.failed(&error);
                debug!(election = %self.candidacy.election, %error, "{message}");
                Ok(())
            }
        }
    }

    async fn pause(&mut self, retry: &mut Retry) -> Result<(), NotElectedReason> {
        tokio::select! {
            biased;
            () = self.session.ended_token.cancelled() => Err(NotElectedReason::SessionEnded),
            () = self.caller.wait_given_up() => Err(NotElectedReason::CallerGaveUp),
            () = retry.pause() => Ok(()),
        }
    }

    /// The fencing token of the new term: the store's, unless a test disables
    /// [`SafetyRule::UniqueTokens`](crate::failpoints::SafetyRule::UniqueTokens).
    fn token_of_term(&self, token: FencingToken) -> FencingToken {
        #[cfg(tenure_mutants)]
        if crate::failpoints::is_disabled(crate::failpoints::SafetyRule::UniqueTokens) {
            return crate::failpoints::first_token(
                &self.candidacy.election,
                &self.candidacy.candidate,
                token,
            );
        }
        token
    }
}
