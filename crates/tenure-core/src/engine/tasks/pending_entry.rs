//! An entry that may exist in the store, with the request that created it, and its withdrawal.

use std::sync::Arc;

use tracing::{error, warn};

use super::{registered_entry::RegisteredEntry, session::Session, term::Term};
use crate::{
    LossReason,
    engine::{
        rules::pending_withdrawals::first_retry_delay,
        runtime::retry::{Retry, with_timeout},
    },
    failpoints::{SafetyRule, is_disabled},
    spi::{BackendErrorKind, EntryRequest},
};

/// An entry that may exist in the store.
pub(crate) struct PendingEntry {
    pub(crate) request: Arc<EntryRequest>,
    /// Whether a request to enter went unanswered, so that the store may still execute it.
    pub(crate) uncertain: bool,
    /// The entry, once a request to enter was answered.
    pub(crate) registered: Option<Arc<RegisteredEntry>>,
}

impl PendingEntry {
    /// An entry that does not exist yet.
    pub(crate) fn new(request: Arc<EntryRequest>) -> Self {
        Self { request, uncertain: false, registered: None }
    }

    /// The entry of a term that has ended.
    pub(crate) fn of_term(term: &Term, uncertain: bool) -> Self {
        Self {
            request: Arc::clone(term.request()),
            uncertain,
            registered: Some(Arc::clone(term.registered_entry())),
        }
    }

    /// Removes the entry. Retries until the store confirms that, or the session has ended, which removes the
    /// entry too.
    ///
    /// True when the store has confirmed it.
    pub(crate) async fn withdraw(&mut self, session: &Session) -> bool {
        let registered = self.registered.take();
        if let Some(registered) = &registered {
            session.unregister(registered);
        }
        let entry = registered.as_ref().map(|registered| &registered.entry);
        if entry.is_none() && (!self.uncertain || is_disabled(SafetyRule::WithdrawUncertainEntries)) {
            return true;
        }
        let shared = &session.shared;
        let mut retry = Retry::new(shared.config.retry);
        loop {
            let leaving = session.backend_session.leave(&self.request, entry);
            let answer = tokio::select! {
                biased;
                () = session.ended_token.cancelled() => return false,
                answer = with_timeout("leaving", shared.config.request_timeout, leaving) => answer,
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
                () = session.ended_token.cancelled() => return false,
                () = retry.pause() => {}
            }
        }
        if std::mem::take(&mut self.uncertain) && !is_disabled(SafetyRule::WithdrawUncertainEntries) {
            let delay = first_retry_delay(session.backend_session.granted_ttl());
            session.pending_withdrawals().add(EntryRequest::clone(&self.request), shared.clock.now(), delay);
        }
        true
    }
}
