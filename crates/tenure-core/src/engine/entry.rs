//! One candidate's entry, from entering to leaving: a task of its own, so that everything
//! about an entry happens in one order, and dropping a future anywhere leaves nothing behind.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    retry::{Retry, timed},
    session::{Live, Session},
    term::Term,
};
use crate::{
    CandidateId, ElectionName, Error, FencingToken, Leadership, LossReason, Moment,
    mutants::{Rule, broken},
    random,
    spi::{BackendError, BackendErrorKind, Entered, Entry, EntryRequest, Parting},
    sync::yield_now,
    telemetry,
};

/// What a campaign asks its entry's task for.
#[derive(Debug)]
pub(crate) struct Candidacy {
    pub(crate) election: ElectionName,
    pub(crate) candidate: CandidateId,
    pub(crate) value: Vec<u8>,
    /// When the campaign was called for.
    pub(crate) since: Moment,
    /// Whether to wait when somebody else leads.
    pub(crate) waits: bool,
    /// Cancelled when the campaign is given up.
    pub(crate) withdrawn: CancellationToken,
    /// This elector's one place in the election; given back when the entry is gone.
    pub(crate) permit: Option<Arc<OwnedSemaphorePermit>>,
}

/// What an entry's task tells its campaign.
#[derive(Debug)]
pub(crate) enum Outcome {
    Leads(Leadership),
    /// Somebody else leads, and the candidate did not want to wait.
    NotNow,
    /// The session has ended; another one is needed.
    SessionEnded,
    Failed(Error),
}

/// Why an entry's task stops on its way to leadership.
enum Stop {
    SessionEnded,
    Withdrawn,
    NotNow,
    Failed(BackendError),
}

struct Task<'a> {
    session: &'a Arc<Session>,
    candidacy: Candidacy,
    request: EntryRequest,
    /// Whether a request to enter went unanswered, so that it may yet be carried out.
    uncertain: bool,
    entry: Option<Entry>,
}

/// Enters, waits, leads, leaves.
pub(crate) async fn run(session: Arc<Session>, candidacy: Candidacy, outcome: oneshot::Sender<Outcome>) {
    let unfinished = Unfinished(&session);
    let mut task =
        Task { session: &session, request: request(&candidacy), candidacy, uncertain: false, entry: None };
    match task.until_leading().await {
        Ok((token, entry, gone)) => {
            let term = Term::new(&session, &task.request, token, entry);
            session.shared.leads(&term);
            let waited = session.shared.clock.now().since(task.candidacy.since);
            telemetry::leads(&term.election, token, waited);
            // Also when a backend panics: whoever resigns must not wait for ever.
            let _departed = term.departed.clone().drop_guard();
            let _told = Told(&term);
            // A campaign dropped meanwhile drops the guard, which resigns.
            let _ = outcome.send(Outcome::Leads(Leadership::new(Arc::clone(&term))));
            // The campaign first: what follows wakes others, too.
            yield_now().await;
            task.lead(&term, &gone).await;
            // Before anybody is told: whoever has resigned may stand again at once.
            task.candidacy.permit = None;
        }
        Err(stop) => {
            task.depart().await;
            // Before the campaign is told: whoever was turned away may try again at once.
            task.candidacy.permit = None;
            let _ = outcome.send(match stop {
                Stop::SessionEnded => Outcome::SessionEnded,
                Stop::Withdrawn | Stop::NotNow => Outcome::NotNow,
                Stop::Failed(error) => Outcome::Failed(error.into()),
            });
        }
    }
    std::mem::forget(unfinished);
}

/// Tells that a leadership is over when its task ends, however it does.
struct Told<'a>(&'a Term);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.tell_over();
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
fn request(candidacy: &Candidacy) -> EntryRequest {
    EntryRequest {
        election: candidacy.election.clone(),
        candidate: candidacy.candidate.clone(),
        value: candidacy.value.clone(),
        nonce: random::number(),
    }
}

impl Task<'_> {
    /// Enters and waits until the entry leads; again under a new entry when its own was deleted.
    async fn until_leading(&mut self) -> Result<(FencingToken, Entry, CancellationToken), Stop> {
        let mut retry = Retry::new(self.session.shared.config.retry);
        loop {
            let entered = self.enter().await?;
            let gone = CancellationToken::new();
            self.entry = Some(entered.entry.clone());
            let live = Live { entry: entered.entry.clone(), gone: gone.clone() };
            self.session.live().insert(self.candidacy.election.clone(), live);
            let token = match entered.leads {
                Some(token) => Some(token),
                None if !self.candidacy.waits => return Err(Stop::NotNow),
                None => self.wait_turn(&entered.entry, &gone).await?,
            };
            if let Some(token) = token {
                // A session that has not been heard of for a while may have won in vain.
                let session = self.session;
                session.check_window(session.window.budget()).map_err(|_| Stop::SessionEnded)?;
                let token = self.told(token);
                return Ok((token, entered.entry, gone));
            }
            warn!(election = %self.candidacy.election, candidate = %self.candidacy.candidate,
                "the entry of a waiting candidate is gone; entering again");
            // Gone for certain, or deleted by this: never two entries at a time.
            self.depart().await;
            self.request = request(&self.candidacy);
            self.pause(&mut retry).await?;
        }
    }

    async fn enter(&mut self) -> Result<Entered, Stop> {
        let session = self.session;
        let shared = &session.shared;
        let mut retry = Retry::new(shared.config.retry);
        loop {
            if self.candidacy.withdrawn.is_cancelled() {
                return Err(Stop::Withdrawn);
            }
            let limit = shared.config.request_timeout;
            // A withdrawal waits for the answer: what is known needs no resolving.
            let answer = tokio::select! {
                biased;
                () = session.stop.cancelled() => return Err(Stop::SessionEnded),
                answer = timed("entering", limit, session.spi.enter(&self.request)) => answer,
            };
            match answer {
                Ok(entered) => {
                    shared.status.answered();
                    return Ok(entered);
                }
                Err(error) => {
                    self.uncertain |= error.is_retryable();
                    self.judge(error, "entering again")?;
                }
            }
            self.pause(&mut retry).await?;
        }
    }

    /// The token once the entry leads; `None` when the entry is gone.
    async fn wait_turn(&self, entry: &Entry, gone: &CancellationToken) -> Result<Option<FencingToken>, Stop> {
        let session = self.session;
        let mut retry = Retry::new(session.shared.config.retry);
        loop {
            let answer = tokio::select! {
                biased;
                () = session.stop.cancelled() => return Err(Stop::SessionEnded),
                () = self.candidacy.withdrawn.cancelled() => return Err(Stop::Withdrawn),
                () = gone.cancelled() => return Ok(None),
                answer = session.spi.wait_turn(entry) => answer,
            };
            match answer {
                Ok(token) => {
                    session.shared.status.answered();
                    return Ok(Some(token));
                }
                Err(error) if error.kind() == BackendErrorKind::EntryGone => return Ok(None),
                Err(error) => self.judge(error, "waiting again")?,
            }
            self.pause(&mut retry).await?;
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

    async fn pause(&self, retry: &mut Retry) -> Result<(), Stop> {
        tokio::select! {
            biased;
            () = self.session.stop.cancelled() => Err(Stop::SessionEnded),
            () = self.candidacy.withdrawn.cancelled() => Err(Stop::Withdrawn),
            () = retry.pause() => Ok(()),
        }
    }

    /// Leads until the leadership is over and its work has stopped; then removes the entry.
    async fn lead(&mut self, term: &Arc<Term>, gone: &CancellationToken) {
        let session = self.session;
        let mut is_gone = std::pin::pin!(async {
            tokio::select! {
                () = gone.cancelled() => {}
                () = watch_own_entry(session, &term.entry, || term.lose(LossReason::Asked)) => {}
            }
        });
        tokio::select! {
            biased;
            // Also when the session ends: its token is the parent's.
            () = term.stop.cancelled() => {
                // Its work may go on for a while, but not beside a successor.
                tokio::select! {
                    biased;
                    () = std::future::ready(()), if broken(Rule::StopBeforeLeaving) => {}
                    () = term.wait_stopped() => {}
                    () = &mut is_gone => term.drop_work(),
                }
            }
            () = &mut is_gone => term.lose(LossReason::EntryGone),
        }
        term.tell_over();
        if !broken(Rule::StopBeforeLeaving) {
            term.wait_stopped().await;
        }
        // The watch is let go of after that: it would be taken back first, and who is next waits.
        self.depart().await;
    }

    /// The token that the leader is told.
    fn told(&self, token: FencingToken) -> FencingToken {
        #[cfg(tenure_mutants)]
        if broken(Rule::NewTokens) {
            return crate::mutants::first_token(&self.candidacy.election, &self.candidacy.candidate, token);
        }
        token
    }

    /// Removes the entry; tries until that is confirmed or the session has ended, which removes it too.
    async fn depart(&mut self) {
        let session = self.session;
        session.live().remove(&self.candidacy.election);
        let entry = self.entry.take();
        if entry.is_none() && (!self.uncertain || broken(Rule::ResolveTheUnknown)) {
            return;
        }
        let shared = &session.shared;
        let mut retry = Retry::new(shared.config.retry);
        loop {
            let leaving = session.spi.leave(&self.request, entry.as_ref());
            let answer = tokio::select! {
                biased;
                () = session.stop.cancelled() => return,
                answer = timed("leaving", shared.config.request_timeout, leaving) => answer,
            };
            match answer {
                Ok(()) => {
                    shared.status.answered();
                    break;
                }
                Err(error) if error.kind() == BackendErrorKind::SessionGone => {
                    session.end(LossReason::SessionExpired);
                    return;
                }
                Err(error) if error.is_permanent() => {
                    shared.status.failed(&error);
                    error!(election = %self.candidacy.election, %error, "the store refuses to remove the entry; its session ends");
                    session.end(LossReason::SessionGivenUp);
                    return;
                }
                Err(error) => {
                    shared.status.failed(&error);
                    warn!(election = %self.candidacy.election, %error, "the entry is not removed yet; trying again");
                }
            }
            tokio::select! {
                biased;
                () = session.stop.cancelled() => return,
                () = retry.pause() => {}
            }
        }
        if std::mem::take(&mut self.uncertain) && !broken(Rule::ResolveTheUnknown) {
            let wait = session.spi.granted_ttl() / 3;
            session.graves().dig(self.request.clone(), shared.clock.now(), wait);
        }
    }
}

/// Returns when the entry is gone, and calls `asked` once when somebody has asked for a resignation. A watch that
/// fails is taken up again.
async fn watch_own_entry(session: &Session, entry: &Entry, asked: impl Fn()) {
    let mut retry = Retry::new(session.shared.config.retry);
    if broken(Rule::WatchOwnEntry) {
        return std::future::pending().await;
    }
    let mut heeds = true;
    loop {
        let parting = match heeds {
            true => session.spi.wait_parting(entry).await,
            false => session.spi.wait_gone(entry).await.map(|()| Parting::Gone),
        };
        match parting {
            Ok(Parting::Gone) => return,
            Ok(Parting::Asked) => {
                info!(election = %entry.election, entry = entry.key, "asked to resign");
                asked();
                heeds = false;
                continue;
            }
            Err(error) if error.kind() == BackendErrorKind::EntryGone => return,
            Err(error) if error.kind() == BackendErrorKind::SessionGone => {
                session.end(LossReason::SessionExpired);
                return;
            }
            // Not for the status: the heartbeats say whether the store answers.
            Err(error) => debug!(election = %entry.election, %error, "watching the own entry again"),
        }
        retry.pause().await;
    }
}
