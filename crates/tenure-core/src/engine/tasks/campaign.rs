//! The task of a campaign: runs a candidacy under one session after another until it leads, fails or is given up.

use std::{sync::Arc, time::Duration};

use tracing::{Instrument as _, debug, info_span};

use super::{
    candidacy::{self, Caller, Candidacy, CandidacyOutcome},
    candidate_value::CandidateValue,
    elections::Elections,
    session::Session,
    session_pool::SessionPool,
};
use crate::{
    BootInstant, ElectionName, Error,
    config::check_grace_period,
    engine::{elector_context::ElectorContext, runtime::retry::Retry},
};

/// A campaign, as a task of the engine.
pub(crate) struct Campaign {
    pub(crate) shared: Arc<ElectorContext>,
    pub(crate) session_pool: SessionPool,
    pub(crate) elections: Arc<Elections>,
    pub(crate) election: ElectionName,
    /// The candidate's value, unless a later one was set.
    pub(crate) value: CandidateValue,
    /// The grace period that was requested for the leadership.
    pub(crate) grace_period: Option<Duration>,
    /// When it was called.
    pub(crate) started_at: BootInstant,
    /// Whether to wait while another candidate leads.
    pub(crate) wait_for_turn: bool,
}

impl Campaign {
    /// Campaigns until the caller has a result or gives up, or the elector closes.
    pub(crate) async fn run(self, mut caller: Caller) {
        let shared = &self.shared;
        let semaphore = self.elections.semaphore(&self.election);
        let permit = if self.wait_for_turn {
            tokio::select! {
                biased;
                () = shared.closing.cancelled() => return,
                () = caller.wait_given_up() => return caller.send(Ok(None)),
                permit = semaphore.acquire_owned() => permit.ok(),
            }
        } else {
            match semaphore.try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => {
                    caller.send(Ok(None));
                    return;
                }
            }
        };
        let mut permit = permit;
        let mut retry = Retry::new(shared.config.retry);
        let mut last_session: Option<Arc<Session>> = None;
        loop {
            let session = tokio::select! {
                biased;
                () = shared.closing.cancelled() => return,
                () = caller.wait_given_up() => return self.answer_withdrawal(caller, last_session).await,
                session = self.session_pool.session(shared) => session,
            };
            let session = match session {
                Ok(session) => session,
                Err(error) => return caller.send(Err(error)),
            };
            if let Some(grace_period) = self.grace_period {
                let (max, ttl) = (session.largest_grace_period(), session.backend_session.granted_ttl());
                if let Err(error) = check_grace_period(grace_period, ttl, max) {
                    return caller.send(Err(error.into()));
                }
            }
            let candidacy = Candidacy {
                elections: Arc::clone(&self.elections),
                election: self.election.clone(),
                candidate: shared.config.id.clone(),
                value: self.value.clone(),
                grace_period: self.grace_period.unwrap_or_default(),
                started_at: self.started_at,
                wait_for_turn: self.wait_for_turn,
                permit: permit.take(),
            };
            let span = info_span!("candidate", election = %self.election, candidate = %shared.config.id);
            match candidacy::run(Arc::clone(&session), candidacy, caller).instrument(span).await {
                CandidacyOutcome::Answered => return,
                CandidacyOutcome::Withdrawn { caller, confirmed } => {
                    return self.answer_withdrawal(caller, (!confirmed).then_some(session)).await;
                }
                CandidacyOutcome::SessionEnded { permit: returned, caller: waiting } => {
                    debug!(election = %self.election, "campaigning on under a new session");
                    (permit, caller) = (returned, waiting);
                }
            }
            last_session = Some(session);
            tokio::select! {
                () = shared.closing.cancelled() => return,
                () = caller.wait_given_up() => return self.answer_withdrawal(caller, last_session).await,
                () = retry.pause() => {}
            }
        }
    }

    /// Tells a caller that has given up that no entry is left. With `session`, waits until that session has
    /// been closed.
    async fn answer_withdrawal(&self, caller: Caller, session: Option<Arc<Session>>) {
        let confirmed = match session {
            Some(session) => session.wait_closed().await,
            None => true,
        };
        caller.send(match confirmed {
            true => Ok(None),
            false => Err(Error::NotConfirmed {
                election: self.election.clone(),
                waited: self.shared.config.shutdown_timeout,
            }),
        });
    }
}
