//! One term: the state of a leadership that its guard, its handles, the engine's tasks and the watchdog share.

use std::{
    any::Any,
    sync::{Arc, OnceLock, PoisonError, Weak},
    time::Duration,
};

use futures::FutureExt as _;
use once_cell::race::OnceBox;
use tokio_util::sync::CancellationToken;
use tracing::{Level, info, warn};

use super::{
    candidate_entry::CandidateEntry,
    events::EngineEvent,
    in_flight_work::InFlightWork,
    session::{Dependent, RegisteredEntry, Session},
};
use crate::{
    BootInstant, CandidateId, ElectionName, FencingToken, LossReason, Lost,
    engine::{enforcement::abort_timer::AbortSlot, rules::end::End},
    failpoints::{SafetyRule, is_disabled},
    spi::{Entry, EntryRequest},
    sync::{
        Flag, Mutex, SetOnce,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    },
    telemetry,
};

#[derive(Debug)]
// The fields that every check reads come first and lie together: with ten thousand terms none of them is in the
// processor's cache.
#[repr(C)]
pub(crate) struct Term {
    pub(crate) session: Arc<Session>,
    ended: SetOnce<End>,
    /// The largest grace period that work in flight has requested, in nanoseconds.
    requested_grace_period: AtomicU64,
    /// The state that few terms have.
    pub(super) cold_state: OnceBox<ColdState>,
    /// The request that created the entry.
    request: Arc<EntryRequest>,
    pub(crate) token: FencingToken,
    entry: Arc<RegisteredEntry>,
    /// Whether the end of the term has been reported to logs and metrics.
    end_reported: AtomicBool,
    /// Closed when the guard is dropped.
    pub(crate) work: InFlightWork,
    /// Set when no task handles the entry any more: it is gone, its session has ended, or the engine was shut down.
    withdrawn: Flag,
    /// Whether the entry was gone by then.
    withdrawal_confirmed: AtomicBool,
}

/// The state of a term that has work, a waiter, a cancellation token, a parent or a child.
#[derive(Debug)]
pub(super) struct ColdState {
    /// Cancelled when work has to stop. Users have its children, whose wakers are called when it is cancelled.
    cancellation_token: CancellationToken,
    /// Set when the term has ended.
    ended: Flag,
    /// Set when work has to be dropped.
    pub(super) drop_now: Flag,
    /// The leadership on which this one depends.
    pub(super) parent: OnceLock<Arc<Term>>,
    /// The guard of the parent, which is dropped once the entry of this term is gone.
    parent_guard: Mutex<Option<Box<dyn Any + Send>>>,
    /// The leadership that depends on this one.
    pub(super) child: OnceLock<Weak<Term>>,
    /// When the watchdog set `drop_now`.
    pub(super) drop_requested_at: SetOnce<BootInstant>,
    /// When a poll found `drop_now` set and began to drop its work; zero before that.
    pub(super) drop_begun_at: AtomicU64,
    pub(super) overrun_reported: AtomicBool,
    /// The number of works that are being polled or dropped.
    pub(super) active_polls: ActivePolls,
}

/// Counts the works that are being polled.
#[derive(Debug)]
pub(super) enum ActivePolls {
    Counter(AtomicUsize),
    /// A counter that the abort timer reads.
    AbortSlot(AbortSlot),
}

impl ActivePolls {
    pub(super) fn count(&self) -> &AtomicUsize {
        match self {
            Self::Counter(count) => count,
            Self::AbortSlot(slot) => slot.active_polls(),
        }
    }
}

impl Term {
    pub(crate) fn new(
        session: &Arc<Session>,
        request: Arc<EntryRequest>,
        token: FencingToken,
        entry: Arc<RegisteredEntry>,
    ) -> Arc<Self> {
        let term = Arc::new(Self {
            request,
            token,
            entry,
            ended: SetOnce::new(),
            requested_grace_period: AtomicU64::new(0),
            cold_state: OnceBox::new(),
            end_reported: AtomicBool::new(false),
            work: InFlightWork::new(),
            withdrawn: Flag::new(),
            withdrawal_confirmed: AtomicBool::new(false),
            session: Arc::clone(session),
        });
        let (election, candidate) = (term.election().clone(), term.candidate_id().clone());
        session.shared.reporter.log(Level::INFO, move || {
            info!(%election, %candidate, token = token.get(), "leads");
        });
        term
    }

    pub(crate) fn election(&self) -> &ElectionName {
        &self.request.election
    }

    pub(crate) fn candidate_id(&self) -> &CandidateId {
        &self.request.candidate
    }

    pub(crate) fn registered_entry(&self) -> &Arc<RegisteredEntry> {
        &self.entry
    }

    /// The entry, for those who change its value.
    pub(crate) fn candidate_entry(&self) -> CandidateEntry {
        CandidateEntry {
            session: Arc::clone(&self.session),
            request: Arc::clone(&self.request),
            registered: Arc::clone(&self.entry),
        }
    }

    /// The entry that leads.
    pub(crate) fn entry(&self) -> &Entry {
        &self.entry.entry
    }

    /// A token that is cancelled when work has to stop.
    pub(crate) fn cancellation_token(self: &Arc<Self>) -> CancellationToken {
        if self.is_forked() {
            let cancelled = CancellationToken::new();
            cancelled.cancel();
            return cancelled;
        }
        let token = &self.cold().cancellation_token;
        if self.ended().is_some() {
            // The shared token may be cancelled only a moment later, by another thread.
            let cancelled = CancellationToken::new();
            cancelled.cancel();
            return cancelled;
        }
        token.child_token()
    }

    /// Waits until the term has ended.
    pub(crate) async fn wait_ended(self: &Arc<Self>) {
        if self.is_forked() {
            return;
        }
        self.cold().ended.wait().await;
    }

    pub(super) fn cold(self: &Arc<Self>) -> &ColdState {
        if let Some(cold) = self.cold_state.get() {
            return cold;
        }
        let cold = self.cold_state.get_or_init(|| {
            Box::new(ColdState {
                cancellation_token: CancellationToken::new(),
                ended: Flag::new(),
                drop_now: Flag::new(),
                parent: OnceLock::new(),
                parent_guard: Mutex::new(None),
                child: OnceLock::new(),
                drop_requested_at: SetOnce::new(),
                drop_begun_at: AtomicU64::new(0),
                overrun_reported: AtomicBool::new(false),
                active_polls: match &self.session.shared.abort_timer {
                    Some(abort_timer) => ActivePolls::AbortSlot(abort_timer.slot()),
                    None => ActivePolls::Counter(AtomicUsize::new(0)),
                },
            })
        });
        self.watch();
        // A thread that ends the term or its session either finds this state, or its end is seen here.
        fence(Ordering::SeqCst);
        if let Some(end) = self.ended() {
            self.cancel_work(self.session.window.must_stop_at_once(end.reason));
        }
        cold
    }

    /// Has the watchdog enforce the deadlines of this term. Does not wake the watchdog.
    pub(super) fn watch(self: &Arc<Self>) {
        let this: Weak<dyn Dependent> = Arc::downgrade(self) as Weak<dyn Dependent>;
        self.session.watch_term(self.entry.candidate, this);
    }

    /// Cancels the work, and with `drop_now` also requests its drop.
    pub(crate) fn cancel_work(self: &Arc<Self>, drop_now: bool) {
        fence(Ordering::SeqCst);
        let Some(cold) = self.cold_state.get() else { return };
        if drop_now {
            cold.drop_now.set();
        }
        cold.ended.set();
        let term = Arc::clone(self);
        // Cancelling the token calls the application's wakers.
        self.session.shared.callbacks.defer(move || {
            if let Some(cold) = term.cold_state.get() {
                cold.cancellation_token.cancel();
            }
        });
    }

    /// How the term ended, if it has: by its own end or its session's, whichever was seen first.
    fn ended(&self) -> Option<End> {
        self.ended.get().or_else(|| {
            let end = self.session.ended()?;
            if is_disabled(SafetyRule::SingleLossReason) {
                return Some(end);
            }
            // Stored, because another thread may be about to end the term for another reason.
            Some(self.ended.get_or_set(end))
        })
    }

    /// Why the term ended, if it has.
    pub(crate) fn reason(&self) -> Option<LossReason> {
        if self.is_forked() {
            return Some(LossReason::Forked);
        }
        self.ended().map(|end| end.reason)
    }

    /// Whether this is a forked child of the process that leads. Nothing that the threads of the leader own is touched then:
    /// a lock may be held by a thread that does not exist here.
    pub(crate) fn is_forked(&self) -> bool {
        self.session.shared.fork_mark.is_forked()
    }

    /// Whether leadership may be assumed now. Ends the term when it may not. Compares the clock on every call.
    pub(crate) fn enforce(self: &Arc<Self>) -> Result<(), Lost> {
        if self.is_forked() {
            return Err(Lost::new(LossReason::Forked));
        }
        if let Some(end) = self.ended.get() {
            return Err(Lost::new(end.reason));
        }
        let window = self.session.enforce_window(self.requested_grace_period());
        window.and_then(|()| self.check_parent()).map_err(|reason| {
            self.end(reason);
            Lost::new(self.reason().unwrap_or(reason))
        })
    }

    /// Ends the term, but not its session. Cancels the work; the entry is removed once it has stopped. The
    /// first reason stays.
    pub(crate) fn end(self: &Arc<Self>, reason: LossReason) {
        self.end_inner(reason, false);
    }

    /// Ends the term because its guard was dropped. No work begins any more.
    pub(crate) fn guard_dropped(self: &Arc<Self>, reason: LossReason) {
        self.end_inner(reason, true);
    }

    /// The one way in which a term ends by itself, on any thread.
    fn end_inner(self: &Arc<Self>, reason: LossReason, guard_dropped: bool) {
        if self.is_forked() {
            return;
        }
        let ends = self.ended().is_none() && self.ended.set(self.session.end_for(reason));
        if guard_dropped {
            // After the end, so that work that begins now sees it; before the event, which need not wait then.
            self.work.close();
        }
        if ends {
            self.session.send(EngineEvent::TermEnded(self.entry.candidate));
            self.cancel_work(self.session.window.must_stop_at_once(reason));
            if !self.work.is_empty() {
                self.session.shared.watchdog.wake();
            }
        }
        // Also when the term ended with its session, whose end does not report its terms.
        self.end_child();
        self.report_end();
    }

    /// Records that no task handles the entry any more; `confirmed` says whether it is gone.
    pub(crate) fn set_withdrawn(&self, confirmed: bool) {
        self.withdrawal_confirmed.store(confirmed, Ordering::Release);
        self.withdrawn.set();
        self.drop_parent_guard();
    }

    /// Whether the store has confirmed that the entry of this term, without those of its parents, is gone.
    pub(crate) fn is_withdrawal_confirmed(&self) -> bool {
        (self.withdrawn.is_set() && self.withdrawal_confirmed.load(Ordering::Acquire))
            || self.session.expiry.is_closed()
    }

    /// The result of [`wait_withdrawn`](Self::wait_withdrawn), if it is ready.
    pub(crate) fn withdrawal(self: &Arc<Self>) -> Option<bool> {
        Arc::clone(self).wait_withdrawn().now_or_never()
    }

    /// Waits until no task handles the entry any more, nor those of its parents. True when all of them are gone.
    pub(crate) async fn wait_withdrawn(self: Arc<Self>) -> bool {
        let mut confirmed = true;
        let mut next = Some(&self);
        while let Some(term) = next {
            tokio::select! {
                () = term.withdrawn.wait() => {}
                () = term.session.closed.wait() => {}
            }
            // The entry is gone with its session, if not before.
            confirmed &= term.is_withdrawal_confirmed()
                || (term.session.ended().is_some() && term.session.wait_closed().await);
            next = term.parent();
        }
        confirmed
    }

    /// Keeps `guard`, the guard of the parent, until no task handles the entry of this term any more.
    pub(super) fn keep_parent_guard(self: &Arc<Self>, guard: Box<dyn Any + Send>) {
        *self.cold().parent_guard.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
        if self.withdrawn.is_set() {
            self.drop_parent_guard();
        }
    }

    fn drop_parent_guard(&self) {
        let Some(cold) = self.cold_state.get() else { return };
        let guard = cold.parent_guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(guard);
    }

    /// Reports to logs and metrics, once, that the term has ended, if it has.
    pub(crate) fn report_end(&self) {
        let Some(reason) = self.reason() else { return };
        if self.end_reported.swap(true, Ordering::AcqRel) {
            return;
        }
        let reporter = &self.session.shared.reporter;
        reporter.measured(|| telemetry::leadership_lost(self.election(), reason));
        let (election, candidate) = (self.election().clone(), self.candidate_id().clone());
        let (token, cause) = (self.token.get(), reason.as_str());
        match reason {
            LossReason::Resigned | LossReason::Dropped | LossReason::Closed => {
                reporter.log(Level::INFO, move || {
                    info!(%election, %candidate, token, cause, %reason, "leads no more");
                });
            }
            _ => reporter.log(Level::WARN, move || {
                warn!(%election, %candidate, token, cause, %reason, "leads no more");
            }),
        }
    }

    /// Requests that cancelled work is dropped at its next poll.
    pub(crate) fn request_drop(self: &Arc<Self>) {
        self.cold().drop_now.set();
    }

    /// The stop-by time: the instant by which work has to have stopped; [`BootInstant::NEVER`] while the term is valid.
    pub(crate) fn stop_by(&self) -> BootInstant {
        let own = self.ended().map_or(BootInstant::NEVER, |end| end.stop_by);
        self.parent().map_or(own, |parent| own.min(parent.child_stop_by()))
    }

    /// The largest grace period that work in flight has requested.
    pub(super) fn requested_grace_period(&self) -> Duration {
        Duration::from_nanos(self.requested_grace_period.load(Ordering::Acquire))
    }

    /// Requests a grace period of at least `grace_period`.
    pub(crate) fn raise_grace_period(self: &Arc<Self>, grace_period: Duration) {
        if self.is_forked() {
            return;
        }
        let nanos = u64::try_from(grace_period.as_nanos()).unwrap_or(u64::MAX);
        if self.requested_grace_period.fetch_max(nanos, Ordering::AcqRel) < nanos {
            self.watch();
            self.session.shared.watchdog.wake();
        }
    }
}

impl Dependent for Term {
    fn session_ended(self: Arc<Self>, drop_now: bool) {
        self.cancel_work(drop_now);
        // The child may belong to another session.
        self.end_child();
    }

    fn enforce_deadlines(self: Arc<Self>) -> Option<BootInstant> {
        self.enforce_all_deadlines()
    }
}
