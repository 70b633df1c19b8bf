//! A session as all its elections share it: one window, one end.

use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::{Arc, PoisonError, Weak},
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Level, info, warn};

use super::{
    Shared,
    callbacks::{Callbacks, is_engine_thread},
    graves::Graves,
    keeper,
    leading::{Notice, Notices},
    term::Term,
    watchdog::Watched,
    window::Window,
};
use crate::{
    BootInstant, ElectionName, FencingToken, LossReason,
    failpoints::{SafetyRule, is_disabled},
    spi::{BackendSession, Entry, HeartbeatProof},
    sync::{
        Flag, Mutex, MutexGuard, SetOnce,
        atomic::{AtomicBool, Ordering},
    },
};

/// One session with the store. When it ends, everything that stood on it ends, and the
/// next campaign opens another: a session never comes back.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) spi: Spi,
    pub(crate) shared: Arc<Shared>,
    pub(crate) window: Window,
    ended: SetOnce<End>,
    /// Cancelled when the session ends. Only the engine's tasks wait for it.
    pub(crate) stop: CancellationToken,
    /// Set when nobody tries to close the session in the store any more.
    pub(crate) closed: Flag,
    /// Whether it has been closed in the store by then, or has expired in any case.
    close_confirmed: AtomicBool,
    /// Each entry, on its way to leadership, leading and leaving.
    pub(crate) entries: TaskTracker,
    /// To the task that looks after whoever leads.
    pub(crate) notices: Notices,
    live: Mutex<LiveEntries>,
    graves: Mutex<Graves>,
    /// The leaderships that somebody waits for, works under, or has a token of.
    terms: Mutex<BTreeMap<(ElectionName, FencingToken), Weak<Term>>>,
}

/// A backend's session. The thread that enforces deadlines leaves dropping it to another.
#[derive(Debug)]
pub(crate) struct Spi {
    session: Option<Box<dyn BackendSession>>,
    callbacks: Callbacks,
}

impl Deref for Spi {
    type Target = dyn BackendSession;
    fn deref(&self) -> &Self::Target {
        match &self.session {
            Some(session) => &**session,
            None => unreachable!("it is taken only when this is dropped"),
        }
    }
}

impl Drop for Spi {
    fn drop(&mut self) {
        let session = self.session.take();
        if is_engine_thread() {
            self.callbacks.defer(move || drop(session));
        }
    }
}

/// Why something ended, and the instant by which its work has to have stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) reason: LossReason,
    pub(crate) stop_by: BootInstant,
}

/// The entries that stand in the store.
#[derive(Debug, Default)]
struct LiveEntries {
    // In an order, so that a simulated run is the same every time.
    of: BTreeMap<u64, Arc<Live>>,
    /// How many there have been.
    count: u64,
}

/// An entry that stands in the store.
#[derive(Debug)]
pub(crate) struct Live {
    /// Which of its session's.
    pub(crate) number: u64,
    pub(crate) entry: Entry,
    /// Set when a confirming read did not find the entry.
    pub(crate) gone: Flag,
}

/// How long before the last instant work is dropped, so that it is gone by then.
const DROP_MARGIN: Duration = Duration::from_millis(50);

impl Session {
    pub(crate) fn new(spi: Box<dyn BackendSession>, shared: Arc<Shared>, window: Window) -> Arc<Self> {
        Arc::new(Self {
            spi: Spi { session: Some(spi), callbacks: shared.callbacks.clone() },
            shared,
            window,
            ended: SetOnce::new(),
            stop: CancellationToken::new(),
            closed: Flag::new(),
            close_confirmed: AtomicBool::new(false),
            entries: TaskTracker::new(),
            notices: Notices::new(),
            live: Mutex::default(),
            graves: Mutex::default(),
            terms: Mutex::default(),
        })
    }

    /// Tells the task that looks after whoever leads.
    pub(crate) fn tell(&self, notice: Notice) {
        self.notices.put(notice);
    }

    /// Nobody tries to close the session in the store any more; `confirmed` says whether its entries are gone.
    pub(crate) fn set_closed(&self, confirmed: bool) {
        self.close_confirmed.store(confirmed, Ordering::Release);
        self.closed.set();
    }

    /// Waits until the session has been closed, or nobody tries to any more; whether its entries are gone.
    pub(crate) async fn wait_closed(&self) -> bool {
        self.closed.wait().await;
        self.close_confirmed.load(Ordering::Acquire)
    }

    /// Why the session has ended, if it has.
    pub(crate) fn ended(&self) -> Option<End> {
        self.ended.get()
    }

    /// Whether a leadership with `budget` to stop may be assumed now; ends the session when its
    /// window has closed. Compares the clock on every call.
    pub(crate) fn check_window(&self, budget: Duration) -> Result<(), LossReason> {
        if let Some(end) = self.ended() {
            return Err(end.reason);
        }
        if is_disabled(SafetyRule::CheckClock) {
            return Ok(());
        }
        let clock = &*self.shared.clock;
        let own = self.window.budget();
        let Err(reason) = self.window.check(clock, budget.max(own)) else { return Ok(()) };
        // Not looked at again where the budget is the session's own: a heartbeat confirmed in between, or a
        // time of day set back, would let a session live on that somebody was told has ended.
        let closed = if budget <= own { Err(reason) } else { self.window.check(clock, own) };
        if let Err(reason) = closed
            && !is_disabled(SafetyRule::NeverReopenWindow)
        {
            self.end(reason);
        }
        Err(reason)
    }

    /// Ends the session: the first reason stays. Everything that stands on it is told to stop.
    pub(crate) fn end(&self, reason: LossReason) {
        if !self.ended.set(self.end_now(reason)) {
            return;
        }
        self.stop.cancel();
        for term in self.terms() {
            term.cancel(reason.is_over_in_the_store());
        }
        self.shared.watchdog.wake();
        let session = self.spi.id();
        match reason {
            LossReason::Closed => {
                self.shared.reporter.log(Level::INFO, move || info!(session, %reason, "session ends"));
            }
            _ => self.shared.reporter.log(Level::WARN, move || warn!(session, %reason, "session ends")),
        }
    }

    /// The end of a leadership that ends now for `reason`: its work may go on until the deadline,
    /// but for an instant only when the store says that somebody else may lead already.
    pub(crate) fn end_now(&self, reason: LossReason) -> End {
        let now = self.shared.clock.now();
        let stop_by = if reason.is_over_in_the_store() {
            now + DROP_MARGIN
        } else {
            self.window.deadline().min(now + self.window.length())
        };
        End { reason, stop_by }
    }

    /// The time between dropping work and the last instant.
    pub(crate) fn drop_margin(&self) -> Duration {
        DROP_MARGIN.min(self.window.budget() / 4)
    }

    /// The largest grace period that work can ask for.
    pub(crate) fn largest_grace_period(&self) -> Duration {
        let drift = self.shared.config.drift;
        keeper::largest_grace_period(self.spi.proof(), self.spi.granted_ttl(), drift, self.window.budget())
    }

    /// Whether heartbeats have to be sent.
    pub(crate) fn needs_heartbeats(&self) -> bool {
        self.spi.proof() != HeartbeatProof::Process
    }

    /// Remembers an entry that stands in the store.
    pub(crate) fn entered(&self, entry: Entry) -> Arc<Live> {
        let mut live = self.live();
        live.count += 1;
        let entered = Arc::new(Live { number: live.count, entry, gone: Flag::new() });
        live.of.insert(entered.number, Arc::clone(&entered));
        entered
    }

    /// This entry is about to be removed.
    pub(crate) fn leaves(&self, live: &Live) {
        self.live().of.remove(&live.number);
    }

    /// A confirming read did not find this entry: whoever waits for it or looks after it is told.
    pub(crate) fn missed(&self, live: &Live) {
        live.gone.set();
        self.tell(Notice::Gone(live.number));
    }

    /// An entry that can bear probe_entry of the session.
    pub(crate) fn probe_entry(&self) -> Option<Arc<Live>> {
        self.live().of.values().find(|live| !live.gone.is_set()).cloned()
    }

    fn live(&self) -> MutexGuard<'_, LiveEntries> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn graves(&self) -> MutexGuard<'_, Graves> {
        self.graves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the watchdog look after a leadership with work under way, whenever it looks next.
    pub(crate) fn attend(&self, term: &Arc<Term>) {
        let mut terms = self.terms.lock().unwrap_or_else(PoisonError::into_inner);
        terms.insert((term.election().clone(), term.token), Arc::downgrade(term));
    }

    fn terms(&self) -> Vec<Arc<Term>> {
        let mut terms = self.terms.lock().unwrap_or_else(PoisonError::into_inner);
        let mut alive = Vec::with_capacity(terms.len());
        terms.retain(|_, weak| weak.upgrade().map(|term| alive.push(term)).is_some());
        alive
    }

    /// The session's own part of [`Watched::check`].
    fn check_end(&self) -> Option<BootInstant> {
        if self.ended().is_none() {
            if is_disabled(SafetyRule::CheckClock) || is_disabled(SafetyRule::NeverReopenWindow) {
                return Some(self.shared.clock.now() + DROP_MARGIN);
            }
            if self.check_window(self.window.budget()).is_ok() {
                return Some(self.window.deadline() - self.window.budget());
            }
            return Some(self.shared.clock.now());
        }
        // What is left to do is each leadership's own.
        None
    }
}

impl Watched for Session {
    fn check(&self) -> Option<BootInstant> {
        let own = self.check_end();
        self.terms().iter().filter_map(|term| term.check_deadlines()).chain(own).min()
    }
}
