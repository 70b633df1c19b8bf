//! The work under a leadership: run, told to stop, dropped in time, and reported when it goes on all the same.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt as _;
use tracing::{Level, error, info_span};

use super::{
    callbacks::contained,
    term::{Polled, Term},
    works::{Polling, Whose},
};
use crate::{
    BootInstant, LossReason, Lost, OnOverrun, Overrun,
    failpoints::{SafetyRule, is_disabled},
    sync::atomic::Ordering,
    telemetry,
};

impl Term {
    /// Does what is due, for the watchdog, and says when to look again.
    pub(crate) fn check_deadlines(self: &Arc<Self>) -> Option<BootInstant> {
        if is_disabled(SafetyRule::CheckClock) || is_disabled(SafetyRule::NeverReopenWindow) {
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
        let discarded = BootInstant::from_nanos(rare.discarded_at.load(Ordering::Acquire));
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
        reporter.measured(|| telemetry::work_overran(self.election()));
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
            if over && !is_disabled(SafetyRule::DropWorkAtDeadline) {
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
