//! One leadership, as its guard, its handles, its task and the watchdog share it.

use std::{
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use futures::FutureExt as _;
use once_cell::race::OnceBox;
use tokio_util::sync::CancellationToken;
use tracing::{Level, info, warn};

use super::{
    abort::AbortSlot,
    leading::Notice,
    session::{End, Live, Session},
    works::Works,
};
use crate::{
    BootInstant, CandidateId, ElectionName, FencingToken, Leadership, LossReason, Lost,
    failpoints::{SafetyRule, is_disabled},
    spi::{Entry, EntryRequest},
    sync::{
        Flag, SetOnce,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    },
    telemetry,
};

#[derive(Debug)]
// What every check reads comes first, and lies together: with ten thousand leaderships none of it is in the processor's cache.
#[repr(C)]
pub(crate) struct Term {
    pub(crate) session: Arc<Session>,
    ended: SetOnce<End>,
    /// The largest grace period that work under way has asked for, in nanoseconds.
    budget: AtomicU64,
    /// What few leaderships have.
    rare: OnceBox<Rare>,
    /// What made the entry.
    request: Arc<EntryRequest>,
    pub(crate) token: FencingToken,
    live: Arc<Live>,
    /// Whether everybody has been told that the leadership is over.
    told: AtomicBool,
    /// Work under way; closed when the guard has gone.
    pub(crate) works: Works,
    /// Set when nobody looks after the entry any more: it is gone, its session has ended, or the engine has.
    departed: Flag,
    /// Whether the entry was gone by then.
    departure_confirmed: AtomicBool,
}

/// What a leadership has once somebody listens for its end, work is done under it, or it rests on another, or another on it.
#[derive(Debug)]
pub(super) struct Rare {
    /// Cancelled when work is to stop. Users have its children, whose wakers are called when it is cancelled.
    stop: CancellationToken,
    /// Set when the leadership is over.
    over: Flag,
    /// Set when work is to be dropped.
    pub(super) drop_now: Flag,
    /// The leadership that this one rests on, which it cannot outlive.
    base: OnceLock<Arc<Term>>,
    /// The one that rests on this.
    above: OnceLock<Weak<Term>>,
    /// When the watchdog had the work dropped.
    pub(super) dropped_at: SetOnce<BootInstant>,
    /// When a poll found that its work was to be dropped, and dropped it; zero before that.
    pub(super) discarded_at: AtomicU64,
    pub(super) overrun_reported: AtomicBool,
    /// How much work is being polled at this moment, or dropped.
    pub(super) polled: Polled,
}

/// Where work that is being polled is counted.
#[derive(Debug)]
pub(super) enum Polled {
    Here(AtomicUsize),
    /// Where the thread sees it that aborts the process.
    ForAbort(AbortSlot),
}

impl Polled {
    pub(super) fn count(&self) -> &AtomicUsize {
        match self {
            Self::Here(count) => count,
            Self::ForAbort(slot) => slot.polled(),
        }
    }
}

impl Term {
    pub(crate) fn new(
        session: &Arc<Session>,
        request: Arc<EntryRequest>,
        token: FencingToken,
        live: Arc<Live>,
    ) -> Arc<Self> {
        let term = Arc::new(Self {
            request,
            token,
            live,
            ended: SetOnce::new(),
            budget: AtomicU64::new(0),
            rare: OnceBox::new(),
            told: AtomicBool::new(false),
            works: Works::new(),
            departed: Flag::new(),
            departure_confirmed: AtomicBool::new(false),
            session: Arc::clone(session),
        });
        let (election, candidate) = (term.election().clone(), term.candidate().clone());
        session.shared.reporter.log(Level::INFO, move || {
            info!(%election, %candidate, token = token.get(), "leads");
        });
        term
    }

    pub(crate) fn election(&self) -> &ElectionName {
        &self.request.election
    }

    pub(crate) fn candidate(&self) -> &CandidateId {
        &self.request.candidate
    }

    /// What made the entry.
    pub(crate) fn request(&self) -> &Arc<EntryRequest> {
        &self.request
    }

    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Which of its session's entries this one's is.
    pub(crate) fn number(&self) -> u64 {
        self.live.number
    }

    /// The entry that leads.
    pub(crate) fn entry(&self) -> &Entry {
        &self.live.entry
    }

    /// A token that is cancelled when work is to stop.
    pub(crate) fn cancellation_token(self: &Arc<Self>) -> CancellationToken {
        let stop = &self.rare().stop;
        if self.ended().is_some() {
            // Perhaps the other is cancelled a moment later.
            let over = CancellationToken::new();
            over.cancel();
            return over;
        }
        stop.child_token()
    }

    /// Waits until the leadership is over.
    pub(crate) async fn wait_over(self: &Arc<Self>) {
        self.rare().over.wait().await;
    }

    pub(super) fn rare(self: &Arc<Self>) -> &Rare {
        if let Some(rare) = self.rare.get() {
            return rare;
        }
        let rare = self.rare.get_or_init(|| {
            Box::new(Rare {
                stop: CancellationToken::new(),
                over: Flag::new(),
                drop_now: Flag::new(),
                base: OnceLock::new(),
                above: OnceLock::new(),
                dropped_at: SetOnce::new(),
                discarded_at: AtomicU64::new(0),
                overrun_reported: AtomicBool::new(false),
                polled: match &self.session.shared.abort {
                    Some(abort) => Polled::ForAbort(abort.slot()),
                    None => Polled::Here(AtomicUsize::new(0)),
                },
            })
        });
        self.session.attend(self);
        // Whoever ends the leadership or its session either finds this, or is seen here.
        fence(Ordering::SeqCst);
        if let Some(end) = self.ended() {
            self.cancel(end.reason.is_over_in_the_store());
        }
        rare
    }

    /// Tells whoever listens that work has to stop, and with `drop_now` has it dropped.
    pub(crate) fn cancel(self: &Arc<Self>, drop_now: bool) {
        fence(Ordering::SeqCst);
        let Some(rare) = self.rare.get() else { return };
        if drop_now {
            rare.drop_now.set();
        }
        rare.over.set();
        let term = Arc::clone(self);
        // What it wakes is the user's.
        self.session.shared.callbacks.defer(move || {
            if let Some(rare) = term.rare.get() {
                rare.stop.cancel();
            }
        });
    }

    /// How the leadership ended, if it has: of its own end and its session's the one that was seen first.
    fn ended(&self) -> Option<End> {
        self.ended.get().or_else(|| {
            let end = self.session.ended()?;
            if is_disabled(SafetyRule::SingleLossReason) {
                return Some(end);
            }
            // Kept, for somebody else may be about to end the leadership for a reason of its own.
            Some(self.ended.get_or_set(end))
        })
    }

    /// Why the leadership is over, if it is.
    pub(crate) fn reason(&self) -> Option<LossReason> {
        self.ended().map(|end| end.reason)
    }

    /// Whether leadership may be assumed now. Compares the clock on every call.
    pub(crate) fn check(self: &Arc<Self>) -> Result<(), Lost> {
        if let Some(end) = self.ended.get() {
            return Err(Lost::new(end.reason));
        }
        let window = self.session.check_window(self.own_budget());
        let base = || match self.base() {
            Some(base) if !base.carries(self.tier_budget(Duration::ZERO)) => Err(LossReason::ParentLost),
            _ => Ok(()),
        };
        window.and_then(|()| base()).map_err(|reason| {
            self.lose(reason);
            Lost::new(self.reason().unwrap_or(reason))
        })
    }

    /// Whether this leadership stands, and has as much time left as one that rests on it needs to stop.
    fn carries(self: &Arc<Self>, above: Duration) -> bool {
        self.check().is_ok() && self.has_time_for(above)
    }

    /// Whether so much time is left. That there is not ends nothing: this leadership needs less.
    fn has_time_for(&self, above: Duration) -> bool {
        let budget = self.tier_budget(above);
        self.session.check_window(budget).is_ok() && self.base().is_none_or(|base| base.has_time_for(budget))
    }

    /// The time before this tier's own deadline that is kept for work to stop, when what rests on it asks for `above`: as
    /// much of that as the session allows.
    fn tier_budget(&self, above: Duration) -> Duration {
        let own = self.own_budget().max(self.session.window.budget());
        if above <= own {
            return own;
        }
        own.max(above.min(self.session.largest_grace_period()))
    }

    /// Has this leadership rest on another, which the other keeps: it is over when the other is, and the other is given
    /// back only when the entry of this one has gone.
    pub(crate) fn rest_on(self: &Arc<Self>, base: Leadership) {
        let below = base.term();
        let asked = self.tier_budget(Duration::ZERO);
        if below.tier_budget(asked) < asked {
            warn!(election = %self.election(), base = %below.election(), asked = %humantime::format_duration(asked),
                kept = %humantime::format_duration(below.tier_budget(asked)),
                "the session below allows less time for work to stop");
        }
        if self.rare().base.set(Arc::clone(&below)).is_ok() {
            // It rests on a guard, of which there is one.
            let _ = below.rare().above.set(Arc::downgrade(self));
            let term = Arc::clone(self);
            let lower = Arc::clone(&below);
            self.session.shared.runtime.spawn_tracked(&self.session.entries, async move {
                tokio::select! {
                    () = term.departed.wait() => {}
                    // A leadership below that ends alone says so itself.
                    () = lower.session.stop.cancelled() => {
                        lower.end_above();
                        term.departed.wait().await;
                    }
                }
                drop(base);
            });
        } else if let Some(own) = self.base() {
            // One rests on the other, all the way down.
            own.rest_on(base);
        }
        // Both watchdogs look at both, whatever the runtime does.
        for term in [self, &below] {
            term.session.attend(term);
            term.session.shared.watchdog.wake();
        }
    }

    /// Ends what rests on this leadership, which is over.
    fn end_above(&self) {
        let above = self.rare.get().and_then(|rare| rare.above.get()?.upgrade());
        let Some(above) = above else { return };
        above.lose(LossReason::ParentLost);
        // Work that was told to stop before may have less time now.
        above.session.shared.watchdog.wake();
    }

    /// The leadership that this one rests on.
    pub(crate) fn base(&self) -> Option<&Arc<Self>> {
        self.rare.get()?.base.get()
    }

    /// The latest instant at which leadership may be assumed, as things stand.
    pub(crate) fn deadline(&self) -> BootInstant {
        let own = self.session.window.deadline();
        self.base().map_or(own, |base| own.min(base.deadline()))
    }

    /// When the grace period before the deadline begins, as things stand.
    pub(super) fn closes(&self, above: Duration) -> BootInstant {
        let budget = self.tier_budget(above);
        let own = self.session.window.deadline() - budget;
        self.base().map_or(own, |base| own.min(base.closes(budget)))
    }

    /// Ends this leadership, not its session: the first reason stays. Work is told to stop, and the entry removed once it has.
    pub(crate) fn lose(self: &Arc<Self>, reason: LossReason) {
        self.end(reason, false);
    }

    /// The guard has gone, and with it the leadership, for `reason` unless it is over already: no work begins any more.
    pub(crate) fn release(self: &Arc<Self>, reason: LossReason) {
        self.end(reason, true);
    }

    fn end(self: &Arc<Self>, reason: LossReason, guard_has_gone: bool) {
        let ends = self.ended().is_none() && self.ended.set(self.session.end_now(reason));
        if guard_has_gone {
            self.works.close();
        }
        if ends || guard_has_gone {
            // Where there is no work, there is nothing to wait for then.
            self.session.tell(Notice::Over(self.number()));
        }
        if ends {
            self.cancel(reason.is_over_in_the_store());
            if !self.works.is_empty() {
                self.session.shared.watchdog.wake();
            }
        }
        // Also when it ended with its session, of which nobody else has told.
        self.end_above();
        self.tell_over();
    }

    /// Nobody looks after the entry any more; `confirmed` says whether it is gone.
    pub(crate) fn set_departed(&self, confirmed: bool) {
        self.departure_confirmed.store(confirmed, Ordering::Release);
        self.departed.set();
    }

    /// As [`wait_departed`](Self::wait_departed), if that is so already.
    pub(crate) fn departure(self: &Arc<Self>) -> Option<bool> {
        Arc::clone(self).wait_departed().now_or_never()
    }

    /// Waits until nobody looks after the entry any more, nor after those of the leaderships below; whether they are gone.
    pub(crate) async fn wait_departed(self: Arc<Self>) -> bool {
        let mut confirmed = true;
        let mut next = Some(&self);
        while let Some(term) = next {
            tokio::select! {
                () = term.departed.wait() => {}
                () = term.session.closed.wait() => {}
            }
            confirmed &= match term.session.ended() {
                // The entry has gone with its session, at the latest.
                Some(_) => term.session.wait_closed().await,
                None => term.departure_confirmed.load(Ordering::Acquire),
            };
            next = term.base();
        }
        confirmed
    }

    /// Tells, once, that the leadership is over, when it is.
    pub(crate) fn tell_over(&self) {
        let Some(reason) = self.reason() else { return };
        if self.told.swap(true, Ordering::AcqRel) {
            return;
        }
        let reporter = &self.session.shared.reporter;
        reporter.measured(|| telemetry::leadership_lost(self.election(), reason));
        let (election, candidate) = (self.election().clone(), self.candidate().clone());
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

    /// Drops work that was told to stop before.
    pub(crate) fn drop_work(self: &Arc<Self>) {
        self.rare().drop_now.set();
    }

    /// The instant by which work has to have stopped; [`BootInstant::NEVER`] while the leadership stands.
    pub(crate) fn stop_by(&self) -> BootInstant {
        let own = self.ended().map_or(BootInstant::NEVER, |end| end.stop_by);
        self.base().map_or(own, |base| own.min(base.last_instant()))
    }

    /// The instant by which work on top of this leadership has to have stopped.
    fn last_instant(&self) -> BootInstant {
        self.stop_by().min(self.deadline())
    }

    /// The time before the deadline that is kept for work to stop, whichever tier's deadline that is.
    pub(crate) fn grace_period(&self) -> Duration {
        self.kept_for(Duration::ZERO)
    }

    fn kept_for(&self, above: Duration) -> Duration {
        let own = self.tier_budget(above);
        self.base().map_or(own, |base| own.min(base.kept_for(own)))
    }

    /// The largest grace period that work can ask for, and the TTL that bounds it.
    pub(crate) fn largest_grace_period(&self) -> (Duration, Duration) {
        let own = (self.session.largest_grace_period(), self.session.spi.granted_ttl());
        self.base().map_or(own, |base| own.min(base.largest_grace_period()))
    }

    fn own_budget(&self) -> Duration {
        Duration::from_nanos(self.budget.load(Ordering::Acquire))
    }

    /// Asks for at least `budget` to stop in.
    pub(crate) fn raise_budget(self: &Arc<Self>, budget: Duration) {
        let nanos = u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX);
        if self.budget.fetch_max(nanos, Ordering::AcqRel) < nanos {
            self.session.attend(self);
            self.session.shared.watchdog.wake();
        }
    }
}
