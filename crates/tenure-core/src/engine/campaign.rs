//! A campaign: enters under one session after the other until it leads, fails or is given up.

use std::sync::Arc;

use tracing::{Instrument as _, debug, info_span};

use super::{
    Shared,
    entry::{self, Caller, Candidacy, Outcome},
    opener::Opener,
    retry::Retry,
    session::Session,
};
use crate::{BootInstant, ElectionName, Error};

/// A campaign, as a task of the engine.
pub(crate) struct Campaign {
    pub(crate) shared: Arc<Shared>,
    pub(crate) opener: Opener,
    pub(crate) election: ElectionName,
    /// When it was called for.
    pub(crate) since: BootInstant,
    /// Whether to wait when somebody else leads.
    pub(crate) waits: bool,
}

impl Campaign {
    /// Campaigns until the caller has an answer or gives up, or the elector closes.
    pub(crate) async fn run(self, mut caller: Caller) {
        let shared = &self.shared;
        let slot = shared.slot(&self.election);
        let permit = if self.waits {
            tokio::select! {
                biased;
                () = shared.closing.cancelled() => return,
                () = caller.closed() => return caller.send(Ok(None)),
                permit = slot.acquire_owned() => permit.ok(),
            }
        } else {
            match slot.try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => {
                    caller.send(Ok(None));
                    return;
                }
            }
        };
        let mut permit = permit;
        let mut retry = Retry::new(shared.config.retry);
        // The session under which it stood last.
        let mut stood: Option<Arc<Session>> = None;
        loop {
            let session = tokio::select! {
                biased;
                () = shared.closing.cancelled() => return,
                () = caller.closed() => return self.withdraw(caller, stood).await,
                session = self.opener.session(shared) => session,
            };
            let session = match session {
                Ok(session) => session,
                Err(error) => return caller.send(Err(error)),
            };
            let candidacy = Candidacy {
                election: self.election.clone(),
                candidate: shared.config.id.clone(),
                value: Arc::clone(&shared.value),
                since: self.since,
                waits: self.waits,
                permit: permit.take(),
            };
            let span = info_span!("candidate", election = %self.election, candidate = %shared.config.id);
            match entry::run(Arc::clone(&session), candidacy, caller).instrument(span).await {
                Outcome::Told => return,
                Outcome::Withdrawn(caller, gone) => {
                    return self.withdraw(caller, (!gone).then_some(session)).await;
                }
                Outcome::SessionEnded(place, waiting) => {
                    debug!(election = %self.election, "campaigning on under a new session");
                    (permit, caller) = (place, waiting);
                }
            }
            stood = Some(session);
            tokio::select! {
                () = shared.closing.cancelled() => return,
                () = caller.closed() => return self.withdraw(caller, stood).await,
                () = retry.pause() => {}
            }
        }
    }

    /// Tells a caller that has given up that no entry is left, once that is so: with `session`, when that has been closed.
    async fn withdraw(&self, caller: Caller, session: Option<Arc<Session>>) {
        let gone = match session {
            Some(session) => session.wait_closed().await,
            None => true,
        };
        caller.send(match gone {
            true => Ok(None),
            false => Err(Error::NotConfirmed {
                election: self.election.clone(),
                waited: self.shared.config.shutdown_timeout,
            }),
        });
    }
}
