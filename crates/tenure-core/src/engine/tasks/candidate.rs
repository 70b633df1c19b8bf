//! What the elector's task knows of one candidate, from the call of the campaign until its entry is gone.

use std::{sync::Arc, time::Duration};

use futures::future::AbortHandle;
use tokio::sync::oneshot;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{
    candidate_entry::CandidateEntry,
    entry_value::CandidateValue,
    events::{CandidateNumber, SessionNumber},
    session::{RegisteredEntry, Session},
    term::Term,
};
use crate::{
    BootInstant, CampaignOptions, Error, Leadership, LossReason, Patience,
    engine::{
        elector_context::ElectorContext, rules::candidate_state::State, runtime::callbacks::catch_panic,
    },
    retry_delays::RetryDelays,
    spi::{EntryRequest, Won},
};

/// A candidate.
pub(super) struct Candidate {
    pub(super) number: CandidateNumber,
    pub(super) state: State,
    pub(super) request: Arc<EntryRequest>,
    /// The number of requests that may have created, or may still create, an entry that is not known. Counted before they are sent,
    /// so that a request which is dropped at any time is withdrawn.
    pub(super) unsettled: u32,
    /// Whether the request in flight is one of them.
    pub(super) may_create: bool,
    /// The entry, once the store has said that it created one.
    pub(super) entry: Option<Arc<RegisteredEntry>>,
    /// The entry, for those who change its value while it waits.
    pub(super) waiting: Option<Arc<CandidateEntry>>,
    /// The number of the value in the request; `None` before the request is sent for the first time.
    pub(super) value_number: Option<u64>,
    /// How it has won the election, until its term begins.
    pub(super) won: Option<Box<Won>>,
    /// Its part in the session under which it enters.
    pub(super) membership: Option<Membership>,
    /// Stops the request or pause in flight.
    pub(super) in_flight: Option<AbortHandle>,
    /// `None` once the caller has the guard.
    pub(super) campaign: Option<Box<Campaign>>,
}

/// The campaign of a candidate that does not lead yet.
#[derive(Debug)]
pub(crate) struct Campaign {
    pub(super) answer: CampaignAnswer,
    /// When it was called.
    pub(super) started_at: BootInstant,
    /// Whether to wait while another candidate leads.
    pub(super) wait_for_turn: bool,
    /// The candidate's value, unless a later one was set.
    pub(super) value: CandidateValue,
    /// The grace period that was requested for the leadership.
    pub(super) grace_period: Option<Duration>,
    pub(super) given_up: bool,
    /// Whether it has waited behind others, which is logged once.
    pub(super) has_waited: bool,
    /// Why it fails.
    pub(super) error: Option<Error>,
    /// The session that has ended under it.
    pub(super) last_session: Option<Arc<Session>>,
    /// The pauses between repeated requests.
    pub(super) retry: RetryDelays,
    /// The pauses before a new entry or session.
    pub(super) back_off: RetryDelays,
}

/// Where the result of a campaign goes. Without a receiver, a leadership is dropped, and so resigned.
pub(crate) type CampaignAnswer = oneshot::Sender<Result<Option<Leadership>, Error>>;

impl Campaign {
    /// A campaign that is called now.
    pub(crate) fn new(
        shared: &ElectorContext,
        value: CandidateValue,
        options: &CampaignOptions,
        answer: CampaignAnswer,
    ) -> Self {
        Self {
            answer,
            started_at: shared.clock.now(),
            wait_for_turn: options.patience() != Patience::NoWait,
            value,
            grace_period: options.grace_period(),
            given_up: false,
            has_waited: false,
            error: None,
            last_session: None,
            retry: RetryDelays::new(shared.config.retry),
            back_off: RetryDelays::new(shared.config.retry),
        }
    }
}

impl Candidate {
    pub(super) fn new(number: CandidateNumber, request: EntryRequest, campaign: Box<Campaign>) -> Self {
        Self {
            number,
            state: State::Queued,
            request: Arc::new(request),
            unsettled: 0,
            may_create: false,
            entry: None,
            waiting: None,
            value_number: None,
            won: None,
            membership: None,
            in_flight: None,
            campaign: Some(campaign),
        }
    }

    /// The session under which it enters.
    pub(super) fn session(&self) -> Option<Arc<Session>> {
        self.membership.as_ref().map(|membership| Arc::clone(&membership.session))
    }

    pub(super) fn is_member(&self, session: SessionNumber) -> bool {
        self.membership.as_ref().is_some_and(|membership| membership.session.number == session)
    }

    pub(super) fn term(&self) -> Option<&Arc<Term>> {
        self.membership.as_ref()?.term.as_ref()
    }

    /// Counts a request that may create an entry, before it is sent.
    pub(super) fn begin_creating(&mut self) {
        self.unsettled += 1;
        self.may_create = true;
    }

    /// Ends the request in flight. If its outcome is known, it no longer counts as unsettled.
    pub(super) fn end_request(&mut self, is_settled: bool) {
        self.in_flight = None;
        if std::mem::take(&mut self.may_create) && is_settled {
            self.unsettled -= 1;
        }
    }

    /// The grace period that its leadership needs, under this session.
    pub(super) fn grace_period(&self, session: &Session) -> Duration {
        let requested = self.campaign.as_ref().and_then(|campaign| campaign.grace_period);
        session.window.grace_period().max(requested.unwrap_or_default())
    }

    /// Makes a new request. Its nonce is never used again, so that two entries are never confused.
    pub(super) fn renew_request(&mut self, shared: &ElectorContext) {
        self.request =
            Arc::new(EntryRequest { nonce: shared.request_nonce(), ..EntryRequest::clone(&self.request) });
        (self.unsettled, self.entry, self.won) = (0, None, None);
        (self.waiting, self.value_number) = (None, None);
    }
}

/// A candidate's part in a session: the session is closed only once this is dropped.
///
/// If the candidate has not finished by then, because the backend or the elector's task has panicked or the runtime was shut down,
/// the session ends: no task would watch the entry or remove it any more. So a resignation never waits for ever.
pub(super) struct Membership {
    pub(super) session: Arc<Session>,
    pub(super) term: Option<Arc<Term>>,
    /// Whether nothing is left to be done for the entry.
    pub(super) finished: bool,
    /// Whether the store has confirmed that the entry is gone.
    pub(super) confirmed: bool,
    /// Whether the candidate waits for its turn.
    waits: bool,
    _tracker_token: TaskTrackerToken,
}

impl Membership {
    pub(super) fn new(session: &Arc<Session>) -> Self {
        let _tracker_token = session.entry_tracker.token();
        Self {
            session: Arc::clone(session),
            term: None,
            finished: false,
            confirmed: false,
            waits: false,
            _tracker_token,
        }
    }
}

impl Membership {
    pub(super) fn set_waits(&mut self, waits: bool) {
        if std::mem::replace(&mut self.waits, waits) != waits {
            self.session.set_waiting(waits);
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.set_waits(false);
        if !self.finished {
            catch_panic(|| self.session.end(LossReason::SessionGivenUp));
        }
        if let Some(term) = &self.term {
            if !self.finished {
                // No task waits for its work any more.
                term.request_drop();
            }
            catch_panic(|| term.report_end());
            term.set_withdrawn(self.confirmed);
            self.session.leadership_is_over();
        }
        // It served this candidacy only.
        if self.session.owner.is_some() {
            catch_panic(|| self.session.end(LossReason::Closed));
        }
    }
}
