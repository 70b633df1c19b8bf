//! The task of an elector: it owns all candidates, the queues of its campaigns, its sessions, and the requests of candidates that
//! are in flight. Everything that happens to a candidate is an event here. See
//! [`candidate_state`](crate::engine::rules::candidate_state) for what an event does, and [`actions`](super::actions) for how.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{Abortable, Aborted, BoxFuture, OptionFuture, select_all},
    stream::FuturesUnordered,
};
use tenure_mmap::ForkMark;
use tokio::sync::mpsc;
use tracing::{debug, error, warn};

use super::{
    candidate::{Campaign, Candidate, Membership},
    candidate_entry::CandidateEntry,
    elections::Elections,
    events::{CandidateNumber, EngineEvent, EventSender, SessionNumber},
    requests::{Outcome, Request},
    session::Session,
    session_opening::{self, OpenError},
    watches::Watches,
};
use crate::{
    ElectionName, LossReason,
    engine::{
        elector_context::ElectorContext,
        rules::candidate_state::{Event, State},
        runtime::callbacks::catch_panic,
    },
    retry_delays::RetryDelays,
    spi::{BackendError, BackendErrorKind, EntryEvent, EntryRequest},
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

enum Command {
    Campaign(CandidateNumber, EntryRequest, Box<Campaign>),
    /// The caller of this campaign has given up.
    GivenUp(CandidateNumber),
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
    pub(crate) fn start(&self, request: EntryRequest, campaign: Campaign) -> GiveUpOnDrop {
        let candidate = self.last_candidate.fetch_add(1, Ordering::Relaxed) + 1;
        // Without the task, this drops the sender of the result.
        let _ = self.commands.send(Command::Campaign(candidate, request, Box::new(campaign)));
        GiveUpOnDrop { candidate, commands: Some(self.commands.clone()) }
    }
}

/// Gives a campaign up when it is dropped, unless the campaign was answered.
pub(crate) struct GiveUpOnDrop {
    candidate: CandidateNumber,
    /// `None` once it was answered.
    commands: Option<mpsc::UnboundedSender<Command>>,
}

impl GiveUpOnDrop {
    /// The caller has the result.
    pub(crate) fn answered(mut self) {
        self.commands = None;
    }
}

impl Drop for Campaigns {
    fn drop(&mut self) {
        // In a forked child no thread runs the task, and a lock may be held by one that does not exist there: the channel is
        // not closed.
        if ForkMark::of_this_process().is_forked() {
            std::mem::forget(self.commands.clone());
        }
    }
}

impl Drop for GiveUpOnDrop {
    fn drop(&mut self) {
        if ForkMark::of_this_process().is_forked() {
            std::mem::forget(self.commands.take());
        }
        if let Some(commands) = &self.commands {
            let _ = commands.send(Command::GivenUp(self.candidate));
        }
    }
}

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
    pub(super) candidates: BTreeMap<CandidateNumber, Candidate>,
    /// The candidates in each election. Only the first one enters.
    queues: HashMap<ElectionName, VecDeque<CandidateNumber>>,
    /// The candidates that have become the first of their elections, and are about to be admitted.
    admitted: VecDeque<CandidateNumber>,
    /// The sessions that are not closed yet. The latest one is for new candidates, unless it has ended.
    pub(super) sessions: BTreeMap<SessionNumber, (Arc<Session>, Watches)>,
    last_session: SessionNumber,
    /// The request that opens a session.
    pub(super) opening: Option<BoxFuture<'static, thread::Result<Opening>>>,
    opening_retry: RetryDelays,
}

/// What a request that opens a session has come to.
pub(super) enum Opening {
    /// The pause before it is over.
    PauseOver,
    Done(Result<Arc<Session>, OpenError>),
    /// The elector is closed or dropped.
    Closing,
}

type WatchEvent = thread::Result<Result<(CandidateNumber, EntryEvent), BackendError>>;

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
            queues: HashMap::new(),
            admitted: VecDeque::new(),
            sessions: BTreeMap::new(),
            last_session: 0,
            opening: None,
        }
    }

    /// Runs until the elector is closed or dropped, and nothing of it is left in the store.
    async fn run(mut self) {
        while !(self.closing || self.elector_dropped)
            || !self.candidates.is_empty()
            || !self.sessions.is_empty()
            || self.opening.is_some()
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
                Some(outcome) = OptionFuture::from(self.opening.as_mut()) => {
                    self.contain_panics(|task| task.handle_opening(outcome));
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
        }
    }

    /// Ends all sessions if `handle` panics, in a log subscriber: it may have lost an event.
    fn contain_panics(&mut self, handle: impl FnOnce(&mut Self)) {
        if catch_panic(|| handle(self)).is_none() {
            let sessions: Vec<_> = self.sessions.keys().copied().collect();
            sessions.into_iter().for_each(|session| self.fail_session(session, LossReason::SessionGivenUp));
            if self.opening.is_none() {
                self.apply_to_all(Event::Panicked, |candidate| candidate.state == State::Opening);
            }
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
                self.candidates.insert(number, Candidate::new(number, request, campaign));
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
            EngineEvent::EntryMissing(number) => {
                let entry = self.candidates.get(&number).and_then(|candidate| candidate.entry.as_ref());
                // It may have another entry by now.
                if entry.is_some_and(|entry| entry.is_missing()) {
                    self.apply(number, Event::EntryGone);
                }
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
        let Outcome { mut event, entry, token, error, uncertain } = outcome;
        candidate.in_flight = None;
        candidate.uncertain |= uncertain;
        if let Some(campaign) = &mut candidate.campaign {
            if entry.is_some() {
                campaign.retry.reset();
            }
            campaign.error = campaign.error.take().or(error.map(Into::into));
        }
        if let Some(Membership { session, .. }) = &candidate.membership {
            if let Some(entry) = entry {
                let registered = session.register(number, entry);
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
            if let Some(token) = token {
                candidate.token = Some(token);
                // A session without a recent heartbeat may have won in vain.
                let requested = candidate.campaign.as_ref().and_then(|campaign| campaign.grace_period);
                let grace_period = session.window.grace_period().max(requested.unwrap_or_default());
                if session.enforce_window(grace_period).is_err() {
                    // With a longer grace period than the session's, the session may go on: a heartbeat is awaited.
                    event = if session.ended().is_some() { Event::SessionEnded } else { Event::Failed };
                }
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

    /// Sends the request that opens a session.
    pub(super) fn request_session(&mut self) {
        self.last_session += 1;
        let events = self.event_sender.clone();
        let opening = session_opening::open(Arc::clone(&self.shared), self.last_session, events);
        let opening = opening.map(|outcome| outcome.map_or(Opening::Closing, Opening::Done));
        self.opening = Some(AssertUnwindSafe(opening).catch_unwind().boxed());
    }

    /// Pauses before another request is sent.
    fn pause_opening(&mut self) {
        let (shared, pause) = (Arc::clone(&self.shared), self.opening_retry.next_delay());
        let pausing = async move {
            tokio::select! {
                biased;
                () = shared.closing.cancelled() => Opening::Closing,
                () = shared.elector_dropped.cancelled() => Opening::Closing,
                () = sleep(pause) => Opening::PauseOver,
            }
        };
        self.opening = Some(AssertUnwindSafe(pausing).catch_unwind().boxed());
    }

    fn handle_opening(&mut self, outcome: thread::Result<Opening>) {
        self.opening = None;
        let awaits = |candidate: &Candidate| candidate.state == State::Opening;
        match outcome {
            Ok(Opening::PauseOver) => {
                if self.candidates.values().any(awaits) {
                    return self.request_session();
                }
                debug!("no campaign waits for a session any more");
            }
            Ok(Opening::Done(Ok(session))) => {
                let watches = Watches::new(&session);
                self.sessions.insert(session.number, (session, watches));
                // They join it.
                self.apply_to_all(Event::SessionOpened, awaits);
            }
            Ok(Opening::Done(Err(OpenError::Backend(error)))) if !error.is_permanent() => {
                warn!(%error, "no session yet; trying again");
                return self.pause_opening();
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
        self.opening_retry.reset();
    }
}

impl Drop for ElectorTask {
    fn drop(&mut self) {
        // Without this task, no watch ends a leadership.
        for (session, watches) in std::mem::take(&mut self.sessions).into_values() {
            catch_panic(|| session.end(LossReason::SessionGivenUp));
            catch_panic(|| drop(watches));
        }
        let opening = self.opening.take();
        catch_panic(|| drop(opening));
    }
}

/// The next event of a watched entry, of any session. Never returns while no entry is watched.
async fn next_watch_event(
    sessions: &mut BTreeMap<SessionNumber, (Arc<Session>, Watches)>,
) -> (SessionNumber, WatchEvent) {
    let running = sessions.iter_mut().filter(|(_, (_, watches))| watches.is_running());
    let next: Vec<_> = running
        .map(|(number, (_, watches))| {
            AssertUnwindSafe(watches.next()).catch_unwind().map(|event| (*number, event)).boxed()
        })
        .collect();
    if next.is_empty() { std::future::pending().await } else { select_all(next).await.0 }
}
