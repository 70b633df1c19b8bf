//! One candidate's entry, from entering to leading, or leaving: a task of its own, so that everything
//! about an entry happens in one order, and dropping a future anywhere leaves nothing behind.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, error, warn};

use super::{
    graves,
    leading::{Leading, Notice, Permit},
    retry::{Retry, timed},
    session::{Live, Session},
    term::Term,
};
use crate::{
    BootInstant, CandidateId, ElectionName, Error, FencingToken, Leadership, LossReason,
    failpoints::{SafetyRule, is_disabled},
    random,
    spi::{BackendError, BackendErrorKind, Entered, EntryRequest},
    telemetry,
};

/// What a campaign asks its entry's task for.
#[derive(Debug)]
pub(crate) struct Candidacy {
    pub(crate) election: ElectionName,
    pub(crate) candidate: CandidateId,
    pub(crate) value: Arc<[u8]>,
    /// When the campaign was called for.
    pub(crate) since: BootInstant,
    /// Whether to wait when somebody else leads.
    pub(crate) waits: bool,
    /// This elector's one place in the election; given back when the entry is gone.
    pub(crate) permit: Permit,
}

/// Who called for a campaign.
#[derive(Debug)]
pub(crate) struct Caller {
    answer: oneshot::Sender<Result<Option<Leadership>, Error>>,
    gave_up: CancellationToken,
}

impl Caller {
    /// The caller as its campaign's task has it, where the answer comes, and what makes the candidacy withdraw when it is
    /// dropped.
    pub(crate) fn new() -> (Self, oneshot::Receiver<Result<Option<Leadership>, Error>>, DropGuard) {
        let (answer, receiver) = oneshot::channel();
        let gave_up = CancellationToken::new();
        (Self { answer, gave_up: gave_up.clone() }, receiver, gave_up.drop_guard())
    }

    /// Whether the caller has given up.
    pub(crate) fn is_closed(&self) -> bool {
        self.gave_up.is_cancelled()
    }

    /// Waits until the caller has given up.
    pub(crate) async fn closed(&self) {
        self.gave_up.cancelled().await;
    }

    /// Answers; without a caller, a leadership is dropped, and so resigned.
    pub(crate) fn send(self, answer: Result<Option<Leadership>, Error>) {
        let _ = self.answer.send(answer);
    }
}

/// What becomes of a candidacy.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The caller has been told.
    Told,
    /// The caller has given up. Whether the store has confirmed that no entry is left; otherwise the session's end will.
    Withdrawn(Caller, bool),
    /// The session has ended; another one is needed. With the place in the election, and the caller.
    SessionEnded(Permit, Caller),
}

/// Why an entry's task stops on its way to leadership.
enum Stop {
    SessionEnded,
    Withdrawn,
    NotNow,
    Failed(BackendError),
}

/// A candidate on its way to leadership.
struct Task<'a> {
    session: &'a Arc<Session>,
    candidacy: Candidacy,
    caller: Caller,
    standing: Standing,
}

/// What may stand in the store.
pub(crate) struct Standing {
    request: Arc<EntryRequest>,
    /// Whether a request to enter went unanswered, so that it may yet be carried out.
    uncertain: bool,
    live: Option<Arc<Live>>,
}

/// Enters and waits, and tells the caller what came of it. Whoever leads then is looked after with all others of its session
/// ([`leading`](super::leading)).
pub(crate) async fn run(session: Arc<Session>, candidacy: Candidacy, caller: Caller) -> Outcome {
    let unfinished = Unfinished(&session);
    let outcome = campaign(&session, candidacy, caller).await;
    std::mem::forget(unfinished);
    outcome
}

async fn campaign(session: &Arc<Session>, candidacy: Candidacy, caller: Caller) -> Outcome {
    let _counted = session.entries.token();
    let standing = Standing { request: request(&candidacy), uncertain: false, live: None };
    let mut task = Task { session, candidacy, caller, standing };
    match task.until_leading().await {
        Ok((token, live)) => {
            let Task { candidacy, caller, standing, .. } = task;
            let term = Term::new(session, standing.request, token, live);
            session.shared.leads(&term);
            let waited = session.shared.clock.now().since(candidacy.since);
            telemetry::leadership_won(term.election(), token, waited);
            let leading = Leading::new(Arc::clone(&term), standing.uncertain, candidacy.permit);
            // A campaign dropped meanwhile drops the guard, which resigns.
            caller.send(Ok(Some(Leadership::new(term))));
            session.tell(Notice::Leads(leading));
            Outcome::Told
        }
        Err(stop) => {
            let gone = Box::pin(task.standing.depart(session)).await;
            // Given back before the campaign is told: whoever was turned away may try again at once.
            let permit = task.candidacy.permit.take().filter(|_| matches!(stop, Stop::SessionEnded));
            let told = match stop {
                Stop::SessionEnded => return Outcome::SessionEnded(permit, task.caller),
                Stop::Withdrawn => return Outcome::Withdrawn(task.caller, gone),
                Stop::NotNow => Ok(None),
                Stop::Failed(error) => Err(error.into()),
            };
            task.caller.send(told);
            Outcome::Told
        }
    }
}

/// Ends the session when an entry's task ends before its time (a panic in a backend, a runtime
/// that is shut down): nobody would watch the entry any more, nor remove it.
struct Unfinished<'a>(&'a Session);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.end(LossReason::SessionGivenUp);
    }
}

/// A new request: its nonce is never used again, so that two entries are never taken for each other.
fn request(candidacy: &Candidacy) -> Arc<EntryRequest> {
    Arc::new(EntryRequest {
        election: candidacy.election.clone(),
        candidate: candidacy.candidate.clone(),
        value: Arc::clone(&candidacy.value),
        nonce: random::number(),
    })
}

impl Task<'_> {
    /// Enters and waits until the entry leads; again under a new entry when its own was deleted.
    async fn until_leading(&mut self) -> Result<(FencingToken, Arc<Live>), Stop> {
        let mut retry = Retry::new(self.session.shared.config.retry);
        loop {
            // Boxed: the room for a request is not held while the candidate waits, which may be for hours.
            let Entered { entry, leads } = Box::pin(self.enter()).await?;
            let live = self.session.entered(entry);
            self.standing.live = Some(Arc::clone(&live));
            let token = match leads {
                Some(token) => Some(token),
                None if !self.candidacy.waits => return Err(Stop::NotNow),
                None => self.wait_turn(&live).await?,
            };
            if let Some(token) = token {
                // A session that has not been heard of for a while may have won in vain.
                let session = self.session;
                session.check_window(session.window.budget()).map_err(|_| Stop::SessionEnded)?;
                let token = self.told(token);
                return Ok((token, live));
            }
            warn!(election = %self.candidacy.election, candidate = %self.candidacy.candidate,
                "the entry of a waiting candidate is gone; entering again");
            // Gone for certain, or deleted by this: never two entries at a time.
            Box::pin(self.standing.depart(self.session)).await;
            self.standing.request = request(&self.candidacy);
            Box::pin(self.pause(&mut retry)).await?;
        }
    }

    async fn enter(&mut self) -> Result<Entered, Stop> {
        let session = self.session;
        let shared = &session.shared;
        let mut retry = Retry::new(shared.config.retry);
        loop {
            if self.caller.is_closed() {
                return Err(Stop::Withdrawn);
            }
            let limit = shared.config.request_timeout;
            // A withdrawal waits for the answer: what is known needs no resolving.
            let answer = tokio::select! {
                biased;
                () = session.stop.cancelled() => return Err(Stop::SessionEnded),
                answer = timed("entering", limit, session.spi.enter(&self.standing.request)) => answer,
            };
            match answer {
                Ok(entered) => {
                    shared.status.answered();
                    return Ok(entered);
                }
                Err(error) => {
                    self.standing.uncertain |= error.is_retryable();
                    self.judge(error, "entering again")?;
                }
            }
            Box::pin(self.pause(&mut retry)).await?;
        }
    }

    /// The token once the entry leads; `None` when the entry is gone.
    async fn wait_turn(&mut self, live: &Live) -> Result<Option<FencingToken>, Stop> {
        let session = self.session;
        let mut retry = Retry::new(session.shared.config.retry);
        loop {
            let answer = tokio::select! {
                biased;
                () = session.stop.cancelled() => return Err(Stop::SessionEnded),
                () = self.caller.closed() => return Err(Stop::Withdrawn),
                () = live.gone.wait() => return Ok(None),
                answer = session.spi.wait_turn(&live.entry) => answer,
            };
            match answer {
                Ok(token) => {
                    session.shared.status.answered();
                    return Ok(Some(token));
                }
                Err(error) if error.kind() == BackendErrorKind::EntryGone => return Ok(None),
                Err(error) => self.judge(error, "waiting again")?,
            }
            Box::pin(self.pause(&mut retry)).await?;
        }
    }

    /// Whether to try again after `error`.
    fn judge(&self, error: BackendError, what: &'static str) -> Result<(), Stop> {
        match error.kind() {
            BackendErrorKind::SessionGone => {
                self.session.end(LossReason::SessionExpired);
                Err(Stop::SessionEnded)
            }
            _ if error.is_permanent() => {
                self.session.shared.status.failed(&error);
                warn!(election = %self.candidacy.election, %error, "the store refuses the candidate");
                Err(Stop::Failed(error))
            }
            _ => {
                self.session.shared.status.failed(&error);
                debug!(election = %self.candidacy.election, %error, "{what}");
                Ok(())
            }
        }
    }

    async fn pause(&mut self, retry: &mut Retry) -> Result<(), Stop> {
        tokio::select! {
            biased;
            () = self.session.stop.cancelled() => Err(Stop::SessionEnded),
            () = self.caller.closed() => Err(Stop::Withdrawn),
            () = retry.pause() => Ok(()),
        }
    }

    /// The token that the leader is told.
    fn told(&self, token: FencingToken) -> FencingToken {
        #[cfg(tenure_mutants)]
        if is_disabled(SafetyRule::UniqueTokens) {
            return crate::failpoints::first_token(
                &self.candidacy.election,
                &self.candidacy.candidate,
                token,
            );
        }
        token
    }
}

impl Standing {
    /// The entry of somebody who led.
    pub(crate) fn of(term: &Term, uncertain: bool) -> Self {
        Self { request: Arc::clone(term.request()), uncertain, live: Some(Arc::clone(term.live())) }
    }

    /// Removes the entry; tries until that is confirmed or the session has ended, which removes it too.
    ///
    /// Whether the store has confirmed it.
    pub(crate) async fn depart(&mut self, session: &Session) -> bool {
        let live = self.live.take();
        if let Some(live) = &live {
            session.leaves(live);
        }
        let entry = live.as_ref().map(|live| &live.entry);
        if entry.is_none() && (!self.uncertain || is_disabled(SafetyRule::WithdrawUncertainEntries)) {
            return true;
        }
        let shared = &session.shared;
        let mut retry = Retry::new(shared.config.retry);
        loop {
            let leaving = session.spi.leave(&self.request, entry);
            let answer = tokio::select! {
                biased;
                () = session.stop.cancelled() => return false,
                answer = timed("leaving", shared.config.request_timeout, leaving) => answer,
            };
            match answer {
                Ok(()) => {
                    shared.status.answered();
                    break;
                }
                Err(error) if error.kind() == BackendErrorKind::SessionGone => {
                    session.end(LossReason::SessionExpired);
                    return false;
                }
                Err(error) if error.is_permanent() => {
                    shared.status.failed(&error);
                    error!(election = %self.request.election, %error, "the store refuses to remove the entry; its session ends");
                    session.end(LossReason::SessionGivenUp);
                    return false;
                }
                Err(error) => {
                    shared.status.failed(&error);
                    warn!(election = %self.request.election, %error, "the entry is not removed yet; trying again");
                }
            }
            tokio::select! {
                biased;
                () = session.stop.cancelled() => return false,
                () = retry.pause() => {}
            }
        }
        if std::mem::take(&mut self.uncertain) && !is_disabled(SafetyRule::WithdrawUncertainEntries) {
            let wait = graves::first_wait(session.spi.granted_ttl());
            session.graves().dig(EntryRequest::clone(&self.request), shared.clock.now(), wait);
        }
        true
    }
}
