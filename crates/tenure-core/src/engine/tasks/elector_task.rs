//! The task of an elector: it owns all candidates, the queues of its campaigns, its sessions, and all requests of candidates that
//! are in flight. Everything that happens to a candidate is an event here, and
//! [`transition`](crate::engine::rules::candidate_state::transition) says what it does.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque, hash_map},
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{AbortHandle, Abortable, Aborted, select_all},
    stream::FuturesUnordered,
};
use tokio::sync::mpsc;
use tracing::{debug, error};

use super::{
    candidate::{Campaign, CampaignAnswer, CampaignProgress, Candidate, Command, GiveUpOnDrop},
    elections::Elections,
    events::{EngineEvent, EventSender, SessionNumber},
    registered_entry::CandidateNumber,
    requests::{Outcome, Request, Response},
    session::Session,
    session_opening::OpenError,
    watches::Watches,
};
use crate::{
    ElectionName, Error, FencingToken, LossReason,
    engine::{
        elector_context::ElectorContext,
        rules::{candidate_state::Event, retry_delays::RetryDelays},
        runtime::callbacks::catch_panic,
    },
    spi::{BackendError, BackendErrorKind, EntryEvent},
    sync::sleep,
};

/// The number of inputs that are handled before the watches are polled again.
const MAX_BATCH: usize = 64;

/// Sends campaigns to the task of an elector. The task ends some time after this is dropped.
#[derive(Debug)]
pub(crate) struct Campaigns {
    commands: mpsc::UnboundedSender<Command>,
    last_candidate: AtomicU64,
}

impl Campaigns {
    /// Starts the task of an elector.
    pub(crate) fn start_task(shared: &Arc<ElectorContext>, elections: &Arc<Elections>) -> Self {
        let (commands, receiver) = mpsc::unbounded_channel();
        // Created before it is spawned: if it is dropped before its first poll, no caller waits in vain.
        let task = ElectorTask::new(Arc::clone(shared), Arc::clone(elections), receiver);
        shared.runtime.spawn(task.run());
        Self { commands, last_candidate: AtomicU64::new(0) }
    }

    /// Starts a campaign, which is given up when the result of this function is dropped.
    pub(crate) fn start(&self, campaign: Campaign) -> GiveUpOnDrop {
        let candidate = self.last_candidate.fetch_add(1, Ordering::Relaxed) + 1;
        // Without the task, this drops the sender of the result.
        let _ = self.commands.send(Command::Campaign(candidate, Box::new(campaign)));
        GiveUpOnDrop { candidate, commands: Some(self.commands.clone()) }
    }
}

/// The candidates of an elector in one election. Only one has an entry at a time.
struct Slot {
    admitted: CandidateNumber,
    queued: VecDeque<CandidateNumber>,
}

/// A session that is not closed yet.
pub(super) struct OpenedSession {
    pub(super) session: Arc<Session>,
    pub(super) watches: Watches,
    /// The callers that wait until the session is closed, which removes the entries that they have given up.
    pub(super) leavers: Vec<(CampaignAnswer, ElectionName)>,
}

/// The opening of a session.
pub(super) enum Opening {
    NotNeeded,
    Requested,
    /// The next attempt follows after a pause.
    Paused(AbortHandle),
}

pub(super) struct ElectorTask {
    pub(super) shared: Arc<ElectorContext>,
    pub(super) elections: Arc<Elections>,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Whether the elector was dropped, so that no command comes any more.
    elector_dropped: bool,
    /// Whether the elector is being closed.
    pub(super) closing: bool,
    pub(super) event_sender: EventSender,
    events: mpsc::UnboundedReceiver<EngineEvent>,
    pub(super) requests: FuturesUnordered<Abortable<Request>>,
    // In order, so that a simulated run is reproducible. The elections are never iterated.
    pub(super) candidates: BTreeMap<CandidateNumber, Candidate>,
    elections_entered: HashMap<ElectionName, Slot>,
    /// The latest one is for new candidates, unless it has ended.
    pub(super) sessions: BTreeMap<SessionNumber, OpenedSession>,
    pub(super) last_session: SessionNumber,
    pub(super) opening: Opening,
    pub(super) opening_retry: RetryDelays,
    pub(super) awaiting_session: BTreeSet<CandidateNumber>,
}

/// What the task handles next.
enum Input {
    Watch(SessionNumber, std::thread::Result<Result<(CandidateNumber, EntryEvent), BackendError>>),
    Outcome(Result<Outcome, Aborted>),
    Events(Vec<EngineEvent>),
    Commands(Vec<Command>),
    Closing,
    BurstOver,
}

impl ElectorTask {
    fn new(
        shared: Arc<ElectorContext>,
        elections: Arc<Elections>,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        let (event_sender, events) = mpsc::unbounded_channel();
        Self {
            opening_retry: RetryDelays::new(shared.config.retry),
            shared,
            elections,
            commands,
            elector_dropped: false,
            closing: false,
            event_sender,
            events,
            requests: FuturesUnordered::new(),
            candidates: BTreeMap::new(),
            elections_entered: HashMap::new(),
            sessions: BTreeMap::new(),
            last_session: 0,
            opening: Opening::NotNeeded,
            awaiting_session: BTreeSet::new(),
        }
    }

    /// Runs until the elector is closed or dropped, and nothing of it is left in the store.
    async fn run(mut self) {
        while !self.is_done() {
            let input = self.next_input().await;
            self.handle(input);
            // Further outcomes of the same moment, before the watches are polled again.
            for _ in 0..MAX_BATCH {
                let Some(Some(outcome)) = self.requests.next().now_or_never() else { break };
                self.handle(Input::Outcome(outcome));
            }
        }
    }

    fn is_done(&self) -> bool {
        (self.closing || self.elector_dropped)
            && self.candidates.is_empty()
            && self.sessions.is_empty()
            && !matches!(self.opening, Opening::Requested)
    }

    async fn next_input(&mut self) -> Input {
        let burst_left = self.sessions.values().filter_map(|opened| opened.watches.burst_left()).min();
        let (mut events, mut commands) = (Vec::new(), Vec::new());
        tokio::select! {
            biased;
            (session, event) = next_watch_event(&mut self.sessions) => Input::Watch(session, event),
            Some(outcome) = self.requests.next() => Input::Outcome(outcome),
            _ = self.events.recv_many(&mut events, MAX_BATCH) => Input::Events(events),
            _ = self.commands.recv_many(&mut commands, MAX_BATCH), if !self.elector_dropped => Input::Commands(commands),
            () = self.shared.closing.cancelled(), if !self.closing => Input::Closing,
            () = sleep(burst_left.unwrap_or_default()), if burst_left.is_some() => Input::BurstOver,
        }
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Watch(session, event) => self.handle_watch(session, event),
            Input::Outcome(Ok(Outcome::Candidate(number, response))) => {
                self.handle_response(number, response)
            }
            Input::Outcome(Ok(Outcome::Opening(outcome))) => self.handle_opening(outcome),
            Input::Outcome(Ok(Outcome::OpeningDue)) => self.request_session(),
            Input::Outcome(Err(Aborted)) => {}
            Input::Events(events) => events.into_iter().for_each(|event| self.handle_event(event)),
            Input::Commands(commands) => {
                self.elector_dropped = commands.is_empty();
                commands.into_iter().for_each(|command| self.handle_command(command));
            }
            Input::Closing => {
                self.closing = true;
                // Their sessions end at the same time, by their own tasks.
                let numbers: Vec<_> = self.candidates.keys().copied().collect();
                numbers.into_iter().for_each(|number| self.apply(number, Event::Closed));
            }
            Input::BurstOver => {
                let bursts = self.sessions.iter().filter(|(_, opened)| opened.watches.burst_left().is_some());
                let numbers: Vec<_> = bursts.map(|(number, _)| *number).collect();
                numbers.into_iter().for_each(|number| self.with_watches(number, Watches::end_burst));
            }
        }
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Campaign(..) if self.closing => {}
            Command::Campaign(number, campaign) => self.admit(number, *campaign),
            Command::GivenUp(number) => {
                if let Some(campaign) = self.campaign(number) {
                    campaign.given_up = true;
                    self.apply(number, Event::GivenUp);
                }
            }
        }
    }

    /// Makes a candidate, which waits for earlier ones in its election.
    fn admit(&mut self, number: CandidateNumber, campaign: Campaign) {
        let Campaign { request, started_at, wait_for_turn, answer } = campaign;
        let is_admitted = match self.elections_entered.entry(request.election.clone()) {
            hash_map::Entry::Vacant(slot) => {
                slot.insert(Slot { admitted: number, queued: VecDeque::new() });
                true
            }
            hash_map::Entry::Occupied(_) if !wait_for_turn => {
                let _ = answer.send(Ok(None));
                return;
            }
            hash_map::Entry::Occupied(mut slot) => {
                slot.get_mut().queued.push_back(number);
                false
            }
        };
        let retry = self.shared.config.retry;
        let campaign = CampaignProgress {
            started_at,
            wait_for_turn,
            answer,
            given_up: false,
            error: None,
            last_session: None,
            retry: RetryDelays::new(retry),
            back_off: RetryDelays::new(retry),
        };
        self.candidates.insert(number, Candidate::new(request, campaign));
        if is_admitted {
            self.apply(number, Event::Admitted);
        }
    }

    /// Frees the place of a candidate that has ended, for the next one.
    pub(super) fn leave_queue(&mut self, number: CandidateNumber, election: &ElectionName) {
        let Some(slot) = self.elections_entered.get_mut(election) else { return };
        if slot.admitted != number {
            slot.queued.retain(|queued| *queued != number);
            return;
        }
        let Some(next) = slot.queued.pop_front() else {
            self.elections_entered.remove(election);
            return;
        };
        slot.admitted = next;
        self.apply(next, Event::Admitted);
    }

    fn handle_event(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::TermEnded(number) => self.apply(number, Event::TermEnded),
            EngineEvent::EntryMissing(number) => {
                let entry = self.candidates.get(&number).and_then(|candidate| candidate.entry.as_ref());
                // It may have another entry by now.
                if entry.is_some_and(|entry| entry.is_missing()) {
                    self.apply(number, Event::EntryGone);
                }
            }
            EngineEvent::SessionEnded(session) => {
                let members = self.candidates.iter().filter(|(_, candidate)| candidate.is_member(session));
                let numbers: Vec<_> = members.map(|(number, _)| *number).collect();
                numbers.into_iter().for_each(|number| self.apply(number, Event::SessionEnded));
            }
            EngineEvent::SessionClosed(session) => {
                let Some(OpenedSession { session, watches, leavers }) = self.sessions.remove(&session) else {
                    return;
                };
                catch_panic(|| drop(watches));
                for (answer, election) in leavers {
                    self.answer_leaver(answer, election, &session);
                }
            }
        }
    }

    /// Tells a caller that has given up whether its entry is gone, once its session, which has ended, is closed.
    pub(super) fn answer_leaver(
        &mut self,
        answer: CampaignAnswer,
        election: ElectionName,
        session: &Session,
    ) {
        match session.wait_closed().now_or_never() {
            Some(true) => drop(answer.send(Ok(None))),
            Some(false) => {
                let waited = self.shared.config.shutdown_timeout;
                drop(answer.send(Err(Error::NotConfirmed { election, waited })));
            }
            None => {
                if let Some(opened) = self.sessions.get_mut(&session.number) {
                    opened.leavers.push((answer, election));
                }
            }
        }
    }

    fn handle_response(&mut self, number: CandidateNumber, response: Response) {
        let Some(candidate) = self.candidates.get_mut(&number) else { return };
        candidate.in_flight = None;
        let event = match response {
            Response::Entered(entered) => {
                let Some(membership) = &candidate.membership else { return };
                candidate.entry = Some(membership.session.register(number, entered.entry));
                let waits = candidate.campaign.as_mut().is_some_and(|campaign| {
                    campaign.retry.reset();
                    campaign.wait_for_turn
                });
                match entered.leads {
                    Some(token) => self.elected(number, token),
                    None if waits => Event::Entered,
                    None => Event::OtherLeads,
                }
            }
            Response::Elected(token) => self.elected(number, token),
            Response::EntryGone => Event::EntryGone,
            Response::Removed => Event::Removed,
            Response::Failed { uncertain } => {
                candidate.uncertain |= uncertain;
                Event::Failed
            }
            Response::Refused(error) => {
                if let Some(campaign) = &mut candidate.campaign {
                    campaign.error = Some(error.into());
                }
                Event::Refused
            }
            Response::SessionEnded => Event::SessionEnded,
            Response::RetryDue => Event::RetryDue,
            Response::WorkStopped => Event::WorkStopped,
            Response::Panicked => {
                if let Some(membership) = &candidate.membership {
                    error!(
                        session = membership.session.backend_session.id(),
                        "a backend has panicked; its session ends"
                    );
                    membership.session.end(LossReason::SessionGivenUp);
                }
                Event::Panicked
            }
        };
        self.apply(number, event);
    }

    fn elected(&mut self, number: CandidateNumber, token: FencingToken) -> Event {
        let Some(candidate) = self.candidates.get_mut(&number) else { return Event::Panicked };
        candidate.token = Some(token);
        // A session without a recent heartbeat may have won in vain.
        let session = candidate.membership.as_ref().map(|membership| &membership.session);
        let is_open =
            session.is_some_and(|session| session.enforce_window(session.window.grace_period()).is_ok());
        if is_open { Event::Elected } else { Event::SessionEnded }
    }

    fn handle_watch(
        &mut self,
        session: SessionNumber,
        event: std::thread::Result<Result<(CandidateNumber, EntryEvent), BackendError>>,
    ) {
        match event {
            Ok(Ok((number, EntryEvent::Deleted))) => self.apply(number, Event::EntryGone),
            Ok(Ok((number, EntryEvent::ResignRequested))) => self.apply(number, Event::ResignRequested),
            Ok(Err(error)) => {
                debug!(%error, "the watch on the entries has failed; the session ends");
                self.fail_session(
                    session,
                    match error.kind() {
                        BackendErrorKind::SessionGone => LossReason::SessionExpired,
                        _ => LossReason::SessionGivenUp,
                    },
                );
            }
            Err(panic) => {
                std::mem::forget(panic);
                self.fail_session(session, LossReason::SessionGivenUp);
            }
        }
    }

    fn handle_opening(&mut self, outcome: Option<Result<Arc<Session>, OpenError>>) {
        self.opening = Opening::NotNeeded;
        let retries = matches!(&outcome, Some(Err(OpenError::Backend(error))) if !error.is_permanent());
        if !retries || self.awaiting_session.is_empty() {
            self.opening_retry.reset();
        }
        if let Some(Ok(session)) = &outcome {
            let watches = Watches::new(session);
            let opened = OpenedSession { session: Arc::clone(session), watches, leavers: Vec::new() };
            self.sessions.insert(session.number, opened);
        }
        if retries && !self.awaiting_session.is_empty() {
            self.pause_opening();
            return;
        }
        for number in self.awaiting_session.clone() {
            match &outcome {
                None => self.apply(number, Event::Panicked),
                Some(Ok(session)) => self.join(number, &Arc::clone(session)),
                Some(Err(error)) => {
                    if let Some(campaign) = self.campaign(number) {
                        campaign.error = Some(error.clone().into());
                    }
                    self.apply(number, Event::Refused);
                }
            }
        }
    }
}

impl Drop for ElectorTask {
    fn drop(&mut self) {
        // Without this task, no watch ends a leadership.
        for opened in self.sessions.values() {
            catch_panic(|| opened.session.end(LossReason::SessionGivenUp));
        }
    }
}

/// The next event of a watched entry, of any session. Never returns while no entry is watched.
async fn next_watch_event(
    sessions: &mut BTreeMap<SessionNumber, OpenedSession>,
) -> (SessionNumber, std::thread::Result<Result<(CandidateNumber, EntryEvent), BackendError>>) {
    let running = sessions.iter_mut().filter(|(_, opened)| opened.watches.is_running());
    let next = running.map(|(number, opened)| {
        AssertUnwindSafe(opened.watches.next()).catch_unwind().map(|event| (*number, event)).boxed()
    });
    let next: Vec<_> = next.collect();
    if next.is_empty() { std::future::pending().await } else { select_all(next).await.0 }
}
