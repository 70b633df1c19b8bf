//! The task of an elector: it owns all candidates, the queues of its campaigns, its sessions, and the requests of candidates that
//! are in flight. Everything that happens to a candidate is an event here. See
//! [`candidate_state`](crate::engine::rules::candidate_state) for what an event does, and [`actions`](super::actions) for how.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::Poll,
    thread,
    time::Duration,
};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{Abortable, Aborted},
    stream::FuturesUnordered,
};
use tokio::sync::mpsc;
use tracing::{debug, error};

use super::{
    campaigns::{Campaigns, Command},
    candidate::{Candidate, Membership},
    candidate_entry::CandidateEntry,
    elections::Elections,
    events::{CandidateNumber, EngineEvent, EventSender, SessionNumber},
    openings::{Opening, Openings, Owner},
    requests::{Outcome, Request},
    session::{RegisteredEntry, Session},
    session_opening::{OpenError, SessionRequest},
    watches::Watches,
};
use crate::{
    ElectionName, LossReason,
    engine::{
        elector_context::ElectorContext,
        rules::candidate_state::{Event, State},
        runtime::callbacks::catch_panic,
    },
    failpoints::{SafetyRule, is_disabled},
    retry_delays::RetryDelays,
    spi::{BackendError, BackendErrorKind, EntryEvent, SessionScope},
    sync::sleep,
};

/// The number of inputs that are handled before the watches are polled again.
const MAX_BATCH: usize = 64;

pub(super) struct ElectorTask {
    pub(super) shared: Arc<ElectorContext>,
    pub(super) elections: Arc<Elections>,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Whether the elector was dropped, so that no command comes any more.
    elector_dropped: bool,
    /// Whether the elector is being closed.
    pub(super) closing: bool,
    event_sender: EventSender,
    events: mpsc::UnboundedReceiver<EngineEvent>,
    pub(super) requests: FuturesUnordered<Abortable<Request>>,
    // In order, so that a simulated run is reproducible. The queues are never iterated.
    pub(super) candidates: BTreeMap<CandidateNumber, Box<Candidate>>,
    /// The candidates in each election. Only the first one enters.
    queues: HashMap<ElectionName, VecDeque<CandidateNumber>>,
    /// The candidates that have become the first of their elections, and are about to be admitted.
    admitted: VecDeque<CandidateNumber>,
    /// The sessions that are not closed yet.
    pub(super) sessions: BTreeMap<SessionNumber, (Arc<Session>, Watches)>,
    last_session: SessionNumber,
    pub(super) openings: Openings,
}

type WatchEvent = thread::Result<Result<(CandidateNumber, EntryEvent), BackendError>>;

/// Starts the task of an elector. It ends some time after the result is dropped.
pub(crate) fn start(shared: &Arc<ElectorContext>, elections: &Arc<Elections>) -> Campaigns {
    let (campaigns, commands) = Campaigns::channel();
    // Created before it is spawned: if it is dropped before its first poll, no caller waits in vain.
    let task = ElectorTask::new(Arc::clone(shared), Arc::clone(elections), commands);
    shared.runtime.spawn(task.run());
    campaigns
}

impl ElectorTask {
    fn new(
        shared: Arc<ElectorContext>,
        elections: Arc<Elections>,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        let (event_sender, events) = mpsc::unbounded_channel();
        Self {
            openings: Openings::new(&shared),
            shared,
            elections,
            commands,
            elector_dropped: false,
            closing: false,
            event_sender,
            events,
            requests: FuturesUnordered::new(),
            candidates: BTreeMap::new(),
            queues: HashMap::new(),
            admitted: VecDeque::new(),
            sessions: BTreeMap::new(),
            last_session: 0,
        }
    }

    /// Runs until the elector is closed or dropped, and nothing of it is left in the store.
    async fn run(mut self) {
        while !(self.closing || self.elector_dropped)
            || !self.candidates.is_empty()
            || !self.sessions.is_empty()
            || !self.openings.is_empty()
        {
            let burst_left = self.sessions.values().filter_map(|(_, watches)| watches.burst_left()).min();
            let (mut events, mut commands) = (Vec::new(), Vec::new());
            tokio::select! {
                biased;
                (session, event) = next_watch_event(&mut self.sessions) => {
                    self.contain_panics(|task| task.handle_watch(session, event));
                }
                Some(outcome) = self.requests.next() => {
                    self.contain_panics(|task| task.handle_outcome(outcome));
                    // Further outcomes of the same moment, before the watches are polled again.
                    for _ in 0..MAX_BATCH {
                        let Some(Some(outcome)) = self.requests.next().now_or_never() else { break };
                        self.contain_panics(|task| task.handle_outcome(outcome));
                    }
                }
                _ = self.events.recv_many(&mut events, MAX_BATCH) => {
                    events.into_iter().for_each(|event| self.handle_event(event));
                }
                count = self.commands.recv_many(&mut commands, MAX_BATCH), if !self.elector_dropped => {
                    self.elector_dropped = count == 0;
                    for command in commands {
                        self.contain_panics(|task| task.handle_command(command));
                    }
                }
                (owner, outcome) = self.openings.next() => {
                    self.contain_panics(|task| task.handle_opening(owner, outcome));
                }
                () = self.shared.closing.cancelled(), if !self.closing => {
                    self.closing = true;
                    // Their sessions end at the same time, by their own tasks.
                    self.apply_to_all(Event::Closed, |_| true);
                }
                () = sleep(burst_left.unwrap_or_default()), if burst_left.is_some() => {
                    let sessions: Vec<_> = self.sessions.keys().copied().collect();
                    sessions.into_iter().for_each(|session| self.with_watches(session, Watches::end_burst));
                }
            }
            // In a loop: thousands of candidates may end one after another.
            while let Some(number) = self.admitted.pop_front() {
                self.apply(number, Event::Admitted);
            }
            self.end_surplus_sessions();
        }
        // A command that another thread is just sending stays in the channel otherwise, and its caller waits for ever.
        self.commands.close();
        while self.commands.recv().await.is_some() {}
    }

    /// Ends all sessions if `handle` panics, in a log subscriber: it may have lost an event.
    fn contain_panics(&mut self, handle: impl FnOnce(&mut Self)) {
        if catch_panic(|| handle(self)).is_none() {
            let sessions: Vec<_> = self.sessions.keys().copied().collect();
            sessions.into_iter().for_each(|session| self.fail_session(session, LossReason::SessionGivenUp));
            let opening: Vec<_> = self.openings.owners().collect();
            let scope = self.session_scope();
            self.apply_to_all(Event::Panicked, |candidate| {
                candidate.state == State::Opening && !opening.contains(&owner_in(scope, candidate))
            });
        }
    }

    fn apply_to_all(&mut self, event: Event, concerns: impl Fn(&Candidate) -> bool) {
        let concerned = self.candidates.values().filter(|candidate| concerns(candidate));
        let numbers: Vec<_> = concerned.map(|candidate| candidate.number).collect();
        numbers.into_iter().for_each(|number| self.apply(number, event));
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Campaign(..) if self.closing => {}
            Command::Campaign(number, request, campaign) => {
                let queue = self.queues.entry(request.election.clone()).or_default();
                let is_first = queue.is_empty();
                if !is_first && !campaign.wait_for_turn {
                    let _ = campaign.answer.send(Ok(None));
                    return;
                }
                queue.push_back(number);
                self.candidates.insert(number, Box::new(Candidate::new(number, request, campaign)));
                if is_first {
                    self.apply(number, Event::Admitted);
                }
            }
            Command::GivenUp(number) => {
                let candidate = self.candidates.get_mut(&number);
                if let Some(campaign) = candidate.and_then(|candidate| candidate.campaign.as_mut()) {
                    campaign.given_up = true;
                    self.apply(number, Event::GivenUp);
                }
            }
        }
    }

    /// Frees the place of a candidate that has ended, for the next one.
    pub(super) fn leave_queue(&mut self, number: CandidateNumber, election: &ElectionName) {
        let Some(queue) = self.queues.get_mut(election) else { return };
        let was_first = queue.front() == Some(&number);
        queue.retain(|queued| *queued != number);
        match queue.front().copied() {
            Some(next) if was_first => self.admitted.push_back(next),
            Some(_) => {}
            None => drop(self.queues.remove(election)),
        }
    }

    fn handle_event(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::TermEnded(number) => self.apply(number, Event::TermEnded),
            EngineEvent::WindowExtended(session) => {
                let waits =
                    |candidate: &Candidate| candidate.state == State::Proving && candidate.is_member(session);
                let proven =
                    if is_disabled(SafetyRule::CheckProvenEntry) { Event::Elected } else { Event::Proven };
                self.apply_to_all(proven, waits);
            }
            EngineEvent::SessionEnded(session) => {
                self.apply_to_all(Event::SessionEnded, |candidate| candidate.is_member(session));
            }
            EngineEvent::SessionClosed(session) => {
                let closed = self.sessions.remove(&session);
                catch_panic(|| drop(closed));
            }
        }
    }

    fn handle_outcome(&mut self, outcome: Result<(CandidateNumber, Outcome), Aborted>) {
        // A request that was stopped has no outcome.
        let Ok((number, outcome)) = outcome else { return };
        let Some(candidate) = self.candidates.get_mut(&number) else { return };
        let Outcome { mut event, entry, won, error, is_settled } = outcome;
        candidate.end_request(is_settled);
        if let Some(campaign) = &mut candidate.campaign {
            if entry.is_some() {
                campaign.retry.reset();
            }
            campaign.error = campaign.error.take().or(error.map(Into::into));
        }
        if let Some(Membership { session, .. }) = &candidate.membership {
            if let Some(entry) = entry
                && candidate.entry.as_ref().is_none_or(|known| known.entry != entry)
            {
                let registered = RegisteredEntry::new(number, entry);
                candidate.entry = Some(Arc::clone(&registered));
                let entry = Arc::new(CandidateEntry {
                    session: Arc::clone(session),
                    request: Arc::clone(&candidate.request),
                    registered,
                });
                // A value that was set while the entry was being created.
                if self.elections.set_waiting(&entry, candidate.value_number.unwrap_or_default()) {
                    entry.store_value();
                }
                candidate.waiting = Some(entry);
            }
            if let Some(won) = won {
                // A wait may report the same win again.
                if candidate.won.as_ref().is_none_or(|known| known.entry != won.entry) {
                    if session.owner.is_some() {
                        session.open_window(won.sent);
                    }
                    candidate.won = Some(Box::new(won));
                }
                // Without a recent heartbeat the window may not be open, or may be about to close.
                event = check_window(session, candidate.grace_period(session));
            }
            if event == Event::Panicked {
                error!(session = session.backend_session.id(), "a backend has panicked; its session ends");
                session.end(LossReason::SessionGivenUp);
            }
        }
        self.apply(number, event);
    }

    fn handle_watch(&mut self, session: SessionNumber, event: WatchEvent) {
        let id = |task: &Self| task.sessions.get(&session).map(|(session, _)| session.backend_session.id());
        let reason = match event {
            Ok(Ok((number, EntryEvent::Deleted))) => return self.apply(number, Event::EntryGone),
            Ok(Ok((number, EntryEvent::ResignRequested))) => {
                return self.apply(number, Event::ResignRequested);
            }
            Ok(Err(error)) => {
                debug!(session = id(self), %error, "the watch on the entries has failed; the session ends");
                let is_gone = error.kind() == BackendErrorKind::SessionGone;
                if is_gone { LossReason::SessionExpired } else { LossReason::SessionGivenUp }
            }
            Err(panic) => {
                // Dropping it may panic as well.
                std::mem::forget(panic);
                error!(session = id(self), "a backend has panicked in a watch; its session ends");
                LossReason::SessionGivenUp
            }
        };
        self.fail_session(session, reason);
    }

    /// Whose session a candidate enters under.
    pub(super) fn owner_of_session(&self, candidate: &Candidate) -> Owner {
        owner_in(self.session_scope(), candidate)
    }

    fn session_scope(&self) -> SessionScope {
        match is_disabled(SafetyRule::OpenWindowOnWin) {
            true => SessionScope::Elector,
            false => self.shared.backend.capabilities().session_scope,
        }
    }

    /// The session of this owner under which a candidate enters next: one that has room for another entry.
    pub(super) fn session_with_room(&self, owner: Owner) -> Option<&Arc<Session>> {
        let has_room = |session: &&Arc<Session>| {
            session.owner == owner && session.ended().is_none() && self.room(session) > 0
        };
        self.sessions.values().rev().map(|(session, _)| session).find(has_room)
    }

    /// How many entries can still be created under a session.
    fn room(&self, session: &Session) -> usize {
        let limit = self.shared.backend.capabilities().entries_per_session.max(1);
        limit.saturating_sub(session.entry_tracker.len())
    }

    /// Ends sessions without an entry, except the latest one.
    fn end_surplus_sessions(&self) {
        if self.sessions.len() < 2 {
            return;
        }
        let shared = self.sessions.values().rev().map(|(session, _)| session);
        let shared = shared.filter(|session| session.owner.is_none() && session.ended().is_none());
        for session in shared.skip(1).filter(|session| session.entry_tracker.is_empty()) {
            session.end(LossReason::Closed);
        }
    }

    /// Sends the request that opens a session.
    pub(super) fn request_session(
        &mut self,
        owner: Owner,
        election: Option<ElectionName>,
        retry: Option<RetryDelays>,
    ) {
        self.last_session += 1;
        let request =
            SessionRequest { number: self.last_session, owner, election, events: self.event_sender.clone() };
        self.openings.open(request, retry);
    }

    fn handle_opening(&mut self, owner: Owner, outcome: thread::Result<Opening>) {
        // First of all: whatever follows may panic, in a log subscriber.
        let retry = self.openings.finished(owner);
        let scope = self.session_scope();
        let awaits =
            |candidate: &Candidate| candidate.state == State::Opening && owner_in(scope, candidate) == owner;
        let waiting = self.candidates.values().find(|candidate| awaits(candidate));
        let election = waiting.map(|candidate| candidate.request.election.clone());
        match outcome {
            Ok(Opening::PauseOver) => {
                // Room may have become free under another session meanwhile.
                let joining: Vec<_> = match self.session_with_room(owner).map(|session| self.room(session)) {
                    Some(room) => {
                        let waiting = self.candidates.values().filter(|candidate| awaits(candidate));
                        waiting.take(room).map(|candidate| candidate.number).collect()
                    }
                    None => Vec::new(),
                };
                joining.into_iter().for_each(|number| self.apply(number, Event::SessionOpened));
                let election = self.candidates.values().find(|candidate| awaits(candidate));
                let election = election.map(|candidate| candidate.request.election.clone());
                if election.is_some() {
                    return self.request_session(owner, election, retry);
                }
                debug!("no campaign waits for a session any more");
            }
            Ok(Opening::Done(Ok(session))) => {
                if owner.is_some() && election.is_none() {
                    session.end(LossReason::Closed);
                }
                let (watches, room) = (Watches::new(&session), self.room(&session));
                self.sessions.insert(session.number, (session, watches));
                let mut waiting = self.candidates.values().filter(|candidate| awaits(candidate));
                let entering: Vec<_> =
                    waiting.by_ref().take(room).map(|candidate| candidate.number).collect();
                if waiting.next().is_some() {
                    self.request_session(owner, election, None);
                }
                // They enter under it.
                entering.into_iter().for_each(|number| self.apply(number, Event::SessionOpened));
            }
            Ok(Opening::Done(Err(OpenError::Backend(error)))) if !error.is_permanent() => {
                debug!(%error, "no session yet; trying again");
                if let Some(retry) = retry {
                    self.openings.pause(owner, retry);
                }
            }
            Ok(Opening::Done(Err(error))) => {
                let waiting = self.candidates.values_mut().filter(|candidate| awaits(candidate));
                for campaign in waiting.filter_map(|candidate| candidate.campaign.as_mut()) {
                    campaign.error = Some(error.clone().into());
                }
                self.apply_to_all(Event::Refused, awaits);
            }
            Ok(Opening::Closing) => self.apply_to_all(Event::Panicked, awaits),
            Err(panic) => {
                // Dropping it may panic as well.
                std::mem::forget(panic);
                error!("a backend has panicked while a session was being opened");
                self.apply_to_all(Event::Panicked, awaits);
            }
        }
    }
}

/// Whose session a candidate enters under.
fn owner_in(scope: SessionScope, candidate: &Candidate) -> Owner {
    (scope == SessionScope::Election).then_some(candidate.number)
}

impl Drop for ElectorTask {
    fn drop(&mut self) {
        // Without this task, no watch ends a leadership.
        for (session, watches) in std::mem::take(&mut self.sessions).into_values() {
            catch_panic(|| session.end(LossReason::SessionGivenUp));
            catch_panic(|| drop(watches));
        }
        self.openings.drop_all();
    }
}

/// What a candidate whose entry leads does next.
fn check_window(session: &Session, grace_period: Duration) -> Event {
    match session.enforce_window(grace_period) {
        Ok(()) => Event::Elected,
        Err(_) if session.ended().is_some() => Event::SessionEnded,
        // Not open; or it is open, but not for as long as this grace period: a heartbeat is awaited.
        Err(_) => Event::Unproven,
    }
}

/// The next event of a watched entry, of any session. Never returns while no entry is watched.
async fn next_watch_event(
    sessions: &mut BTreeMap<SessionNumber, (Arc<Session>, Watches)>,
) -> (SessionNumber, WatchEvent) {
    poll_fn(|context| {
        for (number, (_, watches)) in &mut *sessions {
            let polled = catch_unwind(AssertUnwindSafe(|| watches.poll_next(context)));
            match polled {
                Ok(Poll::Pending) => {}
                Ok(Poll::Ready(event)) => return Poll::Ready((*number, Ok(event))),
                Err(panic) => return Poll::Ready((*number, Err(panic))),
            }
        }
        Poll::Pending
    })
    .await
}
