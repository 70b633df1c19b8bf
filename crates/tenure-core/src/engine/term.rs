//! One leadership, as its guard, its handles, its task and the watchdog share it.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock, Weak},
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt as _;
use once_cell::race::OnceBox;
use tokio_util::sync::CancellationToken;
use tracing::{Level, error, info, info_span, warn};

use super::{
    abort::AbortSlot,
    callbacks::contained,
    leading::Notice,
    session::{End, Live, Session},
    works::{Polling, Whose, Works},
};
use crate::{
    CandidateId, ElectionName, FencingToken, Leadership, LossReason, Lost, Moment, OnOverrun, Overrun,
    mutants::{Rule, broken},
    spi::{Entry, EntryRequest},
    sync::{
        Flag, Latch,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    },
    telemetry,
};

#[derive(Debug)]
// What every check reads comes first, and lies together: with ten thousand leaderships none of it is in the processor's cache.
#[repr(C)]
pub(crate) struct Term {
    pub(crate) session: Arc<Session>,
    ended: Latch<End>,
    /// The largest stop budget that work under way has asked for, in nanoseconds.
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
struct Rare {
    /// Cancelled when work is to stop. Users have its children, whose wakers are called when it is cancelled.
    stop: CancellationToken,
    /// Set when the leadership is over.
    over: Flag,
    /// Set when work is to be dropped.
    drop_now: Flag,
    /// The leadership that this one rests on, which it cannot outlive.
    base: OnceLock<Arc<Term>>,
    /// The one that rests on this.
    above: OnceLock<Weak<Term>>,
    /// When the watchdog had the work dropped.
    dropped_at: Latch<Moment>,
    /// When a poll found that its work was to be dropped, and dropped it; zero before that.
    discarded_at: AtomicU64,
    overrun_reported: AtomicBool,
    /// How much work is being polled at this moment, or dropped.
    polled: Polled,
}

/// Where work that is being polled is counted.
#[derive(Debug)]
enum Polled {
    Here(AtomicUsize),
    /// Where the thread sees it that aborts the process.
    ForAbort(AbortSlot),
}

impl Polled {
    fn count(&self) -> &AtomicUsize {
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
            ended: Latch::new(),
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

    fn rare(self: &Arc<Self>) -> &Rare {
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
                dropped_at: Latch::new(),
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
            if broken(Rule::OneReason) {
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
            Some(base) if !base.carries(self.tier_budget(Duration::ZERO)) => Err(LossReason::Base),
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
        own.max(above.min(self.session.largest_stop_budget()))
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
        above.lose(LossReason::Base);
        // Work that was told to stop before may have less time now.
        above.session.shared.watchdog.wake();
    }

    /// The leadership that this one rests on.
    pub(crate) fn base(&self) -> Option<&Arc<Self>> {
        self.rare.get()?.base.get()
    }

    /// The latest instant at which leadership may be assumed, as things stand.
    pub(crate) fn deadline(&self) -> Moment {
        let own = self.session.window.deadline();
        self.base().map_or(own, |base| own.min(base.deadline()))
    }

    /// When the stop budget before the deadline begins, as things stand.
    fn closes(&self, above: Duration) -> Moment {
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
        reporter.measured(|| telemetry::leads_no_more(self.election(), reason));
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

    /// The instant by which work has to have stopped; [`Moment::NEVER`] while the leadership stands.
    pub(crate) fn stop_by(&self) -> Moment {
        let own = self.ended().map_or(Moment::NEVER, |end| end.stop_by);
        self.base().map_or(own, |base| own.min(base.last_instant()))
    }

    /// The instant by which work on top of this leadership has to have stopped.
    fn last_instant(&self) -> Moment {
        self.stop_by().min(self.deadline())
    }

    /// The time before the deadline that is kept for work to stop, whichever tier's deadline that is.
    pub(crate) fn stop_budget(&self) -> Duration {
        self.kept_for(Duration::ZERO)
    }

    fn kept_for(&self, above: Duration) -> Duration {
        let own = self.tier_budget(above);
        self.base().map_or(own, |base| own.min(base.kept_for(own)))
    }

    /// The largest stop budget that work can ask for, and the TTL that bounds it.
    pub(crate) fn largest_stop_budget(&self) -> (Duration, Duration) {
        let own = (self.session.largest_stop_budget(), self.session.spi.granted_ttl());
        self.base().map_or(own, |base| own.min(base.largest_stop_budget()))
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

    /// Does what is due, for the watchdog, and says when to look again.
    pub(crate) fn check_deadlines(self: &Arc<Self>) -> Option<Moment> {
        if broken(Rule::CompareTheClock) || broken(Rule::CloseForGood) {
            return None;
        }
        if self.check().is_ok() {
            return Some(self.closes(Duration::ZERO));
        }
        if self.works.is_empty() {
            return None;
        }
        let now = self.session.shared.clock.now();
        let stop_by = self.stop_by();
        let margin = self.session.drop_margin();
        if now < stop_by - margin {
            return Some(stop_by - margin);
        }
        let rare = self.rare();
        let first = rare.dropped_at.set(now);
        if first {
            self.drop_work();
        }
        // A process that was stopped wakes up past its deadline: its work is dropped at its next poll, which has to be given
        // the chance to come, and the time to do that.
        let dropped = rare.dropped_at.get().unwrap_or(now);
        let discarded = Moment::from_nanos(rare.discarded_at.load(Ordering::Acquire));
        let overrun_at = stop_by.max(dropped.max(discarded) + margin);
        if let Polled::ForAbort(slot) = &rare.polled {
            slot.arm(overrun_at);
            // No poll has begun since the work was to be dropped: one that goes on now is a long one. It is reported before the
            // deadline, for nothing is after that.
            let report_at = dropped.max(discarded) + margin / 2;
            if now < report_at {
                return Some(report_at);
            }
            if slot.polled().load(Ordering::SeqCst) > 0 && !rare.overrun_reported.swap(true, Ordering::AcqRel)
            {
                self.report_overrun(
                    "work does not stop; the process is aborted at the deadline if it still has not",
                );
            }
            return (now < overrun_at).then_some(overrun_at);
        }
        if now < overrun_at {
            return Some(overrun_at);
        }
        // Work that nobody polls does nothing, and is dropped with its next poll.
        if rare.polled.count().load(Ordering::SeqCst) > 0
            && !rare.overrun_reported.swap(true, Ordering::AcqRel)
        {
            self.overrun();
        }
        None
    }

    /// Work has gone on past its last instant: it blocks its thread, or the runtime is blocked.
    fn overrun(&self) {
        self.report_overrun(
            "work has not stopped by the deadline; only its fencing token protects the resource now",
        );
        let shared = &self.session.shared;
        match &shared.config.on_overrun {
            OnOverrun::Log => {}
            OnOverrun::Hook(hook) => {
                let (hook, election) = (Arc::clone(hook), self.election().clone());
                let overrun = Overrun { election: election.clone(), token: self.token };
                let reporter = shared.reporter.clone();
                shared.callbacks.defer(move || {
                    if contained(|| hook(&overrun)).is_none() {
                        reporter
                            .log(Level::ERROR, move || error!(%election, "the overrun hook has panicked"));
                    }
                });
            }
            // In simulated time; otherwise a thread of its own does that.
            OnOverrun::Abort => std::process::abort(),
        }
    }

    fn report_overrun(&self, what: &'static str) {
        let reporter = &self.session.shared.reporter;
        reporter.measured(|| telemetry::overrun(self.election()));
        let (election, candidate) = (self.election().clone(), self.candidate().clone());
        let token = self.token.get();
        reporter.log(Level::ERROR, move || error!(%election, %candidate, token, "{what}"));
    }

    /// Runs `work` until it returns, or the leadership's last instant has come.
    ///
    /// The loss is polled before the work, so that work which was not polled for a while is
    /// dropped rather than resumed.
    pub(crate) async fn run<F: Future>(self: &Arc<Self>, work: F) -> Result<F::Output, Lost> {
        // Counted first: whoever ends the leadership after the check waits for this work.
        let _begun = self.works.begin();
        let rare = self.rare();
        self.check()?;
        // So that whatever the work logs says under which token.
        let span = info_span!("leadership", election = %self.election(), candidate = %self.candidate(), token = self.token.get());
        let mut drop_now = self.session.shared.runtime.relayed(rare.drop_now.wait());
        let mut work = Some(Work::new(self, work));
        std::future::poll_fn(|context| {
            // Counted before the clock is read: whoever sees no poll after the last instant knows that none begins.
            let _polling = self.polling();
            let over = drop_now.poll_unpin(context).is_ready() || self.is_past_the_last_instant();
            if over && !broken(Rule::DropWork) {
                let reason = self.reason().unwrap_or(LossReason::Deadline);
                self.discard(work.take());
                return Poll::Ready(Err(Lost::new(reason)));
            }
            let _span = span.enter();
            work.as_mut().map_or(Poll::Pending, |work| work.poll(context)).map(Ok)
        })
        .await
    }

    /// Drops work in its poll. That may block, too, and late: the watchdog looks again.
    fn discard<F>(self: &Arc<Self>, work: Option<Work<'_, F>>) {
        let shared = &self.session.shared;
        self.rare().discarded_at.store(shared.clock.now().as_nanos(), Ordering::Release);
        shared.watchdog.wake();
        drop(work);
    }

    fn polling(self: &Arc<Self>) -> Polling<'_> {
        Polling::begin(self.rare().polled.count(), self.chain().map(|term| term.whose()))
    }

    /// This leadership, and those that it rests on.
    fn chain(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Self>> {
        std::iter::successors(Some(self), |term| term.base())
    }

    fn whose(self: &Arc<Self>) -> Whose {
        (Arc::as_ptr(self).addr(), Arc::as_ptr(&self.session.shared).addr())
    }

    /// Whether what calls this is work of this leadership, of one that it rests on or of one on top of it: whoever waited for its
    /// end there would wait for itself.
    pub(crate) fn is_called_by_its_work(self: &Arc<Self>) -> bool {
        Polling::any(|(polled, _)| self.chain().any(|term| term.whose().0 == polled))
    }

    fn is_past_the_last_instant(self: &Arc<Self>) -> bool {
        self.check().is_err()
            && self.session.shared.clock.now() >= self.stop_by() - self.session.drop_margin()
    }

    /// Waits until all work has stopped and the guard has gone, at most until the last instant.
    pub(crate) async fn wait_stopped(&self) {
        tokio::select! {
            biased;
            () = self.works.wait() => {}
            () = self.session.shared.clock.sleep_until(self.stop_by()) => {}
        }
    }
}

/// Work whose drop counts as a poll: it may block as well.
struct Work<'a, F> {
    term: &'a Arc<Term>,
    work: Option<Pin<Box<F>>>,
}

impl<'a, F: Future> Work<'a, F> {
    fn new(term: &'a Arc<Term>, work: F) -> Self {
        Self { term, work: Some(Box::pin(work)) }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<F::Output> {
        match &mut self.work {
            Some(work) => work.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}

impl<F> Drop for Work<'_, F> {
    fn drop(&mut self) {
        let _polling = self.term.polling();
        drop(self.work.take());
    }
}
