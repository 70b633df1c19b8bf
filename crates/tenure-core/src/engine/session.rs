//! A session as all its elections share it: one window, one end.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        PoisonError,
        Weak,
        // As a `Flag`'s, and for its reason.
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{Shared, graves::Graves, keeper, leading::Notice, term::Term, watchdog::Watched, window::Window};
use crate::{
    ElectionName, FencingToken, LossReason, Moment,
    mutants::{Rule, broken},
    spi::{BackendSession, Entry, Proof},
    sync::{Latch, Mutex, MutexGuard},
};

/// One session with the store. When it ends, everything that stood on it ends, and the
/// next campaign opens another: a session never comes back.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) spi: Box<dyn BackendSession>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) window: Window,
    ended: Latch<End>,
    /// Cancelled when the session ends: work is told to stop.
    pub(crate) stop: CancellationToken,
    /// Cancelled just before the deadline: work is dropped.
    pub(crate) hard: CancellationToken,
    /// Cancelled when the session has been closed in the store, or has expired in any case.
    pub(crate) closed: CancellationToken,
    /// Each entry, on its way to leadership, leading and leaving.
    pub(crate) entries: TaskTracker,
    /// Told when an entry was not found.
    missing: Notify,
    /// To the task that looks after whoever leads.
    notices: mpsc::UnboundedSender<Notice>,
    live: Mutex<LiveEntries>,
    graves: Mutex<Graves>,
    terms: Mutex<BTreeMap<(ElectionName, FencingToken), Weak<Term>>>,
}

/// Why something ended, and the instant by which its work has to have stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) reason: LossReason,
    pub(crate) stop_by: Moment,
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
    /// Whether a confirming read did not find the entry.
    is_gone: AtomicBool,
}

impl Live {
    pub(crate) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::SeqCst)
    }
}

/// How long before the last instant work is dropped, so that it is gone by then.
const DROP_MARGIN: Duration = Duration::from_millis(50);

impl Session {
    /// A session, and what is told to the task that is to look after whoever leads under it.
    pub(crate) fn new(
        spi: Box<dyn BackendSession>,
        shared: Arc<Shared>,
        window: Window,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Notice>) {
        let (notices, told) = mpsc::unbounded_channel();
        let session = Arc::new(Self {
            spi,
            shared,
            window,
            ended: Latch::new(),
            stop: CancellationToken::new(),
            hard: CancellationToken::new(),
            closed: CancellationToken::new(),
            entries: TaskTracker::new(),
            missing: Notify::new(),
            notices,
            live: Mutex::default(),
            graves: Mutex::default(),
            terms: Mutex::default(),
        });
        (session, told)
    }

    /// Tells the task that looks after whoever leads. When it has gone, so has whatever it looked after.
    pub(crate) fn tell(&self, notice: Notice) {
        let _ = self.notices.send(notice);
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
        if broken(Rule::CompareTheClock) {
            return Ok(());
        }
        let clock = &*self.shared.clock;
        let own = self.window.budget();
        let Err(reason) = self.window.check(clock, budget.max(own)) else { return Ok(()) };
        // Not looked at again where the budget is the session's own: a heartbeat confirmed in between, or a
        // time of day set back, would let a session live on that somebody was told has ended.
        let closed = if budget <= own { Err(reason) } else { self.window.check(clock, own) };
        if let Err(reason) = closed
            && !broken(Rule::CloseForGood)
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
        if reason.is_over_in_the_store() {
            self.hard.cancel();
        }
        self.stop.cancel();
        self.shared.watchdog.wake();
        // Last: what listens to events may take its time, or panic.
        match reason {
            LossReason::Closed => info!(session = self.spi.id(), %reason, "session ends"),
            _ => warn!(session = self.spi.id(), %reason, "session ends"),
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

    /// The largest stop budget that work can ask for.
    pub(crate) fn largest_stop_budget(&self) -> Duration {
        let drift = self.shared.config.drift;
        keeper::largest_stop_budget(self.spi.proof(), self.spi.granted_ttl(), drift, self.window.budget())
    }

    /// Whether heartbeats have to be sent.
    pub(crate) fn needs_heartbeats(&self) -> bool {
        self.spi.proof() != Proof::Process
    }

    /// Remembers an entry that stands in the store.
    pub(crate) fn entered(&self, entry: Entry) -> Arc<Live> {
        let mut live = self.live();
        live.count += 1;
        let entered = Arc::new(Live { number: live.count, entry, is_gone: AtomicBool::new(false) });
        live.of.insert(entered.number, Arc::clone(&entered));
        entered
    }

    /// This entry is about to be removed.
    pub(crate) fn leaves(&self, live: &Live) {
        self.live().of.remove(&live.number);
    }

    /// A confirming read did not find this entry: whoever waits for it or looks after it is told.
    pub(crate) fn missed(&self, live: &Live) {
        live.is_gone.store(true, Ordering::SeqCst);
        self.missing.notify_waiters();
        self.tell(Notice::Gone(live.number));
    }

    /// Returns when a confirming read has not found this entry.
    pub(crate) async fn misses(&self, live: &Live) {
        loop {
            let mut missing = std::pin::pin!(self.missing.notified());
            // From here on nothing is missed.
            missing.as_mut().enable();
            if live.is_gone() {
                return;
            }
            missing.await;
        }
    }

    /// An entry that can bear witness of the session.
    pub(crate) fn witness(&self) -> Option<Arc<Live>> {
        self.live().of.values().find(|live| !live.is_gone()).cloned()
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
    fn check_end(&self) -> Option<Moment> {
        let Some(end) = self.ended() else {
            if broken(Rule::CompareTheClock) || broken(Rule::CloseForGood) {
                return Some(self.shared.clock.now() + DROP_MARGIN);
            }
            if self.check_window(self.window.budget()).is_ok() {
                return Some(self.window.deadline() - self.window.budget());
            }
            return Some(self.shared.clock.now());
        };
        if self.entries.is_empty() {
            return None;
        }
        let drop_at = end.stop_by - self.drop_margin();
        if self.shared.clock.now() < drop_at {
            return Some(drop_at);
        }
        if broken(Rule::DropWork) {
            return None;
        }
        self.hard.cancel();
        None
    }
}

impl Watched for Session {
    fn check(&self) -> Option<Moment> {
        let own = self.check_end();
        self.terms().iter().filter_map(|term| term.check_deadlines()).chain(own).min()
    }
}
