//! One candidate's entry, from entering to leaving: a task of its own, so that everything
//! about an entry happens in one order, and dropping a future anywhere leaves nothing behind.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, error, info, warn};

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
    sync::{Flag, spawn_tracked, yield_now},
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

/// A candidate on its way to leadership.
struct Task<'a> {
    session: &'a Arc<Session>,
    candidacy: Candidacy,
    standing: Standing,
}

/// What may stand in the store.
struct Standing {
    request: EntryRequest,
    /// Whether a request to enter went unanswered, so that it may yet be carried out.
    uncertain: bool,
    live: Option<Arc<Live>>,
}

/// Enters and waits. Who leads then has a task of its own, which leaves in the end: a task holds the room for the largest of
/// its states, and this one's for as long as the leadership lasts.
pub(crate) async fn run(session: Arc<Session>, candidacy: Candidacy, outcome: oneshot::Sender<Outcome>) {
    let unfinished = Unfinished(&session);
    if let Some((term, standing, permit)) = campaign(&session, candidacy, outcome).await {
        let leading = Leading { term, finished: false };
        spawn_tracked(&session.entries, lead(leading, standing, permit).in_current_span());
    }
    std::mem::forget(unfinished);
}

/// A place in the election, held.
type Permit = Option<Arc<OwnedSemaphorePermit>>;

/// Enters and waits, and tells the campaign what came of it.
async fn campaign(
    session: &Arc<Session>,
    candidacy: Candidacy,
    outcome: oneshot::Sender<Outcome>,
) -> Option<(Arc<Term>, Standing, Permit)> {
    let standing = Standing { request: request(&candidacy), uncertain: false, live: None };
    let mut task = Task { session, candidacy, standing };
    match task.until_leading().await {
        Ok((token, live)) => {
            let term = Term::new(session, &task.standing.request, token, live);
            session.shared.leads(&term);
            let waited = session.shared.clock.now().since(task.candidacy.since);
            telemetry::leads(&term.election, token, waited);
            // A campaign dropped meanwhile drops the guard, which resigns.
            let _ = outcome.send(Outcome::Leads(Leadership::new(Arc::clone(&term))));
            Some((term, task.standing, task.candidacy.permit))
        }
        Err(stop) => {
            Box::pin(task.standing.depart(session)).await;
            // Before the campaign is told: whoever was turned away may try again at once.
            task.candidacy.permit = None;
            let _ = outcome.send(match stop {
                Stop::SessionEnded => Outcome::SessionEnded,
                Stop::Withdrawn | Stop::NotNow => Outcome::NotNow,
                Stop::Failed(error) => Outcome::Failed(error.into()),
            });
            None
        }
    }
}

/// Tells that an entry has gone and its leadership is over when its task ends, however it does: also when a backend panics,
/// whoever resigns must not wait for ever.
struct Leading {
    term: Arc<Term>,
    finished: bool,
}

impl Drop for Leading {
    fn drop(&mut self) {
        if !self.finished {
            self.term.session.end(LossReason::SessionGivenUp);
        }
        self.term.tell_over();
        self.term.departed.set();
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
    async fn until_leading(&mut self) -> Result<(FencingToken, Arc<Live>), Stop> {
        let mut retry = Retry::new(self.session.shared.config.retry);
        loop {
            // Boxed: the room for a request is not held while the candidate waits, which may be for hours.
            let Entered { entry, leads } = Box::pin(self.enter()).await?;
            let live = Arc::new(Live { entry, gone: Flag::new() });
            self.standing.live = Some(Arc::clone(&live));
            self.session.live().insert(self.candidacy.election.clone(), Arc::clone(&live));
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
            if self.candidacy.withdrawn.is_cancelled() {
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
    async fn wait_turn(&self, live: &Live) -> Result<Option<FencingToken>, Stop> {
        let session = self.session;
        let mut retry = Retry::new(session.shared.config.retry);
        loop {
            let answer = tokio::select! {
                biased;
                () = session.stop.cancelled() => return Err(Stop::SessionEnded),
                () = self.candidacy.withdrawn.cancelled() => return Err(Stop::Withdrawn),
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

    async fn pause(&self, retry: &mut Retry) -> Result<(), Stop> {
        tokio::select! {
            biased;
            () = self.session.stop.cancelled() => Err(Stop::SessionEnded),
            () = self.candidacy.withdrawn.cancelled() => Err(Stop::Withdrawn),
            () = retry.pause() => Ok(()),
        }
    }

    /// The token that the leader is told.
    fn told(&self, token: FencingToken) -> FencingToken {
        #[cfg(tenure_mutants)]
        if broken(Rule::NewTokens) {
            return crate::mutants::first_token(&self.candidacy.election, &self.candidacy.candidate, token);
        }
        token
    }
}

impl Standing {
    /// Removes the entry; tries until that is confirmed or the session has ended, which removes it too.
    async fn depart(&mut self, session: &Session) {
        session.live().remove(&self.request.election);
        let live = self.live.take();
        let entry = live.as_ref().map(|live| &live.entry);
        if entry.is_none() && (!self.uncertain || broken(Rule::ResolveTheUnknown)) {
            return;
        }
        let shared = &session.shared;
        let mut retry = Retry::new(shared.config.retry);
        loop {
            let leaving = session.spi.leave(&self.request, entry);
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
                    error!(election = %self.request.election, %error, "the store refuses to remove the entry; its session ends");
                    session.end(LossReason::SessionGivenUp);
                    return;
                }
                Err(error) => {
                    shared.status.failed(&error);
                    warn!(election = %self.request.election, %error, "the entry is not removed yet; trying again");
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

/// Leads until the leadership is over and its work has stopped; then removes the entry.
#[expect(clippy::manual_async_fn, reason = "an async function holds its arguments twice")]
fn lead(
    leading: Leading,
    mut standing: Standing,
    permit: Permit,
) -> impl Future<Output = ()> + Send + 'static {
    async move {
        let mut leading = leading;
        // The campaign first: what follows wakes others, too.
        yield_now().await;
        until_over(&leading.term).await;
        leading.term.tell_over();
        if !broken(Rule::StopBeforeLeaving) {
            Box::pin(leading.term.wait_stopped()).await;
        }
        Box::pin(standing.depart(&leading.term.session)).await;
        // Before anybody is told: whoever has resigned may stand again at once.
        drop(permit);
        leading.finished = true;
    }
}

/// Waits until the leadership is over, and its work has stopped or has been told to.
async fn until_over(term: &Arc<Term>) {
    let mut is_gone = std::pin::pin!(async {
        tokio::select! {
            () = term.gone().wait() => {}
            () = watch_own_entry(&term.session, term.entry(), || term.lose(LossReason::Asked)) => {}
        }
    });
    tokio::select! {
        biased;
        // Also when the session ends: its token is the parent's.
        () = term.stop.cancelled() => {}
        () = &mut is_gone => return term.lose(LossReason::EntryGone),
    }
    // Its work may go on for a while, but not beside a successor.
    let mut stopped = Box::pin(term.wait_stopped());
    tokio::select! {
        biased;
        () = std::future::ready(()), if broken(Rule::StopBeforeLeaving) => {}
        () = &mut stopped => {}
        () = &mut is_gone => term.drop_work(),
    }
    // The watch is let go of with this: it may be in the middle of a request, and hold what the next one waits for.
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
