//! What the elector's task does for a candidate: applies an event, and carries out the actions of the transition.

use std::{future::Future, sync::Arc};

use futures::future::{AbortHandle, Abortable};
use tracing::{Instrument as _, debug, error, info, info_span, warn};

use super::{
    candidate::{Campaign, Candidate, Membership},
    elector_task::ElectorTask,
    entry_value::CandidateValue,
    events::{CandidateNumber, SessionNumber},
    requests::{self, Outcome, Request},
    term::Term,
    tokens,
    watches::Watches,
};
use crate::{
    Error, FencingToken, Leadership, LossReason,
    config::check_grace_period,
    engine::{
        rules::candidate_state::{Action, Event, State, Transition, transition},
        runtime::callbacks::catch_panic,
    },
    failpoints::{SafetyRule, is_disabled},
    retry_delays::RetryDelays,
    spi::EntryRequest,
    telemetry,
};

impl ElectorTask {
    /// Applies an event to a candidate, and those that follow at once. Events for candidates that have ended are ignored.
    pub(super) fn apply(&mut self, number: CandidateNumber, event: Event) {
        // Not in the map meanwhile: its actions may change the map.
        let Some(mut candidate) = self.candidates.remove(&number) else { return };
        let mut next = Some(event);
        while let Some(event) = next {
            // A log subscriber or a backend may panic: no candidate is forgotten for that.
            let followed = catch_panic(|| self.step(&mut candidate, event));
            next = followed.unwrap_or_else(|| self.contain_panic(&mut candidate, event));
        }
        if candidate.state != State::Ended {
            self.candidates.insert(number, candidate);
        }
    }

    /// Applies one event. Returns the one that follows at once.
    fn step(&mut self, candidate: &mut Candidate, event: Event) -> Option<Event> {
        let Transition::To(next, actions) = transition(candidate.state, event) else { return None };
        if (event, next) == (Event::EntryGone, State::Replacing) {
            let EntryRequest { election, candidate, .. } = &*candidate.request;
            warn!(%election, %candidate, "the entry of a waiting candidate is gone; entering again");
        }
        if (event, next) == (Event::EntryGone, State::Replacing)
            && let Some(session) = candidate.session().filter(|session| session.owner.is_some())
        {
            // It has no other entry: the next one gets a session, and a window, of its own.
            session.end(LossReason::EntryGone);
        }
        if (candidate.state, event) == (State::Entering, Event::Entered)
            && let Some(campaign) = &mut candidate.campaign
            && !std::mem::replace(&mut campaign.has_waited, true)
        {
            let EntryRequest { election, candidate, .. } = &*candidate.request;
            info!(%election, %candidate, "waits for leadership");
        }
        if let Some(membership) = &mut candidate.membership {
            membership.confirmed = event == Event::Removed;
        }
        let mut follows = None;
        for action in actions {
            follows = self.act(candidate, *action);
        }
        candidate.state = next;
        if let Some(membership) = &mut candidate.membership {
            membership.set_waits(matches!(next, State::Waiting | State::WaitingLater));
        }
        // While the elector closes, it does not go on under a new session.
        follows.or_else(|| self.closing.then_some(Event::Closed))
    }

    /// Ends the session of a candidate, an action for which has panicked. Ends the candidate too, if that is the second panic.
    fn contain_panic(&mut self, candidate: &mut Candidate, event: Event) -> Option<Event> {
        // The log subscriber may be what has panicked.
        catch_panic(|| error!("the task of the elector has panicked; the session of the candidate ends"));
        if let Some(session) = candidate.session() {
            self.fail_session(session.number, LossReason::SessionGivenUp);
        }
        if event != Event::Panicked {
            return Some(Event::Panicked);
        }
        candidate.state = State::Ended;
        catch_panic(|| self.leave_queue(candidate.number, &candidate.request.election));
        None
    }

    /// Carries out an action. Returns the event that follows from it at once.
    fn act(&mut self, candidate: &mut Candidate, action: Action) -> Option<Event> {
        match action {
            Action::OpenSession => return self.open_session(candidate),
            Action::Enter => return self.enter(candidate),
            Action::WaitTurn => {
                let (session, entry) = (candidate.session()?, candidate.entry.clone());
                let request = Arc::clone(&candidate.request);
                if entry.is_none() && !is_disabled(SafetyRule::WithdrawWaits) {
                    candidate.begin_creating();
                }
                self.send(candidate, requests::wait_turn(session, request, entry));
            }
            Action::Prove => candidate.session()?.request_proof(),
            Action::Pause => self.pause(candidate, |campaign| &mut campaign.retry),
            Action::BackOff => self.pause(candidate, |campaign| &mut campaign.back_off),
            Action::StopRequest => {
                candidate.in_flight.take().inspect(AbortHandle::abort);
            }
            Action::RenewRequest => candidate.renew_request(&self.shared),
            Action::LeaveSession => {
                debug!(election = %candidate.request.election, "campaigning on under a new session");
                let mut membership = candidate.membership.take()?;
                membership.finished = true;
                let campaign = candidate.campaign.as_mut()?;
                campaign.retry.reset();
                campaign.last_session = Some(Arc::clone(&membership.session));
            }
            Action::RemoveEntry => return self.remove_entry(candidate),
            Action::BeginTerm => return self.begin_term(candidate),
            Action::EndTerm(reason) => {
                let term = candidate.term()?;
                if reason == LossReason::ResignRequested {
                    let entry = term.entry();
                    info!(election = %entry.election, entry = %entry.key, "resignation requested");
                }
                term.end(reason);
            }
            Action::AwaitWork => return self.await_work(candidate),
            Action::DropWork => candidate.term()?.request_drop(),
            Action::Finish => self.finish(candidate, true),
            Action::Abandon => self.finish(candidate, false),
        }
        None
    }

    /// Sends a request, whose outcome is an event of this candidate.
    fn send(&mut self, candidate: &mut Candidate, request: impl Future<Output = Outcome> + Send + 'static) {
        let EntryRequest { election, candidate: name, .. } = &*candidate.request;
        let span = info_span!("candidate", %election, candidate = %name);
        let (handle, registration) = AbortHandle::new_pair();
        candidate.in_flight = Some(handle);
        let request = Request::new(candidate.number, request.instrument(span));
        self.requests.push(Abortable::new(request, registration));
    }

    fn pause(&mut self, candidate: &mut Candidate, retry: fn(&mut Campaign) -> &mut RetryDelays) {
        if let Some(delay) = candidate.campaign.as_mut().map(|campaign| retry(campaign).next_delay()) {
            self.send(candidate, requests::pause(delay));
        }
    }

    /// Joins the open session, or requests one.
    fn open_session(&mut self, candidate: &Candidate) -> Option<Event> {
        let owner = self.owner_of_session(candidate);
        if self.session_with_room(owner).is_some() {
            return Some(Event::SessionOpened);
        }
        if !self.openings.is_running(owner) && !self.shared.closing.is_cancelled() {
            self.request_session(owner, Some(candidate.request.election.clone()), None);
        }
        None
    }

    /// Enters under a session that has room.
    fn enter(&mut self, candidate: &mut Candidate) -> Option<Event> {
        if candidate.membership.is_none() {
            let Some(session) = self.session_with_room(self.owner_of_session(candidate)) else {
                // It has ended meanwhile.
                return Some(Event::SessionEnded);
            };
            candidate.membership = Some(Membership::new(session));
        }
        let session = candidate.session()?;
        if session.ended().is_some() {
            // Its event may have come before this candidate was a member.
            return Some(Event::SessionEnded);
        }
        let campaign = candidate.campaign.as_mut()?;
        if let Some(grace_period) = campaign.grace_period {
            let (max, ttl) = (session.largest_grace_period(), session.backend_session.granted_ttl());
            if let Err(error) = check_grace_period(grace_period, ttl, max) {
                campaign.error = Some(error.into());
                return Some(Event::Refused);
            }
        }
        if candidate.value_number.is_none() {
            let EntryRequest { election, candidate: id, nonce, .. } = &*candidate.request;
            let CandidateValue { value, number } = self.elections.latest_value(election, &campaign.value);
            let request =
                EntryRequest { election: election.clone(), candidate: id.clone(), value, nonce: *nonce };
            (candidate.request, candidate.value_number) = (Arc::new(request), Some(number));
        }
        let wait_for_turn = campaign.wait_for_turn;
        session.open_window_soon();
        candidate.begin_creating();
        self.send(candidate, requests::enter(session, Arc::clone(&candidate.request), wait_for_turn));
        None
    }

    /// Removes the entry, if there may be one.
    fn remove_entry(&mut self, candidate: &mut Candidate) -> Option<Event> {
        let session = candidate.session()?;
        session.stop_heartbeats();
        candidate.waiting = None;
        let (entry, uncertain) = (candidate.entry.take(), candidate.unsettled > 0);
        if candidate.term().is_some() {
            // The watch may have a request in flight and hold what the removal waits for.
            self.with_watches(session.number, |watches| watches.remove(candidate.number));
        }
        if entry.is_none() && (!uncertain || is_disabled(SafetyRule::WithdrawUncertainEntries)) {
            return Some(Event::Removed);
        }
        if session.ended().is_some() {
            return Some(Event::SessionEnded);
        }
        self.send(candidate, requests::remove(session, Arc::clone(&candidate.request), entry, uncertain));
        None
    }

    fn begin_term(&mut self, candidate: &mut Candidate) -> Option<Event> {
        let entry = Arc::clone(candidate.entry.as_ref()?);
        let token = token_of_term(&candidate.request, candidate.won.take()?.token);
        let membership = candidate.membership.as_mut()?;
        let session = membership.session.number;
        let term = Term::new(&membership.session, Arc::clone(&candidate.request), token, Arc::clone(&entry));
        membership.term = Some(Arc::clone(&term));
        term.session.leadership_begins();
        self.elections.set_term(&term);
        candidate.waiting = None;
        let campaign = candidate.campaign.take()?;
        if let Some(grace_period) = campaign.grace_period
            && grace_period > term.session.window.grace_period()
        {
            term.raise_grace_period(grace_period);
        }
        let waited = self.shared.clock.now().since(campaign.started_at);
        telemetry::leadership_won(term.election(), token, waited);
        tokens::won(&self.shared, term.election(), token);
        // If the campaign's future was dropped meanwhile, this drops the guard, which resigns.
        let _ = campaign.answer.send(Ok(Some(Leadership::new(term))));
        self.with_watches(session, |watches| watches.begin(entry));
        None
    }

    fn await_work(&mut self, candidate: &mut Candidate) -> Option<Event> {
        let term = Arc::clone(candidate.term()?);
        term.report_end();
        if term.work.is_stopped() || is_disabled(SafetyRule::StopWorkBeforeLeaving) {
            return Some(Event::WorkStopped);
        }
        // Nobody would notice that the entry is deleted.
        if self.sessions.get(&term.session.number).is_some_and(|(_, watches)| watches.has_failed()) {
            term.request_drop();
        }
        self.send(candidate, requests::await_work(term));
        None
    }

    /// Ends a candidate. With `answers` its caller receives the result, otherwise it is dropped.
    fn finish(&mut self, candidate: &mut Candidate, answers: bool) {
        // The caller may campaign again as soon as it has the result.
        self.leave_queue(candidate.number, &candidate.request.election);
        let mut unconfirmed = candidate.campaign.as_mut().and_then(|campaign| campaign.last_session.take());
        if let Some(mut membership) = candidate.membership.take() {
            membership.finished = answers;
            unconfirmed = (!membership.confirmed).then(|| Arc::clone(&membership.session));
        }
        let campaign = candidate.campaign.take();
        if campaign.as_ref().is_some_and(|campaign| campaign.has_waited) {
            let EntryRequest { election, candidate, .. } = &*candidate.request;
            info!(%election, %candidate, "waits no more");
        }
        let Some(campaign) = campaign.filter(|_| answers) else { return };
        let Campaign { answer, given_up, error, .. } = *campaign;
        let (election, waited) = (candidate.request.election.clone(), self.shared.config.shutdown_timeout);
        match unconfirmed {
            // The end of the session confirms it.
            Some(session) if given_up => self.shared.runtime.spawn(async move {
                let confirmed = session.wait_closed().await;
                let error = Error::NotConfirmed { election, waited };
                let _ = answer.send(if confirmed { Ok(None) } else { Err(error) });
            }),
            _ => drop(answer.send(error.filter(|_| !given_up).map_or(Ok(None), Err))),
        }
    }

    /// Uses the watches of a session, and ends the session if they panic.
    pub(super) fn with_watches(&mut self, session: SessionNumber, call: impl FnOnce(&mut Watches)) {
        let Some((_, watches)) = self.sessions.get_mut(&session) else { return };
        if catch_panic(|| call(watches)).is_none() {
            self.fail_session(session, LossReason::SessionGivenUp);
        }
    }

    /// Ends a session whose watches have failed: a deleted entry would go unnoticed. Drops work that was only cancelled.
    pub(super) fn fail_session(&mut self, number: SessionNumber, reason: LossReason) {
        let Some((session, watches)) = self.sessions.get_mut(&number) else { return };
        watches.fail();
        catch_panic(|| session.end(reason));
        let members = self.candidates.values().filter(|candidate| candidate.is_member(number));
        let stopping = members.filter(|candidate| candidate.state == State::Stopping);
        stopping.filter_map(|candidate| candidate.term()).for_each(Term::request_drop);
    }
}

/// The fencing token of a new term: the store's, unless a test disables [`SafetyRule::UniqueTokens`].
fn token_of_term(request: &EntryRequest, token: FencingToken) -> FencingToken {
    #[cfg(tenure_mutants)]
    if is_disabled(SafetyRule::UniqueTokens) {
        return crate::failpoints::first_token(&request.election, &request.candidate, token);
    }
    let _ = request;
    token
}
