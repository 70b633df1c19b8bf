//! What the elector's task does for a candidate: applies an event, and carries out the actions of the transition.

use std::{future::Future, sync::Arc};

use futures::{
    FutureExt as _,
    future::{AbortHandle, Abortable},
};
use tracing::{Instrument as _, Span, debug, error, info, info_span, warn};

use super::{
    candidate::{CampaignProgress, Candidate, Membership},
    elector_task::{ElectorTask, Opening},
    events::SessionNumber,
    registered_entry::CandidateNumber,
    requests::{self, Outcome, Request, Response},
    session::Session,
    session_opening,
    term::Term,
    watches::Watches,
};
use crate::{
    FencingToken, Leadership, LossReason,
    engine::{
        rules::{
            candidate_state::{Action, Event, State, Transition, transition},
            retry_delays::RetryDelays,
        },
        runtime::callbacks::catch_panic,
    },
    failpoints::{SafetyRule, is_disabled},
    spi::EntryRequest,
    telemetry,
};

impl ElectorTask {
    /// Applies an event to a candidate. Events for candidates that have ended are ignored.
    pub(super) fn apply(&mut self, number: CandidateNumber, event: Event) {
        let Some(candidate) = self.candidates.get_mut(&number) else { return };
        let Transition::To(next, actions) = transition(candidate.state, event) else { return };
        candidate.state = next;
        if let Some(membership) = &mut candidate.membership {
            membership.confirmed |= (next, event) == (State::Ended, Event::Removed);
        }
        if self.awaiting_session.remove(&number) {
            self.stop_unneeded_opening();
        }
        for action in actions {
            // A log subscriber or a backend may panic: no candidate is forgotten for that.
            if catch_panic(|| self.act(number, *action)).is_none() {
                return self.contain_panic(number);
            }
        }
        // It may be about to go on under a new session.
        if self.closing && event != Event::Closed {
            self.apply(number, Event::Closed);
        }
    }

    fn act(&mut self, number: CandidateNumber, action: Action) {
        match action {
            Action::OpenSession => self.open_session(number),
            Action::Enter => self.enter(number),
            Action::WaitTurn => self.wait_turn(number),
            Action::Pause => self.pause(number, |campaign| &mut campaign.retry),
            Action::BackOff => self.pause(number, |campaign| &mut campaign.back_off),
            Action::StopRequest => {
                let in_flight =
                    self.candidates.get_mut(&number).and_then(|candidate| candidate.in_flight.take());
                in_flight.inspect(AbortHandle::abort);
            }
            Action::RenewRequest => {
                self.candidates.get_mut(&number).map(Candidate::renew_request);
            }
            Action::LeaveSession => self.leave_session(number),
            Action::RemoveEntry => self.remove_entry(number),
            Action::BeginTerm => self.begin_term(number),
            Action::EndTerm(reason) => self.end_term(number, reason),
            Action::AwaitWork => self.await_work(number),
            Action::DropWork => {
                self.term(number).inspect(Term::request_drop);
            }
            Action::Finish => self.finish(number, true),
            Action::Abandon => self.finish(number, false),
        }
    }

    fn term(&self, number: CandidateNumber) -> Option<Arc<Term>> {
        self.candidates.get(&number)?.term().cloned()
    }

    pub(super) fn campaign(&mut self, number: CandidateNumber) -> Option<&mut CampaignProgress> {
        self.candidates.get_mut(&number)?.campaign.as_deref_mut()
    }

    /// Sends a request, whose outcome is an event of this candidate.
    fn send(&mut self, number: CandidateNumber, request: impl Future<Output = Response> + Send + 'static) {
        let Some(candidate) = self.candidates.get_mut(&number) else { return };
        let (handle, registration) = AbortHandle::new_pair();
        candidate.in_flight = Some(handle);
        let outcome = request.map(move |response| Outcome::Candidate(number, response));
        self.requests.push(Abortable::new(Request::new(Some(number), outcome), registration));
    }

    fn open_session(&mut self, number: CandidateNumber) {
        let latest = self.sessions.last_key_value().map(|(_, opened)| Arc::clone(&opened.session));
        if let Some(session) = latest.filter(|session| session.ended().is_none()) {
            return self.join(number, &session);
        }
        self.awaiting_session.insert(number);
        if matches!(self.opening, Opening::NotNeeded) {
            self.request_session();
        }
    }

    /// Sends the request that opens a session.
    pub(super) fn request_session(&mut self) {
        self.opening = Opening::Requested;
        self.last_session += 1;
        let opening =
            session_opening::open(Arc::clone(&self.shared), self.last_session, self.event_sender.clone());
        let (_, registration) = AbortHandle::new_pair();
        self.requests.push(Abortable::new(Request::new(None, opening.map(Outcome::Opening)), registration));
    }

    /// Pauses before the next request that opens a session.
    pub(super) fn pause_opening(&mut self) {
        let (handle, registration) = AbortHandle::new_pair();
        self.opening = Opening::Paused(handle);
        let pause = requests::pause(self.opening_retry.next_delay()).map(|_| Outcome::OpeningDue);
        self.requests.push(Abortable::new(Request::new(None, pause), registration));
    }

    fn stop_unneeded_opening(&mut self) {
        if let Opening::Paused(pause) = &self.opening
            && self.awaiting_session.is_empty()
        {
            debug!("no campaign waits for a session any more");
            pause.abort();
            self.opening = Opening::NotNeeded;
            self.opening_retry.reset();
        }
    }

    /// Makes a candidate a member of a session.
    pub(super) fn join(&mut self, number: CandidateNumber, session: &Arc<Session>) {
        if let Some(candidate) = self.candidates.get_mut(&number) {
            candidate.membership = Some(Membership::new(session));
        }
        self.apply(number, Event::SessionOpened);
    }

    fn enter(&mut self, number: CandidateNumber) {
        let Some((candidate, session)) = self.member(number) else { return };
        if session.ended().is_some() {
            // The event may have come before this candidate was a member.
            return self.apply(number, Event::SessionEnded);
        }
        let (request, span) = (Arc::clone(&candidate.request), span(&candidate.request));
        self.send(number, requests::enter(session, request).instrument(span));
    }

    fn wait_turn(&mut self, number: CandidateNumber) {
        let Some((candidate, session)) = self.member(number) else { return };
        let Some(entry) = candidate.entry.clone() else { return };
        let (request, span) = (Arc::clone(&candidate.request), span(&candidate.request));
        self.send(number, requests::wait_turn(session, request, entry).instrument(span));
    }

    fn member(&mut self, number: CandidateNumber) -> Option<(&mut Candidate, Arc<Session>)> {
        let candidate = self.candidates.get_mut(&number)?;
        let session = Arc::clone(&candidate.membership.as_ref()?.session);
        Some((candidate, session))
    }

    fn pause(&mut self, number: CandidateNumber, retry: fn(&mut CampaignProgress) -> &mut RetryDelays) {
        let Some(delay) = self.campaign(number).map(|campaign| retry(campaign).next_delay()) else { return };
        self.send(number, requests::pause(delay));
    }

    fn leave_session(&mut self, number: CandidateNumber) {
        let Some(candidate) = self.candidates.get_mut(&number) else { return };
        debug!(election = %candidate.request.election, "campaigning on under a new session");
        let Some(mut membership) = candidate.membership.take() else { return };
        membership.finished = true;
        if let Some(campaign) = &mut candidate.campaign {
            campaign.retry.reset();
            campaign.last_session = Some(Arc::clone(&membership.session));
        }
    }

    /// Removes the entry, if there may be one.
    fn remove_entry(&mut self, number: CandidateNumber) {
        let Some((candidate, session)) = self.member(number) else { return };
        let EntryRequest { election, candidate: name, .. } = &*candidate.request;
        if candidate.state == State::Replacing {
            warn!(%election, candidate = %name, "the entry of a waiting candidate is gone; entering again");
        }
        let (entry, uncertain, has_term) =
            (candidate.entry.take(), candidate.uncertain, candidate.term().is_some());
        let (request, span) = (Arc::clone(&candidate.request), span(&candidate.request));
        if let Some(entry) = &entry {
            session.unregister(entry);
        }
        if has_term {
            // The watch may have a request in flight and hold what the removal waits for.
            self.with_watches(session.number, |watches| watches.remove(number));
        }
        if entry.is_none() && (!uncertain || is_disabled(SafetyRule::WithdrawUncertainEntries)) {
            self.apply(number, Event::Removed);
        } else if session.ended().is_some() {
            self.apply(number, Event::SessionEnded);
        } else {
            self.send(number, requests::remove(session, request, entry, uncertain).instrument(span));
        }
    }

    fn begin_term(&mut self, number: CandidateNumber) {
        let Some((candidate, session)) = self.member(number) else { return };
        let (Some(entry), Some(token), Some(campaign)) =
            (candidate.entry.clone(), candidate.token, candidate.campaign.take())
        else {
            return;
        };
        let token = token_of_term(&candidate.request, token);
        let term = Term::new(&session, Arc::clone(&candidate.request), token, Arc::clone(&entry));
        if let Some(membership) = &mut candidate.membership {
            membership.term = Some(Arc::clone(&term));
        }
        self.elections.set_term(&term);
        let waited = self.shared.clock.now().since(campaign.started_at);
        telemetry::leadership_won(term.election(), token, waited);
        // If the campaign's future was dropped meanwhile, this drops the guard, which resigns.
        let _ = campaign.answer.send(Ok(Some(Leadership::new(term))));
        self.with_watches(session.number, |watches| watches.begin(Arc::clone(&entry)));
        if entry.is_missing() {
            self.apply(number, Event::EntryGone);
        }
    }

    fn end_term(&mut self, number: CandidateNumber, reason: LossReason) {
        let Some(term) = self.term(number) else { return };
        if reason == LossReason::ResignRequested {
            let entry = term.entry();
            info!(election = %entry.election, entry = %entry.key, "resignation requested");
        }
        term.end(reason);
    }

    fn await_work(&mut self, number: CandidateNumber) {
        let Some(term) = self.term(number) else { return };
        term.report_end();
        if term.work.is_stopped() || is_disabled(SafetyRule::StopWorkBeforeLeaving) {
            return self.apply(number, Event::WorkStopped);
        }
        // Nobody would notice that the entry is deleted.
        if self.sessions.get(&term.session.number).is_some_and(|opened| opened.watches.has_failed()) {
            term.request_drop();
        }
        self.send(number, wait_work_stopped(term));
    }

    /// Ends a candidate. With `answers` its caller receives the result, otherwise it is dropped.
    fn finish(&mut self, number: CandidateNumber, answers: bool) {
        let Some(mut candidate) = self.candidates.remove(&number) else { return };
        // The caller may campaign again as soon as it has the result.
        self.leave_queue(number, &candidate.request.election);
        let mut unconfirmed = None;
        if let Some(mut membership) = candidate.membership.take() {
            membership.finished = answers;
            unconfirmed = (!membership.confirmed).then(|| Arc::clone(&membership.session));
        } else if let Some(campaign) = &mut candidate.campaign {
            unconfirmed = campaign.last_session.take();
        }
        let Some(campaign) = candidate.campaign.filter(|_| answers) else { return };
        match (unconfirmed, campaign.error) {
            (Some(session), _) if campaign.given_up => {
                self.answer_leaver(campaign.answer, candidate.request.election.clone(), &session);
            }
            (_, Some(error)) if !campaign.given_up => drop(campaign.answer.send(Err(error))),
            _ => drop(campaign.answer.send(Ok(None))),
        }
    }

    /// Uses the watches of a session, and ends the session if they panic.
    pub(super) fn with_watches(&mut self, session: SessionNumber, call: impl FnOnce(&mut Watches)) {
        let Some(opened) = self.sessions.get_mut(&session) else { return };
        if catch_panic(|| call(&mut opened.watches)).is_none() {
            self.fail_session(session, LossReason::SessionGivenUp);
        }
    }

    /// Ends a session whose watches have failed: a deleted entry would go unnoticed. Drops work that was only cancelled.
    pub(super) fn fail_session(&mut self, session: SessionNumber, reason: LossReason) {
        let Some(opened) = self.sessions.get_mut(&session) else { return };
        opened.watches.fail();
        catch_panic(|| opened.session.end(reason));
        let stopping = self
            .candidates
            .values()
            .filter(|candidate| candidate.state == State::Stopping && candidate.is_member(session));
        stopping.filter_map(Candidate::term).for_each(Term::request_drop);
    }

    /// A log subscriber or a backend has panicked in an action: the session ends. A leader's entry stays until its work has
    /// stopped, and a campaign ends without a result.
    fn contain_panic(&mut self, number: CandidateNumber) {
        // The log subscriber may be what has panicked.
        catch_panic(|| error!("the task of the elector has panicked; the session of the candidate ends"));
        let session = self.member(number).map(|(_, session)| session.number);
        if let Some(session) = session {
            self.fail_session(session, LossReason::SessionGivenUp);
        }
        let Some(candidate) = self.candidates.get_mut(&number) else { return };
        let leads =
            matches!(candidate.state, State::Leading | State::Stopping) && candidate.in_flight.is_none();
        if let Some(term) = candidate.term().cloned().filter(|_| leads) {
            candidate.state = State::Stopping;
            term.request_drop();
            self.send(number, wait_work_stopped(term));
        } else {
            catch_panic(|| self.finish(number, false));
        }
    }
}

async fn wait_work_stopped(term: Arc<Term>) -> Response {
    term.wait_work_stopped().await;
    Response::WorkStopped
}

fn span(request: &EntryRequest) -> Span {
    info_span!("candidate", election = %request.election, candidate = %request.candidate)
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
