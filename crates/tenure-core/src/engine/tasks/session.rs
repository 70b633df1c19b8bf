//! A session: its window and its end. It serves all elections of an elector, or one candidacy.

use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::{Arc, PoisonError, Weak},
    time::Duration,
};

use once_cell::race::OnceBox;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Level, error, info, warn};

use super::{
    entry_value::EntryValue,
    events::{CandidateNumber, EngineEvent, EventSender, SessionNumber},
};
use crate::{
    BootInstant, LossReason,
    engine::{
        elector_context::ElectorContext,
        enforcement::watchdog::Watched,
        rules::{
            end::{DROP_MARGIN, End, drop_margin},
            expiry::SessionExpiry,
            heartbeat::{self, HeartbeatPurpose},
            pending_withdrawals::PendingWithdrawals,
            window::Window,
        },
        runtime::callbacks::{Callbacks, is_engine_thread},
    },
    failpoints::{SafetyRule, is_disabled},
    spi::{BackendSession, Entry, HeartbeatProof, QueuePosition, Stamp},
    sync::{
        Flag, Mutex, MutexGuard, SetOnce,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// Something whose deadlines depend on a session: a term.
pub(crate) trait Dependent: Send + Sync {
    /// Cancels the work, because the session has ended; with `drop_now` also requests its drop.
    fn session_ended(self: Arc<Self>, drop_now: bool);

    /// Enforces the deadlines that have passed; see [`Watched::enforce`].
    fn enforce_deadlines(self: Arc<Self>) -> Option<BootInstant>;
}

/// A session with the store. When it ends, its terms end, its candidates enter again under another one, and an ended
/// session never becomes valid again.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) number: SessionNumber,
    /// The candidate whose session this is, if a session serves one election.
    pub(crate) owner: Option<CandidateNumber>,
    pub(crate) backend_session: DeferredDropSession,
    pub(crate) shared: Arc<ElectorContext>,
    pub(crate) window: Window,
    /// Until when the store may keep the session.
    pub(crate) expiry: Arc<SessionExpiry>,
    ended: SetOnce<End>,
    /// Cancelled when the session ends. Only the engine's tasks wait for it.
    pub(crate) ended_token: CancellationToken,
    /// Set when the session's task no longer tries to close the session in the store.
    pub(crate) closed: Flag,
    /// Whether the session was closed in the store by then, or has expired in any case.
    close_confirmed: AtomicBool,
    /// Counts the entries, from entering through leading to leaving.
    pub(crate) entry_tracker: TaskTracker,
    /// To the elector's task.
    pub(crate) events: EventSender,
    /// Whether a candidate has won and waits for a proven heartbeat.
    proof_wanted: AtomicBool,
    /// Wakes the session's task, to send a heartbeat at once.
    pub(crate) heartbeat_wanted: Notify,
    /// See [`heartbeats_stopped_at`](Self::heartbeats_stopped_at).
    heartbeats_stopped: Mutex<Option<BootInstant>>,
    /// The number of candidates that wait, or pause before they wait again.
    waiting: AtomicUsize,
    /// The number of candidates that wait and are not next in line.
    not_next_in_line: AtomicUsize,
    /// The number of candidates that lead or have led, and whose entry is not removed yet.
    terms: AtomicUsize,
    pending_withdrawals: Mutex<PendingWithdrawals>,
    /// The terms whose deadlines the watchdog enforces: those with work, a waiter, a cancellation token, a
    /// parent or a child. In order, so that a simulated run is reproducible.
    watched_terms: Mutex<BTreeMap<CandidateNumber, Weak<dyn Dependent>>>,
}

/// An entry that exists in the store. A candidate has one at a time.
#[derive(Debug)]
pub(crate) struct RegisteredEntry {
    pub(crate) candidate: CandidateNumber,
    pub(crate) entry: Entry,
    /// Created when a value is set: few entries need it.
    value: OnceBox<EntryValue>,
}

impl RegisteredEntry {
    pub(crate) fn new(candidate: CandidateNumber, entry: Entry) -> Arc<Self> {
        Arc::new(Self { candidate, entry, value: OnceBox::new() })
    }

    /// The values that were set for this entry.
    pub(crate) fn value(&self) -> &EntryValue {
        self.value.get_or_init(|| Box::new(EntryValue::new()))
    }
}

/// A backend's session. On an engine thread its `Drop` is deferred to a callback thread.
#[derive(Debug)]
pub(crate) struct DeferredDropSession {
    session: Option<Box<dyn BackendSession>>,
    callbacks: Callbacks,
}

impl Deref for DeferredDropSession {
    type Target = dyn BackendSession;
    fn deref(&self) -> &Self::Target {
        match &self.session {
            Some(session) => &**session,
            None => unreachable!("the session is taken only on drop"),
        }
    }
}

impl Drop for DeferredDropSession {
    fn drop(&mut self) {
        let session = self.session.take();
        if is_engine_thread() {
            self.callbacks.defer(move || drop(session));
        }
    }
}

impl Session {
    pub(crate) fn new(
        backend_session: Box<dyn BackendSession>,
        shared: Arc<ElectorContext>,
        window: Window,
        number: SessionNumber,
        owner: Option<CandidateNumber>,
        events: EventSender,
    ) -> Arc<Self> {
        let expiry = SessionExpiry::new(&*backend_session, Arc::clone(&shared.clock), shared.config.drift);
        shared.sessions.add(&expiry);
        Arc::new(Self {
            number,
            owner,
            expiry,
            backend_session: DeferredDropSession {
                session: Some(backend_session),
                callbacks: shared.callbacks.clone(),
            },
            shared,
            window,
            ended: SetOnce::new(),
            ended_token: CancellationToken::new(),
            closed: Flag::new(),
            close_confirmed: AtomicBool::new(false),
            entry_tracker: TaskTracker::new(),
            events,
            proof_wanted: AtomicBool::new(false),
            heartbeat_wanted: Notify::new(),
            heartbeats_stopped: Mutex::default(),
            waiting: AtomicUsize::new(0),
            not_next_in_line: AtomicUsize::new(0),
            terms: AtomicUsize::new(0),
            pending_withdrawals: Mutex::default(),
            watched_terms: Mutex::default(),
        })
    }

    /// Records that the session's task no longer tries to close the session; `confirmed` says whether its
    /// entries are gone.
    pub(crate) fn set_closed(&self, confirmed: bool) {
        self.close_confirmed.store(confirmed, Ordering::Release);
        self.closed.set();
        self.send(EngineEvent::SessionClosed(self.number));
    }

    /// Sends an event to the elector's task.
    pub(crate) fn send(&self, event: EngineEvent) {
        let _ = self.events.send(event);
    }

    /// Waits until the session was closed, or no task tries to close it any more. True when its entries are gone.
    pub(crate) async fn wait_closed(&self) -> bool {
        self.closed.wait().await;
        self.close_confirmed.load(Ordering::Acquire)
    }

    /// How the session ended, if it has.
    pub(crate) fn ended(&self) -> Option<End> {
        self.ended.get()
    }

    /// Whether leadership with `grace_period` may be assumed now. Ends the session when its
    /// window has closed. Compares the clock on every call.
    pub(crate) fn enforce_window(&self, grace_period: Duration) -> Result<(), LossReason> {
        if let Some(end) = self.ended() {
            return Err(end.reason);
        }
        if is_disabled(SafetyRule::CheckClock) {
            return Ok(());
        }
        let clock = &*self.shared.clock;
        let own = self.window.grace_period();
        let reason = match self.window.check_open(clock, grace_period.max(own)) {
            Some(Ok(())) => return Ok(()),
            Some(Err(reason)) => reason,
            None => return Err(LossReason::Deadline),
        };
        // Check once when the session's period is not shorter: a second check could pass after the caller was told that it failed.
        // A heartbeat may be confirmed in between, or the time of day be set back.
        let closed = if grace_period <= own {
            Err(reason)
        } else {
            self.window.check_open(clock, own).unwrap_or(Ok(()))
        };
        if let Err(reason) = closed
            && !is_disabled(SafetyRule::NeverReopenWindow)
        {
            self.end(reason);
        }
        Err(reason)
    }

    /// Ends the session and cancels the work of its terms. The first reason stays.
    pub(crate) fn end(&self, reason: LossReason) {
        if !self.ended.set(self.end_for(reason)) {
            return;
        }
        self.ended_token.cancel();
        self.send(EngineEvent::SessionEnded(self.number));
        for term in self.watched_terms() {
            term.session_ended(self.window.must_stop_at_once(reason));
        }
        self.shared.watchdog.wake();
        let session = self.backend_session.id();
        match reason {
            LossReason::Closed => {
                self.shared.reporter.log(Level::INFO, move || info!(session, %reason, "session ends"));
            }
            _ => self.shared.reporter.log(Level::WARN, move || warn!(session, %reason, "session ends")),
        }
    }

    /// The [`End`] of a term, or of this session, that ends now for `reason`. Ends nothing itself.
    pub(crate) fn end_for(&self, reason: LossReason) -> End {
        End::at(self.shared.clock.now(), reason, &self.window)
    }

    /// The time between dropping work and its stop-by time.
    pub(crate) fn drop_margin(&self) -> Duration {
        drop_margin(self.window.grace_period())
    }

    /// The largest grace period that work can request.
    pub(crate) fn largest_grace_period(&self) -> Duration {
        let drift = self.shared.config.drift;
        heartbeat::largest_grace_period(
            self.backend_session.proof(),
            self.backend_session.granted_ttl(),
            drift,
            self.window.grace_period(),
        )
    }

    /// Whether heartbeats have to be sent.
    pub(crate) fn needs_heartbeats(&self) -> bool {
        self.backend_session.proof() != HeartbeatProof::Process
    }

    /// Asks for a proven heartbeat, at once if the window is not open.
    /// [`WindowExtended`](EngineEvent::WindowExtended) follows it.
    pub(crate) fn request_proof(&self) {
        self.proof_wanted.store(true, Ordering::Release);
        if !self.window.is_open() {
            self.heartbeat_wanted.notify_one();
        }
    }

    /// Called after a proven heartbeat. Sends an event if a candidate waits for one.
    pub(crate) fn window_extended(&self) {
        if self.proof_wanted.swap(false, Ordering::AcqRel) {
            self.send(EngineEvent::WindowExtended(self.number));
        }
    }

    /// Extends or opens the window for a proven heartbeat or a win: see [`Window::extend`].
    pub(crate) fn extend_window(&self, sent: Stamp, ttl: Duration) -> Result<(), LossReason> {
        let was_open = self.window.is_open();
        self.window.extend(&*self.shared.clock, sent, ttl)?;
        // Without a deadline the watchdog sleeps.
        if !was_open && !is_disabled(SafetyRule::WakeOnOpening) {
            self.shared.watchdog.wake();
        }
        Ok(())
    }

    /// Stops the heartbeats of a session that serves one election, because its entry is about to be removed.
    pub(crate) fn stop_heartbeats(&self) {
        if self.owner.is_some() && !is_disabled(SafetyRule::StopHeartbeatsBeforeLeaving) {
            *self.stopped_at() = Some(self.shared.clock.now());
            self.heartbeat_wanted.notify_one();
        }
    }

    /// Since when the entry of a session that serves one election is being removed.
    pub(crate) fn heartbeats_stopped_at(&self) -> Option<BootInstant> {
        *self.stopped_at()
    }

    fn stopped_at(&self) -> MutexGuard<'_, Option<BootInstant>> {
        self.heartbeats_stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the window of a session that serves one election, once its candidate has won. `sent` is when the write that won was
    /// first sent. Ends the session without it, or if the window would already have closed.
    pub(crate) fn open_window(&self, sent: Option<Stamp>) {
        let clock = &*self.shared.clock;
        let sent =
            if is_disabled(SafetyRule::WindowFromWinningRequest) { Some(Stamp::now(clock)) } else { sent };
        let opened = sent.map(|sent| self.extend_window(sent, self.backend_session.granted_ttl()));
        match opened {
            Some(Ok(())) if self.window.is_open() => {
                *self.stopped_at() = None;
                self.heartbeat_wanted.notify_one();
            }
            // Too late: the store may have given the election to another candidate.
            Some(_) => self.end(LossReason::Deadline),
            None => {
                let session = self.backend_session.id();
                error!(
                    session,
                    "the backend does not say when it sent the request that won; its session ends"
                );
                self.end(LossReason::SessionGivenUp);
            }
        }
    }

    /// What the next heartbeat is sent for. Changes on the engine's thread only, except that a candidate may become next in line or
    /// no longer be it.
    pub(crate) fn heartbeat_purpose(&self) -> HeartbeatPurpose {
        let entries = self.entry_tracker.len();
        if self.waiting.load(Ordering::Acquire) < entries {
            return HeartbeatPurpose::Lead;
        }
        match self.not_next_in_line.load(Ordering::Acquire) {
            behind if behind > 0 && behind >= entries => HeartbeatPurpose::KeepAlive,
            _ => HeartbeatPurpose::StandBy,
        }
    }

    /// The position of a candidate that begins to wait.
    pub(crate) fn queue_position(self: &Arc<Self>) -> QueuePosition {
        let session = Arc::downgrade(self);
        QueuePosition::new(move |is_next| {
            let Some(session) = session.upgrade() else { return };
            if !is_next {
                session.not_next_in_line.fetch_add(1, Ordering::AcqRel);
                return;
            }
            session.not_next_in_line.fetch_sub(1, Ordering::AcqRel);
            session.open_window_soon();
        })
    }

    /// Wakes the session's task if the window is not open, because a candidate enters or is next in line.
    pub(crate) fn open_window_soon(&self) {
        if !self.window.is_open() && self.owner.is_none() {
            self.heartbeat_wanted.notify_one();
        }
    }

    /// Records that a candidate begins or ends to wait. Called on the engine's thread only.
    pub(crate) fn set_waiting(&self, waits: bool) {
        if waits {
            self.waiting.fetch_add(1, Ordering::AcqRel);
        } else {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Called when a leadership begins: the next heartbeat may be due sooner.
    pub(crate) fn leadership_begins(&self) {
        self.terms.fetch_add(1, Ordering::AcqRel);
        self.heartbeat_wanted.notify_one();
    }

    /// Called when nothing is left of a leadership.
    pub(crate) fn leadership_is_over(&self) {
        self.terms.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether a candidate leads, or the entry of one that has led is not removed yet.
    pub(crate) fn has_terms(&self) -> bool {
        self.terms.load(Ordering::Acquire) > 0
    }

    pub(crate) fn pending_withdrawals(&self) -> MutexGuard<'_, PendingWithdrawals> {
        self.pending_withdrawals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a term to those whose deadlines the watchdog enforces. Does not wake the watchdog.
    pub(crate) fn watch_term(&self, candidate: CandidateNumber, term: Weak<dyn Dependent>) {
        self.watched_terms.lock().unwrap_or_else(PoisonError::into_inner).insert(candidate, term);
    }

    fn watched_terms(&self) -> Vec<Arc<dyn Dependent>> {
        let mut terms = self.watched_terms.lock().unwrap_or_else(PoisonError::into_inner);
        let mut alive = Vec::with_capacity(terms.len());
        terms.retain(|_, weak| weak.upgrade().map(|term| alive.push(term)).is_some());
        alive
    }

    /// The session's own part of [`Watched::enforce`].
    fn enforce_own_deadline(&self) -> Option<BootInstant> {
        if self.ended().is_none() {
            if is_disabled(SafetyRule::CheckClock) || is_disabled(SafetyRule::NeverReopenWindow) {
                return Some(self.shared.clock.now() + DROP_MARGIN);
            }
            if !self.window.is_open() {
                return None;
            }
            if self.enforce_window(self.window.grace_period()).is_ok() {
                return Some(self.window.deadline() - self.window.grace_period());
            }
            return Some(self.shared.clock.now());
        }
        // The remaining deadlines are those of the terms.
        None
    }
}

impl Watched for Session {
    fn enforce(&self) -> Option<BootInstant> {
        let own = self.enforce_own_deadline();
        self.watched_terms().into_iter().filter_map(Dependent::enforce_deadlines).chain(own).min()
    }
}
