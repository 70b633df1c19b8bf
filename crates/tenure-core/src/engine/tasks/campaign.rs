//! The task of a campaign: runs a candidacy under one session after another until it leads, fails or is given up.

use std::sync::Arc;

use tracing::{Instrument as _, debug, info_span};

use super::{
    candidacy::{self, Caller, Candidacy, Outcome},
    elections::Elections,
    session::Session,
    session_pool::SessionPool,
};
use crate::{
    BootInstant, ElectionName, Error,
    engine::{runtime::retry::Retry, shared::Shared},
};

/// A campaign, as a task of the engine.
pub(crate) struct Campaign {
    pub(crate) shared: Arc<Shared>,
    pub(crate) session_pool: SessionPool,
    pub(crate) elections: Arc<Elections>,
    pub(crate) election: ElectionName,
    /// When it was called.
    pub(crate) called_at: BootInstant,
    /// Whether to wait while another candidate leads.
    pub(crate) waits: bool,
}

impl Campaign {
    /// Campaigns until the caller is answered or gives up, or the elector closes.
    pub(crate) async fn run(self, mut caller: Caller) {
        let shared = &self.shared;
        let semaphore = self.elections.semaphore(&self.election);
        let permit = if self.waits {
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
            let candidacy = Candidacy {
                elections: Arc::clone(&self.elections),
                election: self.election.clone(),
                candidate: shared.config.id.clone(),
                value: Arc::clone(&shared.value),
                called_at: self.called_at,
                waits: self.waits,
                permit: permit.take(),
            };
            let span = info_span!("candidate", election = %self.election, candidate = %shared.config.id);
            match candidacy::run(Arc::clone(&session), candidacy, caller).instrument(span).await {
                Outcome::Answered => return,
                Outcome::Withdrawn { caller, confirmed } => {
                    return self.answer_withdrawal(caller, (!confirmed).then_some(session)).await;
                }
                Outcome::SessionEnded { permit: returned, caller: waiting } => {
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
